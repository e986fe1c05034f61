//! Reporting quiescent states up the tree.
//!
//! The path of one report: clear the bit in the leaf; if that was the leaf's last bit and no blocked reader is left
//! there, clear the leaf's bit in its parent; and so on; the last one at the root ends the grace period's wait. Each node's
//! lock is dropped before the parent's is taken (TREE-1); in between the grace period cannot end, because the
//! parent's bit still stands.
//!
//! Invariant REP-1: a report names the grace period that it is for. A node that has gone on to another one ignores
//! it, so a report that was on its way for long cannot count for the wrong grace period.
//!
//! Ordering: the locks carry everything seen before a report to whoever reports last (ORD-3).
//! Answers to Linux kernel/rcu/tree.c (`rcu_report_qs_rnp`, `rcu_report_unblock_qs_rnp`); rows.

use sync::{ATOMIC, SpinIrqGuard};

use crate::gp;
#[cfg(loom)]
use crate::model::sync;
use crate::seq::Seq;
use crate::tree::{Node, NodeState};

/// Reports the children `mask` of `node`, whose lock is held, for the grace period `gp`.
///
/// Context: any but NMI, interrupts off by the lock. May wake the grace-period thread, after the last lock is dropped.
pub(crate) fn report(node: &'static Node, state: SpinIrqGuard<'_, NodeState>, mask: u64, gp: Seq) {
    let (mut node, mut state, mut mask) = (node, state, mask);
    loop {
        // REP-1, and idempotence: somebody else may have reported the same children.
        if node.gp_seq.current() != gp || state.qsmask & mask == 0 {
            return;
        }
        state.qsmask &= !mask;
        sync::trace!("rcu.qs_report", gp = gp.raw(), node = node.trace_id(), mask = mask, left = state.qsmask);
        if state.qsmask != 0 || state.blkd.blocks_gp() {
            return;
        }
        drop(state);
        let Some(parent) = node.parent() else {
            gp::root_is_clear(gp);
            return;
        };
        mask = node.place.grpmask;
        node = parent;
        state = node.lock(ATOMIC);
    }
}

/// The last blocked reader has left leaf `node`, whose lock is held: goes on upwards if no CPU is missing there.
///
/// Context: as [`report`].
pub(crate) fn report_unblocked(node: &'static Node, state: SpinIrqGuard<'_, NodeState>) {
    if state.qsmask != 0 || state.blkd.blocks_gp() {
        return;
    }
    // Under the leaf's lock a leaf that had blockers is in a running grace period, and this is its number (TREE-2).
    let gp = node.gp_seq.current();
    drop(state);
    match node.parent() {
        Some(parent) => report(parent, parent.lock(ATOMIC), node.place.grpmask, gp),
        None => gp::root_is_clear(gp),
    }
}
