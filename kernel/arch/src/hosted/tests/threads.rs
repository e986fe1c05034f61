use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::fixture::*;
use crate::hosted::smp::Stack;
use crate::task::{self, Context};
use crate::{CpuId, cpu, ipi, irq, step, timer};

/// A context that several CPUs reach; the test says who may use it when.
struct Shared(UnsafeCell<Context>);

// SAFETY: the tests pass the context from CPU to CPU with atomics, or use it on one CPU.
unsafe impl Sync for Shared {}

impl Shared {
    const fn new() -> Self {
        Self(UnsafeCell::new(Context::RUNNING))
    }
}

static MAIN: Shared = Shared::new();
static THREAD: Shared = Shared::new();
static COUNT: AtomicU64 = AtomicU64::new(0);

/// Switches from one of the two to the other.
fn switch(from: &Shared, to: &Shared) {
    // SAFETY: interrupts are off, and the two contexts alternate on one CPU.
    unsafe { task::switch(from.0.get(), to.0.get()) };
}

fn make_thread(entry: extern "C" fn(usize) -> !, arg: usize) -> Stack {
    let stack = Stack::new();
    // SAFETY: a fresh stack, kept by the caller for as long as the thread runs.
    unsafe { THREAD.0.get().write(task::prepare(stack.top(), entry, arg)) };
    stack
}

#[test]
fn two_stacks_take_turns_and_keep_their_registers() {
    extern "C" fn thread(arg: usize) -> ! {
        assert!(!irq::enabled(), "a thread begins with interrupts off");
        let mut local = arg as u64;
        loop {
            local += 1;
            COUNT.store(local, Ordering::Relaxed);
            switch(&THREAD, &MAIN);
        }
    }
    machine(1, || {
        let _stack = make_thread(thread, 100);
        let mut local = 0u64;
        for turn in 1..=1000u64 {
            local += turn;
            switch(&MAIN, &THREAD);
            assert_eq!(COUNT.load(Ordering::Relaxed), 100 + turn);
        }
        assert_eq!(local, 500_500);
    });
}

#[test]
fn a_handler_may_switch_to_another_thread_and_back() {
    extern "C" fn spinner(_: usize) -> ! {
        irq::enable();
        loop {
            COUNT.fetch_add(1, Ordering::Relaxed);
            core::hint::spin_loop();
        }
    }
    machine(1, || {
        let _stack = make_thread(spinner, 0);
        static IN_THREAD: AtomicU64 = AtomicU64::new(0);
        IN_THREAD.store(0, Ordering::Relaxed);
        COUNT.store(0, Ordering::Relaxed);
        // Every tick goes to the other of the two.
        on_irq(|_| {
            if IN_THREAD.fetch_xor(1, Ordering::Relaxed) == 0 { switch(&MAIN, &THREAD) } else { switch(&THREAD, &MAIN) }
        });
        timer::start_periodic(1000);
        irq::enable();
        let mut sum = 0.5f64;
        wait_until("100 switches", || {
            sum = (sum * 3.0).fract(); // registers that only the host saves
            irqs_on(0) >= 100
        });
        irq::disable();
        timer::stop();
        assert!((0.0..1.0).contains(&sum));
        assert!(COUNT.load(Ordering::Relaxed) > 100);
    });
}

#[test]
fn a_thread_preempted_on_one_cpu_goes_on_with_another() {
    /// 0: on CPU 1; 1: given up by CPU 1; 2: taken by CPU 0; 3: has seen that.
    static STATE: AtomicUsize = AtomicUsize::new(0);
    static AP: Shared = Shared::new();
    extern "C" fn wanderer(_: usize) -> ! {
        irq::enable();
        assert_eq!(cpu::current(), cpu_no(1));
        while cpu::current() == cpu_no(1) {
            core::hint::spin_loop();
        }
        irq::disable();
        assert_eq!(cpu::current(), CpuId::BOOT);
        STATE.store(3, Ordering::Release);
        switch(&THREAD, &MAIN);
        unreachable!()
    }
    fn run_wanderer(_: CpuId) {
        wait_until("there is a thread", || STATE.load(Ordering::Acquire) == 0);
        // SAFETY: interrupts are off; CPU 0 made the thread, and takes it only when the state is 1.
        unsafe { task::switch(AP.0.get(), THREAD.0.get()) };
        // Its stack is saved: CPU 0 may have it.
        STATE.store(1, Ordering::Release);
    }
    STATE.store(9, Ordering::Relaxed);
    try_machine(2, run_wanderer, || {
        on_irq(|_| {
            if cpu::current() == cpu_no(1) && STATE.load(Ordering::Acquire) == 0 {
                // SAFETY: as in `run_wanderer`; this is the interrupted thread.
                unsafe { task::switch(THREAD.0.get(), AP.0.get()) };
            }
        });
        let _stack = make_thread(wanderer, 0);
        STATE.store(0, Ordering::Release);
        crate::clock::udelay(2_000);
        wait_until("CPU 1 has given up the thread", || {
            ipi::send(cpu_no(1), 0x30);
            crate::clock::udelay(100);
            STATE.load(Ordering::Acquire) == 1
        });
        STATE.store(2, Ordering::Release);
        // The thread returns from its signal handler here, by another OS thread than the one that took the signal.
        switch(&MAIN, &THREAD);
        assert_eq!(STATE.load(Ordering::Acquire), 3);
    })
    .unwrap();
}

#[test]
fn single_step_counts_each_instruction() {
    static SEEN: AtomicU64 = AtomicU64::new(0);
    macro_rules! boundaries {
        ($code:literal) => {
            step::single_step(
                // SAFETY: instructions without effect.
                || unsafe { core::arch::asm!($code, options(nomem, nostack)) },
                || {
                    assert!(!irq::enabled(), "as an NMI");
                    SEEN.fetch_add(1, Ordering::Relaxed);
                },
            )
        };
    }
    machine(1, || {
        irq::enable();
        SEEN.store(0, Ordering::Relaxed);
        let ten = boundaries!(".rept 10\nnop\n.endr");
        let thousand = boundaries!(".rept 1010\nnop\n.endr");
        assert_eq!(thousand, ten + 1000);
        assert_eq!(SEEN.load(Ordering::Relaxed), ten + thousand);
        assert!(irq::enabled());
        // Interrupts and NMIs come in between as ever.
        let nested = step::single_step(
            || {
                ipi::send_self(0x30);
                ipi::send_nmi(CpuId::BOOT);
            },
            || (),
        );
        assert!(nested > 20 && irqs_on(0) == 1 && nmis_on(0) == 1);
    });
}
