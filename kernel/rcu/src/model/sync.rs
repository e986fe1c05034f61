//! Guards, locks, work of interrupts.

pub(crate) use ::sync::{
    ATOMIC, Cx, LlistChain, LlistHead, LlistNode, MaySleep, Once, array_of, atomic, const_unless_loom, static_or_lazy,
    trace,
};

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

use super::arch::irq;

/// Interrupts are off while it lives.
pub(crate) struct IrqGuard<'c>(PhantomData<(&'c (), *mut ())>);

impl Cx for IrqGuard<'_> {}

impl<'c> IrqGuard<'c> {
    pub(crate) fn new(_cx: &'c (impl Cx + ?Sized)) -> Self {
        irq::disable();
        IrqGuard(PhantomData)
    }
}

impl Drop for IrqGuard<'_> {
    fn drop(&mut self) {
        if irq::restore() {
            irq_work::run();
        }
    }
}

/// What a lock protects, for the checks of the machine.
pub(crate) struct LockClass;

impl LockClass {
    pub(crate) const fn new(_: &'static str) -> LockClass {
        LockClass
    }

    pub(crate) const fn innermost(self) -> LockClass {
        self
    }
}

/// A lock is loom's mutex: it orders what the real one orders, and no more.
pub(crate) struct SpinLock<T>(loom::sync::Mutex<T>);

impl<T> SpinLock<T> {
    pub(crate) fn new(value: T, _: &'static LockClass) -> Self {
        SpinLock(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock_irqsave<'a>(&'a self, cx: &'a (impl Cx + ?Sized)) -> SpinIrqGuard<'a, T> {
        let irqs = IrqGuard::new(cx);
        SpinIrqGuard { value: self.0.lock().expect("no model goes on after a panic"), _irqs: irqs }
    }
}

/// Fields in this order: the lock goes before interrupts come.
pub(crate) struct SpinIrqGuard<'a, T: ?Sized> {
    value: loom::sync::MutexGuard<'a, T>,
    _irqs: IrqGuard<'a>,
}

impl<T: ?Sized> Deref for SpinIrqGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: ?Sized> DerefMut for SpinIrqGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

pub(crate) use irq_work::IrqWork;

mod irq_work {
    use core::cell::RefCell;
    use std::vec::Vec;

    use super::context;

    loom::thread_local! {
        static QUEUED: RefCell<Vec<&'static IrqWork>> = RefCell::new(Vec::new());
    }

    pub(crate) struct IrqWork(fn(&IrqWork));

    impl IrqWork {
        pub(crate) const fn new(func: fn(&IrqWork)) -> IrqWork {
            IrqWork(func)
        }

        pub(crate) fn queue(&'static self) {
            QUEUED.with(|queued| queued.borrow_mut().push(self));
        }
    }

    /// The self-interrupt: interrupts have come on.
    pub(super) fn run() {
        loop {
            let Some(work) = QUEUED.with(|queued| queued.borrow_mut().pop()) else { return };
            context::in_interrupt(|| (work.0)(work));
        }
    }
}

pub(crate) mod context {
    use core::cell::Cell;

    use super::{irq, irq_work};

    pub(crate) const SOFTIRQ_OFFSET: u32 = 1 << 8;
    pub(crate) const HARDIRQ_OFFSET: u32 = 1 << 16;

    loom::thread_local! {
        static COUNT: Cell<u32> = Cell::new(0);
        static NEED_RESCHED: Cell<bool> = Cell::new(false);
    }

    pub(crate) fn preempt_count() -> u32 {
        COUNT.with(Cell::get)
    }

    pub(crate) fn in_nmi() -> bool {
        false
    }

    pub(crate) fn in_hardirq() -> bool {
        preempt_count() >= HARDIRQ_OFFSET
    }

    pub(crate) fn set_need_resched() {
        NEED_RESCHED.with(|need| need.set(true));
    }

    /// Whether the end of a section with preemption off would pass through the scheduler; asking clears it.
    pub(crate) fn take_need_resched() -> bool {
        NEED_RESCHED.with(|need| need.replace(false))
    }

    /// Runs `f` with `offset` added to the count.
    pub(crate) fn counted<R>(offset: u32, f: impl FnOnce() -> R) -> R {
        COUNT.with(|count| count.set(count.get() + offset));
        let value = f();
        COUNT.with(|count| count.set(count.get() - offset));
        value
    }

    /// Runs `f` as a hard interrupt: interrupts off, and counted.
    pub(crate) fn in_interrupt<R>(f: impl FnOnce() -> R) -> R {
        irq::disable();
        let value = counted(HARDIRQ_OFFSET, f);
        if irq::restore() {
            irq_work::run();
        }
        value
    }
}

pub(crate) mod smp {
    use core::mem::take;
    use std::vec::Vec;

    use super::super::arch::{CpuMask, cpu};
    use super::super::sched::WaitQueue;
    use super::{MaySleep, context, static_or_lazy};

    type Calls = Vec<(fn(usize), usize)>;

    static_or_lazy! {
        /// Calls that have not been answered, of each CPU. A lock stands for the interrupt, which orders as much.
        static CALLS: [loom::sync::Mutex<Calls>; cpu::CPUS] = core::array::from_fn(|_| loom::sync::Mutex::new(Vec::new()));
        /// Where CPUs wait for calls.
        static HALTED: WaitQueue = WaitQueue::new();
    }

    fn take_calls() -> Calls {
        take(&mut *CALLS[cpu::current().index()].lock().unwrap())
    }

    fn run(calls: Calls) {
        for (func, arg) in calls {
            context::in_interrupt(|| func(arg));
        }
    }

    pub(crate) fn call_mask(cpus: &CpuMask, func: fn(usize), arg: usize, _wait: bool) {
        for cpu in cpus.iter() {
            CALLS[cpu.index()].lock().unwrap().push((func, arg));
        }
        wake_halted();
        answer();
    }

    /// Lets calls from other CPUs in, if there are any.
    pub(crate) fn answer() {
        run(take_calls());
    }

    /// Halts till there are some, and lets them in between `enter` and `exit`; false if waiting is over.
    pub(crate) fn halt(cx: &mut MaySleep, enter: fn(), exit: fn()) -> bool {
        let mut calls = Vec::new();
        HALTED.wait_until(cx, || {
            calls = take_calls();
            !calls.is_empty()
        });
        let any = !calls.is_empty();
        enter();
        run(calls);
        exit();
        any
    }

    /// Has CPUs that halt look again.
    pub(crate) fn wake_halted() {
        HALTED.wake_all();
    }
}

/// A parameter that has its default.
pub struct Param<T>(T);

impl<T: Copy> Param<T> {
    pub(crate) const fn new(default: T) -> Self {
        Param(default)
    }

    pub(crate) fn get(&self) -> T {
        self.0
    }

    pub(crate) fn is_set(&self) -> bool {
        false
    }
}

macro_rules! param {
    ($(#[$meta:meta])* $vis:vis static $name:ident: $ty:ty = $_name:literal, default $default:expr $(, in $range:expr)? $(, unit $unit:literal)?;) => {
        $(#[$meta])*
        $vis static $name: $crate::model::sync::Param<$ty> = $crate::model::sync::Param::new($default);
    };
}
pub(crate) use param;

/// No bugs but those that loom finds.
macro_rules! bug {
    ($name:literal, $what:literal, $found_by:literal $(,)?) => {
        false
    };
}
pub(crate) use bug;
