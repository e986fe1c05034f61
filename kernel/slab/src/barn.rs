//! Barns: where the CPUs of a node leave and find whole sheaves.
//!
//! One [`Barn`] per cache and online node, memory-less nodes included (S5-5). A CPU that runs dry swaps its
//! empty sheaf for a full one, a CPU that runs over swaps its full one for an empty one: one lock per
//! `capacity` objects instead of one per object.
//!
//! # Invariants
//! - **BARN-1** Every sheaf on `full` holds at least one object, every sheaf on `empty` holds none; none is
//!   oversize or the bootstrap sheaf.
//! - **BARN-2** `nr_full` and `nr_empty` are written under the lock and equal the lists' lengths; they are
//!   also read without it, as hints. So the limits are soft: they may be overshot by as many sheaves as
//!   CPUs race past the check (S0-10, S4-7).
//! - **BARN-3** Every sheaf here has the capacity that the barn was told last ([`Barn::set_capacity`]), which is written and
//!   compared under the lock. So once it was told another one, no sheaf of the old one is or gets in, whoever had it on
//!   its way (SHEAF-5).
//!
//! - **BARN-4** Sheaves that come back from RCU come many at once, after a grace period in which the CPUs wanted as many if
//!   they allocate what they free. So as many are kept as were wanted while they were away, or a little longer
//!   ([`Window`]), also above the limit: the CPUs will want them again, and while they waited they took the same memory.
//!   What is above the limit when demand ends is taken out by [`Barn::trim`].
//!
//! | | get | put | replace | drain |
//! |---|---|---|---|---|
//! | each against each | barn lock | barn lock | barn lock | barn lock |
//!
//! Lock order: the CPU's sheaf lock, then the barn lock, then nothing: no list or zone lock is taken inside
//! (M-10). Context: any; with [`Spin::Never`] only a try-lock is made, and "busy" is reported as "nothing".
//!
//! Answers to `struct node_barn` in Linux `mm/slub.c` (7.x). There the limits are compile-time constants
//! (10 and 10); here they are per barn, follow the CPUs of the node, and can be set at run time (S5-15).
//!
//! # How many sheaves
//!
//! A CPU that turns from allocating to freeing, or back, has two sheaves to change, main and spare. So a barn that holds two
//! for each CPU of the node, and two on their way, serves all of them turning at once without a slab being touched; that
//! is [`default_limit`]. It is ten, Linux's constant, on nodes of up to four CPUs.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use arch::{NodeId, cpu};
use sync::{ATOMIC, LockClass, SpinIrqGuard, SpinLock, bug, hook};

use crate::Spin;
use crate::sheaf::{Chain, Sheaf, SheafRef};
use crate::waiting::Back;

/// Inside the sheaf lock and the list of caches; nothing nests inside it, least of all a list lock, which has the same rank
/// (M-10).
static BARN_LOCK: LockClass = LockClass::new("slab.barn").rank(850);

/// The most full, and the most empty, sheaves that a barn of `node` keeps unless it is told otherwise (M-4, S5-15).
///
/// CPUs that were taken offline do not count; those that have not started yet do.
fn default_limit(node: NodeId) -> u32 {
    let offline = |&cpu: &arch::CpuId| cpu::has_started(cpu) && !cpu::is_online(cpu);
    limit_for(cpu::cpus_of(node).iter().filter(|cpu| !offline(cpu)).count() as u32)
}

/// [`default_limit`] for so many CPUs.
const fn limit_for(cpus: u32) -> u32 {
    let limit = 2 * cpus + 2;
    if limit < 10 { 10 } else { limit }
}

struct Stack(*mut Sheaf);

impl Stack {
    fn push(&mut self, sheaf: SheafRef) {
        sheaf.set_next(self.0);
        self.0 = sheaf.as_ptr();
    }

    fn pop(&mut self) -> Option<SheafRef> {
        let sheaf = SheafRef::from_ptr(self.0)?;
        self.0 = sheaf.next();
        Some(sheaf)
    }

