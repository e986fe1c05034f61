//! Memory that waits on RCU: how much, of which cache, at which stage, and since when.
//!
//! | stage | where an object is | counted |
//! |---|---|---|
//! | [`Sheaf`](Stage::Sheaf) | in a CPU's rcu_free sheaf, no grace period asked for yet | not at all: it is the sheaf's size |
//! | [`Detached`](Stage::Detached) | in a sheaf that waits for its grace period | by the sheaf, on the node whose barn it is for |
//! | [`Bulk`](Stage::Bulk), [`Pending`](Stage::Pending), [`CallRcu`](Stage::CallRcu) | in that back end of `kfree_rcu` | by the object or by the page |
//! | [`Deferred`](Stage::Deferred) | on a CPU's deferred list: an NMI gave it up | by the object |
//!
//! An object leaves when its grace period is over, also where a sheaf or a worker keeps it for a moment more. Objects count
//! with all the bytes of their place in the slab, large blocks and vmalloc areas with those of their pages. An area on a deferred list does
//! not count: to ask for its size takes a lock.
//!
//! # Invariants
//! - **WAIT-1** An object is counted at one stage at most; whoever moves it leaves the one before it enters the next. What is
//!   entered here may be left on any CPU: the sum over CPUs is exact while nothing moves.
//! - **WAIT-2** A CPU publishes its rcu_free sheaf in [`Collecting`] as long as it is that, and a sheaf that was published
//!   is used otherwise, or freed, only after a grace period. So a reader of RCU may look at its size.
//! - **WAIT-3** Nothing here takes a lock, waits or allocates, but for the size of a vmalloc area, which is under its lock.
//!
//! Context of what counts: any, NMI included; of an object of vmalloc any but NMI. Of what looks: any but NMI.
//!
//! Linux counts objects that wait by CPU (`kfree_rcu_count`, `mm/slab_common.c`, 7.x) and shows neither bytes nor caches.
//! Rows: G-3, S3-17.

mod detached;
pub(crate) mod report;
#[cfg(test)]
mod tests;

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU16, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use arch::{CpuId, PAGE_SIZE};
use mm::PageKind;
use rcu::hist::{Histogram, Snapshot};
use sync::ATOMIC;

use crate::cache::RawCache;
use crate::cpu::CacheCpu;
use crate::sheaf::{Sheaf, SheafRef};
use crate::slab_ref::SlabRef;
use crate::{debug, registry};

pub(crate) use detached::{Detached, Stamp};

/// Where an object waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Stage {
    /// In the rcu_free sheaf of a CPU.
    Sheaf,
    /// In a sheaf that waits for a grace period.
    Detached,
    /// In the back end of pages of pointers.
    Bulk,
    /// In the back end of trackers.
    Pending,
    /// In the back end of one callback each.
    CallRcu,
    /// On a deferred list.
    Deferred,
}

impl Stage {
    /// All stages, in the order in which they are shown.
    pub const ALL: [Self; 6] = [Self::Sheaf, Self::Detached, Self::Bulk, Self::Pending, Self::CallRcu, Self::Deferred];

    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        ["sheaf", "detached", "bulk", "pending", "call_rcu", "deferred"][self as usize]
    }

    /// Which of the words of a cache and CPU counts it. Not for the stages whose objects are counted by the sheaf.
    const fn word(self) -> usize {
        self as usize - FIRST_COUNTED
    }
}

const STAGES: usize = Stage::ALL.len();
/// The stages from here on are counted by the object.
const FIRST_COUNTED: usize = Stage::Bulk as usize;
/// So many of them.
pub(crate) const COUNTED: usize = STAGES - FIRST_COUNTED;

/// What waits at one stage.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long the oldest has been there; nothing if none is, or if only the back end knows.
    pub oldest_ns: Option<u64>,
}

/// What waits, by [`Stage`].
#[derive(Clone, Copy, Default, Debug)]
pub struct ByStage([Waiting; STAGES]);

impl ByStage {
    /// What waits at `stage`.
    pub fn at(&self, stage: Stage) -> Waiting {
        self.0[stage as usize]
    }

    /// All of it.
    pub fn total(&self) -> Waiting {
        self.0.iter().fold(Waiting::default(), |mut sum, stage| {
            sum.add(stage);
            sum
        })
    }

    fn set(&mut self, stage: Stage, objects: u64, bytes: u64, since_ns: Option<u64>, now_ns: u64) {
        let oldest_ns = since_ns.map(|since| now_ns.saturating_sub(since));
        self.0[stage as usize] = Waiting { objects, bytes, oldest_ns };
    }

    fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(here, there)| here.add(there));
    }
}

impl Waiting {
    fn add(&mut self, other: &Self) {
        self.objects += other.objects;
        self.bytes += other.bytes;
        self.oldest_ns = self.oldest_ns.max(other.oldest_ns);
    }
}

/// Counts `object`, or whatever object the address lies in, in at `stage`, which is one of those counted by the object.
/// Of a large block or vmalloc area the address lies in the first page.
///
/// Context: any; of a vmalloc area any but NMI.
pub fn enter(stage: Stage, object: NonNull<u8>) {
    count(stage, object, 1);
}

