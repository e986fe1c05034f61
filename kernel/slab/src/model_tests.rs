//! The structures of this storey, and a whole cache, against simple models: random operations, and the shortest list of them that
//! shows a difference. Then the same cache with threads as CPUs, where only the accounting is left to compare.

use std::collections::{BTreeMap, VecDeque};
use std::string::ToString;
use std::sync::Arc;
use std::vec;
use std::vec::Vec;

use arch::hosted::in_own_process;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use mm::AllocFlags;
use mm::inject::{self, Plan};
use proptest::collection;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sync::{ATOMIC, MaySleep, Rng, SpinLock, lock_class};

use crate::Spin;
use crate::barn::{Barn, NoSwap};
use crate::cache::RawCache;
use crate::node::CacheNode;
use crate::prefill::{Lent, Prefilled};
use crate::sheaf::SheafRef;
use crate::slab_ref::SlabRef;
use crate::stats::Stat;
use crate::test_machine::{assert_all_back, cache, machine, spawn};

const QUIET: AllocFlags = AllocFlags::NOWARN;

/// Has `test` run with many values of a strategy on a machine of one CPU.
fn check<S: Strategy>(
    cases: u32,
    strategy: impl FnOnce() -> S + Send,
    test: impl Fn(&mut MaySleep, S::Value) -> Result<(), TestCaseError> + Sync,
) {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2_000, ..Config::default() };
    let mut failure = None;
    machine(1, 1, |cx| {
        let cx = core::cell::RefCell::new(cx);
        let result = TestRunner::new(config).run(&strategy(), |value| test(&mut cx.borrow_mut(), value));
        failure = result.err().map(|failure| failure.to_string());
    });
    assert_eq!(failure, None);
}

/// The objects in a sheaf of [`the_cache`].
const CAPACITY: usize = 28;

/// The cache of a machine's test: each of its cases leaves it as if new.
fn the_cache() -> &'static RawCache {
    crate::registry::find("model").unwrap_or_else(|| cache("model"))
}

/// An address that stands for an object where nobody touches it.
fn fake(number: usize) -> NonNull<u8> {
    NonNull::without_provenance(core::num::NonZero::new(8 * (number + 1)).expect("not 0"))
}

#[test]
fn a_sheaf_is_a_bounded_stack() {
    in_own_process(|| {
        // Push, pop, take so many, put so many.
        let operations = || (1..30_usize, collection::vec((0..4_u8, 0..20_usize), 0..60));
        check(200, operations, |_, (capacity, operations)| {
            let cache = the_cache();
            let sheaf = SheafRef::alloc(cache, capacity, QUIET, Spin::May).expect("memory");
            let mut model: Vec<NonNull<u8>> = Vec::new();
            for (number, (operation, n)) in operations.into_iter().enumerate() {
                match operation {
                    0 => {
                        let fits = model.len() < capacity;
                        prop_assert_eq!(sheaf.push(fake(number)), fits);
                        model.extend(fits.then(|| fake(number)));
                    }
                    1 => prop_assert_eq!(sheaf.pop(), model.pop()),
                    2 => {
                        let mut to = [MaybeUninit::uninit(); 20];
                        let got = sheaf.take(&mut to[..n]);
                        let rest = model.len().saturating_sub(n);
                        // SAFETY: so many places were filled in.
                        prop_assert_eq!(unsafe { to[..got].assume_init_ref() }, &model[rest..]);
                        model.truncate(rest);
                    }
                    _ => {
                        let from: Vec<_> = (0..n).map(|index| fake(1000 * number + index)).collect();
                        let fits = n.min(capacity - model.len());
                        prop_assert_eq!(sheaf.put(&from), fits);
                        model.extend(&from[n - fits..]);
                    }
                }
                prop_assert_eq!((sheaf.size(), sheaf.room()), (model.len(), capacity - model.len()));
                prop_assert_eq!((sheaf.is_empty(), sheaf.is_full()), (model.is_empty(), model.len() == capacity));
            }
            prop_assert_eq!(sheaf.with_objects(|objects| objects.to_vec()), model);
            sheaf.free(Spin::May);
            Ok(())
        });
    });
}

