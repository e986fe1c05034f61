//! Who is told when a CPU goes or comes, and in which order.
//!
//! Key types: [`Notifier`], [`Order`]. When each function is called, and where, stands in [`crate::hotplug`].
//!
//! Invariants:
//!
//! * `SCHED-21`: on the way up notifiers run in ascending order, on the way down in descending order; equals in the
//!   order of registration on the way up, and backwards on the way down. When a `prepare` fails, those that have prepared
//!   are undone by their `dead`, last first, and nobody else is told.
//!
//! Linux: `kernel/cpu.c`, whose states are many and finer; `CPUHP_*` in `include/linux/cpuhotplug.h` are the orders.

use arch::CpuId;
use sync::{LockClass, MaySleep, SpinLock};

use crate::hotplug::HotplugError;

/// Most notifiers that there can be: one a subsystem.
const MAX_NOTIFIERS: usize = 16;

/// Protects the list of notifiers. Nests in nothing, and nothing in it.
static CHAIN_CLASS: LockClass = LockClass::new("sched.notifiers");
static CHAIN: SpinLock<Chain> = SpinLock::new(Chain::new(), &CHAIN_CLASS);

/// A notifier's place: up runs ascending, down descending.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Order(u8);

impl Order {
    /// Per-CPU basics: `sync`.
    pub const SYNC: Order = Order(0);
    /// Page lists.
    pub const MM: Order = Order(1);
    /// What the scheduler's own subsystems have on a CPU, work queues for one.
    pub const SCHED: Order = Order(2);
    /// Callbacks and grace periods.
    pub const RCU: Order = Order(3);
    /// Caches' per-CPU parts.
    pub const SLAB: Order = Order(4);
    /// Batches that wait for a grace period.
    pub const KFREE_RCU: Order = Order(5);
    /// Everybody else: tests, the shell.
    pub const USER: Order = Order(6);
}

/// What one subsystem does when a CPU comes or goes. A static, made by [`Notifier::new`] and the setters.
///
/// None of its functions may call [`cpu_off`](crate::hotplug::cpu_off) or [`cpu_on`](crate::hotplug::cpu_on);
/// [`keep_cpus`](crate::hotplug::keep_cpus) is allowed and does nothing there.
#[derive(Debug)]
pub struct Notifier {
    /// For messages.
    pub name: &'static str,
    /// Its place among the others.
    pub order: Order,
    /// Up: before the CPU runs. May fail; then nothing has happened to it.
    pub prepare: fn(CpuId, &mut MaySleep) -> Result<(), HotplugError>,
    /// Up: the CPU runs and schedules. Called by the controlling thread, on another CPU.
    pub online: fn(CpuId, &mut MaySleep),
    /// Down: on the CPU itself, with interrupts off there and on every other CPU. It no longer is in `cpu::online()`.
    pub dying: fn(CpuId),
    /// Down: the CPU is parked and runs nothing. Called by the controlling thread.
    pub dead: fn(CpuId, &mut MaySleep),
}

impl Notifier {
    /// One that does nothing.
    pub const fn new(name: &'static str, order: Order) -> Notifier {
        Notifier { name, order, prepare: |_, _| Ok(()), online: |_, _| (), dying: |_| (), dead: |_, _| () }
    }

    /// Sets [`Notifier::prepare`].
    #[must_use]
    pub const fn prepare(mut self, f: fn(CpuId, &mut MaySleep) -> Result<(), HotplugError>) -> Notifier {
        self.prepare = f;
        self
    }

    /// Sets [`Notifier::online`].
    #[must_use]
    pub const fn online(mut self, f: fn(CpuId, &mut MaySleep)) -> Notifier {
        self.online = f;
        self
    }

    /// Sets [`Notifier::dying`].
    #[must_use]
    pub const fn dying(mut self, f: fn(CpuId)) -> Notifier {
        self.dying = f;
        self
    }

    /// Sets [`Notifier::dead`].
    #[must_use]
    pub const fn dead(mut self, f: fn(CpuId, &mut MaySleep)) -> Notifier {
        self.dead = f;
        self
    }
}

/// Has `notifier` told of all CPUs that go or come from now on. It is not told of those that are there already, nor of the
/// first start of those that are not: `arch` starts all at once, and who keeps something per CPU makes it for all
/// present ones at boot.
///
/// Context: task, boot.
///
/// # Panics
///
/// When it is registered already, or there are too many.
pub fn register(notifier: &'static Notifier) {
    CHAIN.lock_irqsave(sync::ATOMIC).insert(notifier);
}

/// The notifiers as they are now.
pub(crate) fn chain() -> Chain {
    *CHAIN.lock_irqsave(sync::ATOMIC)
}

/// Notifiers in ascending order.
#[derive(Copy, Clone)]
pub(crate) struct Chain {
    list: [Option<&'static Notifier>; MAX_NOTIFIERS],
}

impl Chain {
    const fn new() -> Chain {
        Chain { list: [None; MAX_NOTIFIERS] }
    }

    fn insert(&mut self, new: &'static Notifier) {
        assert!(!self.up().any(|old| core::ptr::eq(old, new)), "notifier {} is registered twice", new.name);
        let len = self.up().count();
        assert!(len < MAX_NOTIFIERS, "no room for notifier {}: {MAX_NOTIFIERS} at most", new.name);
        let at = self.up().take_while(|old| old.order <= new.order).count();
        self.list[len] = Some(new);
        self.list[at..=len].rotate_right(1);
    }

