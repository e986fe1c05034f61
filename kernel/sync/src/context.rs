//! The one `preempt_count` of each CPU, and the guards that move it.
//!
//! | bits | mask | what |
//! |---|---|---|
//! | 0–7 | `0x0000_00ff` | depth of [`PreemptGuard`]s, spin locks included |
//! | 8 | `0x0000_0100` | this CPU runs soft interrupts |
//! | 9–15 | `0x0000_fe00` | depth of [`SoftirqGuard`]s |
//! | 16–19 | `0x000f_0000` | hard interrupt depth |
//! | 20–23 | `0x00f0_0000` | NMI depth |
//! | 31 | `0x8000_0000` | **nothing** is wanted of the end of the outermost guard |
//!
//! Initial value `0x8000_0000`. Bit 31 is inverted so that "no guard left, and something is
//! wanted" is the value zero, which the subtraction that ends a guard reports for free: a
//! preempt-disable and enable pair is five instructions at most. Linux folds the same bit
//! (6.12, arch/x86/include/asm/preempt.h; include/linux/preempt.h).
//!
//! What is wanted is a reschedule, or a look at soft interrupts ([`want_softirqs`]), or both. The second is how an NMI, which
//! may neither run them nor wake anybody, has them run without an interrupt to its own CPU. Linux has only the first.
//!
//! # Invariants
//!
//! - `PC-1` Only its own CPU touches the count, each time with one gs-relative instruction:
//!   nothing on this CPU can come in between, and no other CPU looks. Another CPU that wants a
//!   reschedule here sends an IPI whose handler sets the bit.
//! - `PC-2` A guard is dropped on the CPU that made it. Enforced by `!Send`, and by the guard's
//!   own effect; checked at drop in checking builds, and reported with the place where it was made.
//! - `PC-3` What begins ends once: an interrupt leaves the count as it found it, and the end of a guard finds it
//!   counted. Checked at both in checking builds; a report names the places (`places`).
//! - `PC-4` The count travels with the CPU, not with the thread: a context switch happens at a
//!   fixed depth, so what one thread leaves the next one takes over.
//! - `PC-5` `preempt_schedule` is called only with the count at zero (so neither in an interrupt
//!   nor under a guard) and with interrupts on.
//! - `PC-6` No guard's end switches interrupts on that were off before the guard, and so none runs
//!   soft interrupts then: a self-IPI does so as soon as interrupts are on.
//! - `PC-7` While bit 31 is clear, [`LOAN`] says whether it is so for the sake of soft interrupts alone: a reschedule that
//!   is wanted is neither forgotten nor made up. Whoever sets `LOAN` found bit 31 set, with interrupts off; whoever wants a
//!   reschedule takes `LOAN` away after it has cleared the bit. Checked with an NMI at every instruction of both, and of the look.
//!
//! Context of everything here: any, unless said otherwise.

use core::{
    fmt,
    marker::PhantomData,
    panic::Location,
    sync::atomic::{Ordering, compiler_fence},
};

use arch::{ipi, irq, vector};

use crate::{
    bug,
    cx::{ATOMIC, Cx},
    hooks::HOOKS,
    places::{Kind, Made, left_zero},
};

/// One [`PreemptGuard`].
pub const PREEMPT_OFFSET: u32 = 1;
/// One [`SoftirqGuard`].
pub const SOFTIRQ_DISABLE_OFFSET: u32 = 2 * SOFTIRQ_OFFSET;
/// Running soft interrupts.
pub const SOFTIRQ_OFFSET: u32 = 1 << 8;
/// One hard interrupt.
pub const HARDIRQ_OFFSET: u32 = 1 << 16;
/// One NMI.
pub const NMI_OFFSET: u32 = 1 << 20;

const PREEMPT_MASK: u32 = 0x0000_00ff;
const SOFTIRQ_MASK: u32 = 0x0000_ff00;
const SOFTIRQ_OFF_MASK: u32 = SOFTIRQ_MASK & !SOFTIRQ_OFFSET;
const HARDIRQ_MASK: u32 = 0x000f_0000;
const NMI_MASK: u32 = 0x00f0_0000;
const NOTHING_WANTED: u32 = 1 << 31;

/// In [`WANTED`]: a look at soft interrupts is wanted.
const SOFTIRQS: u32 = 1 << 0;
/// In [`WANTED`]: bit 31 of the count is clear only for that (`PC-7`). Says nothing while the bit is set.
const LOAN: u32 = 1 << 1;

