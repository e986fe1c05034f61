#![no_std]
//! Caches of equal objects: slabs, sheaves in front of them, and barns of sheaves between the CPUs of a node.
//!
//! ```text
//!            CPU 0                CPU 1                     one cache, one node
//!       main spare rcu_free  main spare rcu_free
//!         |    |      |        |    |      |      push and pop: a flag, no atomics
//!         +----+------+---+----+----+------+
//!                         |
//!                 barn: full and empty sheaves    one lock for `capacity` objects
//!                         |
//!            partial slabs of the node            list lock; frees by compare-exchange
//!                         |
//!                   page allocator
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`cache`] | [`RawCache`]: one kind of object, and what it is made of |
//! | [`typed`], [`typed_many`], [`constructed`], [`typesafe`] | caches of values, one and many at a time; of objects that keep their state; of objects that RCU readers see change hands |
//! | [`merge`] | one cache for several users whose objects are alike |
//! | [`kmalloc`] | objects by size; the `_nolock` family |
//! | [`krealloc`](mod@krealloc), [`kvmalloc`](mod@kvmalloc) | blocks that change their size; blocks of `kmalloc` or `vmalloc` |
//! | [`kbox`] | [`KBox`]: an owner of a value in `kmalloc` memory |
//! | `cpu`, `exchange` | a CPU's sheaves: fast paths; what happens when main runs dry or over |
//! | `sheaf`, `barn` | the arrays, and where they wait |
//! | `slab_ref`, `node`, `slow`, `order` | slabs, partial lists, and how large a slab is |
//! | [`numa`], [`remote`] | objects of a node, and the reserve; frees of other nodes' objects |
//! | `sleep` | allocating in a thread that may wait |
//! | [`bulk`], [`prefill`] | many objects in one call; sheaves for callers who must not fail later |
//! | [`rcu_free`], [`rcu_free_many`] | sheaves of objects that wait for a grace period |
//! | [`rcu_return`], [`rcu_bound`] | what becomes of them after it; and of those that never get full |
//! | [`deferred`] | what an NMI could not do itself |
//! | [`waiting`] | how much waits on RCU, where, and since when |
//! | [`flush`] | emptying sheaves and barns: shrink, destroy, barriers |
//! | `shrinker` | what the page allocator gets back when memory is short |
//! | [`tune`] | capacity, barn limits and the like, changed at run time |
//! | [`harden`] | hidden links, random order, wiped objects |
//! | [`debug`] | caches that check what is done to them: `slab_debug=` |
//! | `hotplug` | what a CPU leaves behind when it goes offline |
//! | `leaks` | what users still hold of a cache that is to be destroyed |
//! | [`fail`] | allocations that fail on purpose |
//! | [`stats`], [`info`], [`registry`] | counters, `slabinfo`, the list of caches |
//!
//! # Lock order (M-10)
//!
//! CPU hotplug → `slab.walk`, the mutex of who walks the list of caches → `slab.tune`, the mutex of who tunes one → all
//! others. The list of caches is locked inside these, and outside of what follows. Sheaf lock (only ever tried) → barn
//! lock → nothing; sheaf lock → list lock → `slab.report` of the debugging → nothing; sheaf lock → page allocator. The barn
//! lock and a list lock are never held together: their classes have the same rank. Checking builds hold every run against
//! the ranks, and a test holds what they have seen against this table.
//!
//! A thread that allocates and may sleep may come to `slab.walk` by way of the shrinker, under whatever it holds
//! (`shrinker.rs` says why that is right). So nobody allocates with MAY_SLEEP under one of the two mutexes.
//!
//! Answers to Linux `mm/slub.c` (7.x), where sheaves came in 2025 and became universal in 7.0.

#[cfg(test)]
extern crate std;

pub mod boot;
pub mod bulk;
pub mod cache;
pub mod constructed;
pub mod debug;
pub mod deferred;
pub mod fail;
pub mod flush;
pub mod harden;
pub mod info;
pub mod kbox;
pub mod kmalloc;
pub mod krealloc;
pub mod kvmalloc;
pub mod merge;
pub mod numa;
pub mod prefill;
pub mod rcu_bound;
pub mod rcu_free;
pub mod rcu_free_many;
pub mod rcu_return;
pub mod registry;
pub mod remote;
pub mod stats;
pub mod tune;
pub mod typed;
pub mod typed_many;
pub mod typesafe;
pub mod waiting;

mod barn;
mod cpu;
mod exchange;
mod hotplug;
mod leaks;
#[cfg(test)]
mod model_tests;
mod node;
mod order;
mod sheaf;
mod shrinker;
mod slab_ref;
mod sleep;
mod slow;
#[cfg(test)]
mod test_machine;

pub use boot::{create, init};
pub use cache::{CacheFlags, CreateError, Ctor, Layout, RawCache};
pub use debug::DebugFlags;
pub use harden::Harden;
pub use kbox::{KBox, OutOfMemory};
pub use kmalloc::{
    ZERO_SIZE, kcalloc, kfree, kfree_nolock, kmalloc, kmalloc_aligned, kmalloc_array, kmalloc_nolock, ksize, kzalloc,
};
pub use krealloc::{kfree_sensitive, krealloc, krealloc_aligned};
pub use kvmalloc::{kvfree, kvfree_sleep, kvmalloc, kvmalloc_array};
pub use numa::kmalloc_node;
pub use prefill::Prefilled;
pub use slab_ref::object_of;
pub use sleep::kmalloc_sleep;
pub use stats::Stat;
pub use tune::TuneError;

/// Whether the caller may wait for a lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spin {
    /// It may: not in NMI.
    May,
    /// It may not: this may be an NMI that interrupted the holder of any lock.
    Never,
}

/// The node of this CPU. A hint unless pinned.
#[inline(always)]
pub(crate) fn local_node() -> arch::NodeId {
    arch::cpu::node_of(arch::cpu::current())
}
