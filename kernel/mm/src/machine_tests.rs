//! The whole storey on hosted machines, each in a process of its own: several CPUs, nodes, interrupts and NMIs.

use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::vec::Vec;

use arch::{CpuId, NodeId, PAGE_SIZE, PhysAddr, cpu, hosted};
use sync::{ATOMIC, IrqGuard, MaySleep, Rng};

use crate::inject::{self, Plan};
use crate::stats::{self, NodeStats};
use crate::vmalloc::{purge, usage};
use crate::*;

#[global_allocator]
static HOST_ALLOC: hosted::HostAlloc = hosted::HostAlloc;

const NONE: AllocFlags = AllocFlags::NOWARN;

/// What the other CPUs run: a `fn(CpuId)`, once for each change of `JOB_NUMBER`.
static JOB: AtomicUsize = AtomicUsize::new(0);
static JOB_NUMBER: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicUsize = AtomicUsize::new(0);

fn other_cpu(this: CpuId) {
    arch::irq::enable();
    let mut seen = 0;
    loop {
        // Acquire: pairs with the release in `on_all_cpus`.
        let number = JOB_NUMBER.load(Ordering::Acquire);
        if number != seen {
            seen = number;
            // SAFETY: `on_all_cpus` stored a function of this type.
            let job: fn(CpuId) = unsafe { core::mem::transmute(JOB.load(Ordering::Relaxed)) };
            job(this);
            // Release: pairs with the acquire in `on_all_cpus`.
            DONE.fetch_add(1, Ordering::Release);
        }
        arch::irq::relax();
    }
}

/// Runs `job` on every CPU at once, in task context.
fn on_all_cpus(job: fn(CpuId)) {
    DONE.store(0, Ordering::Relaxed);
    JOB.store(job as usize, Ordering::Relaxed);
    // Release: pairs with the acquire in `other_cpu`.
    JOB_NUMBER.fetch_add(1, Ordering::Release);
    job(cpu::current());
    // Acquire: pairs with the release in `other_cpu`.
    while DONE.load(Ordering::Acquire) + 1 < cpu::online_count() {
        arch::irq::relax();
    }
}

/// Boots as the kernel does, and runs `test` on CPU 0 with interrupts on.
fn machine(cpus: usize, nodes: usize, mem_per_node: usize, test: fn(&mut MaySleep)) {
    let result = hosted::boot_cold(cpus, nodes, mem_per_node, || {
        sync::init();
        let regions: Vec<_> = arch::topology::memory_ranges()
            .iter()
            .map(|range| Region {
                start: PhysAddr::new(range.start),
                end: PhysAddr::new(range.start + range.len),
                node: range.node,
            })
            .collect();
        // SAFETY: the machine has just booted; nobody uses its memory.
        unsafe { init(&regions) };
        init_percpu();
        let missing = arch::smp::start_all(other_cpu, &mut |_| stack::alloc_boot().expect("memory for stacks").top());
        assert!(missing.is_empty());
        arch::irq::enable();
        // SAFETY: the only token of this thread, which holds no guard.
        test(&mut unsafe { MaySleep::new() });
    });
    if let Err(stopped) = result {
        panic!("{stopped}");
    }
}

/// In use and free blocks of each node, with nothing held back.
fn settle(cx: &mut MaySleep) -> Vec<NodeStats> {
    purge(cx);
    drain_all(cx);
    check();
    stats::nodes().collect()
}

/// Nothing is lost, and everything has merged again.
fn assert_same(before: &[NodeStats], cx: &mut MaySleep) {
    for (before, after) in before.iter().zip(settle(cx)) {
        assert_eq!((before.in_use(), before.free), (after.in_use(), after.free), "{before}\n{after}");
        assert_eq!(before.blocks, after.blocks, "{before}\n{after}");
    }
}