#[test]
fn a_barn_is_two_stacks_with_soft_limits() {
    in_own_process(|| {
        let operations = || collection::vec((0..8_u8, 0..6_u32), 0..60);
        check(200, operations, |_, operations| {
            let cache = the_cache();
            let barn = Barn::new(arch::NodeId::new(0), CAPACITY);
            let new = |full: bool| {
                let sheaf = SheafRef::alloc(cache, CAPACITY, QUIET, Spin::May).expect("memory");
                (0..CAPACITY).filter(|_| full).for_each(|number| assert!(sheaf.push(fake(number))));
                sheaf
            };
            let drop_it = |sheaf: SheafRef| {
                sheaf.with_objects(|_| ());
                sheaf.free(Spin::May);
            };
            let (mut full, mut empty): (Vec<SheafRef>, Vec<SheafRef>) = Default::default();
            let (mut max_full, mut max_empty) = barn.limits();
            for (operation, n) in operations {
                match operation {
                    0 => {
                        full.push(new(true));
                        prop_assert_eq!(barn.put_full(full[full.len() - 1]), Ok(()));
                    }
                    1 => {
                        empty.push(new(false));
                        prop_assert_eq!(barn.put_empty(empty[empty.len() - 1]), Ok(()));
                    }
                    2 => {
                        let got = barn.get_empty(Spin::May);
                        prop_assert_eq!(got, empty.pop());
                        got.into_iter().for_each(drop_it);
                    }
                    3 => {
                        let got = barn.get_full_or_empty();
                        prop_assert_eq!(got, full.pop().or_else(|| empty.pop()));
                        got.into_iter().for_each(drop_it);
                    }
                    4 => {
                        let ours = new(false);
                        let got = barn.replace_empty(ours, Spin::May);
                        prop_assert_eq!(got, full.pop());
                        if got.is_some() {
                            empty.push(ours);
                        }
                        drop_it(got.unwrap_or(ours));
                    }
                    5 => {
                        let ours = new(true);
                        let got = barn.replace_full(ours, Spin::May);
                        let expected = if full.len() as u32 >= max_full {
                            Err(NoSwap::TooManyFull)
                        } else {
                            empty.pop().ok_or(NoSwap::NoEmpty)
                        };
                        prop_assert_eq!(got, expected);
                        if got.is_ok() {
                            full.push(ours);
                        }
                        drop_it(got.unwrap_or(ours));
                    }
                    6 => {
                        (max_full, max_empty) = (n, 6 - n);
                        let (more, emptier) = barn.set_limits(Some((max_full, max_empty)));
                        let over = |list: &mut Vec<_>, max: u32| list.len().saturating_sub(max as usize);
                        prop_assert_eq!(more.map(drop_it).count(), over(&mut full, max_full));
                        prop_assert_eq!(emptier.map(drop_it).count(), over(&mut empty, max_empty));
                        full.truncate(max_full as usize);
                        empty.truncate(max_empty as usize);
                    }
                    _ => {
                        let (all, emptier) = barn.drain();
                        prop_assert_eq!(all.map(drop_it).count(), full.drain(..).count());
                        prop_assert_eq!(emptier.map(drop_it).count(), empty.drain(..).count());
                    }
                }
                prop_assert_eq!((barn.nr_full(), barn.nr_empty()), (full.len() as u32, empty.len() as u32));
                prop_assert_eq!(barn.has_room_for_full(), (full.len() as u32) < max_full);
                prop_assert_eq!(barn.has_room_for_empty(), (empty.len() as u32) < max_empty);
                prop_assert!(barn.is_sound());
            }
            let (all, emptier) = barn.drain();
            all.chain(emptier).for_each(drop_it);
            Ok(())
        });
    });
}

