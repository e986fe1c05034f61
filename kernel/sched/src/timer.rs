//! Timers: a function called at a time, on the CPU that armed it (another if that one goes offline), out of the timer
//! interrupt.
//!
//! Key types: [`Timer`], and per CPU a base: a heap threaded through the timers themselves, and the one-shot clock
//! event that it shares with the tick ([`crate::tick`]). Arming takes constant time, expiry and cancelling logarithmic
//! time, amortised; nothing allocates.
//!
//! Invariants:
//!
//! * `SCHED-11` never early: a timer's function runs when `clock::now_ns()` has reached its expiry, not before.
//! * `SCHED-12`: `Timer::base` names the base whose lock guards the timer's node. It changes only under that lock, by
//!   way of `MOVING`, while the timer is not queued and its function does not run there. So a timer's function
//!   never runs on two CPUs at once.
//! * `SCHED-13`: whenever the base lock is free, and the CPU is not inside its timer interrupt, the clock event is
//!   programmed for no later than the earlier of the next tick and the first timer. (It may be earlier, after a cancel.)
//!
//! Contexts: arming and [`Timer::cancel`] from task, softirq and hardirq context, also with interrupts off, also from
//! the timer's own function; not from NMI. The base lock may be taken under any lock but a run-queue lock. Functions
//! run in hardirq context with interrupts off and no lock held: they wake, raise or queue, and return.
//!
//! Linux: `kernel/time/hrtimer.c` for precision, `lock_timer_base` in `kernel/time/timer.c` for the moving base.

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicU16, Ordering};

use arch::{CpuId, clock, cpu, irq, timer as event};
use sync::{ATOMIC, IrqGuard, LockClass, SpinIrqGuard, SpinLock, bug, context};

use crate::heap::{Heap, Node};
use crate::thread::cpu_number;

/// `Timer::base` while the timer goes from one base to another.
const MOVING: u16 = u16::MAX;
/// `Timer::base` of a timer that was never armed.
const NOWHERE: u16 = u16::MAX - 1;
/// "Never" as a time.
pub(crate) const NEVER: u64 = u64::MAX;

/// Nests in wait-queue, mutex and work locks; nothing of this storey is taken inside it. Protects the base's heap,
/// the nodes of the timers on it and the clock event. Taken with interrupts off.
static BASE_CLASS: LockClass = LockClass::new("sched.timer");

/// A timer. It belongs to whoever embeds it and must stay where it is while it is armed or its function runs.
#[repr(C)]
pub struct Timer {
    /// First, so that a node's address is its timer's. Guarded by the lock of `base`.
    node: UnsafeCell<Node>,
    func: fn(&Timer),
    /// `SCHED-12`. Read by anyone, checked under the lock it names.
    base: AtomicU16,
}

// SAFETY: the node is guarded by a lock (SCHED-12), the rest is constant or atomic.
unsafe impl Sync for Timer {}
// SAFETY: a timer that is not armed has no tie to a CPU; an armed one does not move by the callers' contract.
unsafe impl Send for Timer {}

/// What a base's lock protects.
struct Base {
    heap: Heap,
    /// The timer whose function runs now. Only compared, never followed: the function may free it.
    running: *const Timer,
    /// The CPU is inside its timer interrupt and will program the clock event at its end.
    expiring: bool,
    /// Time of the next tick, [`NEVER`] while the tick is stopped.
    tick_at: u64,
    /// What the clock event is programmed for, [`NEVER`] when it is stopped.
    programmed: u64,
}

// SAFETY: `running` is only compared; the heap speaks for itself.
unsafe impl Send for Base {}

arch::per_cpu! {
    /// This CPU's base; cancelling and arming from elsewhere reach it through `ptr_on`.
    static BASE: SpinLock<Base> = SpinLock::new(
        Base { heap: Heap::new(), running: ptr::null(), expiring: false, tick_at: NEVER, programmed: NEVER },
        &BASE_CLASS,
    );
}

fn base_of(cpu: u16) -> &'static SpinLock<Base> {
    // SAFETY: per-CPU areas of present CPUs live for ever; the value is shared by its lock.
    unsafe { &*BASE.ptr_on(CpuId::new(usize::from(cpu))) }
}

/// The caller is pinned.
fn this_base() -> &'static SpinLock<Base> {
    // SAFETY: as in `base_of`.
    unsafe { &*BASE.this_ptr() }
}

impl Timer {
    /// A timer that is not armed and will call `func`.
    pub const fn new(func: fn(&Timer)) -> Timer {
        Timer { node: UnsafeCell::new(Node::new()), func, base: AtomicU16::new(NOWHERE) }
    }

    /// Has the function called `ns` nanoseconds from now, on this CPU. An armed timer is moved to the new time.
    ///
    /// Context: task, softirq, hardirq; interrupts on or off. Does not allocate. True if it was armed before.
    pub fn arm_in(&'static self, ns: u64) -> bool {
        self.arm_at(clock::now_ns().saturating_add(ns))
    }

