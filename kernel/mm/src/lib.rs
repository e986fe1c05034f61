#![no_std]
//! Pages: nodes, the buddy allocator, page descriptors, vmalloc.
//!
//! | module | what it is |
//! |---|---|
//! | [`page`] | [`Page`], the descriptor of a frame, and [`page_of`], the way to it from an address |
//! | `memmap` | the table behind that: sections of 4 MiB |
//! | [`home`] | of which node's slab a page is: a byte a frame, for the free paths |
//! | [`init`](mod@init) | boot: from memory regions to descriptors and free lists |
//! | `buddy` | the free lists of a node, without locks |
//! | `zone` | the same behind a lock, with watermarks and a list for frees from NMI |
//! | `pcp` | per-CPU lists of small blocks |
//! | `alloc` | [`alloc_pages`] and the other calls for blocks of pages |
//! | [`vmalloc`](mod@vmalloc), [`stack`] | memory mapped page by page; thread stacks |
//! | [`shrinker`], [`oom`] | reclaim, and the report when it was not enough |
//! | [`stats`], [`inject`] | figures; allocations that fail on purpose |
//!
//! # Contexts
//!
//! | may | task | softirq | hardirq | NMI |
//! |---|---|---|---|---|
//! | [`alloc_pages_sleep`], [`vmalloc()`], [`vfree`] | yes | | | |
//! | [`alloc_pages`], [`free_pages`] | yes | yes | yes | |
//! | [`alloc_pages_nolock`], [`free_pages_nolock`], [`vfree_deferred`], [`page_of`] | yes | yes | yes | yes |
//!
//! # Lock order
//!
//! Outermost first; checking builds check it by rank.
//!
//! 1. `mm.vmalloc` (rank 800): address ranges of the vmalloc window, and what waits for a flush. Interrupts off.
//! 2. a CPU's page lists: a `LocalTryLock`, which nobody waits for.
//! 3. `mm.zone` (rank 900): the free lists of one node. Innermost; of two nodes never both. Interrupts off.
//!
//! Nothing inside the zone lock allocates, logs or calls out. Reclaim (shrinkers, shoot-downs) runs with no lock of this
//! storey held.
//!
//! # Before and after
//!
//! Below: `arch` (direct map, page tables), `sync` (locks, lock-less lists, calls to other CPUs). Above, everybody.
//! [`init()`] gives memory to the boot CPU; [`init_percpu`] switches the per-CPU lists on once per-CPU areas exist.

#[cfg(test)]
extern crate std;

mod alloc;
mod buddy;
mod flags;
pub mod home;
pub mod init;
pub mod inject;
mod memmap;
pub mod oom;
pub mod page;
mod pair;
mod pcp;
pub mod shrinker;
pub mod stack;
pub mod stats;
pub mod trace;
pub mod vmalloc;
mod zone;

#[cfg(test)]
mod machine_tests;

pub use alloc::{
    alloc_pages, alloc_pages_nolock, alloc_pages_sleep, check, drain_all, drain_local, drain_parked, free_pages,
    free_pages_nolock,
};
pub use buddy::MAX_ORDER;
pub use flags::{AllocError, AllocFlags};
pub use home::{home_node, home_of, home_of_unchecked, is_home, local_slab_page};
pub use init::{Region, init, init_percpu};
pub use page::{Page, PageKind, SlabView, page_of};
pub use pair::SlabPair;
pub use shrinker::Shrinker;
pub use vmalloc::{is_vmalloc, vfree, vfree_deferred, vmalloc, vmalloc_size, vzalloc};