#[test]
fn a_partial_list_is_a_queue_with_removal_from_its_midst() {
    in_own_process(|| {
        let operations = || collection::vec((0..4_u8, 0..8_usize), 0..60);
        check(200, operations, |_, operations| {
            let cache = the_cache();
            let pages: Vec<_> = (0..8).map(|_| mm::alloc_pages(0, None, QUIET).expect("memory")).collect();
            let slabs: Vec<_> = pages.iter().map(|page| SlabRef::make(page, cache, 16)).collect();
            let number = |slab: SlabRef| slabs.iter().position(|&other| other == slab).expect("one of ours");
            let node = CacheNode::new(mm::home_node(), 0);
            let mut list = node.lock(Spin::May).expect("waited for");
            let mut model = VecDeque::new();
            for (operation, which) in operations {
                let listed = model.iter().position(|&other| other == which);
                match (operation, listed) {
                    (0, None) => {
                        list.push_back(slabs[which]);
                        model.push_back(which);
                    }
                    (1, None) => {
                        list.push_front(slabs[which]);
                        model.push_front(which);
                    }
                    (_, Some(at)) => {
                        list.remove(slabs[which]);
                        model.remove(at);
                    }
                    _ => {}
                }
                prop_assert!(list.iter().map(number).eq(model.iter().copied()));
                prop_assert_eq!((list.len(), list.first().map(number)), (model.len(), model.front().copied()));
                prop_assert!((0..8).all(|which| slabs[which].is_on_partial() == model.contains(&which)));
            }
            drop(list);
            slabs.iter().for_each(|slab| mm::free_pages(slab.unmake(), 0));
            Ok(())
        });
    });
}

/// Objects that were allocated from a cache, and that were freed to it.
fn allocated_and_freed(cache: &RawCache) -> (u64, u64) {
    let sum = |stats: &[Stat]| stats.iter().map(|&stat| cache.stat(stat)).sum();
    let frees = [Stat::FreeFastpath, Stat::FreeSlowpath, Stat::FreeRemote];
    (sum(&[Stat::AllocFastpath, Stat::AllocSlowpath]), sum(&frees))
}

/// What may be done with a cache.
#[derive(Clone, Copy, Debug)]
enum Call {
    Alloc,
    AllocNolock,
    /// One of those that are held, by its place among them.
    Free(usize),
    FreeNolock(usize),
    AllocBulk(usize),
    FreeBulk(usize),
    Prefill(usize),
    FromSheaf,
    Refill(usize),
    Return,
    Shrink,
    Capacity(usize),
    /// From here on, and to the next such call, there is memory for slabs and sheaves or there is none.
    Memory(bool),
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let n = 0..150_usize;
    let call = prop_oneof![
        12 => Just(Call::Alloc),
        4 => Just(Call::AllocNolock),
        10 => n.clone().prop_map(Call::Free),
        4 => n.clone().prop_map(Call::FreeNolock),
        4 => (0..80_usize).prop_map(Call::AllocBulk),
        4 => (0..80_usize).prop_map(Call::FreeBulk),
        3 => (0..80_usize).prop_map(Call::Prefill),
        6 => Just(Call::FromSheaf),
        3 => (0..80_usize).prop_map(Call::Refill),
        2 => Just(Call::Return),
        1 => Just(Call::Shrink),
        1 => prop_oneof![Just(0), Just(4), Just(12), Just(28)].prop_map(Call::Capacity),
        2 => any::<bool>().prop_map(Call::Memory),
    ];
    collection::vec(call, 0..200)
}

/// A cache as its users see it: what they hold, and what was promised to them.
#[derive(Default)]
struct Model {
    /// What is in each object.
    held: BTreeMap<NonNull<u8>, u64>,
    sheaves: Vec<Prefilled>,
    stamp: u64,
}

impl Model {
    fn take(&mut self, object: Option<NonNull<u8>>) -> Result<(), TestCaseError> {
        let Some(object) = object else { return Ok(()) };
        self.stamp += 1;
        // SAFETY: an object of 256 bytes that is ours.
        unsafe { object.as_ptr().cast::<[u64; 32]>().write([self.stamp; 32]) };
        prop_assert_eq!(self.held.insert(object, self.stamp), None, "handed out twice");
        Ok(())
    }

    /// Gives up one that is held, if any.
    fn give(&mut self, at: usize) -> Result<Option<NonNull<u8>>, TestCaseError> {
        let Some(&object) = self.held.keys().nth(at % self.held.len().max(1)) else { return Ok(None) };
        let stamp = self.held.remove(&object).expect("just seen");
        // SAFETY: ours until it is freed.
        prop_assert_eq!(unsafe { object.as_ptr().cast::<[u64; 32]>().read() }, [stamp; 32], "somebody wrote to it");
        Ok(Some(object))
    }