    /// Has the function called when the clock reaches `at_ns`. As [`Timer::arm_in`] otherwise.
    pub fn arm_at(&'static self, at_ns: u64) -> bool {
        // SAFETY: 'static: it stays in place.
        unsafe { self.arm_at_raw(at_ns) }
    }

    /// [`Timer::arm_at`] for a timer that does not live for ever.
    ///
    /// # Safety
    ///
    /// The timer stays where it is until its function has been called or [`Timer::cancel_sync`] has returned. The function
    /// itself may free it: afterwards its address is only compared.
    pub unsafe fn arm_at_raw(&self, at_ns: u64) -> bool {
        debug_assert!(!context::in_nmi(), "timers cannot be armed in NMI context");
        let _irqs = IrqGuard::new(ATOMIC);
        let here = cpu_number(cpu::current());
        // Whoever arms it first says where it lives; another CPU that tries at the same time finds it there.
        let _ = self.base.compare_exchange(NOWHERE, here, Ordering::Relaxed, Ordering::Relaxed);
        let (mut base, mut at) = self.lock_base().expect("a timer that was armed has a base");
        let was_queued = self.unqueue(&mut base);
        if at != here && !ptr::eq(base.running, self) {
            // Not queued and its function does not run there: it may move (SCHED-12). Who else wants its base spins
            // while this says MOVING, no longer than it takes to get the lock below.
            // Relaxed: whoever acts on a base's number looks again under that base's lock.
            self.base.store(MOVING, Ordering::Relaxed);
            drop(base);
            base = this_base().lock_irqsave(ATOMIC);
            self.base.store(here, Ordering::Relaxed);
            at = here;
        }
        // SAFETY: not queued (just seen to, under its lock), and in place by the caller's promise.
        unsafe { base.heap.push(self.node.get(), at_ns) };
        if at == here {
            base.program_if_earlier();
        }
        // Else its function runs on that CPU just now, whose timer interrupt programs the event at its end.
        was_queued
    }

    /// Takes the timer back. True if it was armed; false if it was not, in which case its function may be running.
    ///
    /// Context: task, softirq, hardirq; interrupts on or off.
    pub fn cancel(&self) -> bool {
        self.lock_base().is_some_and(|(mut base, _)| self.unqueue(&mut base))
    }

    /// Takes the timer back and waits until its function does not run anywhere. True if it was armed.
    ///
    /// After it, and as long as nobody arms the timer again, it may be freed or moved. Spins for as long as the
    /// function takes.
    ///
    /// Context: task or softirq, interrupts on; not from the timer's own function, nor under a lock that the function
    /// takes.
    pub fn cancel_sync(&self) -> bool {
        debug_assert!(!context::in_hardirq(), "cancel_sync in hardirq context can wait for itself");
        let mut was_queued = false;
        loop {
            let Some((mut base, _)) = self.lock_base() else {
                return was_queued;
            };
            was_queued |= self.unqueue(&mut base);
            let running = ptr::eq(base.running, self);
            drop(base);
            if !running {
                return was_queued;
            }
            irq::relax();
        }
    }

    /// Is it armed? By the time the caller looks, it may not be any more.
    ///
    /// Context: as [`Timer::cancel`].
    pub fn is_armed(&self) -> bool {
        // SAFETY: the base's lock, held, guards the node (SCHED-12).
        self.lock_base().is_some_and(|_base| unsafe { (*self.node.get()).is_queued() })
    }

    /// Takes the timer off the heap of its base, whose lock the caller holds. True if it was there.
    fn unqueue(&self, base: &mut Base) -> bool {
        let node = self.node.get();
        // SAFETY: the base's lock guards the node (SCHED-12).
        let queued = unsafe { (*node).is_queued() };
        if queued {
            // SAFETY: queued, and by SCHED-12 in this base's heap.
            unsafe { base.heap.remove(node) };
        }
        queued
    }

    /// Locks the base that the timer belongs to; `None` if it was never armed.
    fn lock_base(&self) -> Option<(SpinIrqGuard<'static, Base>, u16)> {
        loop {
            let at = self.base.load(Ordering::Relaxed);
            match at {
                NOWHERE => return None,
                MOVING => irq::relax(),
                _ => {
                    let base = base_of(at).lock_irqsave(ATOMIC);
                    if self.base.load(Ordering::Relaxed) == at {
                        return Some((base, at));
                    }
                }
            }
        }
    }
}

impl Base {
    /// When something is due next.
    fn next_event(&self) -> u64 {
        self.heap.first().map_or(NEVER, |(_, key)| key).min(self.tick_at)
    }

    /// Programs the clock event of this CPU if something is due before it fires (`SCHED-13`).
    fn program_if_earlier(&mut self) {
        if !self.expiring && self.next_event() < self.programmed {
            self.program();
        }
    }

    /// Programs the clock event of this CPU for what is due next, or stops it.
    fn program(&mut self) {
        self.programmed = self.next_event();
        if self.programmed == NEVER {
            event::stop();
        } else {
            event::oneshot_ns(self.programmed.saturating_sub(clock::now_ns()).max(1));
        }
    }
}

