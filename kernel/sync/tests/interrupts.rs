//! Interrupts, irq_work and calls from one CPU to others, on the hosted machine.
#![cfg(not(any(loom, miri)))]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arch::{
    cpu::{self, CpuId, CpuMask},
    hosted::{self, Stopped, in_own_process},
    irq, vector,
};
use common::{bump, cpu, machine, on_machine, wait_until};
use grange_sync::{
    self as sync, IrqGuard, IrqWork,
    context::{in_hardirq, in_nmi},
    hooks::HOOKS,
    smp,
};

#[test]
fn irq_work_runs_in_a_hard_interrupt_once_for_each_time_it_was_queued() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    static WORK: IrqWork = IrqWork::new(|_| {
        assert!(in_hardirq() && !in_nmi() && !irq::enabled());
        RUNS.fetch_add(1, Ordering::Relaxed);
    });
    machine(1, |cx| {
        {
            let _off = IrqGuard::new(cx);
            assert!(WORK.queue());
            assert!(!WORK.queue(), "pending already");
            assert!(WORK.is_pending());
            assert_eq!(RUNS.load(Ordering::Relaxed), 0, "interrupts are off");
        }
        WORK.sync(cx);
        assert_eq!(RUNS.load(Ordering::Relaxed), 1);
        assert!(WORK.queue(), "and may be queued again");
        WORK.sync(cx);
        assert_eq!(RUNS.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn lazy_irq_work_waits_for_an_interrupt_where_the_tick_runs_and_kicks_itself_elsewhere() {
    in_own_process(|| {
        static TICKS: AtomicBool = AtomicBool::new(false);
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        static WORK: IrqWork = IrqWork::new(|_| {
            RUNS.fetch_add(1, Ordering::Relaxed);
        });
        HOOKS.tick_runs.set(|| TICKS.load(Ordering::Relaxed));
        sync::irq::register(0x43, |_| ());
        machine(1, |cx| {
            WORK.queue_lazy();
            WORK.sync(cx);
            assert_eq!(RUNS.load(Ordering::Relaxed), 1, "no tick, so a self-IPI");
            let ipis = sync::irq::count(cpu(0), vector::IRQ_WORK);
            TICKS.store(true, Ordering::Relaxed);
            WORK.queue_lazy();
            for _ in 0..1_000 {
                irq::relax();
            }
            assert!(WORK.is_pending(), "nothing happens until an interrupt");
            arch::ipi::send_self(0x43);
            WORK.sync(cx);
            assert_eq!(sync::irq::count(cpu(0), vector::IRQ_WORK), ipis, "and no IPI was sent");
        });
    });
}

#[test]
fn irq_work_goes_to_another_cpu() {
    static RAN_ON: AtomicUsize = AtomicUsize::new(usize::MAX);
    static WORK: IrqWork = IrqWork::new(|_| RAN_ON.store(cpu::current().index(), Ordering::Relaxed));
    machine(3, |cx| {
        for target in [2, 0, 1] {
            assert!(WORK.queue_on(cpu(target)));
            WORK.sync(cx);
            assert_eq!(RAN_ON.load(Ordering::Relaxed), target);
        }
    });
}

#[test]
fn irq_work_queued_by_all_cpus_is_never_lost() {
    static EVENTS: AtomicU64 = AtomicU64::new(0);
    static SEEN: AtomicU64 = AtomicU64::new(0);
    static WORK: IrqWork = IrqWork::new(|_| SEEN.store(EVENTS.load(Ordering::Relaxed), Ordering::Relaxed));
    machine(4, |cx| {
        for _ in 0..200 {
            smp::run_on_mask(&cpu::online(), |_| {
                EVENTS.fetch_add(1, Ordering::Relaxed);
                WORK.queue();
            });
            WORK.sync(cx);
            assert_eq!(SEEN.load(Ordering::Relaxed), EVENTS.load(Ordering::Relaxed), "IW-2");
        }
    });
}

#[test]
fn irq_work_of_a_cpu_that_is_offline_runs_on_one_that_is_online() {
    const NOBODY: usize = usize::MAX;
    static RAN_ON: [AtomicUsize; 3] = [const { AtomicUsize::new(NOBODY) }; 3];
    static NOW: IrqWork = IrqWork::new(|_| RAN_ON[0].store(cpu::current().index(), Ordering::Relaxed));
    static LAZY: IrqWork = IrqWork::new(|_| RAN_ON[1].store(cpu::current().index(), Ordering::Relaxed));
    static NAMED: IrqWork = IrqWork::new(|_| RAN_ON[2].store(cpu::current().index(), Ordering::Relaxed));
    machine(2, |cx| {
        smp::run_on(cpu(1), || {
            cpu::set_online(cpu(1), false);
            assert!(NOW.queue() && LAZY.queue_lazy() && NAMED.queue_on(cpu(1)));
        })
        .unwrap();
        for work in [&NOW, &LAZY, &NAMED] {
            work.sync(cx);
        }
        assert_eq!(RAN_ON.each_ref().map(|on| on.load(Ordering::Relaxed)), [0; 3]);
        cpu::set_online(cpu(1), true);
    });
}

#[test]
fn a_call_reaches_exactly_the_cpus_that_were_asked_for() {
    static CALLED: [AtomicUsize; 4] = [const { AtomicUsize::new(0) }; 4];
    machine(4, |_| {
        fn count(arg: usize) {
            assert!(!irq::enabled());
            CALLED[cpu::current().index()].fetch_add(arg, Ordering::Relaxed);
        }
        let called = || core::array::from_fn::<_, 4, _>(|n| CALLED[n].swap(0, Ordering::Relaxed));
        smp::call_on(cpu(2), count, 5, true);
        assert_eq!(called(), [0, 0, 5, 0]);
        smp::call_on(cpu(0), count, 1, true);
        assert_eq!(called(), [1, 0, 0, 0]);
        let mask: CpuMask = [cpu(1), cpu(3), cpu(9)].into_iter().collect();
        smp::call_mask(&mask, count, 2, true);
        assert_eq!(called(), [0, 2, 0, 2], "CPU 9 is not online");
        smp::call_all(count, 1, true);
        assert_eq!(called(), [1; 4]);
        for _ in 0..100 {
            smp::call_all(count, 1, false);
        }
        smp::call_all(count, 1, true);
        assert_eq!(called(), [101; 4], "calls without waiting are not lost");
        assert_eq!(smp::run_on(cpu(3), || cpu::current().index()), Some(3));
        assert_eq!(smp::run_on(cpu(7), || ()), None);
    });
}

#[test]
fn calls_from_all_to_all_at_once_are_all_answered() {
    // The other CPUs' threads are their `ap_main`: they call as soon as handlers are there.
    static GO: AtomicBool = AtomicBool::new(false);
    static ANSWERS: AtomicUsize = AtomicUsize::new(0);
    static DONE: AtomicUsize = AtomicUsize::new(0);
    const ROUNDS: usize = 100;
    const CPUS: usize = 4;
    fn storm() {
        for _ in 0..ROUNDS {
            smp::run_on_mask(&cpu::online(), |_| bump(&ANSWERS, 1));
        }
        DONE.fetch_add(1, Ordering::Relaxed);
    }
    fn other(_: CpuId) {
        wait_until(|| GO.load(Ordering::Acquire));
        irq::enable();
        storm();
    }
    hosted::boot(CPUS, 1, 16 << 20, other, || {
        sync::init();
        irq::enable();
        wait_until(|| cpu::online_count() == CPUS);
        GO.store(true, Ordering::Release);
        storm();
        wait_until(|| DONE.load(Ordering::Relaxed) == CPUS);
        irq::disable();
    })
    .unwrap();
    assert_eq!(ANSWERS.load(Ordering::Relaxed), ROUNDS * CPUS * CPUS);
}

#[test]
fn calling_others_with_interrupts_off_is_refused() {
    in_own_process(|| {
        let stopped = on_machine(2, |cx| {
            let _off = IrqGuard::new(cx);
            smp::call_all(|_| (), 0, true);
        });
        assert!(matches!(stopped, Err(Stopped::Panicked { message, .. }) if message.contains("CF-3")));
    });
}

#[test]
fn ipis_are_counted_by_cpu_and_vector() {
    machine(2, |_| {
        let before = sync::irq::count(cpu(1), vector::RESCHEDULE);
        arch::ipi::send(cpu(1), vector::RESCHEDULE);
        wait_until(|| sync::irq::count(cpu(1), vector::RESCHEDULE) > before);
        assert_eq!(sync::irq::count(cpu(0), vector::RESCHEDULE), 0);
    });
}

#[test]
fn an_exception_goes_to_the_first_handler_that_knows_it() {
    in_own_process(|| {
        static SEEN: AtomicUsize = AtomicUsize::new(0);
        sync::irq::register_exception(|_, _| false);
        sync::irq::register_exception(|exception, frame| {
            SEEN.fetch_add(1, Ordering::Relaxed);
            // `ud2` is two bytes long.
            let known = exception.kind == arch::trap::ExceptionKind::InvalidOpcode;
            frame.set_ip(frame.ip() + 2);
            known
        });
        machine(1, |_| {
            // SAFETY: the handler above steps over it.
            unsafe { core::arch::asm!("ud2") };
        });
        assert_eq!(SEEN.load(Ordering::Relaxed), 1);
    });
}
