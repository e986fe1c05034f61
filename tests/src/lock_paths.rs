//! What the lock checker has seen taken inside of a lock, directly or by way of others.

use alloc::vec::Vec;

/// The classes of locks that were taken inside of `outer`, which is the first, or inside of one of them. In builds without
/// lock checks: `outer` alone.
pub(crate) fn inside_of(outer: &'static str) -> Vec<&'static str> {
    // The checker's lock is held while it tells: nothing is allocated then.
    let mut edges: Vec<(&str, &str)> = Vec::with_capacity(1_000);
    sync::lock_order::for_each_edge(|outer, inner| {
        if edges.len() < edges.capacity() {
            edges.push((outer, inner));
        }
    });
    let mut inside = alloc::vec![outer];
    let mut at = 0;
    while at < inside.len() {
        let outer = inside[at];
        for &(_, inner) in edges.iter().filter(|edge| edge.0 == outer) {
            if !inside.contains(&inner) {
                inside.push(inner);
            }
        }
        at += 1;
    }
    inside
}
