//! Pages: nobody gets a page twice, nothing is lost, and freed addresses are gone on every CPU.

use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use arch::trap::TrapFrame;
use arch::{CpuId, NodeId, PAGE_SIZE, clock, cpu, probe};
use mm::inject::{self, Plan, Rule};
use mm::stats::{self, NodeStats};
use mm::{AllocError, AllocFlags, Page};
use sched::Prio;
use sync::nmi::NmiHandler;
use sync::{ATOMIC, IrqGuard, MaySleep, Once, Rng, smp};

use crate::stepping::{self, Visit};
use crate::storm::Storm;
use crate::{Failure, ensure, ensure_eq, ktest, skip};

/// Failures are part of these tests.
const QUIET: AllocFlags = AllocFlags::NOWARN;

/// Pages by which two counts may differ although nothing is lost: other threads of the kernel come and go meanwhile.
const SLACK: usize = 64;

/// Pages in use on all nodes, with nothing held back on lists.
fn in_use(cx: &mut MaySleep) -> usize {
    mm::vmalloc::purge(cx);
    mm::drain_all(cx);
    mm::check();
    stats::nodes().map(|node| node.in_use()).sum()
}

fn ensure_nothing_lost(before: usize, cx: &mut MaySleep) -> Result<(), Failure> {
    let after = in_use(cx);
    ensure!(before.abs_diff(after) <= SLACK, "{before} pages in use before, {after} after");
    Ok(())
}

fn no_memory(error: AllocError) -> Failure {
    crate::__failed!("{error}")
}

fn vmalloc(size: usize, cx: &mut MaySleep) -> Result<NonNull<u8>, Failure> {
    mm::vmalloc(size, cx).map_err(no_memory)
}

/// Blocks linked through their own memory, so that holding them needs no other.
pub(super) struct Chain(*mut u8);

impl Chain {
    pub(super) const fn new() -> Self {
        Self(core::ptr::null_mut())
    }

    pub(super) fn push(&mut self, page: &'static Page) {
        // SAFETY: the block is ours, and its first bytes are mapped and aligned.
        unsafe { page.virt().cast::<*mut u8>().write(self.0) };
        self.0 = page.virt();
    }

    pub(super) fn pop(&mut self) -> Option<&'static Page> {
        let first = NonNull::new(self.0)?;
        // SAFETY: written by `push`.
        self.0 = unsafe { first.cast::<*mut u8>().read() };
        mm::page_of(first.as_ptr())
    }

    pub(super) fn free_all(&mut self) {
        while let Some(page) = self.pop() {
            mm::free_pages(page, page.order());
        }
    }
}

/// Writes or checks a pattern at both ends of a block.
fn words(page: &'static Page) -> [*mut u64; 2] {
    let first = page.virt().cast::<u64>();
    [first, first.wrapping_add(page.bytes() / 8 - 1)]
}

