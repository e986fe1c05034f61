//! `kfree_rcu`: nothing is freed under a reader, nothing is lost, and `kfree_rcu_nolock` works at every instruction.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use arch::trap::TrapFrame;
use arch::{CpuId, cpu};
use kfree_rcu::backend::{self, Event, Waiting};
use kfree_rcu::{kfree_rcu, kfree_rcu_nolock, kfree_rcu_object, kvfree_rcu_barrier};
use mm::AllocFlags;
use sched::Prio;
use slab::{RawCache, Stat};
use sync::nmi::NmiHandler;
use sync::{Once, Rng};

use crate::kfree::{Node, cache, ensure_all_back, head, is_whole, node, node_nolock};
use crate::outcome::needs_sheaves;
use crate::stepping::{self, Visit};
use crate::storm::Storm;
use crate::together::BoostDelay;
use crate::{ensure, ensure_eq, ktest, skip};

ktest! {
    /// A reader that was there first keeps seeing the content, while everybody tries hard to reuse the object.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn a_reader_from_before_still_sees_the_content(t: &mut Test) {
        const ROUNDS: usize = 20;
        // It waits for us, who may have one CPU with it.
        let _unboosted = BoostDelay::new(0);
        let cache = cache("test_reader")?;
        for _ in 0..ROUNDS {
            let Some(held) = node(cache) else { return Err(crate::__failed!("no memory")) };
            let address = held.as_ptr() as usize;
            let (entered, leave) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
            let (is_in, go) = (entered.clone(), leave.clone());
            let reader = sched::spawn(t.cx, "reader", Prio::NORMAL, None, move |cx| {
                let _section = rcu::read_lock(cx);
                is_in.store(true, SeqCst);
                let node = NonNull::new(core::ptr::with_exposed_provenance_mut::<Node>(address)).expect("not null");
                let mut whole = true;
                while !go.load(SeqCst) {
                    whole &= is_whole(node);
                    arch::irq::relax();
                }
                whole && is_whole(node)
            });
            let reader = reader.map_err(|error| crate::__failed!("{error}"))?;
            while !entered.load(SeqCst) {
                sched::yield_now(t.cx);
            }
            // SAFETY: no reader can find it any more; the one that has found it is in its section.
            unsafe { kfree_rcu_object(held) };
            // Fill the sheaf, so that it is submitted, and write over whatever the allocator gives out.
            for _ in 0..4 * cache.sheaf_capacity() {
                let Some(other) = node(cache) else { continue };
                ensure!(other != held, "the object is given out while a reader is in it");
                // SAFETY: allocated here, and nobody else knows it.
                unsafe { other.cast::<[u64; 2]>().write([0xdead; 2]) };
                // SAFETY: as above.
                unsafe { kfree_rcu_object(other) };
            }
            sched::sleep_ns(t.cx, 10_000_000);
            leave.store(true, SeqCst);
            ensure!(reader.join(t.cx), "the content changed under a reader");
        }
        ensure_all_back(cache, t.cx)
    }

    /// Sheaves full of waiting objects come back to the barn as they are: one callback for many objects.
    fn a_full_sheaf_returns_to_the_barn_after_its_grace_period(t: &mut Test) {
        let cache = cache("test_barn")?;
        needs_sheaves(cache)?;
        let capacity = cache.sheaf_capacity() as u64;
        let given = 5 * capacity;
        let worker = sched::spawn(t.cx, "give", Prio::NORMAL, Some(cpu::current()), move |_| {
            for _ in 0..given {
                // SAFETY: allocated here, and nobody else knows it.
                node(cache).into_iter().for_each(|node| unsafe { kfree_rcu_object(node) });
            }
        });
        worker.map_err(|error| crate::__failed!("{error}"))?.join(t.cx);
        ensure_eq!(cache.stat(Stat::FreeRcuSheaf) + cache.stat(Stat::FreeRcuSheafFail), given);
        rcu::rcu_barrier(t.cx);
        let returned = cache.stat(Stat::BarnPut) + cache.stat(Stat::BarnPutFail);
        ensure_eq!(returned, cache.stat(Stat::FreeRcuSheaf) / capacity, "one callback for each full sheaf");
        ensure!(cache.stat(Stat::BarnPut) > 0, "no sheaf came back to a barn");
        ensure_eq!(cache.stat(Stat::FreeSlowpath), 0, "objects went to their slabs one by one");
        ensure_all_back(cache, t.cx)
    }

    /// Large blocks and vmalloc areas have no sheaves: they wait in pages of pointers.
    fn large_blocks_and_vmalloc_areas_go_through_the_back_end(t: &mut Test) {
        let before = backend::total(backend::current(), Event::Enqueued);
        for _ in 0..20 {
            let Some(large) = slab::kmalloc(50_000, AllocFlags::NOWAIT) else {
                return Err(crate::__failed!("no memory"));
            };
            // SAFETY: a head at the start of an object that nobody else knows.
            unsafe { kfree_rcu(large.cast()) };
            let area = mm::vmalloc(20_000, t.cx).map_err(|error| crate::__failed!("{error}"))?;
            // SAFETY: as above.
            unsafe { kfree_rcu(area.cast()) };
            let area = mm::vmalloc(20_000, t.cx).map_err(|error| crate::__failed!("{error}"))?;
            // SAFETY: as above, but for the head, of which there is none.
            unsafe { kfree_rcu::kfree_rcu_mightsleep(area, t.cx) };
        }
        let after = backend::total(backend::current(), Event::Enqueued);
        ensure!(after >= before + 60, "{} objects entered the back end", after - before);
        kvfree_rcu_barrier(t.cx);
        ensure_eq!(backend::waiting(), Waiting::default());
        Ok(())
    }

    /// An object without a head is remembered by its address, or waited for.
    fn an_object_without_a_head_is_freed_too(t: &mut Test) {
        let cache = cache("test_headless")?;
        for _ in 0..100 {
            let Some(object) = cache.alloc(AllocFlags::NOWAIT) else { return Err(crate::__failed!("no memory")) };
            // SAFETY: allocated here, and nobody else knows it.
            unsafe { kfree_rcu::kfree_rcu_mightsleep(object, t.cx) };
        }
        ensure_all_back(cache, t.cx)
    }

    /// An "NMI" at every instruction of `kfree_rcu` and of allocations, that itself calls `kfree_rcu_nolock`.
    #[budget_ms(120_000)]
    fn kfree_rcu_nolock_at_every_instruction_of_kfree_rcu(t: &mut Test) {
        let cache = *STEPPED.call_once(|| cache("test_krn_step").expect("a cache"));
        // Without them there are millions of instructions to step over.
        needs_sheaves(cache)?;
        let mut boundaries = 0;
        for run in stepping::runs(&[1, 2, 3, 5, 17]) {
            // More than a sheaf; but sparse visits fill sheaves, too, and there are many such runs.
            let objects = if run == (1, 0) { 60 } else { 8 };
            boundaries += stepping::step::<NolockPair>(run, || {
                for _ in 0..objects {
                    let Some(node) = node(cache) else { continue };
                    // SAFETY: allocated here, and nobody else knows it.
                    unsafe { kfree_rcu_object(node) };
                }
            });
            // What was given up waits for a grace period, which stepping holds up: memory is finite.
            kvfree_rcu_barrier(t.cx);
        }
        t.note(format_args!("{boundaries} instruction boundaries, {} objects given up from there", GIVEN.load(Relaxed)));
        ensure!(boundaries > 5_000, "only {boundaries} boundaries");
        ensure!(GIVEN.load(Relaxed) > 0, "no call from a boundary got an object");
        ensure_all_back(cache, t.cx)
    }

    /// NMIs from another CPU hit a CPU that allocates and gives up objects; the handlers do the same without locks.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn kfree_rcu_nolock_from_an_nmi_storm_loses_nothing(t: &mut Test) {
        const OPERATIONS: usize = 50_000;
        let cpus: Vec<CpuId> = cpu::online().iter().collect();
        let [target, sender, ..] = cpus[..] else { skip!("needs two CPUs") };
        let cache = *STORMED.call_once(|| cache("test_krn_storm").expect("a cache"));
        REGISTERED.call_once(|| sync::nmi::register(&HANDLER));
        HANDLER_ON.store(true, SeqCst);
        let storm = Storm::start(t.cx, sender, target)?;
        let mut rng = Rng::new(t.rng.next_u64());
        let work = sched::spawn(t.cx, "target", Prio::NORMAL, Some(target), move |cx| {
            for _ in 0..OPERATIONS {
                let Some(node) = node(cache) else { continue };
                // SAFETY: allocated here, and nobody else knows it.
                if rng.chance(3, 4) { unsafe { kfree_rcu_object(node) } } else { unsafe { cache.free(node.cast()) } }
                if rng.chance(1, 16) {
                    // Where one host thread runs all CPUs, this is where another one gets its turn.
                    arch::irq::relax();
                }
                sched::cond_resched(cx);
            }
        });
        work.map_err(|error| crate::__failed!("{error}"))?.join(t.cx);
        let sent = storm.stop(t.cx);
        HANDLER_ON.store(false, SeqCst);
        t.note(format_args!("{sent} NMIs sent, {} handled", HANDLED.load(Relaxed)));
        ensure!(HANDLED.load(Relaxed) > 0, "no NMI arrived");
        ensure_all_back(cache, t.cx)
    }
}

static STEPPED: Once<&'static RawCache> = Once::new();
static STORMED: Once<&'static RawCache> = Once::new();
static GIVEN: AtomicU64 = AtomicU64::new(0);
static HANDLED: AtomicU64 = AtomicU64::new(0);
static HANDLER_ON: AtomicBool = AtomicBool::new(false);
static HANDLER: NmiHandler = NmiHandler::new("kfree-rcu-storm", on_nmi);
static REGISTERED: Once<()> = Once::new();

struct NolockPair;

impl Visit for NolockPair {
    fn visit() {
        nolock_pair(&STEPPED);
    }
}

/// Allocates an object and gives it up, as an NMI handler would.
fn nolock_pair(cache: &Once<&'static RawCache>) {
    let Some(node) = cache.get().and_then(|cache| node_nolock(cache)) else { return };
    // SAFETY: allocated above, and nobody else knows it.
    unsafe { kfree_rcu_nolock(head(node)) };
    GIVEN.fetch_add(1, Relaxed);
}

fn on_nmi(_: &mut TrapFrame) -> bool {
    if !HANDLER_ON.load(SeqCst) {
        return false;
    }
    nolock_pair(&STORMED);
    HANDLED.fetch_add(1, Relaxed);
    true
}
