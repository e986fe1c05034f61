//! The list of readers that were switched out inside a read-side section, one for each leaf.
//!
//! ```text
//!   head ─► t5 ─► t4 ─► t3 ─► t2 ─► t1      newest that block nothing in front, blockers behind
//!                  ▲     ▲     ▲
//!            gp_tasks    │     boost_tasks    a walk that boosts blockers has come this far
//!                     exp_tasks               each: this one and everything behind it blocks that grace period
//! ```
//!
//! So starting a grace period marks all present blockers in constant time (`gp_tasks = head`), and one that leaves
//! moves the pointers to it on by one.
//!
//! Invariants
//! - BLK-1: every reader that blocks a grace period is at or behind that grace period's pointer. One that does not block
//!   it may be there too: harmless, the grace period waits a little longer.
//! - BLK-2: a null pointer means that no reader here blocks (`boost_tasks`: that no walk is under way); a pointer is to a
//!   member of the list.
//!
//! Pure: the caller holds the leaf's lock for every call. Answers to Linux kernel/rcu/tree_plugin.h
//! (`rcu_preempt_ctxt_queue`); row R-13.

use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::mode::Kind;
#[cfg(loom)]
use crate::model::sched;

/// What a member of the list brings along.
pub(crate) trait Linked: Sized {
    /// Towards the tail.
    fn next(&self) -> &AtomicPtr<Self>;
    /// Towards the head.
    fn prev(&self) -> &AtomicPtr<Self>;
}

impl Linked for sched::Thread {
    fn next(&self) -> &AtomicPtr<Self> {
        &self.rcu.blocked_next
    }
    fn prev(&self) -> &AtomicPtr<Self> {
        &self.rcu.blocked_prev
    }
}

/// Which grace periods a reader blocks when it is queued.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Blocks {
    /// The normal one that runs.
    pub(crate) norm: bool,
    /// The expedited one that runs.
    pub(crate) exp: bool,
}

/// See the module documentation. Members are `'static`: threads are type-stable.
pub(crate) struct BlockedList<T: Linked + 'static> {
    head: *mut T,
    tail: *mut T,
    gp_tasks: *mut T,
    exp_tasks: *mut T,
    boost_tasks: *mut T,
}

// SAFETY: the pointers are to `'static` members that may be used from any CPU; the owner's lock excludes others.
unsafe impl<T: Linked + Sync + 'static> Send for BlockedList<T> {}

