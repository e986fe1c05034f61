//! What each way costs where memory and grace periods are scarce: a flood on all CPUs, a rate that is held, bursts with rests
//! between them, and objects that all wait at once.
//!
//! `cargo xtask bench kfree-rcu` runs these on machines of the right sizes and makes the tables and plots of
//! docs/back-ends.md.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use arch::{clock, cpu};
use mm::AllocFlags;
use rcu::hist::Snapshot;
use rcu::read_lock;
use slab::waiting::{self, Stage};
use sync::MaySleep;

use super::kfree_load::{Heads, Load, Took, Way, in_use, run, settle};
use crate::bench::Bencher;
use crate::together::{MS, spawn, two_cpus};
use crate::{Failure, bench};

/// Bytes of an object.
const SIZE: usize = 64;
/// Bytes of a block that no cache holds.
const LARGE: usize = 16 << 10;
/// Times that each way is taken in a flood.
const ROUNDS: usize = 3;
/// How long a thread sleeps after each burst.
const PAUSE_NS: u64 = 4 * MS;
/// Looks at the memory in use, and the time between them.
const LOOKS: usize = 64;
const LOOK_NS: u64 = 5 * MS;
/// Objects that wait at once.
const WAITING: u64 = 100_000;

fn threads() -> usize {
    cpu::online().iter().count()
}

/// Performs `load` each way in turn, so many times, and tells what each took.
fn each_way(b: &mut Bencher<'_>, rounds: usize, load: Load, label: &str) -> Result<Vec<Took>, Failure> {
    let mut default = Vec::new();
    for _ in 0..rounds {
        for way in Way::all() {
            let took = run(b.cx, load, way)?;
            b.row(&format!("{}{label}", way.name()), &took.values());
            if way == Way::DEFAULT {
                default.push(took);
            }
        }
    }
    Way::DEFAULT.choose(b.cx);
    Ok(default)
}

/// The figure of a flood: the time of one object the default way.
fn times(b: &mut Bencher<'_>, took: &[Took]) {
    b.took(took[0].objects, took.iter().map(|took| took.ns).collect());
}

/// The figure of a rate: grace periods the default way.
fn grace_periods(b: &mut Bencher<'_>, took: &[Took]) {
    b.counts(took.iter().map(|took| took.gps + took.exp_gps).collect());
}

fn flood(loops: u64, objects: u64, size: usize) -> Load {
    Load { threads: threads(), loops, objects, size, vmalloc: false, heads: Heads::All, pause_ns: 0 }
}

/// `burst` objects on each CPU every 4 ms, for so long.
fn rate(burst: u64, ns: u64) -> Load {
    Load { pause_ns: PAUSE_NS, ..flood(ns / PAUSE_NS, burst, SIZE) }
}

/// A thread of another CPU that is in one reader after another.
struct Readers {
    over: Arc<AtomicBool>,
    thread: sched::JoinHandle<()>,
}

impl Readers {
    /// Each reader is so long. The first has begun.
    fn start(cx: &mut MaySleep, long_ns: u64) -> Result<Readers, Failure> {
        let (_, there) = two_cpus()?;
        let over = Arc::new(AtomicBool::new(false));
        let inside = Arc::new(AtomicBool::new(false));
        let (theirs, entered) = (over.clone(), inside.clone());
        let thread = spawn(cx, Some(there), move |cx| {
            while !theirs.load(Relaxed) {
                let _reader = read_lock(cx);
                entered.store(true, Relaxed);
                let until = clock::now_ns().saturating_add(long_ns);
                while clock::now_ns() < until && !theirs.load(Relaxed) {
                    arch::irq::relax();
                }
            }
        })?;
        while !inside.load(Relaxed) {
            sched::sleep_ns(cx, MS);
        }
        Ok(Readers { over, thread })
    }

    fn end(self, cx: &mut MaySleep) {
        self.over.store(true, Relaxed);
        self.thread.join(cx);
    }
}

/// Gives up [`WAITING`] objects inside one grace period: what they take, and how long until they are free after it.
fn all_waiting(cx: &mut MaySleep, way: Way) -> Result<(u64, u64), Failure> {
    way.choose(cx);
    settle(cx);
    let before = in_use();
    let readers = Readers::start(cx, u64::MAX)?;
    for _ in 0..WAITING {
        let object = slab::kmalloc(SIZE, AllocFlags::NOWAIT);
        // SAFETY: a fresh object of at least 16 bytes, which nobody else knows.
        object.into_iter().for_each(|object| unsafe { way.give(object) });
    }
    mm::drain_all(cx);
    let bytes = in_use().saturating_sub(before);
    let begin = clock::now_ns();
    readers.end(cx);
    way.barrier(cx);
    Ok((bytes, clock::now_ns() - begin))
}

/// How long things were at each stage, of what came since `before`.
fn residence_rows(b: &mut Bencher<'_>, way: &str, before: &[(Stage, Snapshot)]) {
    for (stage, before) in before {
        let seen = waiting::residence(*stage).since(before);
        if seen.count > 0 {
            let (p50, p99) = (seen.percentile(50), seen.percentile(99));
            let values = [("count", seen.count), ("p50", p50), ("p99", p99), ("max", seen.max)];
            b.row(&format!("{way}: {}", stage.name()), &values);
        }
    }
}

