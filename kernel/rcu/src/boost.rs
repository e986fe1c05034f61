//! Boosting: a reader that lost its CPU and holds a grace period up gets one.
//!
//! A reader of low priority that was preempted inside its section may not run for as long as something more urgent does,
//! and no grace period ends meanwhile. So after a while such readers run at [`config::kthread_prio`], until their
//! outermost unlock:
//!
//! | grace period | who looks | when |
//! |---|---|---|
//! | normal | its thread, after each scan | from [`boost_delay`] after the start on (`grange.rcu_boost_delay`, 500 ms) |
//! | expedited | the thread that asked for it, or serves those who did, at each tick of its wait | from a tenth of that on |
//!
//! `boost_tasks`, the third pointer of the list of blocked readers, says how far down its list a leaf's walk has come
//! ([`BlockedList`](crate::blkd::BlockedList)), since the walk drops the leaf's lock at each reader.
//!
//! # Raising somebody who is leaving
//!
//! Levels are changed under a run-queue lock, which is not taken inside a node lock (TREE-1). So who decides that a reader
//! is to be raised has dropped the node lock when it does so, and the reader may have left its section by then, may have
//! exited, and its `Thread` may be another thread already. Therefore nobody hands a level to the scheduler. There is a
//! *mark*, [`ThreadRcu::boost`](sched::thread::ThreadRcu::boost), and [`sched::follow_boost`] makes the level what the mark
//! says when it has the run-queue lock:
//!
//! | | under the node lock | then, with no lock held |
//! |---|---|---|
//! | raise ([`look`]) | the thread is on the list: set the mark | `follow_boost` |
//! | end ([`end`]) | the thread leaves the list: clear the mark | `follow_boost`, if there was one |
//!
//! Invariants
//! - BST-1: the mark is set only while the thread is on a list of blocked readers. Both are under the same lock, and RD-1 sends
//!   every such reader through the special path, which clears it. So an exited thread has none.
//! - BST-2: once all calls under way have returned, the level is what the mark says. For whoever changed the mark last calls
//!   `follow_boost` after that, and every call whose turn at the run-queue lock comes later reads the same mark: of two that
//!   overtake each other the second does nothing. A late one that finds another tenant, or the same thread in a later
//!   section, makes that one's level what *its* mark says, which it is to be anyway.
//! - BST-3: a thread's own level is not RCU's to put back. [`sched::set_prio`] during a boost sets it, and the thread runs
//!   at the higher of the two. So there is nothing to restore, and nothing that restoring could undo. A mutex
//!   goes to the waiter whose level is highest at that moment; a boosted thread is in a reader and waits for none.
//!
//! Answers to Linux kernel/rcu/tree_plugin.h (`rcu_boost`, `rcu_initiate_boost`), where a thread for each leaf lends its
//! priority through a mutex that it pretends the reader holds; row R-13.

use core::sync::atomic::{AtomicU64, Ordering};

use arch::clock;
use sched::Thread;
use sync::{ATOMIC, bug};

use crate::config;
use crate::mode::Kind;
use crate::tree::{Node, tree};

/// Readers raised so far.
pub(crate) static COUNT: AtomicU64 = AtomicU64::new(0);

/// The share of the delay after which an expedited grace period is held up for too long.
const EXPEDITED_SHARE: u64 = 10;

/// Milliseconds; 0 is never. Set from the command line by [`init`].
static DELAY_MS: AtomicU64 = AtomicU64::new(0);

/// Takes the delay from the command line. Context: boot.
pub(crate) fn init() {
    set_boost_delay(u64::from(config::BOOST_DELAY.get()));
}

/// Has readers boosted that hold a normal grace period up for so many milliseconds, or an expedited one for a tenth of that;
/// 0: none from now on. Readers that are boosted already stay so until their end.
///
/// A boosted reader that waits for another thread, which no reader should, keeps its CPU from that thread.
///
/// Context: any.
pub fn set_boost_delay(ms: u64) {
    DELAY_MS.store(ms, Ordering::Relaxed);
}

/// The milliseconds of [`set_boost_delay`].
///
/// Context: any.
pub fn boost_delay() -> u64 {
    DELAY_MS.load(Ordering::Relaxed)
}

/// Raises the preempted readers that the running grace period of `kind` waits for, if it began long enough ago, at
/// `begin_ns`.
///
/// Context: task. One short hold of the leaf's lock for each reader, and one of its run queue's.
pub(crate) fn look(kind: Kind, begin_ns: u64) {
    let patience_ns = match kind {
        Kind::Normal => boost_delay() * 1_000_000,
        Kind::Expedited => boost_delay() * 1_000_000 / EXPEDITED_SHARE,
    };
    if boost_delay() == 0 || clock::now_ns() < begin_ns + patience_ns {
        return;
    }
    for leaf in tree().leaves() {
        leaf.lock(ATOMIC).blkd.start_boost(kind);
        while let Some((thread, is_new)) = mark_next(leaf) {
            if is_new {
                COUNT.fetch_add(1, Ordering::Relaxed);
                sched::follow_boost(thread);
            }
        }
    }
}

/// Marks the next reader of the walk through `leaf`'s list; says whether it had no mark.
fn mark_next(leaf: &Node) -> Option<(&'static Thread, bool)> {
    let level = config::kthread_prio().level() as u8;
    let mut state = leaf.lock(ATOMIC);
    let thread = state.blkd.next_to_boost()?;
    // Relaxed, here and in `end`: under the leaf's lock (BST-1); for the scheduler see BST-2.
    Some((thread, thread.rcu.boost.swap(level, Ordering::Relaxed) != level))
}

/// The reader leaves the list, whose lock the caller holds. True: call [`sched::follow_boost`] when it is dropped.
pub(crate) fn end(thread: &Thread) -> bool {
    let boosted = thread.rcu.boost.load(Ordering::Relaxed) != 0;
    if boosted && !bug!("rcu.boost_kept", "a boosted reader keeps its level when its section ends", "rcu_boost.*") {
        thread.rcu.boost.store(0, Ordering::Relaxed);
    }
    boosted
}