/// What the clock event of `cpu` is programmed for, [`NEVER`] when it is stopped; for reports.
///
/// Context: any.
pub(crate) fn programmed_on(cpu: CpuId) -> u64 {
    let base = base_of(cpu_number(cpu)).as_ptr();
    // SAFETY: the base lives for ever; one aligned word, which its CPU may be changing: then either value will do.
    unsafe { (&raw const (*base).programmed).read_volatile() }
}

/// The timer interrupt: runs what is due. True if a tick is due too; `tick_ns` is the time from tick to tick.
///
/// Context: hardirq, interrupts off.
pub(crate) fn interrupt(tick_ns: u64) -> bool {
    let lock = this_base();
    let mut base = lock.lock_irqsave(ATOMIC);
    base.expiring = true;
    let early_ns = if bug!("sched.timer_early", "timers fire up to a millisecond early", "timer sched.timers*") {
        1_000_000
    } else {
        0
    };
    while let Some((node, _)) = base.heap.first().filter(|(_, key)| *key <= clock::now_ns() + early_ns) {
        base.heap.pop();
        if bug!("sched.timer_lost", "of timers that are due together one is forgotten", "timer.under_load*")
            && base.heap.first().is_some_and(|(_, key)| key <= clock::now_ns())
        {
            continue;
        }
        let timer: *const Timer = node.cast();
        base.running = timer;
        drop(base);
        // SAFETY: a timer on the heap stays in place until its function is called, by the contract of arming; the node is
        // its first field.
        let timer: &Timer = unsafe { &*timer };
        (timer.func)(timer);
        base = lock.lock_irqsave(ATOMIC);
        base.running = ptr::null();
    }
    let now = clock::now_ns();
    let tick = base.tick_at <= now;
    if tick {
        base.tick_at = next_tick(now, base.tick_at, tick_ns);
    }
    base.expiring = false;
    base.program();
    tick
}

/// The first tick after `now` that keeps step with `tick_at`; ticks that were missed are not made up for.
fn next_tick(now: u64, tick_at: u64, tick_ns: u64) -> u64 {
    tick_at + ((now - tick_at) / tick_ns + 1) * tick_ns
}

/// Sets the time of this CPU's next tick, [`NEVER`] to stop it: then only timers interrupt the CPU. Interrupts are off.
pub(crate) fn set_tick(at_ns: u64) {
    let mut base = this_base().lock_irqsave(ATOMIC);
    base.tick_at = at_ns;
    if base.programmed != base.next_event() {
        base.program();
    }
}

/// Stops this CPU's clock event, whatever is armed here: the CPU goes offline. Interrupts are off.
pub(crate) fn stop_event() {
    let mut base = this_base().lock_irqsave(ATOMIC);
    base.programmed = NEVER;
    event::stop();
}

/// Takes over all timers that are armed on `from`, which is parked.
///
/// Context: task. What is due already expires at once.
pub(crate) fn adopt(from: CpuId) {
    loop {
        // One at a time, so that whoever wants one does not wait for all.
        let _irqs = IrqGuard::new(ATOMIC);
        let mut base = base_of(cpu_number(from)).lock_irqsave(ATOMIC);
        let Some((node, key)) = base.heap.first() else {
            return;
        };
        if bug!("sched.timer_left", "the timers of a CPU that goes stay there", "hotplug.timers_of_a_dying*") {
            return;
        }
        base.heap.pop();
        // SAFETY: a timer that is armed stays in place, also while it is MOVING, which whoever cancels it waits for; the
        // node is its first field.
        let timer: &Timer = unsafe { &*node.cast() };
        // Relaxed: as in `arm_at_raw`.
        timer.base.store(MOVING, Ordering::Relaxed);
        drop(base);
        let mut base = this_base().lock_irqsave(ATOMIC);
        timer.base.store(cpu_number(cpu::current()), Ordering::Relaxed);
        // SAFETY: not queued, under its base's lock, and in place.
        unsafe { base.heap.push(node, key) };
        base.program_if_earlier();
    }
}

/// A CPU's timers, as they were.
#[derive(Copy, Clone, Debug)]
pub struct TimerStat {
    /// How many are armed.
    pub armed: usize,
    /// When the next one expires.
    pub next_ns: Option<u64>,
    /// The address of its function.
    pub next_func: Option<usize>,
}

/// What reports show of a CPU's timers.
///
/// Context: task, softirq, hardirq.
pub fn stat_on(cpu: CpuId) -> TimerStat {
    let base = base_of(cpu_number(cpu)).lock_irqsave(ATOMIC);
    let first = base.heap.first();
    TimerStat {
        armed: base.heap.len(),
        next_ns: first.map(|(_, key)| key),
        // SAFETY: a node on the heap is the first field of a timer, in place while the lock is held.
        next_func: first.map(|(node, _)| unsafe { (*node.cast::<Timer>().cast_const()).func } as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::next_tick;

    #[test]
    fn ticks_keep_step_when_some_were_missed() {
        assert_eq!(next_tick(1000, 1000, 400), 1400);
        assert_eq!(next_tick(1399, 1000, 400), 1400);
        assert_eq!(next_tick(5001, 1000, 400), 5400);
    }
}
