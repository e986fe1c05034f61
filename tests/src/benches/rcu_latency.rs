//! How long writers wait for grace periods while readers are at it on all CPUs (C-10).
//!
//! A writer a CPU (`rcuscale.nwriters`) waits for one grace period after another, or has callbacks on the way all the time, for
//! `rcuscale.minruntime` seconds; as many readers (`rcuscale.nreaders`) are in one section after another. Each writer's waits
//! are a row, how long all of them waited are rows `waits/…` that make the plot, and one row says what the thread that drives
//! the grace periods took of its CPU.
//!
//! Linux 6.12: kernel/rcu/rcuscale.c.

use alloc::boxed::Box;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arch::{CpuId, clock, cpu};
use rcu::hist::{Histogram, Snapshot};
use rcu::{call_rcu, rcu_barrier, read_lock, synchronize_rcu, synchronize_rcu_expedited};
use sched::{JoinHandle, Prio};
use sync::{CallbackHead, MaySleep};

use crate::bench::Bencher;
use crate::together::{MS, spawn};
use crate::{Failure, bench, ensure, skip};

sync::param! {
    /// Threads that wait for grace periods; 0 for one a CPU.
    pub(super) static NWRITERS: u32 = "rcuscale.nwriters", default 0, in 0..=1_024, unit "threads";
}
sync::param! {
    /// Threads that are in one reader after another; 0 for one a CPU.
    pub(super) static NREADERS: u32 = "rcuscale.nreaders", default 0, in 0..=1_024, unit "threads";
}
sync::param! {
    /// How long writers wait for grace periods.
    pub(super) static MINRUNTIME: u32 = "rcuscale.minruntime", default 10, in 1..=60, unit "seconds";
}
sync::param! {
    /// The most callbacks that a writer has on the way.
    pub(super) static GP_ASYNC_MAX: u32 = "rcuscale.gp_async_max", default 1_000, in 1..=1_000_000, unit "callbacks";
}

/// Sections after which a reader lets the emulator go on with another CPU.
const TURN: u64 = 64;

/// How a writer waits.
#[derive(Clone, Copy)]
enum Wait {
    For(fn(&mut MaySleep)),
    ByCallback,
}

/// What a writer has seen: shared with its callbacks.
struct Writer {
    waits: Histogram,
    /// Callbacks on the way.
    queued: AtomicUsize,
}

/// A callback of a writer.
#[repr(C)]
struct Timed {
    /// First, so that a head is its callback.
    head: CallbackHead,
    begun_ns: u64,
    writer: Arc<Writer>,
}

/// A callback has run: how long that took.
unsafe fn ran(head: *mut CallbackHead) {
    // SAFETY: `queue` leaked a box whose head is its first field and gave it to `call_rcu` once.
    let timed = unsafe { Box::from_raw(head.cast::<Timed>()) };
    timed.writer.waits.record(clock::now_ns() - timed.begun_ns);
    timed.writer.queued.fetch_sub(1, Ordering::Relaxed);
}

fn queue(writer: &Arc<Writer>) {
    writer.queued.fetch_add(1, Ordering::Relaxed);
    let timed = Timed { head: CallbackHead::new(), begun_ns: clock::now_ns(), writer: writer.clone() };
    // SAFETY: leaked here, given up to the callback, which frees it.
    unsafe { call_rcu((&raw mut *Box::leak(Box::new(timed))).cast(), ran) };
}

/// Waits until `until`, one wait after another.
fn write(cx: &mut MaySleep, wait: Wait, writer: &Arc<Writer>, until: u64) {
    while clock::now_ns() < until {
        match wait {
            Wait::For(wait) => {
                let begun = clock::now_ns();
                wait(cx);
                writer.waits.record(clock::now_ns() - begun);
            }
            Wait::ByCallback if writer.queued.load(Ordering::Relaxed) < GP_ASYNC_MAX.get() as usize => queue(writer),
            Wait::ByCallback => sched::sleep_ns(cx, MS),
        }
    }
}

/// Threads on all CPUs in turn that are in one reader after another.
struct Readers {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
}

