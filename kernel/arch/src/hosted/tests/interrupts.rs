use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::fixture::*;
use crate::hosted::host_call;
use crate::{CpuId, CpuMask, cpu, ipi, irq, timer, vector};

#[test]
fn an_ipi_is_handled_on_its_target_with_its_vector() {
    machine(3, || {
        ipi::send(cpu_no(2), vector::RESCHEDULE);
        wait_until("CPU 2 has it", || irqs_on(2) == 1);
        assert_eq!((irqs_on(0), irqs_on(1)), (0, 0));
        assert_eq!(VECTORS.load(Ordering::Acquire), u64::from(vector::RESCHEDULE));

        ipi::send_all_but_self(vector::IRQ_WORK);
        wait_until("CPUs 1 and 2 have it", || irqs_on(1) == 1 && irqs_on(2) == 2);
        ipi::send_mask(&CpuMask::of(cpu_no(1)), vector::CALL_FUNCTION);
        wait_until("CPU 1 has it", || irqs_on(1) == 2);
        assert_eq!(irqs_on(0), 0);
    });
}

#[test]
fn interrupts_are_held_while_off_merged_and_replayed_highest_first() {
    machine(1, || {
        for vector in [0x30, vector::TIMER, 0x30, vector::RESCHEDULE, vector::TIMER] {
            ipi::send_self(vector);
        }
        crate::clock::udelay(1000);
        assert_eq!(irqs_on(0), 0, "interrupts are off");
        irq::enable();
        assert_eq!(irqs_on(0), 3);
        let newest_last = u64::from(vector::RESCHEDULE) << 16 | u64::from(vector::TIMER) << 8 | 0x30;
        assert_eq!(VECTORS.load(Ordering::Acquire), newest_last);
        ipi::send_self(0x40);
        assert_eq!(irqs_on(0), 4, "with interrupts on, at once");
    });
}

#[test]
fn saved_flags_nest() {
    machine(1, || {
        irq::enable();
        let outer = irq::save();
        let inner = irq::save();
        ipi::send_self(0x30);
        irq::restore(inner);
        assert!(!irq::enabled() && irqs_on(0) == 0);
        irq::restore(outer);
        assert!(irq::enabled() && irqs_on(0) == 1);
    });
}

#[test]
fn a_vector_sent_by_a_handler_is_handled_after_it() {
    machine(1, || {
        on_irq(|_| {
            let before = irqs_on(0);
            if before < 5 {
                ipi::send_self(0x31);
                assert_eq!(irqs_on(0), before, "a handler is not interrupted");
            }
        });
        irq::enable();
        ipi::send_self(0x30);
        assert_eq!(irqs_on(0), 5);
    });
}

#[test]
fn an_nmi_comes_while_interrupts_are_off() {
    static SEEN: AtomicBool = AtomicBool::new(false);
    fn spin_with_interrupts_off(_: CpuId) {
        // Relaxed: a flag without data.
        while !SEEN.load(Ordering::Relaxed) {
            core::hint::spin_loop();
        }
    }
    SEEN.store(false, Ordering::Relaxed);
    try_machine(2, spin_with_interrupts_off, || {
        on_nmi(|frame| {
            assert!(nmis_on(1) != 1 || !frame.irqs_were_on());
            SEEN.store(true, Ordering::Relaxed);
        });
        ipi::send(cpu_no(1), 0x30);
        ipi::send_nmi(cpu_no(1));
        wait_until("CPU 1 got out of its loop and handles the interrupt", || irqs_on(1) == 1);
        assert_eq!((nmis_on(1), nmis_on(0)), (1, 0));
        ipi::send_nmi(CpuId::BOOT);
        assert_eq!(nmis_on(0), 1, "to oneself, at once");
        ipi::send_nmi_all_but_self();
        wait_until("CPU 1 has it", || nmis_on(1) == 2);
    })
    .unwrap();
}

#[test]
fn nmis_during_an_nmi_are_held_and_merged_into_one() {
    machine(1, || {
        on_nmi(|_| {
            if nmis_on(0) == 1 {
                for _ in 0..3 {
                    ipi::send_nmi(CpuId::BOOT);
                }
                assert_eq!(nmis_on(0), 1, "held");
            }
        });
        ipi::send_nmi(CpuId::BOOT);
        assert_eq!(nmis_on(0), 2);
    });
}

