//! A grace period on its way up the tree: the one of a trace that had the most CPUs to wait for.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::trace::Trace;
use crate::trace::memory::Event;

use super::lanes::{Bar, Lanes};
use super::nothing;

/// The node that a trace names by its level and CPUs (`Node::trace_id`), ordered by these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Node {
    level: u64,
    cpus: (u64, u64),
}

impl Node {
    fn new(id: u64) -> Node {
        Node { level: id >> 32, cpus: (id >> 16 & 0xffff, id & 0xffff) }
    }

    fn is_child_of(&self, parent: &Node) -> bool {
        self.level == parent.level + 1 && parent.cpus.0 <= self.cpus.0 && self.cpus.1 <= parent.cpus.1
    }

    fn name(&self) -> String {
        let what = if self.level == 0 { "root" } else { "node" };
        format!("{what} {}-{}", self.cpus.0, self.cpus.1)
    }
}

/// The figure.
///
/// # Errors
/// `Incomplete` if no grace period is in the trace from its start to its end.
pub fn lanes(trace: &Trace) -> anyhow::Result<Lanes> {
    let gp = busiest(trace).ok_or_else(|| nothing("whole grace period"))?;
    let events: Vec<&Event> = trace.events.iter().filter(|event| trace.value(event, "gp") == Some(gp)).collect();
    let named = |name: &'static str| events.iter().filter(move |event| trace.name(event) == name).copied();
    let (start, end) = (first(named("rcu.gp_start"))?, first(named("rcu.gp_end"))?);
    let ms = |event: &Event| (event.at_ns - start.at_ns) as f64 / 1e6;
    let node = |event: &Event| trace.value(event, "node").map(Node::new);

    // The tree: nodes from the root down, then CPUs.
    let nodes: BTreeSet<Node> = events.iter().filter_map(|event| node(event)).collect();
    let cpus = nodes.iter().map(|node| node.cpus.1 + 1).max().unwrap_or(0) as usize;
    let nodes: Vec<Node> = nodes.into_iter().collect();
    let lane_of = |wanted: &Node| 1 + nodes.iter().position(|node| node == wanted).unwrap_or(0);
    let cpu_lane = |cpu: usize| 1 + nodes.len() + cpu;
    let mut figure = Lanes {
        title: format!("Grace period {}: {cpus} CPUs, {:.1} ms from its start to its end", (gp as i64) >> 2, ms(end)),
        axis: "ms",
        lanes: std::iter::once("its thread".to_owned())
            .chain(nodes.iter().map(Node::name))
            .chain((0..cpus).map(|cpu| format!("CPU {cpu}")))
            .collect(),
        colors: vec!["has not noticed it", "owes a quiescent state", "waits for what is below", "works"],
        ..Lanes::default()
    };

    // The thread: set-up, waiting, clean-up; a dot for each look at CPUs that have not reported.
    let (wait, clean) = (first(named("rcu.gp_wait"))?, first(named("rcu.gp_cleanup"))?);
    for (from, to, color, text) in [(start, wait, 3, ""), (wait, clean, 2, "looks at CPUs:"), (clean, end, 3, "")] {
        figure.bars.push(Bar { lane: 0, span: (ms(from), ms(to)), color, text: text.to_owned() });
    }
    figure.dots.extend(named("rcu.fqs").map(|look| (ms(look), 0)));

    // Reports: from a CPU, or from a node that has nothing left, to the node above.
    let mut carried_on = BTreeMap::new();
    for report in named("rcu.qs_report") {
        let (Some(at), Some(mask)) = (node(report), trace.value(report, "mask")) else { continue };
        let children = nodes.iter().filter(|node| node.is_child_of(&at)).map(lane_of);
        let below: Vec<usize> = match children.collect::<Vec<_>>() {
            children if children.is_empty() => (at.cpus.0..=at.cpus.1).map(|cpu| cpu_lane(cpu as usize)).collect(),
            children => children,
        };
        for (_, lane) in below.iter().enumerate().filter(|(bit, _)| mask & 1 << bit != 0) {
            figure.lines.push((ms(report), *lane, lane_of(&at)));
            carried_on.insert(*lane, ms(report));
        }
        figure.dots.push((ms(report), lane_of(&at)));
    }

    // What each lane waits for: a node until it is reported to the one above, as a blocked reader may keep it waiting when
    // its CPUs have all reported.
    for node_at in &nodes {
        let leaf = named("rcu.gp_leaf").find(|event| node(event) == Some(*node_at));
        let last = named("rcu.qs_report").rfind(|event| node(event) == Some(*node_at));
        if let Some(last) = last {
            let lane = lane_of(node_at);
            let span = (ms(leaf.unwrap_or(start)), carried_on.get(&lane).copied().unwrap_or(ms(last)));
            figure.bars.push(Bar { lane, span, color: 2, text: String::new() });
        }
    }
    for cpu in 0..cpus {
        let is_leaf_of = |node: &Node| node.cpus.0 <= cpu as u64 && cpu as u64 <= node.cpus.1;
        let leaf = |event: &&Event| {
            node(event).is_some_and(|node| is_leaf_of(&node) && !nodes.iter().any(|other| other.is_child_of(&node)))
        };
        let bit = |event: &&Event, mask| {
            let low = node(event).map_or(0, |node| node.cpus.0);
            trace.value(event, mask).is_some_and(|mask| mask >> (cpu as u64 - low) & 1 != 0)
        };
        let Some(asked) = named("rcu.gp_leaf").find(|event| leaf(event) && bit(event, "busy")) else { continue };
        let Some(told) = named("rcu.qs_report").find(|event| leaf(event) && bit(event, "mask")) else { continue };
        let noted = named("rcu.gp_noted").find(|event| event.cpu == cpu as u64).map_or(ms(told), ms).min(ms(told));
        for (span, color) in [((ms(asked), noted), 0), ((noted, ms(told)), 1)] {
            figure.bars.push(Bar { lane: cpu_lane(cpu), span, color, text: String::new() });
        }
    }
    Ok(figure)
}

