//! CPUs, what each of them keeps, and their interrupt flag.

pub(crate) use ::arch::{CpuId, CpuMask};

pub(crate) mod cpu {
    use core::cell::Cell;

    use super::{CpuId, CpuMask};

    /// CPUs of every model.
    pub(crate) const CPUS: usize = 3;

    loom::thread_local! {
        static HERE: Cell<CpuId> = Cell::new(CpuId::BOOT);
    }

    /// From here on this thread of the model is CPU `index`, or runs there.
    pub(crate) fn run_as(index: usize) {
        HERE.with(|here| here.set(CpuId::new(index)));
    }

    pub(crate) fn current() -> CpuId {
        HERE.with(Cell::get)
    }

    pub(crate) fn present() -> CpuMask {
        CpuMask::first_n(CPUS)
    }

    pub(crate) fn online() -> CpuMask {
        present()
    }
}

pub(crate) mod clock {
    pub(crate) fn now_ns() -> u64 {
        0
    }
}

pub(crate) mod irq {
    use core::cell::Cell;

    loom::thread_local! {
        static OFF: Cell<u32> = Cell::new(0);
    }

    pub(crate) fn enabled() -> bool {
        OFF.with(Cell::get) == 0
    }

    /// One more guard keeps interrupts off.
    pub(crate) fn disable() {
        OFF.with(|off| off.set(off.get() + 1));
    }

    /// One less; true if they are on again.
    pub(crate) fn restore() -> bool {
        OFF.with(|off| off.set(off.get() - 1));
        enabled()
    }
}

/// A copy for each CPU, in plain memory: its own CPU uses it, or it has atomics inside.
pub(crate) struct PerCpu<T>([core::cell::UnsafeCell<T>; cpu::CPUS]);

// SAFETY: a CPU is one thread at a time, and others touch what is shareable only, as on the machine.
unsafe impl<T> Sync for PerCpu<T> {}

impl<T> PerCpu<T> {
    pub(crate) fn new(init: impl Fn() -> T) -> Self {
        PerCpu(core::array::from_fn(|_| core::cell::UnsafeCell::new(init())))
    }

    pub(crate) fn ptr_on(&self, cpu: CpuId) -> *mut T {
        self.0[cpu.index()].get()
    }

    pub(crate) fn this_ptr(&self) -> *mut T {
        self.ptr_on(cpu::current())
    }
}

impl PerCpu<u32> {
    fn update(&self, f: impl FnOnce(u32) -> u32) -> u32 {
        // SAFETY: this CPU's own copy, and nothing comes in between.
        unsafe {
            let at = self.this_ptr();
            at.write(f(at.read()));
            at.read()
        }
    }

    pub(crate) fn get(&self) -> u32 {
        self.update(|old| old)
    }

    pub(crate) fn set(&self, value: u32) {
        self.update(|_| value);
    }

    pub(crate) fn add(&self, value: u32) {
        self.update(|old| old.wrapping_add(value));
    }

    pub(crate) fn sub(&self, value: u32) {
        self.update(|old| old.wrapping_sub(value));
    }

    pub(crate) fn and(&self, mask: u32) {
        self.update(|old| old & mask);
    }

    pub(crate) fn inc(&self) {
        self.add(1);
    }

    pub(crate) fn dec_and_is_zero(&self) -> bool {
        self.update(|old| old.wrapping_sub(1)) == 0
    }
}

macro_rules! per_cpu {
    ($($(#[$attr:meta])* $vis:vis static $name:ident: $ty:ty = $init:expr;)+) => {
        ::sync::static_or_lazy! {$(
            $(#[$attr])*
            $vis static $name: $crate::model::arch::PerCpu<$ty> = $crate::model::arch::PerCpu::new(|| $init);
        )+}
    };
}
pub(crate) use per_cpu;