#[test]
fn an_interrupt_sent_from_an_nmi_is_not_lost() {
    machine(1, || {
        on_nmi(|_| ipi::send_self(0x30));
        irq::enable();
        ipi::send_nmi(CpuId::BOOT);
        assert_eq!(irqs_on(0), 1, "handled when the NMI has returned");
        irq::disable();
        ipi::send_nmi(CpuId::BOOT);
        assert_eq!(irqs_on(0), 1);
        irq::enable();
        assert_eq!(irqs_on(0), 2);
    });
}

#[test]
fn no_wakeup_is_lost_between_the_check_and_the_halt() {
    static TURN: AtomicU64 = AtomicU64::new(0);
    const TURNS: u64 = 3_000;
    /// Waits for the turn, takes it, and wakes the other CPU. No timer: a lost interrupt is a hang.
    fn play(me: u64, other: CpuId) {
        loop {
            irq::disable();
            // Acquire, and Release below: the turn passes from CPU to CPU.
            let turn = TURN.load(Ordering::Acquire);
            if turn >= TURNS {
                irq::enable();
                return;
            }
            if turn % 2 == me {
                irq::enable();
                TURN.store(turn + 1, Ordering::Release);
                ipi::send(other, vector::RESCHEDULE);
            } else {
                irq::halt_with_irqs();
                assert!(irq::enabled(), "ARCH-4");
            }
        }
    }
    TURN.store(0, Ordering::Relaxed);
    try_machine(2, |_| play(1, CpuId::BOOT), || play(0, cpu_no(1))).unwrap();
}

#[test]
fn the_timer_ticks_and_stops_and_fires_once() {
    machine(2, || {
        irq::enable();
        timer::start_periodic(1000);
        let start = crate::clock::now_ns();
        wait_until("20 ticks", || irqs_on(0) >= 20);
        assert!(crate::clock::now_ns() - start >= 15_000_000, "20 ticks of 1 ms, of which late ones come early after");
        assert_eq!(VECTORS.load(Ordering::Acquire) as u8, vector::TIMER);
        timer::stop();
        crate::clock::udelay(2_000);
        let ticks = irqs_on(0);
        crate::clock::udelay(5_000);
        assert_eq!(irqs_on(0), ticks, "stopped");

        timer::oneshot_ns(1_000_000);
        while irqs_on(0) == ticks {
            irq::disable();
            if irqs_on(0) == ticks {
                irq::halt_with_irqs();
            }
        }
        crate::clock::udelay(3_000);
        assert_eq!(irqs_on(0), ticks + 1, "once");
        assert_eq!(irqs_on(1), 0, "CPU 1 has its own timer, which is off");
    });
}

#[test]
fn nothing_comes_inside_a_host_call_and_everything_after_it() {
    machine(1, || {
        irq::enable();
        host_call(|| {
            host_call(|| {
                ipi::send_self(0x30);
                ipi::send_nmi(CpuId::BOOT);
            });
            assert_eq!((irqs_on(0), nmis_on(0)), (0, 0), "the outer call still holds");
        });
        assert_eq!((irqs_on(0), nmis_on(0)), (1, 1));
        irq::disable();
        host_call(|| ipi::send_self(0x30));
        assert_eq!(irqs_on(0), 1, "interrupts are off");
        irq::enable();
        assert_eq!(irqs_on(0), 2);
    });
}

#[test]
fn a_storm_from_three_sides_loses_no_kind_of_interrupt() {
    static SENT: AtomicU64 = AtomicU64::new(0);
    fn storm(cpu: CpuId) {
        for _ in 0..3_000 {
            ipi::send(CpuId::BOOT, 0x30 + cpu.index() as u8);
            ipi::send_nmi(CpuId::BOOT);
        }
        SENT.fetch_add(1, Ordering::Release);
    }
    SENT.store(0, Ordering::Relaxed);
    try_machine(4, storm, || {
        timer::start_periodic(2000);
        // Acquire: pairs with the end of each storm.
        wait_until("the storms are over", || {
            irq::enable();
            let flags = irq::save();
            let off = irqs_on(0);
            core::hint::spin_loop();
            assert_eq!(irqs_on(0), off, "none while off");
            irq::restore(flags);
            SENT.load(Ordering::Acquire) == 3
        });
        timer::stop();
        irq::enable();
        crate::clock::udelay(5_000);
        let (irqs, nmis) = (irqs_on(0), nmis_on(0));
        ipi::send(CpuId::BOOT, 0x30);
        ipi::send_nmi(CpuId::BOOT);
        assert_eq!((irqs_on(0), nmis_on(0)), (irqs + 1, nmis + 1), "nothing stuck");
        assert!(cpu::is_online(cpu_no(3)));
    })
    .unwrap();
}