/// Random blocks, filled with this CPU's pattern, checked when they go. The number of blocks that were given out twice.
fn random_blocks(seed: u64, rounds: u64) -> u64 {
    let this = cpu::current().index() as u64;
    let mut rng = Rng::stream(seed, this);
    let mut held: Vec<(&'static Page, usize, u64)> = Vec::with_capacity(64);
    let mut wrong = 0;
    let mut give = |(page, order, pattern): (&'static Page, usize, u64)| {
        // SAFETY: both words lie in our block.
        wrong += u64::from(words(page).iter().any(|word| unsafe { word.read_volatile() } != pattern));
        mm::free_pages(page, order);
    };
    for round in 0..rounds {
        if held.len() < 64 && rng.below(100) < 55 {
            let order = rng.below(6).min(rng.below(6)) as usize;
            let nodes: u64 = stats::nodes().count() as u64;
            let node = (rng.below(4) == 0).then(|| stats::nodes().nth(rng.below(nodes) as usize)).flatten();
            let Ok(page) = mm::alloc_pages(order, node.map(|node| node.node), QUIET) else { continue };
            let pattern = this << 48 | round;
            for word in words(page) {
                // SAFETY: as above.
                unsafe { word.write_volatile(pattern) };
            }
            held.push((page, order, pattern));
        } else if !held.is_empty() {
            give(held.swap_remove(rng.below(held.len() as u64) as usize));
        }
    }
    held.into_iter().for_each(&mut give);
    wrong
}

/// Runs `f` in a thread on each CPU at once; the sum of what they return.
fn on_all_cpus(cx: &mut MaySleep, f: impl Fn() -> u64 + Clone + Send + 'static) -> Result<u64, Failure> {
    let mut threads = Vec::new();
    for on in cpu::online() {
        let f = f.clone();
        let thread = sched::spawn(cx, "mm test", Prio::NORMAL, Some(on), move |_| f());
        threads.push(thread.map_err(|error| crate::__failed!("a thread on CPU {on}: {error}"))?);
    }
    Ok(threads.into_iter().map(|thread| thread.join(cx)).sum())
}

/// Blocks that [`visit`] took the last time.
static STASH: [AtomicPtr<Page>; 2] = [const { AtomicPtr::new(core::ptr::null_mut()) }; 2];
/// Whose NMIs these are.
static VISITED: AtomicUsize = AtomicUsize::new(usize::MAX);
static TAKEN: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicU64 = AtomicU64::new(0);

/// What an NMI does: gives back the blocks of the last time and takes two others.
fn visit() {
    empty_stash();
    for (stash, order) in STASH.iter().zip([0, 4]) {
        match mm::alloc_pages_nolock(order, None, QUIET) {
            Some(page) => {
                TAKEN.fetch_add(1, Ordering::Relaxed);
                stash.store(core::ptr::from_ref(page).cast_mut(), Ordering::Relaxed);
            }
            None => {
                REFUSED.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn empty_stash() {
    for stash in &STASH {
        // SAFETY: null or a descriptor, which lives for ever.
        if let Some(page) = unsafe { stash.swap(core::ptr::null_mut(), Ordering::Relaxed).as_ref() } {
            mm::free_pages_nolock(page, page.order());
        }
    }
}

struct Visits;

impl Visit for Visits {
    fn visit() {
        visit();
    }
}

fn on_nmi(_: &mut TrapFrame) -> bool {
    let ours = VISITED.load(Ordering::Relaxed) == cpu::current().index();
    if ours {
        visit();
    }
    ours
}

fn start_visits(cpu: CpuId) {
    static HANDLER: NmiHandler = NmiHandler::new("mm test", on_nmi);
    static DONE: Once<()> = Once::new();
    DONE.call_once(|| sync::nmi::register(&HANDLER));
    TAKEN.store(0, Ordering::Relaxed);
    REFUSED.store(0, Ordering::Relaxed);
    VISITED.store(cpu.index(), Ordering::Relaxed);
}

fn end_visits() {
    VISITED.store(usize::MAX, Ordering::Relaxed);
    empty_stash();
}

/// CPUs that can read `address`.
fn readers(address: NonNull<u8>) -> usize {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    COUNT.store(0, Ordering::Relaxed);
    let address = address.as_ptr().addr() as u64;
    smp::run_on_mask(&cpu::online(), |_| {
        COUNT.fetch_add(usize::from(probe::read(address).is_some()), Ordering::Relaxed);
    });
    COUNT.load(Ordering::Relaxed)
}

ktest! {
    /// Every CPU allocates and frees at random, on every node, and checks what it wrote.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn random_blocks_on_all_cpus_are_given_out_once_and_none_is_lost(t: &mut Test) {
        let seed = t.seed;
        // The first round fills the caches that threads and vectors use.
        ensure_eq!(on_all_cpus(t.cx, move || random_blocks(seed, 200))?, 0);
        let before = in_use(t.cx);
        ensure_eq!(on_all_cpus(t.cx, move || random_blocks(seed, 10_000))?, 0);
        ensure_nothing_lost(before, t.cx)
    }

    /// All memory, in blocks of several orders, to the last page; then everything is back and has merged.
    #[budget_ms(60_000)]
    fn memory_goes_down_to_nothing_and_comes_back_whole(t: &mut Test) {
        let before = in_use(t.cx);
        let blocks_before: Vec<NodeStats> = stats::nodes().collect();
        for order in [mm::MAX_ORDER, 3, 0] {
            let (mut chain, mut count) = (Chain::new(), 0_usize);
            while let Ok(page) = mm::alloc_pages(order, None, QUIET | AllocFlags::RESERVE) {
                chain.push(page);
                count += 1;
            }
            let left: usize = stats::nodes().map(|node| node.blocks[order..].iter().sum::<usize>()).sum();
            chain.free_all();
            ensure!(count > 0, "no block of order {order} at all");
            ensure_eq!(left, 0, "blocks of order {order} and more were there and not given out");
        }
        ensure_nothing_lost(before, t.cx)?;
        for (before, after) in blocks_before.iter().zip(stats::nodes()) {
            let largest = mm::MAX_ORDER;
            ensure!(
                after.blocks[largest] + 2 >= before.blocks[largest],
                "node {}: {} of the largest blocks before, {} after", before.node, before.blocks[largest], after.blocks[largest]
            );
        }
        Ok(())
    }

    /// A full node's requests go to the others by distance, and stop at the reserve.
    fn a_full_node_falls_back_by_distance_and_keeps_the_reserve(t: &mut Test) {
        let nodes: Vec<NodeId> = stats::nodes().map(|node| node.node).collect();
        if nodes.len() < 2 {
            skip!("needs two nodes with memory");
        }
        for &wanted in &nodes {
            mm::drain_all(t.cx);
            let mut chain = Chain::new();
            let mut seen: Vec<NodeId> = Vec::with_capacity(nodes.len() * 4);
            while let Ok(page) = mm::alloc_pages(0, Some(wanted), QUIET) {
                if seen.last() != Some(&page.node()) && seen.len() < seen.capacity() {
                    seen.push(page.node());
                }
                chain.push(page);
            }
            let below_min = stats::nodes().find(|node| node.free < node.min);
            chain.free_all();
            ensure_eq!(seen.first().copied(), Some(wanted));
            ensure_eq!(seen.len(), nodes.len(), "each node once, to its end: {seen:?}");
            ensure!(seen.is_sorted_by_key(|&node| cpu::distance(wanted, node)), "from {wanted}: {seen:?}");
            ensure!(below_min.is_none(), "below its reserve: {below_min:?}");
        }
        Ok(())
    }

    /// A CPU that has used a mapping may not go on using it once it is freed and flushed.
    #[tags(race)]
    fn freed_addresses_fault_on_every_cpu_after_the_flush(t: &mut Test) {
        let (mut remembered, rounds) = (0, 20);
        for round in 0..rounds {
            // More pages than are flushed one by one, and fewer.
            let pages = if round % 2 == 0 { 3 } else { 50 };
            let area = vmalloc(pages * PAGE_SIZE, t.cx)?;
            let last = area.map_addr(|addr| addr.saturating_add((pages - 1) * PAGE_SIZE));
            let guard = area.map_addr(|addr| core::num::NonZero::new(addr.get() - 8).unwrap_or(addr));
            ensure_eq!(readers(area), cpu::online_count());
            ensure_eq!(readers(last), cpu::online_count());
            ensure_eq!(readers(guard), 0, "the guard page");
            mm::vfree(area, t.cx);
            remembered += readers(last);
            mm::vmalloc::purge(t.cx);
            ensure_eq!(readers(area), 0, "after the flush");
            ensure_eq!(readers(last), 0, "after the flush");
        }
        t.note(format_args!("{remembered} CPUs in {rounds} rounds still read freed memory before the flush"));
        Ok(())
    }

    /// Areas freed with interrupts off are unmapped by the interrupt that comes after, or by the next flush.
    fn areas_freed_where_nobody_may_wait_are_unmapped_soon(t: &mut Test) {
        let before = mm::vmalloc::usage();
        let areas = [vmalloc(1, t.cx)?, vmalloc(5 * PAGE_SIZE, t.cx)?];
        {
            let _irq = IrqGuard::new(ATOMIC);
            areas.iter().for_each(|&area| mm::vfree_deferred(area));
        }
        mm::vmalloc::purge(t.cx);
        ensure_eq!(areas.map(readers), [0, 0]);
        ensure!(mm::vmalloc::usage().0 <= before.0, "areas before {before:?}, after {:?}", mm::vmalloc::usage());
        Ok(())
    }

    /// NMIs allocate and free while the interrupted code does.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn nolock_calls_from_an_nmi_storm_harm_nothing(t: &mut Test) {
        let target = cpu::current();
        let Some(other) = cpu::online().iter().find(|&cpu| cpu != target) else { skip!("needs two CPUs") };
        let before = in_use(t.cx);
        start_visits(target);
        let storm = Storm::start(t.cx, other, target)?;
        let mut wrong = 0;
        let end = clock::now_ns() + 20_000_000_000;
        while TAKEN.load(Ordering::Relaxed) < 500 && clock::now_ns() < end {
            wrong += random_blocks(t.seed, 2_000);
        }
        let sent = storm.stop(t.cx);
        end_visits();
        let taken = TAKEN.load(Ordering::Relaxed);
        ensure_eq!(wrong, 0, "blocks given out twice");
        ensure!(taken >= 100, "only {taken} blocks from NMI");
        t.note(format_args!("{sent} NMIs sent, {taken} blocks from NMI, {REFUSED:?} refused"));
        ensure_nothing_lost(before, t.cx)
    }

    /// The same at every instruction boundary: list hits, refills, flushes, large blocks.
    #[budget_ms(60_000)]
    fn nolock_calls_at_every_instruction_of_the_allocator_harm_nothing(t: &mut Test) {
        let before = in_use(t.cx);
        start_visits(cpu::current());
        let mut boundaries = 0;
        for run in stepping::runs(&[1, 29]) {
            for order in [0, 3, 5] {
                mm::drain_local();
                for _ in 0..2 {
                    boundaries += stepping::step::<Visits>(run, || {
                        if let Ok(page) = mm::alloc_pages(order, None, QUIET) {
                            mm::free_pages(page, order);
                        }
                    });
                }
            }
            // The free that makes a list overfull.
            mm::drain_local();
            let mut chain = Chain::new();
            (0..128).filter_map(|_| mm::alloc_pages(0, None, QUIET).ok()).for_each(|page| chain.push(page));
            (0..96).filter_map(|_| chain.pop()).for_each(|page| mm::free_pages(page, 0));
            if let Some(last) = chain.pop() {
                boundaries += stepping::step::<Visits>(run, || mm::free_pages(last, 0));
            }
            chain.free_all();
        }
        end_visits();
        ensure!(boundaries > 2_000, "{boundaries} boundaries");
        ensure!(TAKEN.load(Ordering::Relaxed) > 2_000, "{TAKEN:?} blocks taken");
        t.note(format_args!("{boundaries} boundaries, {TAKEN:?} blocks taken, {REFUSED:?} refused"));
        ensure_nothing_lost(before, t.cx)
    }

    /// From the n-th on allocations fail, for every n that vmalloc makes: each time an error, and nothing left behind.
    fn an_allocation_that_fails_anywhere_leaves_nothing_behind(t: &mut Test) {
        let (mut failures, areas) = (0, mm::vmalloc::usage().0);
        let before = in_use(t.cx);
        for nth in 1..100 {
            let Some(armed) = inject::arm(Plan::From(nth)) else { skip!("fault injection is in use") };
            let area = mm::vmalloc::vmalloc_with(10 * PAGE_SIZE, None, QUIET, t.cx);
            drop(armed);
            match area {
                Ok(area) => {
                    mm::vfree(area, t.cx);
                    break;
                }
                Err(_) => failures += 1,
            }
        }
        ensure_nothing_lost(before, t.cx)?;
        ensure!(failures >= 10, "only {failures} failures");
        ensure!(mm::vmalloc::usage().0 <= areas, "areas are left behind");
        Ok(())
    }

    /// Nothing fails on purpose unless it was asked for; a rule fails what it says, and only while it is armed.
    fn a_rule_of_failures_holds_while_it_is_armed_and_no_longer(t: &mut Test) {
        const RULE: Rule = Rule { interval: 2, probability: 100, space: 4, times: Some(3) };
        if inject::is_armed() {
            skip!("fail_page_alloc is on the command line")
        }
        let before = in_use(t.cx);
        let refused = |count: usize| {
            let mut refused = 0;
            for _ in 0..count {
                match mm::alloc_pages(1, None, QUIET) {
                    Ok(page) => mm::free_pages(page, 1),
                    Err(AllocError) => refused += 1,
                }
            }
            refused
        };
        ensure_eq!(refused(100), 0, "nothing is armed");
        let Some(armed) = inject::arm(Plan::Rule { rule: RULE, seed: t.seed }) else {
            return Err(crate::__failed!("armed, though it said that it was not"));
        };
        let (here, seen, failed) = (refused(100), armed.seen(), armed.failed());
        drop(armed);
        // Other CPUs may have had allocations meanwhile, and their share of the failures.
        ensure_eq!(failed, 3);
        ensure!(here <= 3 && here + (seen - 100) >= 3, "{here} of 3 failures here, {seen} allocations");
        ensure_eq!(refused(100), 0, "nothing is armed any more");
        ensure_nothing_lost(before, t.cx)
    }

    /// An address leads to its block, from any page of it.
    fn any_address_of_a_block_leads_to_its_head(t: &mut Test) {
        let order = 1 + t.rng.below(5) as usize;
        let page = mm::alloc_pages(order, None, QUIET | AllocFlags::ZERO).map_err(no_memory)?;
        for _ in 0..100 {
            let at = page.virt().wrapping_add(t.rng.below(page.bytes() as u64) as usize);
            let found = mm::page_of(at).map(Page::head);
            ensure!(found.is_some_and(|head| core::ptr::eq(head, page)), "{at:p} of {page:?} leads to {found:?}");
            // SAFETY: inside our block.
            ensure_eq!(unsafe { at.read() }, 0, "zeroed");
        }
        mm::free_pages(page, order);
        let image = core::ptr::from_ref(&SLACK).cast::<u8>();
        ensure!(mm::page_of(image).is_none(), "the kernel image has no descriptor by its own address");
        Ok(())
    }
}