    fn take(&mut self) -> Chain {
        Chain(core::mem::replace(&mut self.0, ptr::null_mut()))
    }

    /// Takes what is more than `keep` of the `len` sheaves there are.
    fn take_surplus(&mut self, len: u32, keep: u32) -> Chain {
        let mut surplus = Stack(ptr::null_mut());
        (keep..len).filter_map(|_| self.pop()).for_each(|sheaf| surplus.push(sheaf));
        surplus.take()
    }
}

struct Lists {
    full: Stack,
    empty: Stack,
    /// Of every sheaf here (BARN-3). 0: the barn takes none.
    capacity: usize,
    /// The limits were set: they follow neither the CPUs of the node nor the demand.
    limits_are_set: bool,
    /// BARN-4.
    window: Window,
    /// [`Barn::wanted`] at the last [`Barn::trim`], and when that was.
    trimmed: u32,
    trimmed_ns: u64,
    /// How often the lock was taken.
    locks: u64,
}

impl Lists {
    /// Whether a sheaf may come in (BARN-1, BARN-3).
    fn admit(&self, sheaf: SheafRef) -> bool {
        sheaf.capacity() == self.capacity && !sheaf.is_oversize() && !sheaf.is_bootstrap()
    }
}

/// How many full sheaves CPUs want in the time that a sheaf spends with RCU (BARN-4).
///
/// Time, and not grace periods: while many callbacks run, nobody allocates, and several grace periods may go by.
struct Window {
    begin_ns: u64,
    /// [`Barn::wanted`] when it began.
    begin: u32,
    /// Sheaves that were wanted in the window before.
    before: u32,
    /// It lasts at least as long as any sheaf was away that came back in it.
    least_ns: u64,
}

impl Window {
    /// Sheaves that were wanted in the last `away_ns`, or a little longer, if `wanted` have been wanted so
    /// far. Of a window that has lasted for longer than twice that the share counts.
    fn demand(&mut self, wanted: u32, now_ns: u64, away_ns: u64) -> u32 {
        let away_ns = away_ns.max(self.least_ns);
        let (all, lasted_ns) = (wanted.wrapping_sub(self.begin), now_ns.saturating_sub(self.begin_ns));
        let most_ns = away_ns.saturating_mul(2);
        // Divided only where it is longer: a wide division is a call.
        let here = if lasted_ns <= most_ns {
            all
        } else {
            (u128::from(all) * u128::from(most_ns) / u128::from(lasted_ns)) as u32
        };
        let demand = here.saturating_add(self.before);
        self.least_ns = away_ns;
        if lasted_ns >= away_ns {
            *self = Self { begin_ns: now_ns, begin: wanted, before: here, least_ns: away_ns / 2 };
        }
        demand
    }
}

// SAFETY: the lists own the sheaves on them (SHEAF-1) and are reached only through the barn's lock.
unsafe impl Send for Lists {}

/// Full and empty sheaves of one cache on one node.
pub(crate) struct Barn {
    node: NodeId,
    lists: SpinLock<Lists>,
    /// BARN-2.
    nr_full: AtomicU32,
    /// BARN-2.
    nr_empty: AtomicU32,
    /// Written under the lock, read without it.
    max_full: AtomicU32,
    /// Written under the lock, read without it.
    max_empty: AtomicU32,
    /// Full sheaves that CPUs got from here or did not find here, modulo 2^32.
    wanted: AtomicU32,
}

/// Why a full sheaf was not exchanged for an empty one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoSwap {
    /// The barn has as many full sheaves as it keeps, or none of this capacity (BARN-3).
    TooManyFull,
    /// The barn has no empty sheaf, or its lock was busy and may not be waited for.
    NoEmpty,
}