    fn call(&mut self, cache: &'static RawCache, call: Call, cx: &mut MaySleep) -> Result<(), TestCaseError> {
        match call {
            Call::Alloc => self.take(cache.alloc(QUIET))?,
            Call::AllocNolock => self.take(cache.alloc_nolock(QUIET))?,
            Call::Free(at) => {
                // SAFETY: from this cache, and ours to give up; as below.
                self.give(at)?.into_iter().for_each(|object| unsafe { cache.free(object) });
            }
            Call::FreeNolock(at) => {
                // SAFETY: as above.
                self.give(at)?.into_iter().for_each(|object| unsafe { crate::kfree_nolock(object) });
            }
            Call::AllocBulk(n) => {
                let mut places = [MaybeUninit::uninit(); 80];
                if let Some(objects) = cache.alloc_bulk(&mut places[..n], QUIET) {
                    prop_assert_eq!(objects.len(), n);
                    objects.iter().try_for_each(|&object| self.take(Some(object)))?;
                }
            }
            Call::FreeBulk(n) => {
                let mut objects = Vec::new();
                for at in 0..n {
                    objects.extend(self.give(at)?);
                }
                // SAFETY: as above.
                unsafe { cache.free_bulk(&mut objects) };
            }
            Call::Prefill(n) => {
                let sheaf = cache.prefill(n, QUIET);
                prop_assert!(sheaf.as_ref().is_none_or(|sheaf| n > 0 && sheaf.size() >= n));
                self.sheaves.extend(sheaf);
            }
            Call::FromSheaf => {
                if let Some(sheaf) = self.sheaves.last_mut() {
                    let size = sheaf.size();
                    let object = sheaf.alloc(QUIET);
                    prop_assert_eq!((object.is_some(), sheaf.size()), (size > 0, size.saturating_sub(1)));
                    self.take(object)?;
                }
            }
            Call::Refill(n) => {
                if let Some(sheaf) = self.sheaves.pop() {
                    let size = sheaf.size();
                    let sheaf = sheaf.refill(n, QUIET);
                    prop_assert_eq!(sheaf.as_ref().is_ok_and(|sheaf| sheaf.size() >= n), sheaf.is_ok());
                    let sheaf = sheaf.unwrap_or_else(|old| old);
                    prop_assert!(sheaf.size() >= size, "a refill took objects away");
                    self.sheaves.push(sheaf);
                }
            }
            Call::Return => drop(self.sheaves.pop()),
            Call::Shrink => {
                cache.shrink();
            }
            Call::Capacity(objects) => {
                let capacity = cache.set_capacity(objects, cx);
                prop_assert_eq!(capacity, Ok(objects));
            }
            Call::Memory(_) => {}
        }
        Ok(())
    }

    /// What must hold whenever nobody is at it.
    fn compare(&self, cache: &'static RawCache) -> Result<(), TestCaseError> {
        let (allocated, freed) = allocated_and_freed(cache);
        let users = allocated - freed;
        prop_assert_eq!(users, self.held.len() as u64, "allocations less frees");
        let objects = self.sheaves.iter().map(|sheaf| sheaf.size() as u64).sum();
        prop_assert_eq!(cache.lent(), Lent { sheaves: self.sheaves.len() as u64, objects });
        let in_barns = cache.nodes().map(|node| {
            assert!(node.barn.is_sound());
            node.barn.objects()
        });
        let held = cache.sheaves().expect("nobody interrupts");
        let on_cpu: usize =
            [Some(held.main), held.spare, held.remote].into_iter().flatten().map(|sheaf| sheaf.size()).sum();
        let idle = in_barns.sum::<usize>() + on_cpu;
        let capacities = [Some(held.main).filter(|main| !main.is_bootstrap()), held.spare, held.remote];
        prop_assert!(
            capacities.into_iter().flatten().all(|sheaf| sheaf.capacity() == cache.sheaf_capacity()),
            "SHEAF-5"
        );
        drop(held);
        prop_assert_eq!(cache.info().active_objs, users + objects + idle as u64, "objects that are not free in a slab");
        Ok(())
    }
}