arch::per_cpu! {
    /// The count of this CPU; see the table above.
    static PREEMPT_COUNT: u32 = NOTHING_WANTED;
    /// What is wanted besides a reschedule: [`SOFTIRQS`] and [`LOAN`]. Touched as the count is (`PC-1`).
    static WANTED: u32 = 0;
}

/// Some bits of the count.
#[inline(always)]
fn count_of(mask: u32) -> u32 {
    PREEMPT_COUNT.get() & mask
}

/// The count, without bit 31.
#[inline(always)]
pub fn preempt_count() -> u32 {
    PREEMPT_COUNT.get() & !NOTHING_WANTED
}

/// In a non-maskable interrupt?
#[inline(always)]
pub fn in_nmi() -> bool {
    PREEMPT_COUNT.get() & NMI_MASK != 0
}

/// In a hard interrupt handler? (An NMI does not count as one.)
#[inline(always)]
pub fn in_hardirq() -> bool {
    PREEMPT_COUNT.get() & HARDIRQ_MASK != 0
}

/// Running soft interrupts? (Merely holding them off is not it.)
#[inline(always)]
pub fn in_softirq() -> bool {
    PREEMPT_COUNT.get() & SOFTIRQ_OFFSET != 0
}

/// Running soft interrupts, or holding them off?
#[inline(always)]
pub fn softirq_count() -> u32 {
    PREEMPT_COUNT.get() & SOFTIRQ_MASK
}

/// In NMI, hard or soft interrupt, or with soft interrupts held off?
#[inline(always)]
pub fn in_interrupt() -> bool {
    PREEMPT_COUNT.get() & (NMI_MASK | HARDIRQ_MASK | SOFTIRQ_MASK) != 0
}

/// In a thread (perhaps under guards), not in any interrupt?
#[inline(always)]
pub fn in_task() -> bool {
    PREEMPT_COUNT.get() & (NMI_MASK | HARDIRQ_MASK | SOFTIRQ_OFFSET) == 0
}

/// Could this thread be switched away from right now?
#[inline(always)]
pub fn preemptible() -> bool {
    preempt_count() == 0 && irq::enabled()
}

/// Asks for a reschedule of this CPU, at the next point where it may happen.
///
/// Context: any but NMI.
#[inline(always)]
pub fn set_need_resched() {
    PREEMPT_COUNT.and(!NOTHING_WANTED);
    // In this order: an NMI in between finds the bit clear, and so makes no loan of it (`PC-7`).
    WANTED.and(!LOAN);
}

/// Takes the request back; the scheduler does so when it picks a thread.
#[inline(always)]
pub fn clear_need_resched() {
    PREEMPT_COUNT.or(NOTHING_WANTED);
}

/// Is a reschedule of this CPU wanted?
#[inline(always)]
pub fn need_resched() -> bool {
    PREEMPT_COUNT.get() & NOTHING_WANTED == 0 && WANTED.get() & LOAN == 0
}

/// True if the whole word is zero: no guard, no interrupt, and something is wanted, most likely a reschedule.
#[inline(always)]
pub(crate) fn should_resched() -> bool {
    PREEMPT_COUNT.get() == 0
}

/// Has the end of the outermost guard that finds interrupts on run the soft interrupts that are pending, as the next
/// interrupt's exit would. A thread that gives up the CPU meanwhile may take that along: then it is the interrupt's exit.
///
/// Context: any, NMI included; the caller is pinned.
pub fn want_softirqs() {
    let _off = IrqGuard::new(ATOMIC);
    // An NMI in between does all of this itself, and what is left to do here changes nothing more.
    if PREEMPT_COUNT.get() & NOTHING_WANTED == 0 {
        WANTED.or(SOFTIRQS);
    } else {
        WANTED.set(SOFTIRQS | LOAN);
        PREEMPT_COUNT.and(!NOTHING_WANTED);
    }
}

/// Adds to the count without a guard: interrupt entry, and the scheduler's own hand-over.
///
/// Context: any. The caller subtracts the same on the same CPU.
#[inline(always)]
pub fn count_add(offset: u32) {
    PREEMPT_COUNT.add(offset);
    compiler_fence(Ordering::SeqCst);
}

/// Takes back what [`count_add`] added, without looking whether a reschedule is due.
#[inline(always)]
pub fn count_sub(offset: u32) {
    compiler_fence(Ordering::SeqCst);
    PREEMPT_COUNT.sub(offset);
}

/// Ends one level of "no preemption" and reschedules if that is due and possible.
///
/// Guards do this by themselves; the scheduler calls it at the start of a new thread, which takes
/// over the level that the switch left (`PC-4`).
#[inline(always)]
pub fn preempt_enable() {
    // The compiler must not move the protected accesses out; the CPU needs no telling (`PC-1`).
    compiler_fence(Ordering::SeqCst);
    if PREEMPT_COUNT.dec_and_is_zero() {
        preempt_enable_slow();
    }
}