impl Barn {
    /// A barn of `node` for sheaves of `capacity`.
    pub(crate) fn new(node: NodeId, capacity: usize) -> Self {
        let none = || Stack(ptr::null_mut());
        let lists = Lists {
            full: none(),
            empty: none(),
            capacity,
            limits_are_set: false,
            window: Window { begin_ns: 0, begin: 0, before: 0, least_ns: 0 },
            trimmed: 0,
            trimmed_ns: 0,
            locks: 0,
        };
        let limit = default_limit(node);
        Self {
            node,
            lists: SpinLock::new(lists, &BARN_LOCK),
            nr_full: AtomicU32::new(0),
            nr_empty: AtomicU32::new(0),
            max_full: AtomicU32::new(limit),
            max_empty: AtomicU32::new(limit),
            wanted: AtomicU32::new(0),
        }
    }

    fn lock(&self, spin: Spin) -> Option<SpinIrqGuard<'_, Lists>> {
        let mut lists = match spin {
            Spin::May => self.lists.lock_irqsave(ATOMIC),
            Spin::Never => self.lists.try_lock_irqsave(ATOMIC)?,
        };
        hook!("slab.barn");
        lists.locks += 1;
        Some(lists)
    }

    fn wait_lock(&self) -> SpinIrqGuard<'_, Lists> {
        self.lock(Spin::May).expect("waited for")
    }

    /// How often the lock was taken.
    pub(crate) fn locks(&self) -> u64 {
        self.lists.lock_irqsave(ATOMIC).locks
    }

    pub(crate) fn nr_full(&self) -> u32 {
        self.nr_full.load(Relaxed)
    }

    pub(crate) fn nr_empty(&self) -> u32 {
        self.nr_empty.load(Relaxed)
    }

    /// Whether another full sheaf is welcome: a hint (BARN-2).
    pub(crate) fn has_room_for_full(&self) -> bool {
        self.nr_full() < self.max_full.load(Relaxed)
    }

    /// Whether another empty sheaf is welcome: a hint (BARN-2).
    pub(crate) fn has_room_for_empty(&self) -> bool {
        self.nr_empty() < self.max_empty.load(Relaxed)
    }

    /// Takes an empty sheaf.
    pub(crate) fn get_empty(&self, spin: Spin) -> Option<SheafRef> {
        if self.nr_empty() == 0 {
            return None;
        }
        let mut lists = self.lock(spin)?;
        let sheaf = lists.empty.pop()?;
        self.nr_empty.store(self.nr_empty() - 1, Relaxed);
        Some(sheaf)
    }

    /// Takes a full sheaf, or where there is none an empty one. May spin.
    pub(crate) fn get_full_or_empty(&self) -> Option<SheafRef> {
        self.wanted.fetch_add(1, Relaxed);
        if self.nr_full() == 0 && self.nr_empty() == 0 {
            return None;
        }
        let mut lists = self.wait_lock();
        if let Some(full) = lists.full.pop() {
            self.nr_full.store(self.nr_full() - 1, Relaxed);
            return Some(full);
        }
        let empty = lists.empty.pop()?;
        self.nr_empty.store(self.nr_empty() - 1, Relaxed);
        Some(empty)
    }

    /// Puts an empty sheaf in, over the limit if need be. May spin.
    ///
    /// # Errors
    /// It has another capacity than the barn's by now (BARN-3); the caller keeps it.
    pub(crate) fn put_empty(&self, sheaf: SheafRef) -> Result<(), SheafRef> {
        debug_assert!(sheaf.is_empty());
        let mut lists = self.wait_lock();
        if !lists.admit(sheaf) {
            return Err(sheaf);
        }
        lists.empty.push(sheaf);
        self.nr_empty.store(self.nr_empty() + 1, Relaxed);
        Ok(())
    }

    /// Puts a full (or partly full) sheaf in, over the limit if need be. May spin.
    ///
    /// # Errors
    /// As for [`Barn::put_empty`].
    pub(crate) fn put_full(&self, sheaf: SheafRef) -> Result<(), SheafRef> {
        debug_assert!(!sheaf.is_empty());
        if bug!("barn.unlocked_put", "a full sheaf is put into the barn without its lock", "slab_nolock.bursts*") {
            // SAFETY: none; that is the bug.
            let lists = unsafe { &mut *self.lists.as_ptr() };
            sheaf.set_next(lists.full.0);
            arch::irq::relax();
            lists.full.0 = sheaf.as_ptr();
            self.nr_full.store(self.nr_full() + 1, Relaxed);
            return Ok(());
        }
        let mut lists = self.wait_lock();
        if !lists.admit(sheaf) {
            return Err(sheaf);
        }
        lists.full.push(sheaf);
        self.nr_full.store(self.nr_full() + 1, Relaxed);
        Ok(())
    }

    /// Puts a sheaf in that is `back` from RCU, unless there are more than the limit and more than are likely to be
    /// wanted before as many come back again (BARN-4). May spin. True if there are more than the limit now.
    ///
    /// # Errors
    /// There are too many full ones, or it has another capacity by now; the caller keeps it.
    pub(crate) fn take_back(&self, sheaf: SheafRef, back: Back) -> Result<bool, SheafRef> {
        let mut lists = self.wait_lock();
        let demand = lists.window.demand(self.wanted.load(Relaxed), back.now_ns, back.away_ns);
        let (limit, full) = (self.max_full.load(Relaxed), self.nr_full());
        let keep = if lists.limits_are_set { limit } else { limit.max(demand) };
        if full >= keep || !lists.admit(sheaf) {
            return Err(sheaf);
        }
        lists.full.push(sheaf);
        self.nr_full.store(full + 1, Relaxed);
        Ok(full >= limit)
    }

    /// Exchanges an empty sheaf for a full one. On `None` the caller keeps `empty`.
    ///
    /// The bootstrap sheaf may be offered and is not kept.
    pub(crate) fn replace_empty(&self, empty: SheafRef, spin: Spin) -> Option<SheafRef> {
        self.wanted.fetch_add(1, Relaxed);
        if self.nr_full() == 0 {
            return None;
        }
        let mut lists = self.lock(spin)?;
        if !empty.is_bootstrap() && !lists.admit(empty) {
            return None;
        }
        let full = lists.full.pop()?;
        if bug!(
            "barn.sheaf_lost",
            "the empty sheaf of an exchange does not get into the barn",
            "slab_nolock.stepped*path"
        ) {
            self.nr_full.store(self.nr_full() - 1, Relaxed);
            return Some(full);
        }
        self.nr_full.store(self.nr_full() - 1, Relaxed);
        if !empty.is_bootstrap() {
            lists.empty.push(empty);
            self.nr_empty.store(self.nr_empty() + 1, Relaxed);
        }
        Some(full)
    }

    /// Takes one object out of a full sheaf, if `wanted` says so of it. May spin.
    pub(crate) fn take_one(&self, wanted: impl FnOnce(NonNull<u8>) -> bool) -> Option<NonNull<u8>> {
        if self.nr_full() == 0 {
            return None;
        }
        let mut lists = self.lock(Spin::May)?;
        let sheaf = SheafRef::from_ptr(lists.full.0)?;
        let object = sheaf.pop_if(wanted)?;
        if sheaf.is_empty() {
            lists.full.pop();
            lists.empty.push(sheaf);
            self.nr_full.store(self.nr_full() - 1, Relaxed);
            self.nr_empty.store(self.nr_empty() + 1, Relaxed);
        }
        Some(object)
    }

    /// Exchanges a full sheaf for an empty one. On `Err` the caller keeps `full`.
    pub(crate) fn replace_full(&self, full: SheafRef, spin: Spin) -> Result<SheafRef, NoSwap> {
        debug_assert!(!full.is_empty() && !full.is_oversize());
        if !self.has_room_for_full() {
            return Err(NoSwap::TooManyFull);
        }
        if self.nr_empty() == 0 {
            return Err(NoSwap::NoEmpty);
        }
        let mut lists = self.lock(spin).ok_or(NoSwap::NoEmpty)?;
        if !lists.admit(full) {
            return Err(NoSwap::TooManyFull);
        }
        let empty = lists.empty.pop().ok_or(NoSwap::NoEmpty)?;
        lists.full.push(full);
        self.nr_empty.store(self.nr_empty() - 1, Relaxed);
        self.nr_full.store(self.nr_full() + 1, Relaxed);
        Ok(empty)
    }

    /// Takes everything out: (full, empty). The caller flushes and frees.
    pub(crate) fn drain(&self) -> (Chain, Chain) {
        self.take_all(&mut self.wait_lock())
    }

    /// From now on takes sheaves of `capacity` only, or none if that is 0. Returns what was there, as [`Barn::drain`].
    pub(crate) fn set_capacity(&self, capacity: usize) -> (Chain, Chain) {
        let mut lists = self.wait_lock();
        lists.capacity = capacity;
        self.take_all(&mut lists)
    }

    fn take_all(&self, lists: &mut Lists) -> (Chain, Chain) {
        self.nr_full.store(0, Relaxed);
        self.nr_empty.store(0, Relaxed);
        (lists.full.take(), lists.empty.take())
    }

    /// Objects in its sheaves.
    #[cfg(test)]
    pub(crate) fn objects(&self) -> usize {
        Chain(self.wait_lock().full.0).map(|sheaf| sheaf.size()).sum()
    }

    /// Whether BARN-1 to BARN-3 hold.
    #[cfg(test)]
    pub(crate) fn is_sound(&self) -> bool {
        let lists = self.wait_lock();
        let (full, empty) = (|| Chain(lists.full.0), || Chain(lists.empty.0));
        full().all(|sheaf| lists.admit(sheaf) && !sheaf.is_empty())
            && empty().all(|sheaf| lists.admit(sheaf) && sheaf.is_empty())
            && (full().count(), empty().count()) == (self.nr_full() as usize, self.nr_empty() as usize)
    }

    /// Whether there are more sheaves than the limits: a hint (BARN-2).
    pub(crate) fn is_over(&self) -> bool {
        let (full, empty) = self.limits();
        self.nr_full() > full || self.nr_empty() > empty
    }

    /// Takes out what is over the limits and was not wanted since this was done last (BARN-4), at least `period_ns` before `now_ns`;
    /// nothing before. So however many keepers look at a barn, demand is that of a period. Returns it as [`Barn::drain`].
    pub(crate) fn trim(&self, now_ns: u64, period_ns: u64) -> (Chain, Chain) {
        let mut lists = self.wait_lock();
        if now_ns.saturating_sub(lists.trimmed_ns) < period_ns {
            return (Chain(ptr::null_mut()), Chain(ptr::null_mut()));
        }
        lists.trimmed_ns = now_ns;
        let wanted = self.wanted.load(Relaxed);
        let keep = wanted.wrapping_sub(core::mem::replace(&mut lists.trimmed, wanted));
        let (full, empty) = self.limits();
        self.take_surplus(&mut lists, full.max(keep), empty.max(keep))
    }

    /// The most full, and the most empty, sheaves that it keeps.
    pub(crate) fn limits(&self) -> (u32, u32) {
        (self.max_full.load(Relaxed), self.max_empty.load(Relaxed))
    }

    /// Sets the limits, (full, empty), or with `None` has them follow the CPUs of the node again. Returns what is over
    /// them, as [`Barn::drain`].
    pub(crate) fn set_limits(&self, limits: Option<(u32, u32)>) -> (Chain, Chain) {
        let mut lists = self.wait_lock();
        lists.limits_are_set = limits.is_some();
        self.apply_limits(&mut lists, limits)
    }

    /// Brings limits that nobody has set in line with the CPUs of the node. Returns what is over them, as [`Barn::drain`].
    pub(crate) fn follow_cpus(&self) -> (Chain, Chain) {
        let mut lists = self.wait_lock();
        let limits = lists.limits_are_set.then(|| self.limits());
        self.apply_limits(&mut lists, limits)
    }

    /// The CPUs are counted under the lock, so that of two who count the one who counts last has the last word.
    fn apply_limits(&self, lists: &mut Lists, limits: Option<(u32, u32)>) -> (Chain, Chain) {
        let (full, empty) = limits.unwrap_or_else(|| {
            let limit = default_limit(self.node);
            (limit, limit)
        });
        self.max_full.store(full, Relaxed);
        self.max_empty.store(empty, Relaxed);
        self.take_surplus(lists, full, empty)
    }

    fn take_surplus(&self, lists: &mut Lists, full: u32, empty: u32) -> (Chain, Chain) {
        let surplus = (lists.full.take_surplus(self.nr_full(), full), lists.empty.take_surplus(self.nr_empty(), empty));
        self.nr_full.store(self.nr_full().min(full), Relaxed);
        self.nr_empty.store(self.nr_empty().min(empty), Relaxed);
        surplus
    }
}