/// Counts `object` out again, before it is freed or enters another stage.
///
/// Context: as [`enter`].
pub fn leave(stage: Stage, object: NonNull<u8>) {
    count(stage, object, -1);
}

/// [`enter`] for `n` objects of `cache`.
///
/// Context: any. One instruction.
#[inline]
pub fn enter_many(cache: &RawCache, stage: Stage, n: usize) {
    cache.count_waiting(stage, n as i64);
}

/// [`leave`] for `n` objects of `cache`.
///
/// Context: any. One instruction.
#[inline]
pub fn leave_many(cache: &RawCache, stage: Stage, n: usize) {
    cache.count_waiting(stage, -(n as i64));
}

/// Notes for how long the first object of a sheaf, page or batch was at `stage`, when it leaves.
///
/// Context: any.
pub fn record(stage: Stage, age_ns: u64) {
    RESIDENCE[stage as usize].record(age_ns);
}

/// For how long sheaves, pages and batches were at `stage`, in nanoseconds, since the boot.
///
/// Context: any.
pub fn residence(stage: Stage) -> Snapshot {
    RESIDENCE[stage as usize].snapshot()
}

/// All that waits: sums of moments, exact while nothing moves.
///
/// Context: any but NMI.
pub fn snapshot() -> ByStage {
    let mut sum = ByStage::default();
    for_each(|_, waiting| sum.add(waiting));
    let deferred = &mut sum.0[Stage::Deferred as usize];
    if deferred.objects != 0 {
        // By the list, and so of no cache.
        deferred.oldest_ns = crate::deferred::oldest_ns();
    }
    sum
}

/// Calls `f` with what waits of each cache, then of large blocks ([`LARGE`]) and vmalloc areas ([`VMALLOC`]).
///
/// Context: any but NMI; `f` runs with the list of caches locked.
pub fn for_each(mut f: impl FnMut(&'static str, &ByStage)) {
    registry::for_each(|cache| f(cache.name(), &cache.waiting()));
    for kind in [LARGE, VMALLOC] {
        f(kind, &PAGES[usize::from(kind == VMALLOC)].waiting());
    }
}

/// The name under which blocks of pages are shown that `kmalloc` handed out.
pub const LARGE: &str = "large kmalloc";
/// The name under which areas of `vmalloc` are shown.
pub const VMALLOC: &str = "vmalloc";

static RESIDENCE: [Histogram; STAGES] = [const { Histogram::new() }; STAGES];

/// What no cache counts. All CPUs count in the same words: each such object costs far more than that.
static PAGES: [Pages; 2] = [const { Pages::new() }; 2];

/// Blocks of pages that wait, by stage.
struct Pages {
    objects: [AtomicU64; COUNTED],
    bytes: [AtomicU64; COUNTED],
}

impl Pages {
    const fn new() -> Self {
        Self { objects: [const { AtomicU64::new(0) }; COUNTED], bytes: [const { AtomicU64::new(0) }; COUNTED] }
    }

    fn count(&self, stage: Stage, n: i64, bytes: usize) {
        self.objects[stage.word()].fetch_add(n as u64, Relaxed);
        self.bytes[stage.word()].fetch_add((n * bytes as i64) as u64, Relaxed);
    }

    fn waiting(&self) -> ByStage {
        let mut by_stage = ByStage::default();
        for stage in Stage::ALL.into_iter().skip(FIRST_COUNTED) {
            let (objects, bytes) = (&self.objects[stage.word()], &self.bytes[stage.word()]);
            by_stage.set(stage, not_below_zero(objects.load(Relaxed)), not_below_zero(bytes.load(Relaxed)), None, 0);
        }
        by_stage
    }
}

/// A sum of what entered and left, not all at one moment: more may have left than was seen to enter.
fn not_below_zero(sum: u64) -> u64 {
    (sum as i64).max(0) as u64
}

fn count(stage: Stage, object: NonNull<u8>, n: i64) {
    if let Some(slab) = SlabRef::of(object) {
        slab.cache().count_waiting(stage, n);
    } else if mm::is_vmalloc(object.as_ptr()) {
        let start = object.as_ptr().map_addr(|at| at & !(PAGE_SIZE - 1));
        let start = NonNull::new(start).expect("an area is not at 0");
        PAGES[1].count(stage, n, mm::vmalloc_size(start));
    } else if let Some(page) = mm::page_of(object.as_ptr()).map(mm::Page::head)
        && page.kind() == PageKind::Large
    {
        PAGES[0].count(stage, n, page.bytes());
    }
}

/// The rcu_free sheaf of one CPU and cache, for others to look at (WAIT-2). Written by the CPU under its sheaf lock, or for
/// it while it is parked.
pub(crate) struct Collecting {
    /// The sheaf; null while there is none.
    sheaf: AtomicPtr<Sheaf>,
    /// When it got its first object.
    since_ns: AtomicU64,
}

impl Collecting {
    pub(crate) const fn new() -> Self {
        Self { sheaf: AtomicPtr::new(ptr::null_mut()), since_ns: AtomicU64::new(0) }
    }

    /// `sheaf` becomes the CPU's rcu_free sheaf.
    pub(crate) fn begin(&self, sheaf: SheafRef) {
        self.since_ns.store(arch::clock::now_ns(), Relaxed);
        // Release, with the acquire in `look`: the header and the time are there.
        self.sheaf.store(sheaf.as_ptr(), Release);
    }

    /// When the sheaf got its first object, if there is one.
    ///
    /// The caller has the sheaf lock of the CPU.
    pub(crate) fn since_ns(&self) -> u64 {
        self.since_ns.load(Relaxed)
    }

    /// Objects in the sheaf, and since when; none if there is no sheaf.
    ///
    /// The caller is a reader of RCU.
    fn look(&self) -> Option<(u64, u64)> {
        // Acquire, with the release in `begin`.
        let sheaf = NonNull::new(self.sheaf.load(Acquire))?;
        // SAFETY: a sheaf, which stays for as long as the caller's section (WAIT-2).
        let size = unsafe { AtomicU16::from_ptr(SheafRef::size_place(sheaf)) };
        Some((size.load(Relaxed).into(), self.since_ns.load(Relaxed)))
    }
}

/// `sheaf` is the rcu_free sheaf of this CPU no more: it is on its way to RCU, by way of the node that it knows.
///
/// Context: under the sheaf lock of `cpu`, or for it while it is parked.
pub(crate) fn detach(cpu: CpuId, sheaf: SheafRef) {
    let cache = sheaf.cache();
    let here = cache.collecting(cpu);
    here.sheaf.store(ptr::null_mut(), Relaxed);
    debug::sheaf_leaves(sheaf);
    let now_ns = arch::clock::now_ns();
    record(Stage::Sheaf, now_ns.saturating_sub(here.since_ns.load(Relaxed)));
    if let Some(node) = cache.node(sheaf.node()) {
        sheaf.set_stamp(node.waiting.enter(sheaf.size(), now_ns));
    }
}

/// A sheaf that came back from RCU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Back {
    /// When.
    pub(crate) now_ns: u64,
    /// How long it was away.
    pub(crate) away_ns: u64,
}

