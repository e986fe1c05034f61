//! Pages while CPUs go and come: none is lost, and none stays out of reach on a CPU that is gone.

use alloc::vec::Vec;

use mm::stats::{self, NodeStats};
use mm::{AllocFlags, Page};
use sync::{MaySleep, Rng};

use crate::toggle::{Load, off, on, others, spawn, threads, toggle, toggle_all};
use crate::{Failure, ensure, ensure_eq, ktest};

/// What each node has with nothing held back: in caches of objects, on lists of CPUs that are online, or deferred.
fn settled(cx: &mut MaySleep) -> Vec<NodeStats> {
    slab::registry::for_each_unlocked(cx, |cache| {
        cache.shrink();
    });
    rcu::rcu_barrier(cx);
    mm::drain_all(cx);
    mm::check();
    stats::nodes().collect()
}

/// Fills the page lists of the CPU that it runs on.
fn fill_lists() {
    for order in [0, 0, 1, 2, 3] {
        if let Ok(page) = mm::alloc_pages(order, None, AllocFlags::NOWARN) {
            mm::free_pages(page, order);
        }
    }
}

fn ensure_nothing_is_held_back(nodes: &[NodeStats]) -> Result<(), Failure> {
    for node in nodes {
        ensure_eq!((node.per_cpu, node.deferred), (0, 0), "pages are out of reach: {node}");
    }
    Ok(())
}

/// A block with its pattern.
type Block = (&'static Page, usize, u64);

fn fill((page, _, pattern): Block) {
    for word in [0, page.bytes() / 8 - 1] {
        // SAFETY: the block is ours.
        unsafe { page.virt().cast::<u64>().add(word).write_volatile(pattern) };
    }
}

fn is_filled((page, _, pattern): Block) -> bool {
    [0, page.bytes() / 8 - 1].iter().all(|&word| {
        // SAFETY: as in `fill`.
        let found = unsafe { page.virt().cast::<u64>().add(word).read_volatile() };
        found == pattern
    })
}

/// Blocks that a thread has; what is left at its end goes back then.
struct Held([Option<Block>; 32]);

impl Held {
    /// Frees one block, if there is one in this place, and puts another there, if there is memory.
    fn turn(&mut self, rng: &mut Rng) -> Result<(), Failure> {
        let place = rng.index(self.0.len());
        if let Some(block) = self.0[place].take() {
            ensure!(is_filled(block), "{:?} was given out twice", block.0);
            if rng.chance(1, 2) { mm::free_pages(block.0, block.1) } else { mm::free_pages_nolock(block.0, block.1) }
        }
        let order = rng.index(5).min(rng.index(5));
        let page = match rng.chance(1, 2) {
            true => mm::alloc_pages(order, None, AllocFlags::NOWARN).ok(),
            false => mm::alloc_pages_nolock(order, None, AllocFlags::NOWARN),
        };
        self.0[place] = page.map(|page| (page, order, rng.next_u64()));
        self.0[place].into_iter().for_each(fill);
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.iter_mut().filter_map(Option::take).for_each(|(page, order, _)| mm::free_pages(page, order));
    }
}

/// Runs `meanwhile` while two threads a CPU allocate and free; returns their turns.
fn under_load(
    rng: &mut Rng,
    cx: &mut MaySleep,
    meanwhile: impl FnOnce(&mut Rng, &mut MaySleep) -> Result<(), Failure>,
) -> Result<u64, Failure> {
    let mut load = Load::new();
    for _ in 0..threads() {
        let mut held = Held([None; 32]);
        load.add(cx, Rng::new(rng.next_u64()), move |rng, _| (0..8).try_for_each(|_| held.turn(rng)))?;
    }
    let result = meanwhile(rng, cx);
    let turns = load.end(cx)?.iter().sum();
    result.map(|()| turns)
}

/// Pages that somebody has, other than for slabs: what is in those depends on what else the machine remembers.
fn in_use(nodes: &[NodeStats]) -> usize {
    let mut in_slabs = 0;
    slab::info::for_each(|cache| in_slabs += cache.num_slabs as usize * cache.pagesperslab);
    nodes.iter().map(NodeStats::in_use).sum::<usize>() - in_slabs
}

ktest! {
    /// The page lists of a CPU that goes are empty when it is gone, to the page, and it can fill them again when it is back.
    fn pages_on_the_lists_of_a_cpu_that_goes_are_free(t: &mut Test) {
        let cpus = others(t.cx)?;
        let mut before = None;
        // The first round brings out what threads and off and on themselves keep.
        for _ in 0..3 {
            for &cpu in &cpus {
                spawn(t.cx, Some(cpu), |_| fill_lists())?.join(t.cx);
                off(cpu, t.cx)?;
                let gone = settled(t.cx);
                on(cpu, t.cx)?;
                ensure_nothing_is_held_back(&gone)?;
            }
            let after = settled(t.cx);
            ensure_nothing_is_held_back(&after)?;
            let after = in_use(&after);
            if let Some(before) = before.replace(after) {
                ensure_eq!(after, before, "pages in use");
            }
        }
        Ok(())
    }

    /// Blocks of several orders, by all calls, with content checks; at the end every page is where it was.
    #[tags(race, slow)]
    #[budget_ms(300_000)]
    fn no_page_is_lost_while_cpus_go_and_come(t: &mut Test) {
        let cpus = others(t.cx)?;
        under_load(&mut t.rng, t.cx, |rng, cx| toggle(&cpus, 1, rng, cx))?;
        let before = in_use(&settled(t.cx));
        let turns = under_load(&mut t.rng, t.cx, |rng, cx| toggle_all(&cpus, rng, cx))?;
        let after = settled(t.cx);
        t.note(format_args!("{turns} times 8 blocks allocated and freed"));
        ensure!(turns > 100, "only {turns} turns");
        ensure_nothing_is_held_back(&after)?;
        ensure_eq!(in_use(&after), before, "pages in use");
        Ok(())
    }
}