#[cfg(test)]
mod tests {
    use arch::hosted::in_own_process;
    use mm::AllocFlags;

    use super::*;
    use crate::test_machine::{assert_all_back, cache, machine};

    #[test]
    fn a_barn_is_trimmed_once_a_period_however_many_ask() {
        const PERIOD: u64 = 1_000;
        in_own_process(|| {
            machine(1, 1, |_| {
                let cache = cache("trimmed");
                let barn = cache.barn().expect("every node has one");
                let put = |count| {
                    for _ in 0..count {
                        let sheaf = cache.new_sheaf(AllocFlags::NOWAIT, Spin::May).expect("memory");
                        assert!(barn.put_empty(sheaf).is_ok());
                    }
                };
                let trim = |now_ns| {
                    cache.put_away_chains(barn.trim(now_ns, PERIOD));
                    barn.nr_empty()
                };
                let (_, limit) = barn.limits();
                trim(5 * PERIOD);
                barn.wanted.fetch_add(limit + 5, Relaxed);
                put(limit + 8);
                // Three CPUs look one after the other; what was wanted in the period stays for all of it.
                assert_eq!([6_000, 6_300, 6_999].map(trim), [limit + 5; 3]);
                // In the next one nobody wanted any.
                assert_eq!([7_000, 7_001].map(trim), [limit; 2]);
                assert_all_back(cache);
            });
        });
    }

    #[test]
    fn the_demand_is_that_of_the_time_a_sheaf_was_away_or_little_more() {
        const AWAY: u64 = 10;
        let mut window = Window { begin_ns: 0, begin: 0, before: 0, least_ns: 0 };
        // Three are wanted each unit of time; sheaves come back many at once.
        let mut demand = |now: u64| [(); 4].map(|()| window.demand(3 * now as u32, now, AWAY));
        assert_eq!(demand(10), [30; 4]);
        assert_eq!(demand(20), [60, 30, 30, 30], "30 here and 30 before; then a new window begins");
        assert_eq!(demand(25), [45; 4], "15 here and 30 before");
        assert_eq!(demand(30), [60, 30, 30, 30]);
        let mut window = Window { begin_ns: 30, begin: 90, before: 30, least_ns: 0 };
        // Then nobody wants any.
        assert_eq!([31, 39, 40, 50].map(|now| window.demand(90, now, AWAY)), [30, 30, 30, 0]);
        // What was wanted over a long time does not count as if it had been wanted just now.
        let mut window = Window { begin_ns: 0, begin: 0, before: 0, least_ns: 0 };
        assert_eq!([1_000, 1_001].map(|now| window.demand(5_000, now, AWAY)), [100; 2]);
    }
}
