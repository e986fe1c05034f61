//! What the book's figures are drawn from: runs that leave a trace, and are tests of what the figures show.
//!
//! `cargo xtask figures` runs them with the trace points of their names on, and draws what was recorded
//! (`xtask/src/figures/`). The third figure, a grace period on its way up the tree, is drawn from `rcu_torture`.

use alloc::vec::Vec;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed};

use arch::cpu;
use kfree_rcu::{kfree_rcu, kvfree_rcu_barrier};
use mm::AllocFlags;
use slab::{RawCache, Stat};
use sync::{ATOMIC, Once, PreemptGuard};

use crate::kfree::{cache, ensure_none_in_use, head, node};
use crate::nolock::{self, Bed, PATHS};
use crate::outcome::needs_sheaves;
use crate::stepping::{self, Visit};
use crate::toggle::spawn;
use crate::{ensure, ensure_eq, ktest};

/// Whose objects the NMI takes.
static CACHE: Once<&'static RawCache> = Once::new();
/// What it has taken, and how often that came from a sheaf.
static TAKEN: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static FROM_SHEAF: AtomicU64 = AtomicU64::new(0);
/// The boundary that is visited.
static BOUNDARY: AtomicU64 = AtomicU64::new(0);

/// An NMI that allocates, and records where it came and where the object was from.
struct Taker;

impl Visit for Taker {
    fn visit() {
        let Some(cache) = CACHE.get() else { return };
        let boundary = BOUNDARY.load(Relaxed);
        let before = cache.stat(Stat::AllocFastpath);
        let object = cache.alloc_nolock(AllocFlags::NOWARN);
        let sheaf = cache.stat(Stat::AllocFastpath) != before;
        FROM_SHEAF.fetch_add(u64::from(sheaf), Relaxed);
        sync::trace!("figures.nmi", boundary = boundary, got = object.is_some(), sheaf = sheaf);
        let mut depth = 0;
        arch::backtrace::current(&mut |address| {
            sync::trace!("figures.frame", boundary = boundary, depth = depth, address = address);
            depth += 1;
        });
        TAKEN.store(object.map_or(ptr::null_mut(), NonNull::as_ptr), Relaxed);
    }
}

ktest! {
    /// What goes through a grace period in a sheaf is allocated again without its slabs being touched.
    fn a_sheaf_comes_back_from_its_grace_period_and_is_allocated_from(t: &mut Test) {
        const SHEAVES: usize = 3;
        let cache = cache("figure")?;
        needs_sheaves(cache)?;
        let count = SHEAVES * cache.sheaf_capacity();
        let here = cpu::current();
        spawn(t.cx, Some(here), move |cx| {
            for round in 0..4 {
                let refilled = cache.stat(Stat::SheafRefill);
                let nodes: Vec<_> = (0..count).map_while(|_| node(cache)).collect();
                ensure_eq!(nodes.len(), count, "no memory");
                ensure!(round == 0 || cache.stat(Stat::SheafRefill) == refilled, "sheaves were there, and slabs were asked");
                for node in nodes {
                    // SAFETY: allocated above, and nobody else knows it.
                    unsafe { kfree_rcu(head(node)) };
                }
                kvfree_rcu_barrier(cx);
            }
            Ok(())
        })?
        .join(t.cx)?;
        ensure_none_in_use(cache, t.cx)?;
        // SAFETY: the test is over, and nobody else knows the cache.
        unsafe { slab::flush::destroy(cache, t.cx) }.map_err(|leaked| crate::__failed!("{leaked:?}"))
    }

    /// An NMI that comes at any instruction of an exchange of main and spare gets an object: from a sheaf where these are
    /// nobody's, else past them.
    fn an_nmi_at_any_instruction_of_a_swap_gets_an_object(t: &mut Test) {
        let path = PATHS.iter().find(|path| path.name == "alloc, spare becomes main").expect("the path of this name");
        let cache = *CACHE.call_once(|| path.kind.cache());
        needs_sheaves(cache)?;
        nolock::use_cache(cache);
        let mut bed = Bed::new(cache);
        let mut walk = |at| {
            bed.begin();
            // From here on nothing comes in between on this CPU but interrupts.
            let _pin = PreemptGuard::new(ATOMIC);
            assert!((path.set_up)(&mut bed), "every machine has this path");
            bed.with_stamps_left_alone(|bed| stepping::step::<Taker>(at, || (path.operation)(bed)))
        };
        let length = walk(stepping::NOWHERE);
        let in_spares: usize = cpu::online().iter().filter_map(|cpu| Some(cache.sheaves_on(cpu)?.spare?.size)).sum();
        ensure_eq!(in_spares, 0, "no spare has become main");
        FROM_SHEAF.store(0, Relaxed);
        for boundary in 0..length {
            BOUNDARY.store(boundary, Relaxed);
            walk(stepping::only(boundary as usize));
            let Some(object) = NonNull::new(TAKEN.swap(ptr::null_mut(), Relaxed)) else {
                return Err(crate::__failed!("nothing at boundary {boundary} of {length}"));
            };
            // SAFETY: allocated in the NMI, and nobody else knows it.
            unsafe { slab::kfree(object) };
        }
        let from_sheaf = FROM_SHEAF.load(Relaxed);
        t.note(format_args!("{length} boundaries; at {from_sheaf} the object was from a sheaf"));
        ensure!((1..length).contains(&from_sheaf), "{from_sheaf} of {length} boundaries were outside of the exchange");
        drop(bed);
        nolock::ensure_all_back(cache, t.cx)
    }
}
