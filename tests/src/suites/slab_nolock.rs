//! `kmalloc_nolock`, `kfree_nolock`, `kfree_rcu_nolock`: their rules, and that they may come at any instruction.
//!
//! The paths that are stepped, and the visitor, are in [`nolock`](crate::nolock). A visit changes what the path finds after it:
//! an NMI may refill the sheaf that was about to run dry. So each boundary is visited *alone*, with everything set up anew;
//! visits at every boundary of one run, at every second and so on come on top.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use arch::trap::TrapFrame;
use arch::{CpuId, clock, cpu};
use mm::AllocFlags;
use sched::Prio;
use slab::{CacheFlags, Stat, ZERO_SIZE, kfree, kfree_nolock, kmalloc, kmalloc_nolock, ksize};
use sync::nmi::{NmiHandler, as_nmi};
use sync::{ATOMIC, IrqGuard, MaySleep, Once, PreemptGuard};

use crate::nolock::{self, Bed, PATHS, ensure_all_back};
use crate::outcome::needs_sheaves;
use crate::run::Test;
use crate::storm::Storm;
use crate::walk::{Plan, Walked, walk};
use crate::{Failure, ensure, ensure_eq, ktest, skip};

/// Sizes on both sides of each class border, up to the largest class.
const SIZES: [usize; 14] = [1, 8, 9, 64, 65, 96, 97, 128, 192, 193, 1024, 2049, 4097, 8192];

/// What is ever taken inside a lock of the slab allocator: the table in `slab`'s module. The sheaf lock, which is only tried, is
/// no lock to the checker; `slab.report` is part of the debugging of caches.
const LOCK_ORDER: &[(&str, &str)] = &[
    ("slab.walk", "slab.tune"),
    ("slab.caches", "slab.list"),
    ("slab.caches", "slab.barn"),
    ("slab.list", "slab.report"),
];

/// As an NMI handler does things.
fn in_nmi<R>(f: impl FnOnce() -> R) -> R {
    let _off = IrqGuard::new(ATOMIC);
    as_nmi(f)
}

/// Walks the paths whose name `which` says yes to, and adds up; also, how many they are.
pub(super) fn walk_some(t: &mut Test<'_>, plan: Plan, which: fn(&str) -> bool) -> Result<(Walked, usize), Failure> {
    needs_sheaves(nolock::Kind::Small.cache())?;
    let (mut all, mut paths) = (Walked::default(), 0);
    for path in PATHS.iter().filter(|path| which(path.name)) {
        let walked = walk(path, plan, &mut t.rng, t.cx).inspect_err(|_| log::error!("on the path: {}", path.name))?;
        let Some(walked) = walked else {
            t.note(format_args!("no such path on this machine: {}", path.name));
            continue;
        };
        let Walked { length, alone, visits } = walked;
        t.note(format_args!("{length:6} boundaries, {alone:6} visited alone, {visits:7} visits: {}", path.name));
        all = Walked { length: all.length + length, alone: all.alone + alone, visits: all.visits + visits };
        paths += 1;
    }
    Ok((all, paths))
}

fn walk_all(t: &mut Test<'_>, plan: Plan) -> Result<(), Failure> {
    let (Walked { length, alone, visits }, paths) = walk_some(t, plan, |_| true)?;
    t.note(format_args!("{length:6} boundaries, {alone:6} visited alone, {visits:7} visits: all {paths} paths"));
    ensure!(length > 10_000 && visits > length / 4, "only {length} boundaries and {visits} visits");
    Ok(())
}

