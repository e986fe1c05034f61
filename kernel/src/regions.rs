//! Which free memory is on which node: the loader's map says what is free, the firmware's tables say
//! where it is.

/// Bytes from `start` up to, not including, `end`, all on `node`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnNode {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// The node's number.
    pub node: usize,
}

/// Cuts `start..end` at the borders of `ranges`, which need not be in order, and calls `put` with
/// each piece, upwards. What no range covers belongs to node 0.
pub fn cut(start: u64, end: u64, ranges: impl Iterator<Item = OnNode> + Clone, mut put: impl FnMut(OnNode)) {
    let mut at = start;
    while at < end {
        let covers = |range: &OnNode| range.start <= at && at < range.end;
        let (node, stop) = match ranges.clone().find(covers) {
            Some(range) => (range.node, range.end),
            None => {
                let next = ranges.clone().map(|range| range.start).filter(|&border| border > at);
                (0, next.min().unwrap_or(end))
            }
        };
        let stop = stop.min(end);
        put(OnNode { start: at, end: stop, node });
        at = stop;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(start: u64, end: u64, ranges: &[(u64, u64, usize)]) -> Vec<(u64, u64, usize)> {
        let ranges = ranges.iter().map(|&(start, end, node)| OnNode { start, end, node });
        let mut out = Vec::new();
        cut(start, end, ranges, |piece| out.push((piece.start, piece.end, piece.node)));
        out
    }

    #[test]
    fn memory_is_cut_where_its_node_changes() {
        let ranges = [(0x4000, 0x8000, 1), (0, 0x4000, 0)];
        assert_eq!(pieces(0x1000, 0x6000, &ranges), [(0x1000, 0x4000, 0), (0x4000, 0x6000, 1)]);
        assert_eq!(pieces(0x4000, 0x5000, &ranges), [(0x4000, 0x5000, 1)]);
    }

    #[test]
    fn memory_that_no_table_names_is_on_node_0_and_is_not_lost() {
        assert_eq!(pieces(0x1000, 0x2000, &[]), [(0x1000, 0x2000, 0)]);
        let ranges = [(0x2000, 0x3000, 2)];
        assert_eq!(pieces(0x1000, 0x5000, &ranges), [(0x1000, 0x2000, 0), (0x2000, 0x3000, 2), (0x3000, 0x5000, 0)]);
    }

    #[test]
    fn nothing_is_cut_from_nothing() {
        assert_eq!(pieces(0x1000, 0x1000, &[(0, 0x8000, 1)]), []);
    }
}