impl Readers {
    fn start(cx: &mut MaySleep, cpus: &[CpuId]) -> Result<Readers, Failure> {
        let over = Arc::new(AtomicBool::new(false));
        let begun = Arc::new(AtomicUsize::new(0));
        let threads = on_cpus(NREADERS.get(), cpus).map(|on| {
            let (over, begun) = (over.clone(), begun.clone());
            // Behind the writers, as rcuscale has it: else a writer that is woken would wait for a reader's time slice.
            let thread = sched::spawn(cx, "reader", Prio::BACKGROUND, Some(on), move |cx| {
                let mut sections = 0;
                begun.fetch_add(1, Ordering::Relaxed);
                while !over.load(Ordering::Relaxed) {
                    drop(read_lock(cx));
                    sections += 1;
                    if sections % TURN == 0 {
                        // One host thread for all CPUs stays with a CPU that neither halts nor pauses, at worst for ever.
                        arch::irq::relax();
                    }
                    sched::cond_resched(cx);
                }
                sections
            });
            thread.map_err(|error| crate::__failed!("{error}"))
        });
        let threads = threads.collect::<Result<Vec<_>, _>>()?;
        // A CPU that still idles would be waited for by nobody.
        while begun.load(Ordering::Relaxed) < threads.len() {
            sched::sleep_ns(cx, MS);
        }
        Ok(Readers { over, threads })
    }

    /// How many sections there were.
    fn end(self, cx: &mut MaySleep) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join(cx)).sum()
    }
}

/// So many threads, or one a CPU, dealt out to the CPUs in turn.
fn on_cpus(threads: u32, cpus: &[CpuId]) -> impl Iterator<Item = CpuId> {
    let threads = if threads == 0 { cpus.len() } else { threads as usize };
    cpus.iter().copied().cycle().take(threads)
}

fn say(b: &mut Bencher<'_>, of: &str, seen: &Snapshot) {
    let [p50, p90, p99] = [50, 90, 99].map(|percent| seen.percentile(percent));
    let extremes = [("waits", seen.count), ("min", seen.min), ("mean", seen.mean())];
    let rest = [("p50", p50), ("p90", p90), ("p99", p99), ("max", seen.max)];
    b.row(of, &[&extremes[..], &rest].concat());
}

fn measure(b: &mut Bencher<'_>, wait: Wait) -> Result<(), Failure> {
    let cpus: Vec<CpuId> = cpu::online().iter().collect();
    if cpus.len() == 1 && matches!(wait, Wait::For(_)) {
        skip!("needs two CPUs: a writer that has its grace period at once leaves no time to a reader behind it");
    }
    let readers = Readers::start(b.cx, &cpus)?;
    let (before, begun) = (rcu::stats(), clock::now_ns());
    let until = begun + u64::from(MINRUNTIME.get()) * 1_000 * MS;
    let mut writers = Vec::new();
    for on in on_cpus(NWRITERS.get(), &cpus) {
        let writer = Arc::new(Writer { waits: Histogram::new(), queued: AtomicUsize::new(0) });
        let theirs = writer.clone();
        let thread = spawn(b.cx, Some(on), move |cx| write(cx, wait, &theirs, until))?;
        writers.push((writer, thread));
    }
    let mut seen = Vec::new();
    for (writer, thread) in writers {
        thread.join(b.cx);
        seen.push(writer);
    }
    let (after, took) = (rcu::stats(), clock::now_ns() - begun);
    rcu_barrier(b.cx);
    let sections = readers.end(b.cx);
    let mut medians = Vec::new();
    let mut buckets: Vec<(u64, u64)> = Vec::new();
    for (number, writer) in seen.iter().enumerate() {
        let waits = writer.waits.snapshot();
        say(b, &format!("writer {number}"), &waits);
        medians.push(waits.percentile(50));
        for (_, most, count) in waits.buckets() {
            match buckets.iter_mut().find(|(known, _)| *known == most) {
                Some((_, sum)) => *sum += count,
                None => buckets.push((most, count)),
            }
        }
    }
    buckets.sort_unstable();
    for (most, waits) in buckets {
        b.row(&format!("waits/{most}"), &[("up_to_ns", most), ("waits", waits)]);
    }
    let gps = [("gps", after.gps - before.gps), ("exp_gps", after.exp_gps - before.exp_gps)];
    let time = [("ns", took), ("cpu_ns", after.active_ns - before.active_ns), ("reader_sections", sections)];
    b.row("grace-period thread", &[&gps[..], &time].concat());
    ensure!(sections != 0, "no reader read");
    ensure!(!medians.contains(&0), "a writer has not waited once: {medians:?}");
    b.waited(medians);
    Ok(())
}

bench! {
    /// The median wait of each writer for a normal grace period, readers on all CPUs.
    fn normal(b: &mut Bencher) {
        measure(b, Wait::For(synchronize_rcu))
    }

    /// The same for an expedited one.
    fn expedited(b: &mut Bencher) {
        measure(b, Wait::For(synchronize_rcu_expedited))
    }

    /// The same from `call_rcu` to the callback, with many callbacks on the way.
    fn callbacks(b: &mut Bencher) {
        measure(b, Wait::ByCallback)
    }
}