/// The grace period of `sheaf` is over; nothing has been taken out of it yet. Nothing, in builds with assertions, if it is not over: then the sheaf is left to leak (K-6).
///
/// Context: any.
#[must_use = "a sheaf that is back too early must not be used"]
pub(crate) fn returned(sheaf: SheafRef) -> Option<Back> {
    let now_ns = arch::clock::now_ns();
    let away_ns = sheaf.cache().node(sheaf.node()).map_or(0, |node| {
        let away_ns = node.waiting.leave(sheaf.size(), sheaf.stamp(), now_ns);
        record(Stage::Detached, away_ns);
        away_ns
    });
    debug::sheaf_returns(sheaf).then_some(Back { now_ns, away_ns })
}

impl RawCache {
    /// What waits of this cache: sums of moments.
    ///
    /// Context: any but NMI.
    pub fn waiting(&self) -> ByStage {
        let now_ns = arch::clock::now_ns();
        let size = self.size() as u64;
        let mut by_stage = ByStage::default();
        let mut set = |stage, objects: u64, since| by_stage.set(stage, objects, objects * size, since, now_ns);
        {
            let _section = rcu::read_lock(ATOMIC);
            let collecting = || arch::cpu::present().iter().filter_map(|cpu| self.collecting(cpu).look());
            set(Stage::Sheaf, collecting().map(|(objects, _)| objects).sum(), collecting().map(|(_, at)| at).min());
        }
        let detached = || self.nodes().map(|node| &node.waiting);
        set(Stage::Detached, detached().map(Detached::objects).sum(), detached().filter_map(Detached::since_ns).min());
        for stage in Stage::ALL.into_iter().skip(FIRST_COUNTED) {
            let objects = arch::cpu::present().iter().fold(0_u64, |sum, cpu| {
                // SAFETY: every present CPU's copy was made with the cache; a u64 load is one instruction.
                sum.wrapping_add(unsafe { CacheCpu::waiting_ptr(self.cpu().ptr_on(cpu), stage.word()).read_volatile() })
            });
            set(stage, not_below_zero(objects), None);
        }
        by_stage
    }

    /// One instruction, so right against interrupts and NMIs.
    #[inline]
    fn count_waiting(&self, stage: Stage, n: i64) {
        // SAFETY: the word is inside this cache's CacheCpu, which every CPU's area holds at this offset.
        unsafe { self.cpu().place().behind(CacheCpu::waiting_offset(stage.word())).add::<0>(n as u64) };
    }

    pub(crate) fn collecting(&self, cpu: CpuId) -> &'static Collecting {
        // SAFETY: the copy was made with the cache and lives as long; the field is shared, and outside of the sheaf lock.
        unsafe { &(*self.cpu().ptr_on(cpu)).collecting }
    }
}
