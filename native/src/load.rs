//! A load, how it is run on threads of the host and on CPUs of the machine, and the table of all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::AcqRel, Ordering::Acquire};
use std::time::{Duration, Instant};

use cpu_time::ProcessTime;
use sync::MaySleep;

use crate::machine;

/// Numbers of threads that run a load at once.
const THREADS: [usize; 2] = [1, 2];
/// CPUs of the machine.
pub const CPUS: usize = 2;
/// Times each figure is taken; the best counts.
pub const ROUNDS: usize = 3;
/// Samples of [`median`].
const SAMPLES: usize = 501;

/// One thing to measure. Each function gives nanoseconds of one operation, on the thread that calls it; it is told on how many
/// it runs.
pub struct Load {
    pub name: &'static str,
    /// What ours may take at most, by the better peer's. None: no goal.
    pub goal: Option<f64>,
    pub ours: fn(&mut MaySleep, usize) -> f64,
    pub peers: [Peer; 2],
}

/// Its name, and what it takes.
pub type Peer = (&'static str, fn(usize) -> f64);

/// The figures of one competitor, by the number of threads.
#[derive(Clone, Copy)]
pub struct Column([f64; THREADS.len()]);

impl Column {
    /// Nothing measured.
    pub const NONE: Column = Column([f64::INFINITY; THREADS.len()]);

    /// The better of two figures each.
    pub fn or(self, other: Column) -> Column {
        Column(std::array::from_fn(|i| self.0[i].min(other.0[i])))
    }

    fn measure(mut run: impl FnMut(usize, &Arc<AtomicUsize>) -> Vec<f64>) -> Column {
        Column(THREADS.map(|threads| run(threads, &Arc::default()).iter().sum::<f64>() / threads as f64))
    }

    /// Of `load`, in threads of the host.
    pub fn on_host(load: fn(usize) -> f64) -> Column {
        Column::measure(|threads, together| {
            let start = |_| {
                let together = together.clone();
                std::thread::spawn(move || {
                    begin(&together, threads);
                    load(threads)
                })
            };
            let running: Vec<_> = (0..threads).map(start).collect();
            running.into_iter().map(|thread| thread.join().expect("a peer's thread ends")).collect()
        })
    }

    /// Of `load`, in threads of the machine, one on each CPU.
    pub fn on_machine(cx: &mut MaySleep, load: fn(&mut MaySleep, usize) -> f64) -> Column {
        Column::measure(|threads, together| {
            let start = |cpu| {
                let together = together.clone();
                machine::spawn(cx, Some(cpu), move |cx| {
                    begin(&together, threads);
                    load(cx, threads)
                })
            };
            let running: Vec<_> = (0..threads).map(start).collect();
            running.into_iter().map(|thread| thread.join(cx)).collect()
        })
    }
}

/// Waits until so many threads are here.
fn begin(together: &AtomicUsize, threads: usize) {
    together.fetch_add(1, AcqRel);
    while together.load(Acquire) < threads {
        std::hint::spin_loop();
    }
}

/// The median of many samples of `run`, which performs so many operations: for what takes the same time always, so that what
/// the host does besides is left out.
pub fn median(operations: usize, mut run: impl FnMut()) -> f64 {
    let sample = |_| {
        let begin = Instant::now();
        run();
        each(begin.elapsed(), operations)
    };
    let mut samples: Vec<f64> = (0..SAMPLES).map(sample).collect();
    samples.sort_by(f64::total_cmp);
    samples[SAMPLES / 2]
}

/// How long something takes.
#[derive(Clone, Copy)]
pub enum Clock {
    /// As a user sees it. On a busy host that is mostly what the host does besides.
    Wall,
    /// The CPU time of all threads: with what is done elsewhere, without what the host does, and without waiting.
    Cpu,
}

/// What one of so many operations takes while `run` performs them, on each of `threads`: for what is done later as well, so
/// that samples differ.
pub fn in_all(clock: Clock, operations: usize, threads: usize, run: impl FnOnce()) -> f64 {
    let (wall, cpu) = (Instant::now(), ProcessTime::now());
    run();
    match clock {
        Clock::Wall => each(wall.elapsed(), operations),
        Clock::Cpu => each(cpu.elapsed(), operations * threads),
    }
}

/// Nanoseconds of one of so many operations.
fn each(all: Duration, operations: usize) -> f64 {
    all.as_secs_f64() * 1e9 / operations as f64
}

/// Prints a JSON line for each figure, then the table.
pub fn print(figures: &[(&Load, Column, [Column; 2])]) {
    for (load, ours, peers) in figures {
        let peers = load.peers.iter().zip(peers).map(|((name, _), column)| (*name, column));
        for (name, column) in [("grange", ours)].into_iter().chain(peers) {
            for (threads, ns) in THREADS.iter().zip(column.0) {
                println!(r#"{{"native":"{}","threads":{threads},"by":"{name}","ns":{ns:.2}}}"#, load.name);
            }
        }
    }
    println!("{:<14} {:>7} {:>8}   {:<40} ours / the better", "ns", "threads", "grange", "peers");
    for (load, ours, peers) in figures {
        for (i, threads) in THREADS.iter().enumerate() {
            let [first, second] = [0, 1].map(|peer| (load.peers[peer].0, peers[peer].0[i]));
            let beside = format!("{} {:.2}, {} {:.2}", first.0, first.1, second.0, second.1);
            let ratio = ours.0[i] / first.1.min(second.1);
            let goal = load.goal.map_or(String::new(), |goal| format!("   goal {goal}"));
            println!("{:<14} {threads:>7} {:>8.2}   {beside:<40} {ratio:.2}{goal}", load.name, ours.0[i]);
        }
    }
}