/// The count fell to zero with bit 31 clear.
#[cold]
#[inline(never)]
fn preempt_enable_slow() {
    // `PC-5`: the count is zero here. With interrupts off what is wanted waits for the next
    // interrupt exit or guard end after they are on again.
    if !irq::enabled() {
        return;
    }
    look_at_softirqs();
    if need_resched()
        && !bug!("sync.guard_end_blind", "no guard's end looks whether a reschedule is due", "sched_prio.what_a_guard*")
    {
        HOOKS.preempt_schedule.call();
        // An NMI may have come before the scheduler took the bit.
        look_at_softirqs();
    }
}

/// Does what [`want_softirqs`] wants.
fn look_at_softirqs() {
    while WANTED.get() & SOFTIRQS != 0 {
        let off = IrqGuard::new(ATOMIC);
        if WANTED.xchg(0) & LOAN != 0 {
            // What an NMI wants in between is pending before the look below.
            PREEMPT_COUNT.or(NOTHING_WANTED);
        }
        drop(off);
        // Keeps the run on one CPU.
        count_add(PREEMPT_OFFSET);
        HOOKS.irq_exit_softirq.call();
        count_sub(PREEMPT_OFFSET);
    }
}

/// Runs `f` as the soft-interrupt handler of this CPU: [`in_softirq`] is true inside.
///
/// Context: task or interrupt exit, preemption off or interrupts off, not nested.
pub fn serving_softirq<R>(f: impl FnOnce() -> R) -> R {
    debug_assert!(!in_softirq(), "soft interrupts do not nest");
    count_add(SOFTIRQ_OFFSET);
    let result = f();
    count_sub(SOFTIRQ_OFFSET);
    result
}

/// Preemption is off while it lives: this thread stays on this CPU.
///
/// Interrupts go on. Nests. Two instructions to make, three to drop.
#[derive(Debug)]
#[must_use = "preemption is on again as soon as the guard is dropped"]
pub struct PreemptGuard<'c> {
    made: Made,
    _cx: PhantomData<(&'c (), *mut ())>,
}

impl<'c> PreemptGuard<'c> {
    /// Switches preemption off.
    ///
    /// Context: any. Wait-free.
    #[inline(always)]
    #[track_caller]
    pub fn new(_cx: &'c (impl Cx + ?Sized)) -> Self {
        PREEMPT_COUNT.inc();
        compiler_fence(Ordering::SeqCst);
        let made = Made::here();
        made.begins(Kind::Preempt, || count_of(PREEMPT_MASK) == PREEMPT_OFFSET);
        Self { made, _cx: PhantomData }
    }

    /// Stands for one level of "no preemption" that somebody else began with [`count_add`] or
    /// with a guard that was forgotten.
    ///
    /// # Safety
    /// That level exists, and nobody else will end it.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn adopt() -> Self {
        Self { made: Made::here(), _cx: PhantomData }
    }
}

impl Drop for PreemptGuard<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        let count = || count_of(PREEMPT_MASK);
        self.made.ends(Kind::Preempt, || count() != 0, || count() == PREEMPT_OFFSET);
        preempt_enable();
    }
}

/// Interrupts are off on this CPU while it lives; then they are again what they were.
///
/// NMIs still come. Nests. Implies no preemption, without touching the count.
#[derive(Debug)]
#[must_use = "interrupts are restored as soon as the guard is dropped"]
pub struct IrqGuard<'c> {
    flags: irq::Flags,
    made: Made,
    _cx: PhantomData<(&'c (), *mut ())>,
}

impl<'c> IrqGuard<'c> {
    /// Switches interrupts off and remembers how they were.
    ///
    /// Context: any. Wait-free.
    #[inline(always)]
    #[track_caller]
    pub fn new(_cx: &'c (impl Cx + ?Sized)) -> Self {
        let flags = irq::save();
        compiler_fence(Ordering::SeqCst);
        let made = Made::here();
        made.begins(Kind::Irq, || flags.were_enabled());
        Self { flags, made, _cx: PhantomData }
    }
}

impl Drop for IrqGuard<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.made.ends(Kind::Irq, || !irq::enabled(), || self.flags.were_enabled());
        compiler_fence(Ordering::SeqCst);
        irq::restore(self.flags);
    }
}