/// Random blocks, each filled with its own pattern, which is checked when it goes.
fn random_blocks(this: CpuId, rounds: usize, nolock: bool) {
    let mut rng = Rng::stream(42, this.index() as u64);
    let mut held: Vec<(&'static Page, usize, u64)> = Vec::with_capacity(256);
    let give = |(page, order, pattern): (&'static Page, usize, u64), nolock: bool| {
        let words = page.virt().cast::<u64>();
        for at in [0, page.bytes() / 8 - 1] {
            // SAFETY: the block is ours.
            assert_eq!(unsafe { words.add(at).read_volatile() }, pattern, "{page:?} was given out twice");
        }
        if nolock { free_pages_nolock(page, order) } else { free_pages(page, order) }
    };
    for round in 0..rounds {
        let order = (rng.below(7).min(rng.below(7))) as usize;
        if held.len() < 200 && rng.below(100) < 55 {
            let node =
                (rng.below(3) == 0).then(|| NodeId::new(rng.below(cpu::nodes_online().count_ones().into()) as usize));
            let page = if nolock && rng.below(2) == 0 {
                alloc_pages_nolock(order, node, NONE)
            } else {
                alloc_pages(order, node, NONE).ok()
            };
            let Some(page) = page else { continue };
            let pattern = (this.index() as u64) << 32 | round as u64;
            let words = page.virt().cast::<u64>();
            for at in [0, page.bytes() / 8 - 1] {
                // SAFETY: the block is ours.
                unsafe { words.add(at).write_volatile(pattern) };
            }
            held.push((page, order, pattern));
        } else if !held.is_empty() {
            give(held.swap_remove(rng.below(held.len() as u64) as usize), nolock && rng.below(2) == 0);
        }
    }
    held.into_iter().for_each(|block| give(block, false));
}

#[test]
fn random_allocation_on_all_cpus_gives_no_block_twice_and_loses_none() {
    hosted::in_own_process(|| {
        machine(4, 2, 32 << 20, |cx| {
            let before = settle(cx);
            on_all_cpus(|this| random_blocks(this, 20_000, false));
            assert_same(&before, cx);
        });
    });
}

#[test]
fn memory_goes_down_to_nothing_and_comes_back_whole() {
    hosted::in_own_process(|| {
        machine(2, 2, 16 << 20, |cx| {
            let before = settle(cx);
            for order in [0, 3, 6, 0] {
                let mut held = Vec::with_capacity(1 << 14);
                let mut seen_other = false;
                while let Ok(page) = alloc_pages(order, Some(NodeId::new(1)), NONE | AllocFlags::RESERVE) {
                    assert!(page.node().index() == 1 || held.len() > 8);
                    seen_other |= page.node().index() == 0;
                    held.push(page);
                }
                assert!(seen_other, "the other node helped out");
                let free = stats::free_pages();
                // What is left is per-CPU lists of CPUs other than this, and blocks too small for `order`.
                assert!(order != 0 || free == 0, "{free} pages left");
                held.into_iter().for_each(|page| free_pages(page, order));
            }
            assert_same(&before, cx);
        });
    });
}

#[test]
fn a_full_node_falls_back_to_the_nearest_and_keeps_its_reserve() {
    hosted::in_own_process(|| {
        machine(3, 3, 8 << 20, |cx| {
            let before = settle(cx);
            let wanted = NodeId::new(1);
            let mut nodes: Vec<NodeId> = (0..3).map(NodeId::new).collect();
            nodes.sort_by_key(|&node| (cpu::distance(wanted, node), (node.index() + 2) % 3));
            assert_eq!(nodes[0], wanted);
            let (mut held, mut order_seen) = (Vec::with_capacity(1 << 14), Vec::new());
            while let Ok(page) = alloc_pages(0, Some(wanted), NONE) {
                assert!(!page.is_reserve());
                if order_seen.last() != Some(&page.node()) {
                    order_seen.push(page.node());
                }
                held.push(page);
            }
            assert_eq!(order_seen, nodes, "nearest first, each to its end");
            for node in stats::nodes() {
                assert_eq!(node.free, node.min, "the reserve is untouched: {node}");
                assert!(node.min > 0);
            }
            assert!(alloc_pages(0, None, NONE | AllocFlags::RESERVE | AllocFlags::NO_RESERVE).is_err());
            let reserve = alloc_pages(0, None, NONE | AllocFlags::RESERVE).expect("the reserve, on demand");
            assert!(reserve.is_reserve() && stats::is_low(wanted));
            free_pages(reserve, 0);
            held.push(alloc_pages(0, None, NONE | AllocFlags::RESERVE).expect("the reserve, once more"));
            assert!(stats::node(wanted).failed >= 1);
            held.drain(..).for_each(|page| free_pages(page, 0));
            while let Ok(page) = alloc_pages(0, Some(wanted), NONE) {
                assert!(!page.is_reserve(), "the mark goes with the block");
                held.push(page);
            }
            held.into_iter().for_each(|page| free_pages(page, 0));
            assert_same(&before, cx);
        });
    });
}

#[test]
fn a_block_from_this_node_is_from_this_node_or_from_none() {
    hosted::in_own_process(|| {
        machine(2, 2, 8 << 20, |cx| {
            let before = settle(cx);
            for wanted in (0..2).map(NodeId::new) {
                let mut held = Vec::with_capacity(1 << 12);
                while let Ok(page) = alloc_pages(0, Some(wanted), NONE | AllocFlags::THIS_NODE) {
                    assert_eq!(page.node(), wanted);
                    held.push(page);
                }
                assert!(
                    !held.is_empty()
                        && alloc_pages(0, Some(wanted), NONE).is_ok_and(|page| {
                            free_pages(page, 0);
                            page.node() != wanted
                        })
                );
                held.into_iter().for_each(|page| free_pages(page, 0));
            }
            assert_same(&before, cx);
        });
    });
}

static NMI_TAKEN: AtomicUsize = AtomicUsize::new(0);
static NMI_REFUSED: AtomicUsize = AtomicUsize::new(0);
static STORM: AtomicBool = AtomicBool::new(false);

/// Blocks that [`nolock_visit`] took the last time.
static STASH: [AtomicPtr<Page>; 2] = [const { AtomicPtr::new(core::ptr::null_mut()) }; 2];

/// What a guest of any instruction does: gives back the blocks of the last time, and takes two others.
fn nolock_visit() {
    empty_stash();
    for (stash, order) in STASH.iter().zip([0, 4]) {
        match alloc_pages_nolock(order, None, NONE) {
            Some(page) => {
                NMI_TAKEN.fetch_add(1, Ordering::Relaxed);
                stash.store(core::ptr::from_ref(page).cast_mut(), Ordering::Relaxed);
            }
            None => {
                NMI_REFUSED.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn empty_stash() {
    for stash in &STASH {
        // SAFETY: null or a descriptor.
        if let Some(page) = unsafe { stash.swap(core::ptr::null_mut(), Ordering::Relaxed).as_ref() } {
            free_pages_nolock(page, page.order());
        }
    }
}

static STEP: AtomicUsize = AtomicUsize::new(0);
static STRIDE: AtomicUsize = AtomicUsize::new(1);

/// Which boundaries are visited: every third; and every 53rd, from several on, for a frequent guest also clears away what
/// the next one might have found. The suite in the kernel, whose steps are cheaper, begins at each.
fn strides() -> impl Iterator<Item = (usize, usize)> {
    core::iter::once((3, 0)).chain((0..53).step_by(13).map(|first| (53, first)))
}

fn visit_in_step() {
    if STEP.fetch_add(1, Ordering::Relaxed).is_multiple_of(STRIDE.load(Ordering::Relaxed)) {
        sync::nmi::as_nmi(nolock_visit);
    }
}

static NMI: sync::nmi::NmiHandler = sync::nmi::NmiHandler::new("mm test", |_| {
    nolock_visit();
    true
});

#[test]
fn nolock_calls_from_an_nmi_storm_harm_nothing() {
    hosted::in_own_process(|| {
        machine(2, 2, 32 << 20, |cx| {
            sync::nmi::register(&NMI);
            let before = settle(cx);
            STORM.store(true, Ordering::Relaxed);
            on_all_cpus(|this| {
                if this == CpuId::BOOT {
                    // The host decides when the other CPU runs.
                    while NMI_TAKEN.load(Ordering::Relaxed) < 500 {
                        random_blocks(this, 5_000, true);
                    }
                    STORM.store(false, Ordering::Relaxed);
                } else {
                    while STORM.load(Ordering::Relaxed) {
                        arch::ipi::send_nmi(CpuId::BOOT);
                        arch::clock::udelay(20);
                    }
                }
            });
            empty_stash();
            assert_same(&before, cx);
        });
    });
}

#[test]
fn nolock_calls_between_any_two_instructions_of_the_allocator_harm_nothing() {
    hosted::in_own_process(|| {
        machine(1, 1, 16 << 20, |cx| {
            let before = settle(cx);
            let mut boundaries = 0;
            for (stride, first) in strides() {
                STRIDE.store(stride, Ordering::Relaxed);
                // List hit, refill of an empty list, past the lists; and the frees of each.
                for order in [0, 4] {
                    drain_local();
                    for _ in 0..2 {
                        STEP.store(stride - first, Ordering::Relaxed);
                        boundaries += arch::step::single_step(
                            || free_pages(alloc_pages(order, None, NONE).unwrap(), order),
                            visit_in_step,
                        );
                    }
                }
                // The free that makes a list overfull.
                drain_local();
                let mut held: Vec<_> = (0..128).map(|_| alloc_pages(0, None, NONE).unwrap()).collect();
                let last = held.pop().unwrap();
                held.drain(..96).for_each(|page| free_pages(page, 0));
                boundaries += arch::step::single_step(|| free_pages(last, 0), visit_in_step);
                held.into_iter().for_each(|page| free_pages(page, 0));
            }
            empty_stash();
            let deferred: u64 = stats::nodes().map(|node| node.deferred_frees).sum();
            std::println!("{boundaries} boundaries, {NMI_TAKEN:?} taken, {NMI_REFUSED:?} refused, {deferred} deferred");
            assert!(boundaries > 2_000, "{boundaries} boundaries");
            assert!(NMI_REFUSED.load(Ordering::Relaxed) > 0 && deferred > 0, "some came while the lock was taken");
            assert_same(&before, cx);
        });
    });
}

#[test]
fn a_free_that_finds_the_lock_taken_is_recovered() {
    hosted::in_own_process(|| {
        machine(1, 1, 16 << 20, |cx| {
            let before = settle(cx);
            let blocks: Vec<_> = [5, 4, 6].map(|order| (alloc_pages(order, None, NONE).unwrap(), order)).into();
            let zone = crate::zone::of(NodeId::new(0));
            let mut blocks = blocks.into_iter();
            // Inside the lock, as an NMI would be.
            zone.take(&crate::memmap::MAP, 0, 1, 0, crate::zone::Spin::May, |page| {
                for (page, order) in blocks.by_ref() {
                    free_pages_nolock(page, order);
                }
                assert!(alloc_pages_nolock(7, None, NONE).is_none(), "the lock is taken");
                page.set_kind(PageKind::Allocated);
                assert_eq!(zone.deferred_pages(), 32 + 16 + 64);
            });
            let stats = stats::node(NodeId::new(0));
            assert_eq!((stats.deferred, stats.deferred_frees), (0, 3));
            assert_eq!(before[0].free, stats.free + 1);
        });
    });
}

#[test]
fn an_address_leads_to_its_block_and_a_double_free_is_found() {
    hosted::in_own_process(|| {
        machine(1, 1, 16 << 20, |cx| {
            let page = alloc_pages(3, None, NONE | AllocFlags::ZERO).unwrap();
            for offset in [0, 1, PAGE_SIZE, 5 * PAGE_SIZE + 77, 8 * PAGE_SIZE - 1] {
                let at = page.virt().wrapping_add(offset);
                // SAFETY: inside our block.
                assert_eq!(unsafe { at.read() }, 0);
                let found = page_of(at).unwrap();
                assert!(core::ptr::eq(found.head(), page));
                assert_eq!((found.order(), found.pfn() - page.pfn()), (3, offset / PAGE_SIZE));
            }
            page.set_large(20_000);
            assert_eq!((page.kind(), page.large_size()), (PageKind::Large, 20_000));
            assert!(page_of((&raw const HOST_ALLOC).cast()).is_none());
            let area = vmalloc(1, cx).unwrap();
            assert!(page_of(area.as_ptr()).is_none() && is_vmalloc(area.as_ptr()));
            free_pages(page, 3);
            for order in [2, 3] {
                let again = std::panic::catch_unwind(|| free_pages(page, order));
                assert!(again.unwrap_err().downcast_ref::<std::string::String>().unwrap().contains("ALLOC-1"));
            }
        });
    });
}

#[test]
fn vmalloc_memory_is_whole_fenced_and_reused_only_after_a_flush() {
    hosted::in_own_process(|| {
        machine(2, 2, 16 << 20, |cx| {
            let warm = vmalloc(1, cx).unwrap();
            vfree(warm, cx);
            let before = settle(cx);
            let (areas, taken) = usage();
            for size in [1, PAGE_SIZE, PAGE_SIZE + 1, 50 * PAGE_SIZE] {
                let area = vzalloc(size, cx).unwrap();
                let pages = size.div_ceil(PAGE_SIZE);
                assert_eq!(vmalloc_size(area), pages * PAGE_SIZE);
                assert_eq!(usage(), (areas + 1, taken + pages + 1));
                // SAFETY: the area is ours.
                let bytes = unsafe { core::slice::from_raw_parts_mut(area.as_ptr(), pages * PAGE_SIZE) };
                assert!(bytes.iter().all(|&byte| byte == 0));
                bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at % 251) as u8);
                assert!(bytes.iter().enumerate().all(|(at, &byte)| byte == (at % 251) as u8));
                assert!(vmalloc::is_guard(area.as_ptr().addr() - 1) && !vmalloc::is_guard(area.as_ptr().addr()));
                assert!(arch::probe::read(area.as_ptr().addr() as u64).is_some());
                assert!(arch::probe::read(area.as_ptr().addr() as u64 - 8).is_none(), "the guard page");
                vfree(area, cx);
                assert!(arch::probe::read(area.as_ptr().addr() as u64).is_none());
                assert_eq!(usage(), (areas + 1, taken + pages + 1), "not before the flush");
                let other = vmalloc(size, cx).unwrap();
                assert_ne!(other, area, "addresses wait for the flush");
                vfree(other, cx);
                assert_eq!(purge(cx), 2 * pages);
                assert_eq!(usage(), (areas, taken));
            }
            assert!(vmalloc(0, cx).is_err() && vmalloc(1 << 40, cx).is_err());
            assert_same(&before, cx);
        });
    });
}

#[test]
fn areas_are_freed_from_where_nobody_may_wait() {
    hosted::in_own_process(|| {
        machine(2, 1, 16 << 20, |cx| {
            let warm = vmalloc(1, cx).unwrap();
            vfree(warm, cx);
            let before = settle(cx);
            let in_use = usage();
            let areas: Vec<_> = (0..10).map(|pages| vmalloc(pages * 3000 + 1, cx).unwrap()).collect();
            {
                let _irq = IrqGuard::new(ATOMIC);
                areas.iter().for_each(|&area| vfree_deferred(area));
            }
            // The interrupt has come by now, or purge does its work.
            assert_same(&before, cx);
            assert_eq!(usage(), in_use);
        });
    });
}

#[test]
fn an_allocation_that_fails_anywhere_leaves_nothing_behind() {
    hosted::in_own_process(|| {
        machine(1, 1, 16 << 20, |cx| {
            let warm = vmalloc(1, cx).unwrap();
            vfree(warm, cx);
            let before = settle(cx);
            let mut failures = 0;
            for nth in 1.. {
                let armed = inject::arm(Plan::From(nth)).unwrap();
                let area = vmalloc::vmalloc_with(10 * PAGE_SIZE, None, NONE, cx);
                failures += usize::from(armed.failed() != 0);
                drop(armed);
                if let Ok(area) = area {
                    vfree(area, cx);
                    break;
                }
                assert_same(&before, cx);
                assert_eq!(usage(), (0, 0));
            }
            assert!(failures >= 10, "each page failed in turn: {failures}");
            assert_same(&before, cx);
        });
    });
}

static HOARD: sync::LlistHead = sync::LlistHead::new();
static HOARDED: AtomicUsize = AtomicUsize::new(0);
static SETTLED: AtomicBool = AtomicBool::new(false);

static HOARDER: Shrinker = Shrinker::new(
    "hoard",
    || HOARDED.load(Ordering::Relaxed),
    |_, _| {
        let mut freed = 0;
        for node in HOARD.take_all() {
            // SAFETY: the test puts links of descriptors there.
            free_pages(unsafe { Page::from_llist(node) }, 0);
            freed += 1;
        }
        HOARDED.fetch_sub(freed, Ordering::Relaxed);
        freed
    },
)
.with_settle(|_| SETTLED.store(true, Ordering::Relaxed));

#[test]
fn who_may_wait_gets_what_shrinkers_free_and_else_a_report() {
    hosted::in_own_process(|| {
        machine(2, 2, 8 << 20, |cx| {
            shrinker::register(&HOARDER);
            let before = settle(cx);
            while let Ok(page) = alloc_pages(0, None, NONE) {
                // SAFETY: the page is ours and on no list.
                unsafe { HOARD.add(page.llist()) };
                HOARDED.fetch_add(1, Ordering::Relaxed);
            }
            assert!(HOARDED.load(Ordering::Relaxed) > 3000);
            assert!(alloc_pages_sleep(0, None, NONE, cx).is_err(), "without MAY_SLEEP nobody is asked");
            let page = alloc_pages_sleep(5, None, AllocFlags::MAY_SLEEP, cx).expect("the hoard");
            assert_eq!(HOARDED.load(Ordering::Relaxed), 0);
            assert!(!SETTLED.load(Ordering::Relaxed), "no need to wait");
            let big: Vec<_> = core::iter::from_fn(|| alloc_pages(9, None, NONE).ok()).collect();
            assert!(alloc_pages_sleep(10, None, AllocFlags::MAY_SLEEP | NONE, cx).is_err());
            assert!(SETTLED.load(Ordering::Relaxed), "all was tried");
            let mut report = std::string::String::new();
            oom::write_report(&mut report).unwrap();
            assert!(report.contains("node 0: ") && report.contains("node 1: ") && report.contains("shrinker hoard"));
            big.into_iter().for_each(|page| free_pages(page, 9));
            free_pages(page, 5);
            assert_same(&before, cx);
        });
    });
}

#[test]
fn per_cpu_lists_hold_pages_of_the_home_node_and_are_counted() {
    hosted::in_own_process(|| {
        machine(2, 2, 16 << 20, |cx| {
            let before = settle(cx);
            on_all_cpus(|this| {
                let page = alloc_pages(0, None, NONE).unwrap();
                assert_eq!(page.node(), cpu::node_of(this));
                free_pages(page, 0);
            });
            for node in stats::nodes() {
                assert_eq!(node.per_cpu, 32, "one batch: {node}");
                assert_eq!(node.in_use(), before[node.node.index()].in_use());
            }
            assert_same(&before, cx);
            assert!(stats::nodes().all(|node| node.per_cpu == 0));
        });
    });
}

#[test]
fn the_lists_of_a_parked_cpu_go_back_to_their_node_and_serve_it_again_when_it_returns() {
    hosted::in_own_process(|| {
        machine(3, 2, 16 << 20, |cx| {
            let before = settle(cx);
            let fill_lists = |_| {
                for order in [0, 0, 1, 2, 3] {
                    free_pages(alloc_pages(order, None, NONE).unwrap(), order);
                }
            };
            on_all_cpus(fill_lists);
            for cpu in [1, 2].map(CpuId::new) {
                cpu::set_online(cpu, false);
                // SAFETY: the CPU waits for the next job, and none comes meanwhile.
                unsafe { drain_parked(cpu) };
            }
            drain_local();
            for (before, after) in before.iter().zip(stats::nodes()) {
                assert_eq!((before.free, before.blocks), (after.free, after.blocks), "{before}\n{after}");
                assert_eq!(after.per_cpu, 0, "{after}");
            }
            [1, 2].map(CpuId::new).into_iter().for_each(|cpu| cpu::set_online(cpu, true));
            on_all_cpus(fill_lists);
            assert!(stats::nodes().all(|node| node.per_cpu > 0), "the lists are used again");
            assert_same(&before, cx);
        });
    });
}
