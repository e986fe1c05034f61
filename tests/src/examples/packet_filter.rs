//! A packet filter whose program runs in NMI handlers, where it allocates and frees.
//!
//! Tracing programs in the manner of BPF run wherever the probe is that they hang on, inside of the allocator too, and keep maps.
//! Here each NMI is a packet. The program looks its flow up in the map of this CPU, makes an entry if there is none, counts
//! the packet, and takes the entry out with the last packet of the flow. Threads look at the maps meanwhile.
//!
//! - An entry comes from `alloc_nolock`, which may say no at any time: then the packet passes uncounted, but for one number. A
//!   program in NMI cannot wait for memory, and must have an answer to that.
//! - It goes by `kfree_rcu_nolock`, which always succeeds, because readers may be looking at it.
//! - A map has one writer, the program on its CPU: an NMI is not interrupted by another. So the map needs no lock at all.

use alloc::vec::Vec;
use core::ptr::{self, NonNull};
use core::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release, Ordering::SeqCst,
};

use arch::trap::TrapFrame;
use arch::{CpuId, cpu, ipi};
use kfree_rcu::{HasRcuPtr, RcuPtr, has_rcu_ptr, kfree_rcu_nolock, kfree_rcu_owned};
use mm::AllocFlags;
use rcu::{RcuReadGuard, read_lock};
use slab::typed::{Cache, CacheBox, TypedLayout};
use slab::{CacheFlags, RawCache};
use sync::nmi::NmiHandler;
use sync::{MaySleep, Once, Rng};

use crate::together::{spawn, spin_until};
use crate::{Failure, ensure, ensure_eq, ktest};

const BUCKETS: usize = 16;
/// Flows that there are: several a bucket.
const FLOWS: u64 = 64;
/// A flow ends with so many packets.
const FLOW_PACKETS: u64 = 6;

/// An entry of a map.
struct Flow {
    id: u64,
    packets: AtomicU64,
    next: AtomicPtr<Flow>,
    rcu: RcuPtr,
}

has_rcu_ptr!(Flow, rcu);

/// The map of one CPU. Written by the program there, in NMI; read by anybody.
struct Map {
    buckets: [AtomicPtr<Flow>; BUCKETS],
    /// Where this CPU's packets come from.
    seed: AtomicU64,
    /// Packets seen; of these, those of flows that have ended, and those for whose flow there was no memory.
    packets: AtomicU64,
    ended: AtomicU64,
    dropped: AtomicU64,
}

sync::per_cpu! {
    static MAP: Map = Map {
        buckets: [const { AtomicPtr::new(ptr::null_mut()) }; BUCKETS],
        seed: AtomicU64::new(0),
        packets: AtomicU64::new(0),
        ended: AtomicU64::new(0),
        dropped: AtomicU64::new(0),
    };
}

static CACHE: Once<&'static Cache<Flow>> = Once::new();
static RUNNING: AtomicBool = AtomicBool::new(false);
static PROBE: NmiHandler = NmiHandler::new("example-packet-filter", probe);
static REGISTERED: Once<()> = Once::new();

fn map_of(cpu: CpuId) -> &'static Map {
    // SAFETY: per-CPU areas are never freed, and a map is shared by its atomics.
    unsafe { &*MAP.ptr_on(cpu) }
}

/// The program. Context: NMI.
fn probe(_: &mut TrapFrame) -> bool {
    if !RUNNING.load(SeqCst) {
        return false;
    }
    let Some(cache) = CACHE.get().and_then(|cache| cache.raw()) else { return false };
    let map = map_of(cpu::current());
    let mut rng = Rng::new(map.seed.load(Relaxed));
    let id = rng.below(FLOWS);
    map.seed.store(rng.next_u64(), Relaxed);
    map.packets.fetch_add(1, Relaxed);
    map.count(id, cache);
    true
}

impl Map {
    /// Counts a packet of a flow. Context: NMI, on the map's CPU.
    fn count(&self, id: u64, cache: &RawCache) {
        let (link, found) = self.find(id);
        let Some(flow) = found else {
            let Some(place) = cache.alloc_nolock(AllocFlags::NOWAIT).map(NonNull::cast::<Flow>) else {
                self.dropped.fetch_add(1, Relaxed);
                return;
            };
            let first = AtomicU64::new(1);
            let flow = Flow { id, packets: first, next: AtomicPtr::new(ptr::null_mut()), rcu: RcuPtr::new() };
            // SAFETY: an object of the cache of flows, just allocated.
            unsafe { place.write(flow) };
            // Release: pairs with the Acquire in `find`.
            link.store(place.as_ptr(), Release);
            return;
        };
        if flow.packets.fetch_add(1, Relaxed) + 1 < FLOW_PACKETS {
            return;
        }
        // Release: as above; what is behind is seen by who comes by this link.
        link.store(flow.next.load(Relaxed), Release);
        self.ended.fetch_add(FLOW_PACKETS, Relaxed);
        // SAFETY: unlinked, by the only one that could; the head is a field of it.
        unsafe { kfree_rcu_nolock(NonNull::from(flow).byte_add(Flow::OFFSET).cast()) };
    }

    /// The link to the flow, and the flow; else the last link of its chain.
    ///
    /// For the map's writer, or for a reader in its section.
    fn find(&self, id: u64) -> (&AtomicPtr<Flow>, Option<&Flow>) {
        let mut at = &self.buckets[id as usize % BUCKETS];
        loop {
            // Acquire: pairs with the Release in `count`.
            // SAFETY: linked when it was found: the writer has not freed it, a reader keeps it from being freed.
            match unsafe { at.load(Acquire).as_ref() } {
                Some(flow) if flow.id != id => at = &flow.next,
                found => return (at, found),
            }
        }
    }