/// Soft interrupts do not run on this CPU while it lives; implies no preemption. Nests.
///
/// At its end, soft interrupts that became pending meanwhile are run; with interrupts off, as soon
/// as they are on (`PC-6`).
#[derive(Debug)]
#[must_use = "soft interrupts run again as soon as the guard is dropped"]
pub struct SoftirqGuard<'c> {
    made: Made,
    _cx: PhantomData<(&'c (), *mut ())>,
}

impl<'c> SoftirqGuard<'c> {
    /// Holds soft interrupts off.
    ///
    /// Context: task, softirq. Wait-free.
    #[inline]
    #[track_caller]
    pub fn new(_cx: &'c (impl Cx + ?Sized)) -> Self {
        count_add(SOFTIRQ_DISABLE_OFFSET);
        debug_assert!(!in_hardirq() && !in_nmi(), "SoftirqGuard in a hard interrupt or NMI");
        let made = Made::here();
        made.begins(Kind::Softirq, || count_of(SOFTIRQ_OFF_MASK) == SOFTIRQ_DISABLE_OFFSET);
        Self { made, _cx: PhantomData }
    }
}

impl Drop for SoftirqGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        let count = || count_of(SOFTIRQ_OFF_MASK);
        self.made.ends(Kind::Softirq, || count() != 0, || count() == SOFTIRQ_DISABLE_OFFSET);
        // Keep one level of "no preemption" over the run, so that it stays on this CPU.
        count_sub(SOFTIRQ_DISABLE_OFFSET - PREEMPT_OFFSET);
        if !in_interrupt() && HOOKS.softirq_pending.get().is_some_and(|pending| pending()) {
            run_held_off();
        }
        preempt_enable();
    }
}

/// The end of the last [`SoftirqGuard`] finds soft interrupts pending.
#[cold]
#[inline(never)]
fn run_held_off() {
    if irq::enabled() {
        HOOKS.irq_exit_softirq.call();
    } else {
        // `PC-6`: they run at the exit of this interrupt. Whoever raised them under the guard relied
        // on its end and sent none.
        ipi::send_self(vector::IRQ_WORK);
    }
}

impl Cx for PreemptGuard<'_> {}
impl Cx for IrqGuard<'_> {}
impl Cx for SoftirqGuard<'_> {}

/// The run-time half of [`MaySleep`](crate::MaySleep).
pub(crate) fn check_may_sleep(caller: &'static Location<'static>) {
    if preemptible() || crate::lock_order::checks_off() {
        return;
    }
    blocked_in_atomic_context(caller);
}

#[cold]
#[inline(never)]
fn blocked_in_atomic_context(caller: &'static Location<'static>) -> ! {
    let state = State::now();
    crate::lock_order::switch_off();
    panic!("blocking in atomic context at {caller}: {state}");
}

/// In checking builds, panics unless this CPU may go to another thread: only the switch's own level is counted, and no
/// spin lock is held.
///
/// Context: the scheduler, at a switch; interrupts off.
#[inline(always)]
pub fn assert_may_switch() {
    if cfg!(debug_assertions) && !crate::lock_order::checks_off() {
        let mut held = 0;
        crate::lock_order::for_each_held(arch::cpu::current(), |_| held += 1);
        if held != 0 || preempt_count() != PREEMPT_OFFSET {
            switched_in_atomic_context();
        }
    }
}

#[cold]
#[inline(never)]
fn switched_in_atomic_context() -> ! {
    let state = State::now();
    crate::lock_order::switch_off();
    panic!("scheduling while atomic, or with a lock held: {state}");
}

/// What is switched off on this CPU now, and where; where and what locks only in checking builds.
///
/// Context: any.
pub fn state() -> impl fmt::Display {
    State::now()
}

/// Count and interrupts of a moment, and where what is off was switched off: for reports of checking builds.
pub(crate) struct State {
    count: u32,
    irqs_on: bool,
}

impl State {
    pub(crate) fn now() -> Self {
        Self { count: preempt_count(), irqs_on: irq::enabled() }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, irqs_on } = *self;
        write!(f, "preempt_count {count:#x}, interrupts {}", if irqs_on { "on" } else { "off" })?;
        if count & PREEMPT_MASK != 0 {
            write!(f, "; preemption was switched off at {}", left_zero(Kind::Preempt))?;
        }
        if count & SOFTIRQ_OFF_MASK != 0 {
            write!(f, "; soft interrupts were switched off at {}", left_zero(Kind::Softirq))?;
        }
        if !irqs_on && !in_interrupt() {
            write!(f, "; interrupts were switched off at {}", left_zero(Kind::Irq))?;
        }
        let mut result = Ok(());
        crate::lock_order::for_each_held(arch::cpu::current(), |lock| {
            result = result.and_then(|()| write!(f, "; lock {lock} is held"));
        });
        result
    }
}