#[test]
fn a_cache_loses_nothing_and_gives_nothing_twice_whatever_is_asked_of_it() {
    in_own_process(|| {
        check(150, calls, |cx, calls| {
            let cache = the_cache();
            cache.set_capacity(CAPACITY, cx).expect("it was created with it");
            let mut model = Model::default();
            let mut armed = None;
            for call in calls {
                if let Call::Memory(there) = call {
                    drop(armed.take());
                    armed = (!there).then(|| inject::arm(Plan::From(1)).expect("not armed"));
                }
                model.call(cache, call, cx)?;
                // What had to wait for another context finds one here.
                crate::deferred::drain_here();
                model.compare(cache)?;
            }
            drop(armed);
            model.sheaves.clear();
            while let Some(object) = model.give(0)? {
                // SAFETY: from this cache, and ours to give up.
                unsafe { cache.free(object) };
            }
            model.compare(cache)?;
            assert_all_back(cache);
            Ok(())
        });
    });
}

/// An object on its way between threads, with the stamp that is in it.
struct Passed(NonNull<u8>, u64);

// SAFETY: an object belongs to no CPU; whoever has the value has the object.
unsafe impl Send for Passed {}

impl Passed {
    fn new(object: NonNull<u8>, stamp: u64) -> Self {
        // SAFETY: an object of 256 bytes that is ours.
        unsafe { object.as_ptr().cast::<[u64; 32]>().write_volatile([stamp; 32]) };
        Self(object, stamp)
    }

    fn checked(self) -> NonNull<u8> {
        // SAFETY: as above.
        assert_eq!(unsafe { self.0.as_ptr().cast::<[u64; 32]>().read_volatile() }, [self.1; 32], "it has two holders");
        self.0
    }
}

/// One CPU's part: random calls, and objects left for others in `slots`.
fn play(cache: &'static RawCache, slots: &[SpinLock<Option<Passed>>], mut rng: Rng) {
    let mut sheaf: Option<Prefilled> = None;
    for _ in 0..4_000 {
        let slot = &slots[rng.index(slots.len())];
        let object = match rng.index(8) {
            0 => None,
            1 => cache.alloc_nolock(QUIET),
            2 => {
                let n = rng.index(60) + 1;
                sheaf = match sheaf.take() {
                    Some(sheaf) => Some(sheaf.refill(n, QUIET).unwrap_or_else(|old| old)),
                    None => cache.prefill(n, QUIET),
                };
                sheaf.as_mut().and_then(|sheaf| sheaf.alloc(QUIET))
            }
            3 => sheaf.take().and_then(|mut sheaf| sheaf.alloc(QUIET)),
            _ => cache.alloc(QUIET),
        };
        let new = object.map(|object| Passed::new(object, rng.next_u64()));
        let old = core::mem::replace(&mut *slot.lock_irqsave(ATOMIC), new);
        let Some(old) = old.map(Passed::checked) else { continue };
        match rng.index(3) {
            // SAFETY: from this cache, and ours since we took it out of its slot; as below.
            0 => unsafe { crate::kfree_nolock(old) },
            // SAFETY: as above.
            1 => unsafe { cache.free_bulk(&mut [old]) },
            // SAFETY: as above.
            _ => unsafe { cache.free(old) },
        }
    }
}

#[test]
fn cpus_that_play_at_once_lose_nothing_and_get_nothing_twice() {
    in_own_process(|| {
        machine(4, 2, |cx| {
            let cache = cache("test");
            for seed in 0..3 {
                let slots: Arc<Vec<_>> =
                    Arc::new((0..100).map(|_| SpinLock::new(None, lock_class!("test.slot"))).collect());
                let threads: Vec<_> = (0..4)
                    .map(|on| {
                        let slots = slots.clone();
                        spawn(cx, Some(on), move |_| play(cache, &slots, Rng::stream(seed, on as u64)))
                    })
                    .collect();
                threads.into_iter().for_each(|thread| thread.join(cx));
                for slot in slots.iter() {
                    let left = slot.lock_irqsave(ATOMIC).take();
                    // SAFETY: from this cache; its user has ended.
                    left.map(Passed::checked).into_iter().for_each(|object| unsafe { cache.free(object) });
                }
                crate::deferred::flush(&sched::keep_cpus(cx), cx);
                let (allocated, freed) = allocated_and_freed(cache);
                assert_eq!(allocated, freed);
                assert_eq!(cache.lent(), Lent { sheaves: 0, objects: 0 });
                assert_all_back(cache);
            }
        });
    });
}