    /// The packets of a flow that has not ended.
    fn packets_of(&self, id: u64, _reader: &RcuReadGuard<'_>) -> Option<u64> {
        Some(self.find(id).1?.packets.load(Relaxed))
    }

    /// Ends all flows; how many packets they had. The program does not run any more, anywhere.
    fn clear(&self, cache: &Cache<Flow>) -> u64 {
        let mut packets = 0;
        for bucket in &self.buckets {
            while let Some(flow) = NonNull::new(bucket.load(Relaxed)) {
                // SAFETY: linked, and we are the only one to unlink it now; made as a value of this cache.
                let flow = unsafe { CacheBox::from_raw(flow, cache) };
                bucket.store(flow.next.load(Relaxed), Relaxed);
                packets += flow.packets.load(Relaxed);
                kfree_rcu_owned(flow);
            }
        }
        packets
    }
}

/// Works with the allocator, so that packets come in the midst of it, and sends them to `to`; false if one was not seen.
fn traffic(to: CpuId, cache: &Cache<Flow>, packets: u64, cx: &mut MaySleep) -> bool {
    for _ in 0..packets {
        let seen = map_of(to).packets.load(Relaxed);
        ipi::send_nmi(to);
        for id in 0..3 {
            let (packets, next) = (AtomicU64::new(0), AtomicPtr::new(ptr::null_mut()));
            let flow = Flow { id, packets, next, rcu: RcuPtr::new() };
            let Ok(flow) = cache.alloc(flow, AllocFlags::NOWARN) else { continue };
            if id == 0 { drop(flow) } else { kfree_rcu_owned(flow) }
        }
        sched::cond_resched(cx);
        // A second one before would be the same NMI.
        if !spin_until(|| map_of(to).packets.load(Relaxed) != seen) {
            return false;
        }
    }
    true
}

/// Looks at all maps until told to stop; whether every count was one that a flow can have.
fn watch(over: &AtomicBool, cx: &mut MaySleep) -> bool {
    let mut right = true;
    while !over.load(Relaxed) {
        for map in cpu::online().iter().map(map_of) {
            let reader = read_lock(cx);
            right &= (0..FLOWS)
                .all(|id| map.packets_of(id, &reader).is_none_or(|packets| (1..=FLOW_PACKETS).contains(&packets)));
        }
        sched::sleep_ns(cx, 200_000);
    }
    right
}

fn cache() -> Result<&'static Cache<Flow>, Failure> {
    if CACHE.get().is_none() {
        let cache = Cache::create(TypedLayout::new("example_flows").flags(CacheFlags::NO_MERGE));
        let cache = cache.map_err(|error| crate::__failed!("{error}"))?;
        CACHE.call_once(|| alloc::boxed::Box::leak(alloc::boxed::Box::new(cache)));
    }
    CACHE.get().copied().ok_or_else(|| crate::__failed!("a cache that was just made"))
}

ktest! {
    /// Every packet is accounted for, readers see counts that can be, and every flow's memory comes back.
    #[tags(race)]
    fn a_program_in_nmi_counts_every_packet(t: &mut Test) {
        const PACKETS: u64 = 500;
        static OVER: AtomicBool = AtomicBool::new(false);
        let cache = cache()?;
        REGISTERED.call_once(|| sync::nmi::register(&PROBE));
        let cpus: Vec<CpuId> = cpu::online().iter().collect();
        for &on in &cpus {
            map_of(on).seed.store(t.rng.next_u64(), Relaxed);
        }
        OVER.store(false, Relaxed);
        RUNNING.store(true, SeqCst);
        let watcher = spawn(t.cx, None, |cx| watch(&OVER, cx))?;
        let mut senders = Vec::new();
        for (index, &on) in cpus.iter().enumerate() {
            let to = cpus[(index + 1) % cpus.len()];
            senders.push(spawn(t.cx, Some(on), move |cx| traffic(to, cache, PACKETS, cx))?);
        }
        for sender in senders {
            ensure!(sender.join(t.cx), "an NMI did not arrive");
        }
        RUNNING.store(false, SeqCst);
        // The last program is over when its CPU answers.
        for &on in &cpus {
            sync::smp::run_on(on, || ());
        }
        OVER.store(true, Relaxed);
        ensure!(watcher.join(t.cx), "a reader saw a flow with a count that none can have");
        let sum = |count: fn(&Map) -> u64| cpus.iter().map(|&on| count(map_of(on))).sum::<u64>();
        let (packets, ended) = (sum(|map| map.packets.load(Relaxed)), sum(|map| map.ended.load(Relaxed)));
        let dropped = sum(|map| map.dropped.load(Relaxed));
        let left: u64 = cpus.iter().map(|&on| map_of(on).clear(cache)).sum();
        t.note(format_args!("{packets} packets: {ended} of flows that ended, {left} of others, {dropped} without memory"));
        ensure_eq!(packets, PACKETS * cpus.len() as u64, "each packet was seen once");
        ensure_eq!(ended + left + dropped, packets, "packets were lost");
        ensure!(ended > 0, "no flow has ended");
        // Others may run this again, and begin with maps that are empty.
        for &on in &cpus {
            let map = map_of(on);
            [&map.packets, &map.ended, &map.dropped].into_iter().for_each(|count| count.store(0, Relaxed));
        }
        let raw = cache.raw().ok_or_else(|| crate::__failed!("flows have a size"))?;
        let mut back = || {
            kfree_rcu::kvfree_rcu_barrier(t.cx);
            raw.shrink();
            rcu::rcu_barrier(t.cx);
            raw.shrink();
            raw.info().active_objs
        };
        ensure_eq!(back(), 0, "flows are lost");
        Ok(())
    }
}