    fn up(&self) -> impl DoubleEndedIterator<Item = &'static Notifier> {
        self.list.iter().flatten().copied()
    }

    fn down(&self) -> impl Iterator<Item = &'static Notifier> {
        self.up().rev()
    }

    /// Before the CPU comes.
    ///
    /// # Errors
    ///
    /// The first notifier's that cannot; those before it have been undone.
    pub(crate) fn prepare(&self, cpu: CpuId, cx: &mut MaySleep) -> Result<(), HotplugError> {
        for (at, notifier) in self.up().enumerate() {
            if let Err(error) = (notifier.prepare)(cpu, cx) {
                log::warn!("CPU {cpu} cannot come: {}: {error}", notifier.name);
                self.list[..at].iter().rev().flatten().for_each(|earlier| (earlier.dead)(cpu, cx));
                return Err(error);
            }
        }
        Ok(())
    }

    /// The CPU is there.
    pub(crate) fn online(&self, cpu: CpuId, cx: &mut MaySleep) {
        self.up().for_each(|notifier| (notifier.online)(cpu, cx));
    }

    /// On the CPU that goes, in the stop.
    pub(crate) fn dying(&self, cpu: CpuId) {
        self.down().for_each(|notifier| (notifier.dying)(cpu));
    }

    /// The CPU is gone.
    pub(crate) fn dead(&self, cpu: CpuId, cx: &mut MaySleep) {
        self.down().for_each(|notifier| (notifier.dead)(cpu, cx));
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::String;
    use std::sync::Mutex;
    use std::vec::Vec;

    use super::*;

    /// What was called; each test has its CPU, because tests share it.
    static CALLS: Mutex<Vec<(CpuId, &str)>> = Mutex::new(Vec::new());

    fn note(cpu: CpuId, what: &'static str) {
        CALLS.lock().unwrap().push((cpu, what));
    }

    fn calls(of: CpuId) -> String {
        let calls = CALLS.lock().unwrap();
        calls.iter().filter(|(cpu, _)| *cpu == of).map(|(_, what)| *what).collect::<Vec<_>>().join(" ")
    }

    macro_rules! noting {
        ($name:literal, $order:expr) => {
            Notifier::new($name, $order)
                .prepare(|cpu, _| {
                    note(cpu, concat!($name, ".prepare"));
                    Ok(())
                })
                .online(|cpu, _| note(cpu, concat!($name, ".online")))
                .dying(|cpu| note(cpu, concat!($name, ".dying")))
                .dead(|cpu, _| note(cpu, concat!($name, ".dead")))
        };
    }

    static MM: Notifier = noting!("mm", Order::MM);
    static RCU: Notifier = noting!("rcu", Order::RCU);
    static RCU2: Notifier = noting!("rcu2", Order::RCU);
    static SLAB: Notifier = noting!("slab", Order::SLAB);
    static FAILS: Notifier =
        Notifier::new("fails", Order::SLAB).prepare(|_, _| Err(HotplugError::NoMemory)).dead(|cpu, _| {
            note(cpu, "fails.dead");
        });

    fn chain(notifiers: &[&'static Notifier]) -> Chain {
        let mut chain = Chain::new();
        notifiers.iter().for_each(|notifier| chain.insert(notifier));
        chain
    }

    fn token() -> MaySleep {
        // SAFETY: the only one of the test's thread, which holds nothing.
        unsafe { MaySleep::new() }
    }

    #[test]
    fn up_runs_ascending_and_down_descending_whatever_the_order_of_registration() {
        let (cpu, mut cx) = (CpuId::new(1), token());
        let chain = chain(&[&SLAB, &RCU, &MM, &RCU2]);
        chain.prepare(cpu, &mut cx).unwrap();
        chain.online(cpu, &mut cx);
        chain.dying(cpu);
        chain.dead(cpu, &mut cx);
        assert_eq!(
            calls(cpu),
            "mm.prepare rcu.prepare rcu2.prepare slab.prepare mm.online rcu.online rcu2.online slab.online \
             slab.dying rcu2.dying rcu.dying mm.dying slab.dead rcu2.dead rcu.dead mm.dead"
        );
    }

    #[test]
    fn a_prepare_that_fails_undoes_those_before_it_and_no_other() {
        let (cpu, mut cx) = (CpuId::new(2), token());
        static LATE: Notifier = noting!("late", Order::USER);
        let result = chain(&[&LATE, &RCU, &FAILS, &MM]).prepare(cpu, &mut cx);
        assert_eq!(result, Err(HotplugError::NoMemory));
        assert_eq!(calls(cpu), "mm.prepare rcu.prepare rcu.dead mm.dead");
    }

    #[test]
    fn a_notifier_without_functions_is_told_of_everything_and_does_nothing() {
        static QUIET: Notifier = Notifier::new("quiet", Order::SYNC);
        let (cpu, mut cx) = (CpuId::new(3), token());
        let chain = chain(&[&QUIET]);
        assert_eq!(chain.prepare(cpu, &mut cx), Ok(()));
        chain.online(cpu, &mut cx);
        chain.dying(cpu);
        chain.dead(cpu, &mut cx);
    }

    #[test]
    #[should_panic(expected = "registered twice")]
    fn a_notifier_is_registered_once() {
        let _ = chain(&[&MM, &RCU, &MM]);
    }
}