ktest! {
    /// Size 0 is the address that stands for it, a size above the largest cache is refused, anything else has room.
    fn kmalloc_nolock_serves_every_size_that_a_cache_has(_t: &mut Test) {
        ensure_eq!(kmalloc_nolock(0, AllocFlags::NOWAIT), Some(ZERO_SIZE));
        // SAFETY: what size 0 gave.
        unsafe { kfree_nolock(ZERO_SIZE) };
        ensure_eq!(kmalloc_nolock(8193, AllocFlags::NOWAIT), None);
        ensure_eq!(kmalloc_nolock(usize::MAX, AllocFlags::NOWAIT), None);
        for size in SIZES {
            let Some(object) = kmalloc_nolock(size, AllocFlags::NOWARN) else {
                return Err(crate::__failed!("no {size} bytes although nothing is busy"));
            };
            // SAFETY: allocated above; freed once.
            let room = unsafe { ksize(object) };
            ensure!(room >= size, "{room} bytes for {size}");
            // SAFETY: as above.
            unsafe { object.as_ptr().write_bytes(0xa5, size) };
            // SAFETY: as above.
            unsafe { kfree_nolock(object) };
        }
        Ok(())
    }

    /// With ZERO a used object comes back as zeroes.
    fn kmalloc_nolock_zeroes_what_it_is_asked_to(_t: &mut Test) {
        for size in SIZES {
            let dirty: Vec<_> = (0..4).filter_map(|_| kmalloc_nolock(size, AllocFlags::NOWAIT)).collect();
            for object in dirty {
                // SAFETY: allocated above, `size` bytes; given up here.
                unsafe {
                    object.as_ptr().write_bytes(0xff, size);
                    kfree_nolock(object);
                }
            }
            for _ in 0..4 {
                let Some(object) = in_nmi(|| kmalloc_nolock(size, AllocFlags::ZERO)) else { continue };
                // SAFETY: allocated above, `size` bytes.
                let bytes = unsafe { core::slice::from_raw_parts(object.as_ptr(), size) };
                let zero = bytes.iter().all(|&byte| byte == 0);
                // SAFETY: as above; given up here.
                unsafe { kfree_nolock(object) };
                ensure!(zero, "{size} bytes are not zero");
            }
        }
        Ok(())
    }

    /// Each way to allocate with each way to free: nothing remembers how an object was allocated (S1-5, S1-7).
    fn any_free_takes_what_any_allocation_gave(t: &mut Test) {
        const SIZE: usize = 100;
        type Alloc = fn() -> Option<NonNull<u8>>;
        type Free = fn(NonNull<u8>);
        let allocs: [Alloc; 2] =
            [|| kmalloc(SIZE, AllocFlags::NOWAIT), || in_nmi(|| kmalloc_nolock(SIZE, AllocFlags::NOWAIT))];
        // SAFETY (of the four): the object was allocated by one of the above, and is given up by whoever calls.
        let frees: [Free; 4] = [
            // SAFETY: see above.
            |object| unsafe { kfree(object) },
            // SAFETY: see above.
            |object| in_nmi(|| unsafe { kfree_nolock(object) }),
            // SAFETY: see above; the head lies in the object.
            |object| unsafe { kfree_rcu::kfree_rcu(object.add(8).cast()) },
            // SAFETY: see above.
            |object| in_nmi(|| unsafe { kfree_rcu::kfree_rcu_nolock(object.add(8).cast()) }),
        ];
        let cache = slab::registry::find("kmalloc-128");
        let Some(cache) = cache else { return Err(crate::__failed!("no kmalloc-128")) };
        nolock::settle(cache, t.cx);
        let before = cache.info().active_objs;
        for alloc in allocs {
            for free in frees {
                let held: Vec<_> = (0..150).filter_map(|_| alloc()).collect();
                ensure_eq!(held.len(), 150);
                held.into_iter().for_each(free);
            }
        }
        slab::deferred::flush(&sched::keep_cpus(t.cx), t.cx);
        nolock::settle(cache, t.cx);
        let after = cache.info().active_objs;
        // Other threads use the class, too, for what they hold a long time.
        ensure!(after.abs_diff(before) < 100, "{before} objects in use before 1,200 came and went, {after} after");
        Ok(())
    }

    /// An object of pages, which Linux's call would only warn about, is freed by way of the deferred list.
    fn kfree_nolock_takes_a_large_object(t: &mut Test) {
        const SIZE: usize = 100_000;
        let in_use = |cx: &mut MaySleep| {
            mm::drain_all(cx);
            mm::stats::nodes().map(|node| node.in_use()).sum::<usize>()
        };
        let before = in_use(t.cx);
        for _ in 0..20 {
            let Some(object) = kmalloc(SIZE, AllocFlags::NOWAIT) else { return Err(crate::__failed!("no memory")) };
            // SAFETY: allocated above, given up here.
            in_nmi(|| unsafe { kfree_nolock(object) });
        }
        slab::deferred::flush(&sched::keep_cpus(t.cx), t.cx);
        let after = in_use(t.cx);
        // Twenty objects are 640 pages.
        ensure!(after.abs_diff(before) < 100, "{before} pages in use before, {after} after");
        Ok(())
    }

    /// A large object that waits on the deferred list is nobody's any more: to free it again is reported, by either call.
    fn a_large_object_that_was_deferred_is_not_freed_again(t: &mut Test) {
        t.damages_slabs = true;
        let reports = slab::debug::reports();
        let Some(object) = kmalloc(100_000, AllocFlags::NOWAIT) else { return Err(crate::__failed!("no memory")) };
        // Nothing is drained in between.
        let _off = IrqGuard::new(ATOMIC);
        // SAFETY: allocated above; given up by the first call, and the others are what is tried.
        unsafe {
            in_nmi(|| kfree_nolock(object));
            in_nmi(|| kfree_nolock(object));
            kfree(object);
        }
        ensure_eq!(slab::debug::reports() - reports, 2);
        Ok(())
    }

    /// What is deferred in an NMI is freed soon after, with nobody who asks for it: at the next tick at the latest.
    fn what_was_deferred_is_freed_by_itself(t: &mut Test) {
        let cache = nolock::cache("test_nolock_soon", 512, CacheFlags::NO_SHEAVES);
        nolock::settle(cache, t.cx);
        let held: Vec<_> = (0..40).filter_map(|_| cache.alloc(AllocFlags::NOWAIT)).collect();
        ensure_eq!(held.len(), 40);
        for object in held {
            // SAFETY: allocated above, given up here.
            in_nmi(|| unsafe { kfree_nolock(object) });
        }
        let end = clock::now_ns() + 5_000_000_000;
        while cache.info().active_objs != 0 && clock::now_ns() < end {
            sched::sleep_ns(t.cx, 2_000_000);
        }
        ensure_eq!(cache.info().active_objs, 0, "objects still deferred after 5 s");
        Ok(())
    }

    /// Where a sheaf has waited for its grace period does not matter: its objects are handed out on their own node only.
    #[budget_ms(20_000)]
    fn objects_that_were_given_to_kfree_rcu_are_handed_out_on_their_own_node(t: &mut Test) {
        let node = |on: CpuId| cpu::node_of(on);
        let has_memory = |on: CpuId| mm::stats::nodes().any(|it| it.node == node(on));
        let Some(first) = cpu::online().iter().find(|&on| has_memory(on)) else { skip!("no CPU has memory") };
        let Some(second) = cpu::online().iter().find(|&on| has_memory(on) && node(on) != node(first)) else {
            skip!("needs CPUs on two nodes with memory")
        };
        let cache = nolock::cache("test_nolock_nodes", 256, CacheFlags::empty());
        needs_sheaves(cache)?;
        for (gives, takes) in [(first, second), (second, first)] {
            nolock::settle(cache, t.cx);
            run_there(gives, t.cx, move || {
                let mut bed = Bed::new(cache);
                bed.take(4 * cache.sheaf_capacity());
                bed.give_rcu(4 * cache.sheaf_capacity());
            })?;
            rcu::rcu_barrier(t.cx);
            let home = node(takes);
            let foreign = run_there(takes, t.cx, move || {
                let mut bed = Bed::new(cache);
                bed.take(3 * cache.sheaf_capacity());
                bed.count(|object| mm::page_of(object.as_ptr()).is_some_and(|page| page.node() != home))
            })?;
            ensure_eq!(foreign, 0, "objects of {} on {home}", node(gives));
        }
        ensure_all_back(cache, t.cx)
    }

    /// What the lock checker has seen, of this test and of all before it, is what the module says (M-10).
    fn the_locks_nest_as_the_table_says(t: &mut Test) {
        if cfg!(not(debug_assertions)) {
            skip!("this build does not watch its locks");
        }
        // Every lock inside every other that there is: paths, and walks over all caches.
        for kind in [nolock::Kind::Small, nolock::Kind::Bare] {
            let mut bed = Bed::new(kind.cache());
            bed.take(300);
            bed.give(300);
            drop(bed);
            nolock::settle(kind.cache(), t.cx);
        }
        slab::info::for_each(|_| ());
        let mut wrong = String::new();
        let mut seen = String::new();
        sync::lock_order::for_each_edge(|outer, inner| {
            if outer.starts_with("slab.") {
                seen += &format!(" {outer} -> {inner};");
                if !LOCK_ORDER.contains(&(outer, inner)) {
                    wrong += &format!(" {outer} -> {inner};");
                }
            }
        });
        t.note(format_args!("seen:{seen}"));
        ensure_eq!(wrong, "", "locks that nest and should not");
        ensure!(seen.contains("slab.caches -> slab.list"), "the checker sees nothing");
        Ok(())
    }

    /// All CPUs at once run dry and over, many times: the barns' locks see real company.
    #[tags(race)]
    #[budget_ms(20_000)]
    fn bursts_on_all_cpus_at_once_lose_no_sheaf(t: &mut Test) {
        let cache = nolock::cache("test_nolock_bursts", 1024, CacheFlags::empty());
        needs_sheaves(cache)?;
        nolock::use_cache(cache);
        let mut threads = Vec::new();
        for on in cpu::online().iter() {
            let thread = sched::spawn(t.cx, "burst", Prio::NORMAL, Some(on), move |cx| {
                let mut bed = Bed::new(cache);
                for _ in 0..100 {
                    bed.take(6 * cache.sheaf_capacity());
                    bed.give(usize::MAX);
                    sched::cond_resched(cx);
                }
            });
            threads.push(thread.map_err(|error| crate::__failed!("{error}"))?);
        }
        threads.into_iter().for_each(|thread| thread.join(t.cx));
        ensure_all_back(cache, t.cx)
    }

    /// When only the reserve is left the nolock call has nothing, while a caller that may use the reserve is served.
    #[budget_ms(30_000)]
    fn kmalloc_nolock_leaves_the_reserve_alone(_t: &mut Test) {
        const SIZE: usize = 8192;
        // Pages linked through themselves, so that holding them needs no other memory.
        let mut pages: *mut u8 = core::ptr::null_mut();
        // The page that goes back last goes to the list of the CPU that took it.
        let _pin = PreemptGuard::new(ATOMIC);
        for order in (0..=mm::MAX_ORDER).rev() {
            while let Ok(page) = mm::alloc_pages(order, None, AllocFlags::NOWARN) {
                // SAFETY: a fresh block, ours.
                unsafe { page.virt().cast::<*mut u8>().write(pages) };
                pages = page.virt();
            }
        }
        // Whatever lies in sheaves and slabs goes first.
        let mut objects: *mut u8 = core::ptr::null_mut();
        while let Some(object) = kmalloc_nolock(SIZE, AllocFlags::NOWAIT) {
            // SAFETY: allocated above, ours.
            unsafe { object.cast::<*mut u8>().write(objects) };
            objects = object.as_ptr();
        }
        let again = kmalloc_nolock(SIZE, AllocFlags::NOWAIT);
        let reserved = mm::alloc_pages(1, None, AllocFlags::RESERVE | AllocFlags::NOWARN);
        let short = mm::stats::nodes().all(|node| mm::stats::is_low(node.node));
        while let Some(page) = mm::page_of(pages).filter(|_| !pages.is_null()) {
            // SAFETY: the link that was written above.
            pages = unsafe { page.virt().cast::<*mut u8>().read() };
            mm::free_pages(page, page.order());
        }
        while let Some(object) = NonNull::new(objects) {
            // SAFETY: as above; each is given up once.
            unsafe {
                objects = object.cast::<*mut u8>().read();
                kfree(object);
            }
        }
        let served = reserved.is_ok();
        if let Ok(page) = reserved {
            mm::free_pages(page, 1);
        }
        again.into_iter().for_each(|object| {
            // SAFETY: allocated above, given up here.
            unsafe { kfree(object) }
        });
        ensure!(short, "the machine was not short of memory");
        ensure!(served, "the reserve is gone");
        ensure_eq!(again, None);
        Ok(())
    }

    /// Where the class has nothing, the next larger one is tried, and not the one after that.
    fn kmalloc_nolock_tries_one_larger_class_where_memory_fails(_t: &mut Test) {
        use mm::inject::{Plan, arm};
        const ALLOCATIONS: [Stat; 2] = [Stat::AllocFastpath, Stat::AllocSlowpath];
        /// From the class of 2,048 bytes.
        const SIZE: usize = 1500;
        let classes = ["kmalloc-4k", "kmalloc-8k"].map(|name| slab::registry::find(name).expect("a class"));
        let _pin = PreemptGuard::new(ATOMIC);
        // Something to be found in the two classes above.
        for size in [4096, 8192] {
            let stock: Vec<_> = (0..10).filter_map(|_| kmalloc(size, AllocFlags::NOWAIT)).collect();
            // SAFETY: allocated above, each given up once.
            stock.into_iter().for_each(|object| unsafe { kfree(object) });
        }
        // No page for a slab: what lies in sheaves and slabs is used up, and that ends.
        let Some(armed) = arm(Plan::From(1)) else { skip!("another plan is armed") };
        let mut objects: *mut u8 = core::ptr::null_mut();
        // This CPU's counters say of which class they are; `ksize` of a debug cache's object is what was asked for.
        let taken = || classes.map(|class| ALLOCATIONS.map(|stat| class.stat_on(cpu::current(), stat)).iter().sum::<u64>());
        let (before, mut found) = (taken(), 0);
        while let Some(object) = kmalloc_nolock(SIZE, AllocFlags::NOWAIT) {
            // SAFETY: allocated above, ours.
            unsafe { object.cast::<*mut u8>().write(objects) };
            objects = object.as_ptr();
            found += 1;
            if found > 10_000 {
                break;
            }
        }
        let after = taken();
        drop(armed);
        while let Some(object) = NonNull::new(objects) {
            // SAFETY: as above; each is given up once.
            unsafe {
                objects = object.cast::<*mut u8>().read();
                kfree(object);
            }
        }
        let [larger, third] = [0, 1].map(|class| after[class] - before[class]);
        ensure!(found <= 10_000, "memory without an end: {larger} objects of the next larger class, {third} of the third");
        ensure!(larger >= 10, "{larger} objects of the next larger class, where 10 were free");
        ensure_eq!(third, 0, "objects of a third class");
        Ok(())
    }

    /// An "NMI" that allocates and frees, on every path of allocating and freeing: alone at some of its boundaries, and in one
    /// run at every third.
    #[budget_ms(30_000)]
    fn stepped_nolock_calls_lose_nothing_on_any_path(t: &mut Test) {
        walk_all(t, Plan { alone: 6, dense: &[(3, 1)], strict: true })
    }

    /// The same alone at every single boundary of every path, and at all of them in one run.
    #[tags(slow)]
    #[budget_ms(1_200_000)]
    fn stepped_nolock_calls_lose_nothing_at_any_boundary(t: &mut Test) {
        let dense = &[(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2), (17, 5)];
        walk_all(t, Plan { alone: u64::MAX, dense, strict: true })
    }

    /// Every other CPU sends NMIs to this one while it does 1,000 × 1,000 operations; the visitor runs in their handler.
    #[tags(race, slow)]
    #[budget_ms(600_000)]
    fn a_storm_from_all_cpus_against_a_million_operations_loses_nothing(t: &mut Test) {
        storm(t, 1_000, 1_000)
    }

    /// The same in small.
    #[tags(race)]
    #[budget_ms(20_000)]
    fn a_storm_from_all_cpus_loses_nothing(t: &mut Test) {
        storm(t, 40, 1_000)
    }
}

