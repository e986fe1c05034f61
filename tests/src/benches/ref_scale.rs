//! What a reader costs, by flavour, beside reference counts, sequence counters and locks: on all CPUs at once (C-12).
//!
//! `cargo xtask bench rcu --only readers` makes the tables over machines; counted legs say what a reader executes, timed ones
//! what it costs when all CPUs read the same thing. A figure is of one reader, over all CPUs together, with the loop around it:
//! `nothing` is the loop alone.
//!
//! Linux 6.12: kernel/rcu/refscale.c.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arch::{CpuId, clock, cpu};
use mm::AllocFlags;
use rcu::srcu::{Fast, FastUpDown, NmiSafe, Normal, srcu_down_read, srcu_read_lock};
use rcu::{read_lock, read_lock_tasks_trace};
use sched::Mutex;
use slab::CacheFlags;
use slab::constructed::Construct;
use slab::typed::TypedLayout;
use slab::typesafe::{TypesafeCache, TypesafeSlot};
use sync::{ATOMIC, LockClass, MaySleep, PreemptGuard, SeqCount, SpinLock};

use crate::bench::Bencher;
use crate::together::{MS, spawn};
use crate::{Failure, bench};

/// Readers of one CPU in a sample.
const READERS: u64 = 25_000;
/// Samples.
const SAMPLES: usize = 7;

rcu::srcu_domain! {
    static NORMAL: Normal;
    static NMI_SAFE: NmiSafe;
    static FAST: Fast;
    static FAST_UPDOWN: FastUpDown;
}

static CLASS: LockClass = LockClass::new("bench.ref_scale");
static SPIN_LOCK: SpinLock<u64> = SpinLock::new(0, &CLASS);
static MUTEX_CLASS: LockClass = LockClass::new("bench.ref_scale.mutex");
static MUTEX: Mutex<u64> = Mutex::new(0, &MUTEX_CLASS);
/// The kernel has none of its own.
static RW_LOCK: spin::RwLock<u64> = spin::RwLock::new(0);
static SEQ_COUNT: SeqCount = SeqCount::new();
static COUNT: AtomicU64 = AtomicU64::new(1);

/// What the threads of a sample share.
#[derive(Default)]
struct Shared {
    ready: AtomicUsize,
    go: AtomicBool,
}

/// From the first to begin to the last to end, of a thread on each CPU that reads so often.
fn sample(
    cx: &mut MaySleep,
    cpus: &[CpuId],
    reader: impl Fn(&mut MaySleep) + Copy + Send + 'static,
) -> Result<u64, Failure> {
    let shared = Arc::new(Shared::default());
    let mut threads = Vec::new();
    for &on in cpus {
        let shared = shared.clone();
        threads.push(spawn(cx, Some(on), move |cx| {
            shared.ready.fetch_add(1, Ordering::Relaxed);
            while !shared.go.load(Ordering::Relaxed) {
                sched::sleep_ns(cx, MS / 10);
            }
            let begin = clock::now_ns();
            for _ in 0..READERS {
                reader(cx);
            }
            (begin, clock::now_ns())
        })?);
    }
    while shared.ready.load(Ordering::Relaxed) < cpus.len() {
        sched::sleep_ns(cx, MS);
    }
    shared.go.store(true, Ordering::Relaxed);
    let times: Vec<(u64, u64)> = threads.into_iter().map(|thread| thread.join(cx)).collect();
    let begin = times.iter().map(|times| times.0).min().unwrap_or(0);
    Ok(times.iter().map(|times| times.1).max().unwrap_or(0) - begin)
}

/// Measures `reader` on all CPUs at once.
fn on_all_cpus(b: &mut Bencher<'_>, reader: impl Fn(&mut MaySleep) + Copy + Send + 'static) -> Result<(), Failure> {
    let cpus: Vec<CpuId> = cpu::online().iter().collect();
    let samples = (0..SAMPLES).map(|_| sample(b.cx, &cpus, reader)).collect::<Result<_, _>>()?;
    b.took(READERS * cpus.len() as u64, samples);
    Ok(())
}

/// What a type-safe cache is of: a count of references.
struct Counted(AtomicU64);

impl Construct for Counted {
    fn construct() -> Self {
        Counted(AtomicU64::new(1))
    }
}

