//! What the tests of `kfree_rcu` share: objects with content and a head, ways to give them up, and the check that all are
//! back.

use core::ptr::NonNull;

use kfree_rcu::backend::{self, BackEnd};
use kfree_rcu::{RcuPtr, has_rcu_ptr, kfree_rcu, kfree_rcu_mightsleep, kfree_rcu_nolock, kvfree_rcu_barrier};
use mm::AllocFlags;
use slab::{CacheFlags, Layout, RawCache, Stat};
use sync::{IrqGuard, MaySleep, Rng};

use crate::{Failure, Test, ensure_eq};

/// An object as users have them: content, and a head somewhere.
#[repr(C)]
pub(crate) struct Node {
    first: u64,
    more: [u64; 5],
    rcu: RcuPtr,
    last: u64,
}

has_rcu_ptr!(Node, rcu);

/// What [`node`] writes into every word.
const STAMP: u64 = 0x6772_616e_6765_2121;

/// A cache of nodes for one test.
pub(crate) fn cache(name: &'static str) -> Result<&'static RawCache, Failure> {
    let layout = Layout::new(name, size_of::<Node>()).align(align_of::<Node>()).flags(CacheFlags::NO_MERGE);
    slab::create(layout).map_err(|error| crate::__failed!("{name}: {error}"))
}

/// A node with its content, if there is memory.
pub(crate) fn node(cache: &RawCache) -> Option<NonNull<Node>> {
    Some(stamp(cache.alloc(AllocFlags::NOWAIT)?, STAMP))
}

/// The same from any context.
pub(crate) fn node_nolock(cache: &RawCache) -> Option<NonNull<Node>> {
    Some(stamp(cache.alloc_nolock(AllocFlags::NOWAIT)?, STAMP))
}

/// Writes `content` into every word of an object, but for its head.
///
/// The object is the caller's, fresh, and large enough for a node.
pub(crate) fn stamp(object: NonNull<u8>, content: u64) -> NonNull<Node> {
    let node = object.cast::<Node>();
    // SAFETY: by the caller it is a fresh object of the node's size and alignment.
    unsafe { node.write(Node { first: content, more: [content; 5], rcu: RcuPtr::new(), last: content }) };
    node
}

/// The content of a node, but for its head, if all words are the same.
///
/// A reader or owner keeps the node from being freed.
pub(crate) fn content(node: NonNull<Node>) -> Option<u64> {
    let node = node.as_ptr();
    // SAFETY: by the caller the node is alive; whoever writes to it nevertheless is what volatile reads are to find.
    let (first, more, last) = unsafe {
        (
            (&raw const (*node).first).read_volatile(),
            (&raw const (*node).more).read_volatile(),
            (&raw const (*node).last).read_volatile(),
        )
    };
    (more == [first; 5] && last == first).then_some(first)
}

/// Whether the content is as [`node`] wrote it.
pub(crate) fn is_whole(node: NonNull<Node>) -> bool {
    content(node) == Some(STAMP)
}

/// The head of a node.
pub(crate) fn head(node: NonNull<Node>) -> NonNull<RcuPtr> {
    // SAFETY: a field of the object.
    unsafe { node.byte_add(core::mem::offset_of!(Node, rcu)) }.cast()
}

/// How a node is given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// By its head.
    Head,
    /// By its head, with interrupts off.
    IrqsOff,
    /// By its head, as an NMI handler does.
    Nolock,
    /// The same with interrupts off.
    NolockIrqsOff,
    /// By its address alone.
    Headless,
}

impl Way {
    /// All of them.
    pub(crate) const ALL: [Way; 5] = [Way::Head, Way::IrqsOff, Way::Nolock, Way::NolockIrqsOff, Way::Headless];

    /// Any of them; the one that may have to wait for a grace period is rare.
    pub(crate) fn any(rng: &mut Rng) -> Way {
        if rng.chance(1, 64) { Way::Headless } else { Way::ALL[rng.below(4) as usize] }
    }