/// Bytes in use more than now, looked at so often, by the time since the call. Of what a thread of another CPU sees.
fn watch(cx: &mut MaySleep) -> Result<sched::JoinHandle<Vec<[u64; 2]>>, Failure> {
    let (before, begin) = (in_use(), clock::now_ns());
    spawn(cx, None, move |cx| {
        let look = |_| {
            sched::sleep_ns(cx, LOOK_NS);
            [clock::now_ns() - begin, in_use().saturating_sub(before)]
        };
        (0..LOOKS).map(look).collect()
    })
}

bench! {
    /// The time of one object of 64 bytes, allocated and given up on all CPUs at once.
    fn small(b: &mut Bencher) {
        let took = each_way(b, ROUNDS, flood(100, 1_000, SIZE), "")?;
        times(b, &took);
        Ok(())
    }

    /// The same of blocks of 16 KiB, which no sheaf takes.
    fn large(b: &mut Bencher) {
        let took = each_way(b, ROUNDS, flood(20, 50, LARGE), "")?;
        times(b, &took);
        Ok(())
    }

    /// The same of areas of vmalloc of 8 KiB.
    fn vmalloc(b: &mut Bencher) {
        let took = each_way(b, ROUNDS, Load { vmalloc: true, ..flood(10, 50, 8 << 10) }, "")?;
        times(b, &took);
        Ok(())
    }

    /// The same of objects of 64 bytes, while one CPU is always in a reader, each of 20 ms.
    fn slow_readers(b: &mut Bencher) {
        let readers = Readers::start(b.cx, 20 * MS)?;
        let took = each_way(b, ROUNDS, flood(100, 1_000, SIZE), "");
        readers.end(b.cx);
        times(b, &took?);
        Ok(())
    }

    /// Grace periods of 2 s in which each CPU gives up so many objects every 4 ms: 16, 256, 2,048.
    fn held_rate(b: &mut Bencher) {
        let mut default = Vec::new();
        for burst in [16, 256, 2_048] {
            default.extend(each_way(b, 1, rate(burst, 2_000 * MS), &format!("/{burst}"))?);
        }
        grace_periods(b, &default);
        Ok(())
    }

    /// Grace periods of 12 s in which each CPU gives up one object every 4 ms.
    fn trickle(b: &mut Bencher) {
        let took = each_way(b, 1, rate(1, 12_000 * MS), "")?;
        grace_periods(b, &took);
        Ok(())
    }

    /// How long sheaves, pages and batches wait at each stage while each CPU gives up 256 objects every 4 ms, for 2 s: the
    /// row of each stage is of the nanoseconds of the first object in them. The figure is grace periods.
    fn residence(b: &mut Bencher) {
        let mut default = Vec::new();
        for way in Way::all() {
            way.choose(b.cx);
            let before = Stage::ALL.map(|stage| (stage, waiting::residence(stage)));
            let took = run(b.cx, rate(256, 2_000 * MS), way)?;
            residence_rows(b, way.name(), &before);
            if way == Way::DEFAULT {
                default.push(took);
            }
        }
        Way::DEFAULT.choose(b.cx);
        grace_periods(b, &default);
        Ok(())
    }

    /// Memory in use over 300 ms, each CPU giving up 256 objects every 4 ms; from the 100th to the 200th a reader keeps grace
    /// periods from ending. A row for each look; the figure is the most bytes, the default way.
    fn over_time(b: &mut Bencher) {
        let mut most = 0;
        for way in Way::all() {
            way.choose(b.cx);
            settle(b.cx);
            let watching = watch(b.cx)?;
            let (_, there) = two_cpus()?;
            let reader = spawn(b.cx, Some(there), |cx| {
                sched::sleep_ns(cx, 100 * MS);
                let _reader = read_lock(cx);
                let until = clock::now_ns() + 100 * MS;
                while clock::now_ns() < until {
                    arch::irq::relax();
                }
            })?;
            run(b.cx, rate(256, 300 * MS), way)?;
            reader.join(b.cx);
            for (look, [ns, bytes]) in watching.join(b.cx).into_iter().enumerate() {
                b.row(&format!("{}/{look}", way.name()), &[("ns", ns), ("bytes", bytes)]);
                most = if way == Way::DEFAULT { bytes.max(most) } else { most };
            }
        }
        Way::DEFAULT.choose(b.cx);
        b.counts(alloc::vec![most]);
        Ok(())
    }

    /// Bytes in use for each of 100,000 objects of 64 bytes that wait for one grace period, the default way.
    fn waiting_bytes(b: &mut Bencher) {
        let mut default = Vec::new();
        for _ in 0..ROUNDS {
            for way in Way::all() {
                let (bytes, free_ns) = all_waiting(b.cx, way)?;
                b.row(way.name(), &[("objects", WAITING), ("bytes", bytes), ("free_ns", free_ns)]);
                if way == Way::DEFAULT {
                    default.push(bytes / WAITING);
                }
            }
        }
        Way::DEFAULT.choose(b.cx);
        b.counts(default);
        Ok(())
    }
}