/// Takes a reference, looks, and gives it back.
fn with_reference(count: &AtomicU64) {
    // Acquire, pairs with the release below of whoever had the last reference: what is read after it is the object's.
    count.fetch_add(1, Ordering::Acquire);
    black_box(count);
    // Release, pairs with the acquire of whoever frees after the last reference: what was read came before.
    count.fetch_sub(1, Ordering::Release);
}

bench! {
    /// The loop alone.
    fn nothing(b: &mut Bencher) {
        on_all_cpus(b, |_| {
            black_box(&COUNT);
        })
    }

    /// A section of RCU.
    fn rcu(b: &mut Bencher) {
        on_all_cpus(b, |cx| drop(read_lock(cx)))
    }

    /// Preemption off, which RCU's grace periods wait for as well.
    fn preempt_off(b: &mut Bencher) {
        on_all_cpus(b, |cx| drop(PreemptGuard::new(cx)))
    }

    /// A section of SRCU.
    fn srcu(b: &mut Bencher) {
        on_all_cpus(b, |_| drop(srcu_read_lock(&NORMAL)))
    }

    /// One that may begin in an NMI.
    fn srcu_nmi_safe(b: &mut Bencher) {
        on_all_cpus(b, |_| drop(srcu_read_lock(&NMI_SAFE)))
    }

    /// A fast one, whose grace periods contain RCU's.
    fn srcu_fast(b: &mut Bencher) {
        on_all_cpus(b, |_| drop(srcu_read_lock(&FAST)))
    }

    /// A fast one that may end elsewhere.
    fn srcu_fast_updown(b: &mut Bencher) {
        on_all_cpus(b, |_| drop(srcu_down_read(&FAST_UPDOWN)))
    }

    /// A section of the trace flavour of Tasks RCU.
    fn tasks_trace(b: &mut Bencher) {
        on_all_cpus(b, |_| drop(read_lock_tasks_trace()))
    }

    /// A reference on something that all CPUs count references on.
    fn refcount(b: &mut Bencher) {
        on_all_cpus(b, |_| with_reference(&COUNT))
    }

    /// Something of a type-safe cache: found under a reader, a reference taken, and looked at again.
    fn typesafe_ref(b: &mut Bencher) {
        let layout = TypedLayout::<Counted>::new("bench_ref_scale").flags(CacheFlags::NO_MERGE);
        let cache = TypesafeCache::create(layout).map_err(|error| crate::__failed!("{error}"))?;
        // Readers are threads, so both stay: a run of benches makes them once.
        let cache: &'static TypesafeCache<Counted> = Box::leak(Box::new(cache));
        let slot: &'static TypesafeSlot<'static, Counted> = Box::leak(Box::new(TypesafeSlot::default()));
        let object = cache.alloc(AllocFlags::NOWAIT).ok_or_else(|| crate::__failed!("no memory"))?;
        slot.swap(Some(object));
        on_all_cpus(b, move |cx| {
            let reader = read_lock(cx);
            if let Some(object) = slot.read(&reader) {
                with_reference(&object.0);
                black_box(slot.holds(object));
            }
        })
    }

    /// A look under a sequence counter that nobody writes.
    fn seq_count(b: &mut Bencher) {
        on_all_cpus(b, |_| {
            black_box(SEQ_COUNT.read(|| COUNT.load(Ordering::Relaxed)));
        })
    }

    /// A reader-writer lock, of the crate `spin`, with preemption off as a kernel has it.
    fn rw_lock(b: &mut Bencher) {
        on_all_cpus(b, |cx| {
            let _off = PreemptGuard::new(cx);
            black_box(&*RW_LOCK.read());
        })
    }

    /// A spin lock.
    fn spin_lock(b: &mut Bencher) {
        on_all_cpus(b, |cx| {
            black_box(&*SPIN_LOCK.lock(cx));
        })
    }

    /// A spin lock with interrupts off.
    fn spin_lock_irqsave(b: &mut Bencher) {
        on_all_cpus(b, |_| {
            black_box(&*SPIN_LOCK.lock_irqsave(ATOMIC));
        })
    }

    /// A mutex.
    fn mutex(b: &mut Bencher) {
        on_all_cpus(b, |cx| {
            black_box(&*MUTEX.lock(cx));
        })
    }
}
