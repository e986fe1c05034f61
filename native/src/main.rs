//! What the slab allocator costs as a host program, beside mimalloc and snmalloc, in one run.
//!
//! Two loads of 64-byte objects: one and back at once (`pair`), and 128 and back (`burst_of_128`), by one thread and by two at
//! once. The slab allocator runs on the hosted machine, whose CPUs are threads; the peers are called directly, in threads of
//! the host, with the layout known at compile time, so nothing but the allocator is between them and the loop.
//!
//! `cargo xtask bench --native` builds and runs this. It prints a JSON line for each figure, then a table: nanoseconds of one
//! allocation and its free, the median of the samples.

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::AcqRel, Ordering::Acquire};
use std::time::Instant;

use mm::AllocFlags;
use slab::{CacheFlags, RawCache};
use sync::MaySleep;

extern crate sched;

// The scheduler's tests have the machine that is needed here.
#[path = "../../kernel/sched/tests/machine/mod.rs"]
mod machine;

/// Bytes of an object.
const SIZE: usize = 64;
const LAYOUT: Layout = match Layout::from_size_align(SIZE, 8) {
    Ok(layout) => layout,
    Err(_) => panic!("a size and an alignment"),
};
/// Objects held at once in the second load.
const BURST: usize = 128;
/// Allocations, and as many frees, of one sample: few, so that a busy host spoils few samples.
const OPERATIONS: usize = 16 * 1024;
const SAMPLES: usize = 501;

/// Something that objects come from.
trait Source: Copy + Send + 'static {
    fn take(self) -> *mut u8;
    /// # Safety
    /// `object` came from [`take`](Self::take), and nobody uses it any more.
    unsafe fn give(self, object: *mut u8);
}

impl Source for &'static RawCache {
    #[inline(always)]
    fn take(self) -> *mut u8 {
        self.alloc(AllocFlags::NOWAIT).map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    #[inline(always)]
    unsafe fn give(self, object: *mut u8) {
        if let Some(object) = NonNull::new(object) {
            // SAFETY: the caller's contract.
            unsafe { self.free(object) };
        }
    }
}

/// A peer, by its allocator.
#[derive(Clone, Copy)]
struct Peer<A>(A);

impl<A: GlobalAlloc + Copy + Send + 'static> Source for Peer<A> {
    #[inline(always)]
    fn take(self) -> *mut u8 {
        // SAFETY: the size is not 0.
        unsafe { self.0.alloc(LAYOUT) }
    }

    #[inline(always)]
    unsafe fn give(self, object: *mut u8) {
        // SAFETY: the caller's contract.
        unsafe { self.0.dealloc(object, LAYOUT) };
    }
}

/// mimalloc and snmalloc are not `Copy` themselves.
macro_rules! peer {
    ($name:ident, $allocator:expr) => {
        #[derive(Clone, Copy)]
        struct $name;

        // SAFETY: passes on to an allocator.
        unsafe impl GlobalAlloc for $name {
            #[inline(always)]
            unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
                // SAFETY: the caller's contract.
                unsafe { $allocator.alloc(layout) }
            }

            #[inline(always)]
            unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
                // SAFETY: the caller's contract.
                unsafe { $allocator.dealloc(object, layout) }
            }
        }
    };
}
peer!(Mimalloc, mimalloc::MiMalloc);
peer!(Snmalloc, snmalloc_rs::SnMalloc);

fn pair(source: impl Source) {
    for _ in 0..OPERATIONS {
        let object = black_box(source.take());
        // SAFETY: just taken.
        unsafe { source.give(object) };
    }
}

fn burst(source: impl Source) {
    let mut held = [ptr::null_mut(); BURST];
    for _ in 0..OPERATIONS / BURST {
        for place in &mut held {
            *place = source.take();
        }
        black_box(&mut held);
        for object in held {
            // SAFETY: taken above, given back once.
            unsafe { source.give(object) };
        }
    }
}

#[derive(Clone, Copy)]
enum Load {
    Pair,
    Burst,
}

const LOADS: [(Load, &str); 2] = [(Load::Pair, "pair"), (Load::Burst, "burst_of_128")];
const THREADS: [usize; 2] = [1, 2];

/// Nanoseconds of an operation, the median over samples, on this thread and as many others as are to begin together.
fn measure(source: impl Source, load: Load, together: &AtomicUsize, threads: usize) -> f64 {
    together.fetch_add(1, AcqRel);
    while together.load(Acquire) < threads {
        std::hint::spin_loop();
    }
    let sample = |_| {
        let begin = Instant::now();
        match load {
            Load::Pair => pair(source),
            Load::Burst => burst(source),
        }
        begin.elapsed().as_secs_f64() * 1e9 / OPERATIONS as f64
    };
    let mut samples: Vec<f64> = (0..SAMPLES).map(sample).collect();
    samples.sort_by(f64::total_cmp);
    samples[SAMPLES / 2]
}

/// One figure for each load and number of threads.
type Figures = [[f64; THREADS.len()]; LOADS.len()];

/// The mean over the threads.
fn figures(mut run: impl FnMut(Load, usize, Arc<AtomicUsize>) -> Vec<f64>) -> Figures {
    LOADS
        .map(|(load, _)| THREADS.map(|threads| run(load, threads, Arc::default()).iter().sum::<f64>() / threads as f64))
}

fn of_peer(source: impl Source) -> Figures {
    figures(|load, threads, together| {
        let start = |_| {
            let together = together.clone();
            std::thread::spawn(move || measure(source, load, &together, threads))
        };
        let running: Vec<_> = (0..threads).map(start).collect();
        running.into_iter().map(|thread| thread.join().expect("a peer's thread ends")).collect()
    })
}

fn of_slab(cx: &mut MaySleep) -> Figures {
    let layout = slab::Layout::new("native", SIZE).flags(CacheFlags::NO_MERGE);
    let cache = slab::create(layout).expect("memory for a cache");
    figures(|load, threads, together| {
        let start = |cpu| {
            let together = together.clone();
            machine::spawn(cx, Some(cpu), move |_| measure(cache, load, &together, threads))
        };
        let running: Vec<_> = (0..threads).map(start).collect();
        running.into_iter().map(|thread| thread.join(cx)).collect()
    })
}

fn main() {
    let peers = [of_peer(Peer(Mimalloc)), of_peer(Peer(Snmalloc))];
    let mut ours = Figures::default();
    let up = |cx: &mut MaySleep| {
        slab::init();
        rcu::init(cx);
        rcu::boot_ended();
    };
    machine::machine_with(2, up, |cx| ours = of_slab(cx));
    let all = [("grange", ours), ("mimalloc", peers[0]), ("snmalloc", peers[1])];
    for (name, figures) in all {
        for (load, of_load) in LOADS.iter().zip(figures) {
            for (threads, ns) in THREADS.iter().zip(of_load) {
                println!(r#"{{"native":"{}","threads":{threads},"allocator":"{name}","ns":{ns:.2}}}"#, load.1);
            }
        }
    }
    println!("{:<14} {:>7} {:>8} {:>9} {:>9}   ours / the better", "ns", "threads", "grange", "mimalloc", "snmalloc");
    for (load, (_, name)) in LOADS.iter().enumerate() {
        for (column, threads) in THREADS.iter().enumerate() {
            let [ours, first, second] = all.map(|(_, figures)| figures[load][column]);
            let ratio = ours / first.min(second);
            println!("{name:<14} {threads:>7} {ours:>8.2} {first:>9.2} {second:>9.2}   {ratio:.2}");
        }
    }
}