impl<T: Linked + 'static> BlockedList<T> {
    /// The empty list.
    pub(crate) const fn new() -> Self {
        BlockedList {
            head: ptr::null_mut(),
            tail: ptr::null_mut(),
            gp_tasks: ptr::null_mut(),
            exp_tasks: ptr::null_mut(),
            boost_tasks: ptr::null_mut(),
        }
    }

    /// Whether a reader blocks the normal grace period.
    pub(crate) fn blocks_gp(&self) -> bool {
        !self.gp_tasks.is_null()
    }

    /// Whether a reader blocks the expedited grace period.
    pub(crate) fn blocks_exp(&self) -> bool {
        !self.exp_tasks.is_null()
    }

    /// From now on all members block the normal grace period that begins.
    pub(crate) fn start_gp(&mut self) {
        self.gp_tasks = self.head;
    }

    /// From now on all members block the expedited grace period that begins.
    pub(crate) fn start_exp(&mut self) {
        self.exp_tasks = self.head;
    }

    /// Adds `t`, which is on no list, where it blocks what `blocks` says (BLK-1).
    pub(crate) fn queue(&mut self, t: &'static T, blocks: Blocks) {
        let this = ptr::from_ref(t).cast_mut();
        match blocks {
            Blocks { norm: false, exp: false } => self.insert_before(this, self.head),
            // Before its own kind's first blocker: outside the other kind's range where that is possible.
            Blocks { norm: true, exp: false } if self.blocks_gp() && self.blocks_exp() => {
                self.insert_before(this, self.gp_tasks);
                self.gp_tasks = this;
            }
            Blocks { norm: false, exp: true } if self.blocks_gp() && self.blocks_exp() => {
                self.insert_before(this, self.exp_tasks);
                self.exp_tasks = this;
            }
            // The tail is in every range that exists; a range that does not begins here.
            Blocks { norm, exp } => {
                self.insert_before(this, ptr::null_mut());
                if norm && !self.blocks_gp() {
                    self.gp_tasks = this;
                }
                if exp && !self.blocks_exp() {
                    self.exp_tasks = this;
                }
            }
        }
    }

    /// Removes `t`. Says which grace periods lost their last blocker by it.
    pub(crate) fn remove(&mut self, t: &'static T) -> Blocks {
        let this = ptr::from_ref(t).cast_mut();
        let (next, prev) = (t.next().load(Ordering::Relaxed), t.prev().load(Ordering::Relaxed));
        let was = Blocks { norm: self.blocks_gp(), exp: self.blocks_exp() };
        for first in [&mut self.gp_tasks, &mut self.exp_tasks, &mut self.boost_tasks] {
            if *first == this {
                *first = next;
            }
        }
        *self.next_slot(prev) = next;
        *self.prev_slot(next) = prev;
        t.next().store(ptr::null_mut(), Ordering::Relaxed);
        t.prev().store(ptr::null_mut(), Ordering::Relaxed);
        Blocks { norm: was.norm && !self.blocks_gp(), exp: was.exp && !self.blocks_exp() }
    }

    /// Begins a walk over the blockers of `kind`. Another one that is under way goes on from here too: it may miss some,
    /// which the next one finds.
    pub(crate) fn start_boost(&mut self, kind: Kind) {
        self.boost_tasks = match kind {
            Kind::Normal => self.gp_tasks,
            Kind::Expedited => self.exp_tasks,
        };
    }

    /// The next member of the walk. The lock may be dropped between two.
    pub(crate) fn next_to_boost(&mut self) -> Option<&'static T> {
        // SAFETY: null, or a member, which is 'static (BLK-2).
        let t = unsafe { self.boost_tasks.as_ref::<'static>() }?;
        self.boost_tasks = t.next().load(Ordering::Relaxed);
        Some(t)
    }

    /// Calls `f` for each member that blocks the normal grace period.
    pub(crate) fn for_each_gp_blocker(&self, f: impl FnMut(&'static T)) {
        Self::for_each_from(self.gp_tasks, f);
    }

    /// Calls `f` for each member that blocks the expedited grace period.
    pub(crate) fn for_each_exp_blocker(&self, f: impl FnMut(&'static T)) {
        Self::for_each_from(self.exp_tasks, f);
    }

    fn for_each_from(mut at: *mut T, mut f: impl FnMut(&'static T)) {
        // SAFETY: null, or a member, which is 'static (BLK-2).
        while let Some(t) = unsafe { at.as_ref::<'static>() } {
            f(t);
            at = t.next().load(Ordering::Relaxed);
        }
    }

    /// Links `this` before `next` (null: at the tail).
    fn insert_before(&mut self, this: *mut T, next: *mut T) {
        let prev = *self.prev_slot(next);
        *self.next_slot(prev) = this;
        *self.prev_slot(next) = this;
        *self.next_slot(this) = next;
        *self.prev_slot(this) = prev;
    }

    /// The pointer that leads onwards from `at`; of nobody: the head.
    fn next_slot(&mut self, at: *mut T) -> &mut *mut T {
        if at.is_null() {
            return &mut self.head;
        }
        // SAFETY: a member or about to be one, hence valid; its links are ours under the caller's lock, so nobody
        // else holds a reference made from the atomic.
        unsafe { &mut *(*at).next().as_ptr() }
    }

    /// The pointer that leads backwards from `at`; of nobody: the tail.
    fn prev_slot(&mut self, at: *mut T) -> &mut *mut T {
        if at.is_null() {
            return &mut self.tail;
        }
        // SAFETY: as in `next_slot`.
        unsafe { &mut *(*at).prev().as_ptr() }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::boxed::Box;
    use std::vec::Vec;

    #[derive(Default)]
    struct Reader {
        next: AtomicPtr<Reader>,
        prev: AtomicPtr<Reader>,
    }

    impl Linked for Reader {
        fn next(&self) -> &AtomicPtr<Self> {
            &self.next
        }
        fn prev(&self) -> &AtomicPtr<Self> {
            &self.prev
        }
    }

    fn reader() -> &'static Reader {
        Box::leak(Box::default())
    }

    fn blockers(l: &BlockedList<Reader>) -> (Vec<*const Reader>, Vec<*const Reader>) {
        let (mut norm, mut exp) = (Vec::new(), Vec::new());
        l.for_each_gp_blocker(|r| norm.push(ptr::from_ref(r)));
        l.for_each_exp_blocker(|r| exp.push(ptr::from_ref(r)));
        (norm, exp)
    }

    #[test]
    fn a_reader_queued_after_its_cpu_reported_blocks_nothing() {
        let mut l = BlockedList::new();
        let (old, young) = (reader(), reader());
        l.queue(old, Blocks::default());
        l.start_gp();
        l.queue(young, Blocks::default());
        assert_eq!(blockers(&l).0, [ptr::from_ref(old)]);
        assert_eq!(l.remove(old), Blocks { norm: true, exp: false });
        assert_eq!(l.remove(young), Blocks::default());
    }

    #[test]
    fn the_last_blocker_of_each_kind_is_told_apart() {
        let mut l = BlockedList::new();
        let (a, b) = (reader(), reader());
        l.queue(a, Blocks::default());
        l.start_gp();
        l.queue(b, Blocks { norm: false, exp: true });
        assert!(l.remove(b).exp);
        assert!(l.remove(a).norm);
    }

    #[test]
    fn a_walk_meets_every_blocker_once_though_some_leave_meanwhile() {
        let mut l = BlockedList::<Reader>::new();
        let readers: Vec<_> = (0..6).map(|_| reader()).collect();
        readers.iter().for_each(|r| l.queue(r, Blocks::default()));
        l.start_exp();
        l.queue(reader(), Blocks::default());
        l.start_boost(Kind::Normal);
        assert!(l.next_to_boost().is_none(), "no normal grace period waits");
        l.start_boost(Kind::Expedited);
        let mut met = Vec::new();
        // The newest is first: 5, then 4 leaves, which is next, and 5, which is behind; the rest.
        met.extend(l.next_to_boost().map(ptr::from_ref));
        l.remove(readers[4]);
        l.remove(readers[5]);
        met.extend(core::iter::from_fn(|| l.next_to_boost()).map(ptr::from_ref));
        let expected: Vec<_> = [5, 3, 2, 1, 0].map(|i| ptr::from_ref(readers[i])).into();
        assert_eq!(met, expected);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Queue(bool, bool),
        Remove(usize),
        StartGp,
        StartExp,
        StartBoost(bool),
        Boost,
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            4 => any::<(bool, bool)>().prop_map(|(n, e)| Op::Queue(n, e)),
            4 => any::<usize>().prop_map(Op::Remove),
            1 => Just(Op::StartGp),
            1 => Just(Op::StartExp),
            1 => any::<bool>().prop_map(Op::StartBoost),
            2 => Just(Op::Boost),
        ];
        proptest::collection::vec(op, 1..100)
    }

    proptest! {
        /// BLK-1 and BLK-2 against a model that knows for each reader what it blocks; as in the kernel, a new grace
        /// period of a kind starts only when the last one of that kind has no blockers left.
        #[test]
        fn every_blocker_is_in_its_range(ops in ops()) {
            let mut l = BlockedList::new();
            let mut model: Vec<(&'static Reader, Blocks)> = Vec::new();
            for op in ops {
                match op {
                    Op::Queue(norm, exp) => {
                        let (r, b) = (reader(), Blocks { norm, exp });
                        l.queue(r, b);
                        model.push((r, b));
                    }
                    Op::Remove(i) if !model.is_empty() => {
                        let (r, _) = model.swap_remove(i % model.len());
                        let (had_norm, had_exp) = (l.blocks_gp(), l.blocks_exp());
                        let freed = l.remove(r);
                        prop_assert_eq!(freed.norm, had_norm && !l.blocks_gp());
                        prop_assert_eq!(freed.exp, had_exp && !l.blocks_exp());
                    }
                    Op::StartGp if !l.blocks_gp() => {
                        l.start_gp();
                        model.iter_mut().for_each(|m| m.1.norm = true);
                    }
                    Op::StartExp if !l.blocks_exp() => {
                        l.start_exp();
                        model.iter_mut().for_each(|m| m.1.exp = true);
                    }
                    Op::StartBoost(exp) => l.start_boost(if exp { Kind::Expedited } else { Kind::Normal }),
                    Op::Boost => {
                        let next = l.next_to_boost().map(ptr::from_ref);
                        prop_assert!(next.is_none_or(|p| model.iter().any(|m| ptr::eq(m.0, p))), "BLK-2");
                    }
                    _ => {}
                }
                let (norm, exp) = blockers(&l);
                for (r, b) in &model {
                    prop_assert!(!b.norm || norm.contains(&ptr::from_ref(*r)));
                    prop_assert!(!b.exp || exp.contains(&ptr::from_ref(*r)));
                }
                let on_list = |p: &*const Reader| model.iter().any(|m| ptr::eq(m.0, *p));
                prop_assert!(norm.iter().all(on_list) && exp.iter().all(on_list));
            }
        }
    }
}
