use core::sync::atomic::{AtomicUsize, Ordering};
use std::string::ToString;
use std::vec::Vec;

use super::fixture::*;
use crate::exit::{self, Verdict};
use crate::hosted::smp::Stack;
use crate::hosted::{Stopped, boot, boot_cold, in_own_process, set_com2};
use crate::task::{self, Context};
use crate::{CpuId, console, cpu, ipi, irq, smp};

#[test]
fn the_boot_closure_gives_back_its_value() {
    assert_eq!(boot(1, 1, MEM, |_| (), || "value".to_string()), Ok("value".to_string()));
}

#[test]
fn a_panic_in_the_boot_closure_is_reported_with_its_place() {
    let message = panic_of(try_machine(3, |_| (), || assert_eq!(1 + 1, 3, "sums")));
    assert!(
        message.starts_with("CPU 0 panicked at") && message.contains("sums") && message.contains("life.rs"),
        "{message}"
    );
}

#[test]
fn a_panic_on_another_cpu_ends_the_machine() {
    let forever = || loop {
        irq::relax();
    };
    assert!(panic_of(try_machine::<()>(2, |_| panic!("on the side"), forever)).contains("on the side"));
}

#[test]
fn a_panic_in_a_handler_ends_the_machine() {
    let result = try_machine::<()>(
        1,
        |_| (),
        || {
            on_irq(|_| panic!("in the handler"));
            irq::enable();
            ipi::send_self(0x30);
            unreachable!()
        },
    );
    assert!(panic_of(result).contains("in the handler"));
    let result = try_machine::<()>(
        1,
        |_| (),
        || {
            on_nmi(|_| panic!("in the NMI"));
            ipi::send_nmi(CpuId::BOOT);
            unreachable!()
        },
    );
    assert!(panic_of(result).contains("in the NMI"));
}

#[test]
fn a_panic_in_a_thread_ends_the_machine() {
    extern "C" fn thread(_: usize) -> ! {
        panic!("in the thread")
    }
    in_own_process(|| {
        let result = try_machine::<()>(
            2,
            |_| (),
            || {
                let stack = Stack::new();
                let mut here = Context::RUNNING;
                // SAFETY: a fresh stack; interrupts are off.
                unsafe { task::switch(&mut here, &task::prepare(stack.top(), thread, 0)) };
                unreachable!()
            },
        );
        assert!(panic_of(result).contains("in the thread"));
        assert_eq!(boot(2, 1, MEM, |_| (), || 5), Ok(5), "and the next machine runs");
    });
}

#[test]
fn a_panic_that_is_caught_does_no_harm() {
    machine(1, || {
        let caught = std::panic::catch_unwind(|| panic!("expected"));
        assert!(caught.is_err());
    });
}

#[test]
fn an_exit_from_any_context_ends_the_machine_with_its_verdict() {
    let from_nmi = try_machine::<()>(
        2,
        |_| (),
        || {
            on_nmi(|_| exit::debug_exit(Verdict::Stall));
            ipi::send_nmi(cpu_no(1));
            loop {
                core::hint::spin_loop();
            }
        },
    );
    assert_eq!(from_nmi, Err(Stopped::Exit(Verdict::Stall)));
    assert_eq!(boot::<()>(1, 1, MEM, |_| (), || exit::power_off()), Err(Stopped::PowerOff));
    assert_eq!(
        boot::<()>(
            2,
            1,
            MEM,
            |_| exit::reboot(),
            || loop {
                irq::relax();
            }
        ),
        Err(Stopped::Reboot)
    );
}

#[test]
fn an_exception_without_handlers_ends_the_machine() {
    let result = boot::<()>(
        1,
        1,
        MEM,
        |_| (),
        || {
            // SAFETY: an address that is never mapped; this does not return.
            unsafe { core::ptr::without_provenance::<u8>(0x1000).read_volatile() };
        },
    );
    assert!(matches!(result, Err(Stopped::Exception { exception, .. }) if exception.address == 0x1000), "{result:?}");
}

#[test]
fn a_stack_overflow_is_an_exception() {
    #[expect(unconditional_recursion)]
    fn deeper(n: u64) -> u64 {
        core::hint::black_box([n; 64])[1] + deeper(n + 1)
    }
    let result = boot(1, 1, MEM, |_| (), || deeper(0));
    assert!(matches!(result, Err(Stopped::Exception { .. })), "{result:?}");
}

#[test]
fn other_cpus_can_be_started_late_and_on_given_stacks() {
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    let stacks: Vec<Stack> = (0..3).map(|_| Stack::new()).collect();
    let tops: Vec<usize> = stacks.iter().map(|stack| stack.top().addr()).collect();
    SEEN.store(0, Ordering::Relaxed);
    boot_cold(4, 2, MEM, || {
        assert_eq!(cpu::online_count(), 1);
        assert_eq!(SEEN.load(Ordering::Relaxed), 0);
        let mut top_of = |cpu: CpuId| core::ptr::with_exposed_provenance_mut(tops[cpu.index() - 1]);
        let missing = smp::start_all(|cpu| _ = SEEN.fetch_add(cpu.index(), Ordering::Release), &mut top_of);
        assert!(missing.is_empty() && cpu::online_count() == 4);
        wait_until("all have run", || SEEN.load(Ordering::Acquire) == 6);
    })
    .unwrap();
}

#[test]
fn many_cpus_come_up_and_go_down() {
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    for _ in 0..3 {
        SEEN.store(0, Ordering::Relaxed);
        let count = |_| _ = SEEN.fetch_add(1, Ordering::Release);
        boot(64, 8, MEM, count, || wait_until("63 CPUs have run", || SEEN.load(Ordering::Acquire) == 63)).unwrap();
    }
}

#[test]
fn machines_queue_for_the_process() {
    let threads: Vec<_> = (0..8).map(|n| std::thread::spawn(move || machine(2, || cpu::online_count() + n))).collect();
    for (n, thread) in threads.into_iter().enumerate() {
        assert_eq!(thread.join().unwrap(), 2 + n);
    }
}

#[test]
fn com2_goes_to_its_callback() {
    static BYTES: AtomicUsize = AtomicUsize::new(0);
    machine(1, || {
        console::write_com2(b"lost");
        set_com2(|bytes| _ = BYTES.fetch_add(bytes.len(), Ordering::Relaxed));
        console::write_com2(b"twelve bytes");
    });
    assert_eq!(BYTES.load(Ordering::Relaxed), 12);
}