/// Does `f` in a thread on `on`.
fn run_there<R: Send + 'static>(
    on: CpuId,
    cx: &mut MaySleep,
    f: impl FnOnce() -> R + Send + 'static,
) -> Result<R, Failure> {
    let thread = sched::spawn(cx, "there", Prio::NORMAL, Some(on), move |_| f());
    Ok(thread.map_err(|error| crate::__failed!("{error}"))?.join(cx))
}

static HANDLER: NmiHandler = NmiHandler::new("slab-nolock", on_nmi);
static REGISTERED: Once<()> = Once::new();
static HANDLER_ON: AtomicBool = AtomicBool::new(false);
static HANDLED: AtomicU64 = AtomicU64::new(0);

fn on_nmi(_: &mut TrapFrame) -> bool {
    if !HANDLER_ON.load(SeqCst) {
        return false;
    }
    nolock::visit();
    HANDLED.fetch_add(1, Relaxed);
    true
}

/// `rounds` times `operations` of one thread, under NMIs from all other CPUs.
fn storm(t: &mut Test<'_>, rounds: usize, operations: usize) -> Result<(), Failure> {
    let cpus: Vec<CpuId> = cpu::online().iter().collect();
    let [target, ref senders @ ..] = cpus[..] else { skip!("needs two CPUs") };
    if senders.is_empty() {
        skip!("needs two CPUs");
    }
    let cache = nolock::cache("test_nolock_storm", 64, CacheFlags::empty());
    nolock::use_cache(cache);
    REGISTERED.call_once(|| sync::nmi::register(&HANDLER));
    HANDLED.store(0, SeqCst);
    HANDLER_ON.store(true, SeqCst);
    let mut storms = Vec::new();
    for &sender in senders {
        storms.push(Storm::start(t.cx, sender, target)?);
    }
    let mut rng = sync::Rng::new(t.rng.next_u64());
    let work = sched::spawn(t.cx, "target", Prio::NORMAL, Some(target), move |cx| {
        let mut bed = Bed::new(cache);
        for _ in 0..rounds {
            let mut done = 0;
            while done < operations {
                let count = 1 + rng.index(100).min(operations - done - 1);
                match rng.index(8) {
                    0..4 if bed.held() + count < 1500 => bed.take(count),
                    7 => bed.give_rcu(count),
                    _ => bed.give(count),
                }
                done += count;
                // Where one host thread runs all CPUs, this is where another one gets its turn.
                arch::irq::relax();
            }
            sched::cond_resched(cx);
        }
        bed.give(usize::MAX);
    });
    work.map_err(|error| crate::__failed!("{error}"))?.join(t.cx);
    let sent: u64 = storms.into_iter().map(|storm| storm.stop(t.cx)).sum();
    HANDLER_ON.store(false, SeqCst);
    let handled = HANDLED.load(Relaxed);
    t.note(format_args!("{} operations under {sent} NMIs, {handled} of them handled", rounds * operations));
    ensure!(handled > 0, "no NMI arrived");
    ensure_all_back(cache, t.cx)
}