/// The grace period with the most CPUs to wait for, of those that are in the trace as a whole.
fn busiest(trace: &Trace) -> Option<u64> {
    let of = |name: &'static str| {
        let named = trace.events.iter().filter(move |event| trace.name(event) == name);
        named.filter_map(|event| trace.value(event, "gp"))
    };
    let busy = |gp: u64| -> u32 {
        let leaves = trace.events.iter().filter(|event| trace.name(event) == "rcu.gp_leaf");
        let leaves = leaves.filter(|event| trace.value(event, "gp") == Some(gp));
        leaves.filter_map(|event| trace.value(event, "busy")).map(u64::count_ones).sum()
    };
    let whole = of("rcu.gp_start").filter(|gp| of("rcu.gp_end").any(|ended| ended == *gp)).enumerate();
    whole.max_by_key(|&(place, gp)| (busy(gp), Reverse(place))).map(|(_, gp)| gp)
}

fn first<'e>(mut events: impl Iterator<Item = &'e Event>) -> anyhow::Result<&'e Event> {
    events.next().ok_or_else(|| nothing("whole grace period"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::tests::trace;

    #[test]
    fn a_report_is_a_line_from_the_cpu_to_its_node_and_on_to_the_root() {
        const ROOT: u64 = 1;
        const LEAF: u64 = 1 << 32 | 1;
        let gp = ("gp", 5);
        let traced = trace(&[
            (0, 0, "rcu.gp_start", &[gp]),
            (1_000_000, 0, "rcu.gp_leaf", &[gp, ("node", LEAF), ("busy", 2), ("online", 3)]),
            (1_500_000, 0, "rcu.gp_wait", &[gp]),
            (2_000_000, 1, "rcu.gp_noted", &[gp, ("owes", 1)]),
            (3_000_000, 1, "rcu.qs_report", &[gp, ("node", LEAF), ("mask", 2), ("left", 0)]),
            (3_100_000, 1, "rcu.qs_report", &[gp, ("node", ROOT), ("mask", 1), ("left", 0)]),
            (4_000_000, 0, "rcu.gp_cleanup", &[gp]),
            (5_000_000, 0, "rcu.gp_end", &[gp]),
        ]);
        let figure = lanes(&traced).unwrap();
        assert_eq!(figure.title, "Grace period 1: 2 CPUs, 5.0 ms from its start to its end");
        assert_eq!(figure.lanes, ["its thread", "root 0-1", "node 0-1", "CPU 0", "CPU 1"]);
        assert_eq!(figure.lines, [(3.0, 4, 2), (3.1, 2, 1)]);
        let cpu: Vec<_> = figure.bars.iter().filter(|bar| bar.lane == 4).map(|bar| (bar.span, bar.color)).collect();
        assert_eq!(cpu, [((1.0, 2.0), 0), ((2.0, 3.0), 1)]);
    }

    #[test]
    fn a_trace_without_a_whole_grace_period_is_no_figure() {
        assert!(lanes(&trace(&[(0, 0, "rcu.gp_start", &[("gp", 5)])])).is_err());
    }
}
