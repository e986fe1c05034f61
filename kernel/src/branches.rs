//! Draws a tree whose nodes stand for ranges of CPUs, as RCU's combining tree does.

use alloc::string::String;
use alloc::vec::Vec;

/// A node: its level, 0 for the root, and its first and last CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Level.
    pub level: usize,
    /// First CPU.
    pub first: usize,
    /// Last CPU.
    pub last: usize,
}

impl Span {
    fn is_child_of(&self, parent: &Span) -> bool {
        self.level == parent.level + 1 && parent.first <= self.first && self.last <= parent.last
    }
}

/// The nodes in the order in which they are drawn, each with what stands in front of it. `spans` begins with the root.
pub fn draw(spans: &[Span]) -> Vec<(usize, String)> {
    let mut lines = Vec::with_capacity(spans.len());
    if !spans.is_empty() {
        lines.push((0, String::new()));
        draw_below(spans, 0, "", &mut lines);
    }
    lines
}

fn draw_below(spans: &[Span], parent: usize, margin: &str, lines: &mut Vec<(usize, String)>) {
    let children = || spans.iter().enumerate().filter(|(_, span)| span.is_child_of(&spans[parent]));
    let last = children().next_back().map(|(index, _)| index);
    for (index, _) in children() {
        let (branch, below) = if Some(index) == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        lines.push((index, [margin, branch].concat()));
        draw_below(spans, index, &[margin, below].concat(), lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    fn drawn(spans: &[(usize, usize, usize)]) -> Vec<String> {
        let spans: Vec<Span> = spans.iter().map(|&(level, first, last)| Span { level, first, last }).collect();
        draw(&spans).iter().map(|(at, front)| format!("{front}{}-{}", spans[*at].first, spans[*at].last)).collect()
    }

    #[test]
    fn a_tree_of_three_levels_is_drawn_depth_first_with_its_branches() {
        let spans = [(0, 0, 7), (1, 0, 3), (1, 4, 7), (2, 0, 1), (2, 2, 3), (2, 4, 5), (2, 6, 7)];
        let lines = drawn(&spans);
        assert_eq!(lines, ["0-7", "├─ 0-3", "│  ├─ 0-1", "│  └─ 2-3", "└─ 4-7", "   ├─ 4-5", "   └─ 6-7"]);
    }

    #[test]
    fn a_root_alone_is_a_line_and_nothing_is_none() {
        assert_eq!(drawn(&[(0, 0, 0)]), ["0-0"]);
        assert!(drawn(&[]).is_empty());
    }

    #[test]
    fn a_child_with_all_of_its_parents_cpus_is_drawn_once() {
        assert_eq!(drawn(&[(0, 0, 1), (1, 0, 1), (2, 0, 0), (2, 1, 1)]), ["0-1", "└─ 0-1", "   ├─ 0-0", "   └─ 1-1"]);
    }
}