    /// Gives `node` up.
    ///
    /// # Safety
    /// No reader can find it any more, and the caller gives it up.
    pub(crate) unsafe fn give_up(self, node: NonNull<Node>, cx: &mut MaySleep) {
        let _irqs_off = matches!(self, Way::IrqsOff | Way::NolockIrqsOff).then(|| IrqGuard::new(sync::ATOMIC));
        match self {
            // SAFETY: the caller gives it up.
            Way::Head | Way::IrqsOff => unsafe { kfree_rcu(head(node)) },
            // SAFETY: as above.
            Way::Nolock | Way::NolockIrqsOff => unsafe { kfree_rcu_nolock(head(node)) },
            // SAFETY: as above.
            Way::Headless => unsafe { kfree_rcu_mightsleep(node.cast(), cx) },
        }
    }
}

/// Allocates `count` nodes and gives them up, each in the next of all the ways. Returns how many there was memory for.
pub(crate) fn give_up_many(cache: &RawCache, count: usize, cx: &mut MaySleep) -> usize {
    let ways = Way::ALL.into_iter().cycle().take(count);
    ways.filter_map(|way| {
        // SAFETY: allocated here, and nobody else knows it.
        node(cache).map(|node| unsafe { way.give_up(node, cx) })
    })
    .count()
}

/// Allocates and gives up what no sheaf takes: a large block, or a vmalloc area, of that many bytes. False if there was no
/// memory.
pub(crate) fn give_up_large(bytes: usize, vmalloc: bool, cx: &mut MaySleep) -> bool {
    let memory = if vmalloc {
        mm::vmalloc(bytes, cx).ok()
    } else {
        slab::kmalloc(bytes, AllocFlags::NOWAIT | AllocFlags::NOWARN)
    };
    // SAFETY: allocated above, and nobody else knows it; it begins with room for a head.
    memory.map(|memory| unsafe { kfree_rcu(memory.cast()) }).is_some()
}

/// Does `f` with each back end in turn, and then goes back to the one that was in use.
pub(crate) fn with_each_back_end(
    t: &mut Test<'_>,
    mut f: impl FnMut(&mut Test<'_>, BackEnd) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let before = backend::current();
    let result = BackEnd::ALL.into_iter().try_for_each(|back_end| {
        backend::switch(back_end, t.cx);
        f(t, back_end).inspect_err(|_| log::error!("with the back end {}", back_end.name()))
    });
    backend::switch(before, t.cx);
    result
}

/// A barrier is over: no object of `cache` is in use.
pub(crate) fn ensure_none_in_use(cache: &'static RawCache, cx: &mut MaySleep) -> Result<(), Failure> {
    // What the barrier freed is in sheaves and barns. A CPU that goes meanwhile has flushed its own before the guard is ours.
    let _cpus = sched::keep_cpus(cx);
    cache.shrink();
    ensure_eq!(cache.info().active_objs, 0, "objects of {} were not waited for", cache.name());
    Ok(())
}

/// Every object is free again, and every sheaf and page has gone back; CPUs that are offline have nothing.
pub(crate) fn ensure_all_back(cache: &'static RawCache, cx: &mut MaySleep) -> Result<(), Failure> {
    kvfree_rcu_barrier(cx);
    // A CPU that goes meanwhile gives back what it has before the guard is ours.
    let _cpus = sched::keep_cpus(cx);
    cache.shrink();
    // A flush submits rcu_free sheaves that came in meanwhile.
    rcu::rcu_barrier(cx);
    cache.shrink();
    let info = cache.info();
    ensure_eq!(info.active_objs, 0, "objects of {} are lost", cache.name());
    ensure_eq!(info.num_slabs, 0, "slabs of {} stay although they are empty", cache.name());
    ensure_eq!(cache.stat(Stat::SheafAlloc), cache.stat(Stat::SheafFree), "sheaves of {} are lost", cache.name());
    Ok(())
}
