//! A hosted machine with this storey and all below it, for unit tests that need CPUs.
//!
//! Statics outlive a machine (HOST-1), so each test that boots one wraps its body in
//! [`in_own_process`](arch::hosted::in_own_process).

#[expect(clippy::single_component_path_imports, reason = "the file below takes it from the module above it")]
use sched;

use mm::AllocFlags;
use sync::MaySleep;

use crate::Spin;
use crate::cache::{CacheFlags, Layout, RawCache};
use crate::exchange::put_full;
use crate::sheaf::SheafRef;
use crate::stats::Stat;

#[path = "../../sched/tests/machine/mod.rs"]
mod shared;

pub(crate) use shared::spawn;

/// Boots a machine, brings this storey up and runs `body` as its boot thread.
///
/// # Panics
/// If the machine stops before `body` returns: a panic in it, above all.
pub(crate) fn machine(cpus: usize, nodes: usize, body: impl FnOnce(&mut MaySleep) + Send) {
    let before_others = |cx: &mut MaySleep| {
        crate::init();
        rcu::init(cx);
        rcu::boot_ended();
    };
    if let Err(stopped) = shared::try_machine_on(cpus, nodes, before_others, body) {
        panic!("{stopped}");
    }
}

/// A cache for one test; the defaults for 256 bytes, so sheaves of 28 objects.
pub(crate) fn cache(name: &'static str) -> &'static RawCache {
    crate::create(Layout::new(name, 256).flags(CacheFlags::NO_MERGE)).expect("memory for a cache")
}

/// A sheaf of the cache's capacity with `size` objects fresh from slabs.
pub(crate) fn sheaf(cache: &RawCache, size: usize) -> SheafRef {
    let sheaf =
        SheafRef::alloc(cache, cache.sheaf_capacity(), AllocFlags::NOWAIT, Spin::May).expect("memory for a sheaf");
    let got = cache.take_many(size, crate::local_node(), AllocFlags::NOWAIT, |object| assert!(sheaf.push(object)));
    assert_eq!(got, size);
    sheaf
}

/// Gives this CPU a main sheaf, and perhaps a spare, with so many objects; it had none before.
pub(crate) fn set_sheaves(cache: &'static RawCache, main: usize, spare: Option<usize>) {
    let (main, spare) = (sheaf(cache, main), spare.map(|size| sheaf(cache, size)));
    let mut held = cache.sheaves().expect("nobody interrupts");
    assert!(held.main.is_bootstrap() && held.spare.is_none());
    (held.main, held.spare) = (main, spare);
}

/// Objects in this CPU's main and spare sheaf.
pub(crate) fn sheaf_sizes(cache: &'static RawCache) -> (usize, Option<usize>) {
    let held = cache.sheaves().expect("nobody interrupts");
    (held.main.size(), held.spare.map(|spare| spare.size()))
}

/// Full and empty sheaves in the barn of this CPU.
pub(crate) fn barn_sizes(cache: &'static RawCache) -> (u32, u32) {
    let barn = cache.barn().expect("every node has one");
    (barn.nr_full(), barn.nr_empty())
}

/// Puts full sheaves into the barn until it wants no more, and returns how many it then has.
pub(crate) fn fill_barn(cache: &'static RawCache) -> u32 {
    let barn = cache.barn().expect("every node has one");
    while barn.has_room_for_full() {
        put_full(barn, sheaf(cache, cache.sheaf_capacity()));
    }
    barn.nr_full()
}

/// Every object is free again and every page has gone back; every sheaf that was made is gone.
#[track_caller]
pub(crate) fn assert_all_back(cache: &'static RawCache) {
    cache.shrink();
    let info = cache.info();
    assert_eq!((info.active_objs, info.num_slabs), (0, 0), "objects and slabs of {} stay", cache.name());
    assert_eq!(cache.stat(Stat::SheafAlloc), cache.stat(Stat::SheafFree), "sheaves of {} stay", cache.name());
}

mod tests {
    use arch::hosted::in_own_process;

    use super::*;

    #[test]
    fn what_one_cpu_allocates_another_frees() {
        in_own_process(|| {
            machine(2, 2, |cx| {
                let object = crate::kmalloc(64, AllocFlags::NOWAIT).expect("memory");
                let address = object.as_ptr().expose_provenance();
                let other = spawn(cx, Some(1), move |_| {
                    let object = core::ptr::with_exposed_provenance_mut(address);
                    // SAFETY: allocated by the other thread, which gave it away.
                    unsafe { crate::kfree(core::ptr::NonNull::new(object).expect("not null")) };
                });
                other.join(cx);
            });
        });
    }
}
