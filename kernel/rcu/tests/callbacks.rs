//! Callbacks on hosted machines that were booted in other ways: before there are threads, with threads instead of the
//! softirq, with CPUs offloaded and callbacks lazy from the start.

#[path = "../../sched/tests/machine/mod.rs"]
mod machine;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arch::hosted::in_own_process;
use arch::{AtomicCpuMask, CpuId, CpuMask, clock, cpu};
use grange_rcu::{self as rcu, call_rcu, rcu_barrier};
use machine::{machine_with, spawn};
use sched::{self, cpu_off, cpu_on};
use sync::callback::CallbackHead;
use sync::{ATOMIC, IrqGuard, MaySleep};

const MS: u64 = 1_000_000;

/// What many callbacks have done.
#[derive(Default)]
struct Tally {
    ran: AtomicUsize,
    /// In a thread whose name begins with `rcuc/`.
    in_rcuc: AtomicUsize,
    on: AtomicCpuMask,
}

#[repr(C)]
struct Counted {
    head: CallbackHead,
    tally: Arc<Tally>,
}

/// Queues a callback that counts itself.
fn queue(tally: &Arc<Tally>) {
    unsafe fn func(head: *mut CallbackHead) {
        // SAFETY: queued below, the head is first, and it is ours again.
        let counted = unsafe { Box::from_raw(head.cast::<Counted>()) };
        counted.tally.on.set(cpu::current());
        if sched::current().name().as_str().starts_with("rcuc/") {
            counted.tally.in_rcuc.fetch_add(1, Ordering::Relaxed);
        }
        counted.tally.ran.fetch_add(1, Ordering::Relaxed);
    }
    let counted = Box::new(Counted { head: CallbackHead::new(), tally: tally.clone() });
    // SAFETY: leaked to the callback.
    unsafe { call_rcu(Box::into_raw(counted).cast(), func) };
}

/// Has CPU `on` queue some.
fn queue_on(cx: &mut MaySleep, on: usize, tally: &Arc<Tally>, count: usize) {
    let theirs = tally.clone();
    spawn(cx, Some(on), move |_| {
        for i in 0..count {
            let _irqs = (i % 2 == 0).then(|| IrqGuard::new(ATOMIC));
            queue(&theirs);
        }
    })
    .join(cx);
}

/// Waits until `cond`, at most 20 s; true if it came.
fn soon(cx: &mut MaySleep, cond: impl Fn() -> bool) -> bool {
    let until = clock::now_ns() + 20_000 * MS;
    while !cond() && clock::now_ns() < until {
        sched::sleep_ns(cx, MS);
    }
    cond()
}

fn boot(cpus: usize, cmdline: &'static str, body: impl FnOnce(&mut MaySleep) + Send) {
    sync::param::parse(cmdline).expect("the tests' own command line");
    machine_with(cpus, rcu::init, |cx| {
        rcu::boot_ended();
        body(cx);
    });
}

#[test]
fn callbacks_queued_before_rcu_is_there_run_when_it_is() {
    in_own_process(|| {
        let tally = Arc::<Tally>::default();
        let theirs = tally.clone();
        let before = move |cx: &mut MaySleep| {
            (0..50).for_each(|_| queue(&theirs));
            let off = IrqGuard::new(&*cx);
            (0..50).for_each(|_| queue(&theirs));
            drop(off);
            rcu::init(cx);
        };
        machine_with(2, before, |cx| {
            assert!(soon(cx, || tally.ran.load(Ordering::Relaxed) == 100));
        });
    });
}

#[test]
fn without_the_softirq_callbacks_run_in_a_thread_of_their_cpu_while_cpus_go_and_come() {
    in_own_process(|| {
        boot(3, "rcutree.use_softirq=0", |cx| {
            for _ in 0..3 {
                let tally = Arc::<Tally>::default();
                queue_on(cx, 2, &tally, 100);
                assert!(soon(cx, || tally.ran.load(Ordering::Relaxed) == 100));
                assert_eq!(tally.on.load(), CpuMask::of(CpuId::new(2)));
                queue_on(cx, 2, &tally, 100);
                cpu_off(CpuId::new(2), cx).expect("it may go");
                rcu_barrier(cx);
                assert_eq!(tally.ran.load(Ordering::Relaxed), 200, "callbacks of a CPU that went");
                assert_eq!(tally.in_rcuc.load(Ordering::Relaxed), 200, "run elsewhere than in rcuc/N");
                cpu_on(CpuId::new(2), cx).expect("it may come back");
            }
            rcu::synchronize_rcu(cx);
            rcu::synchronize_rcu_expedited(cx);
        });
    });
}

#[test]
fn rcu_nocbs_offloads_cpus_from_the_start() {
    in_own_process(|| {
        boot(4, "rcu_nocbs=0,2-3 rcutree.rcu_nocb_gp_stride=3", |cx| {
            assert_eq!(rcu::nocb::offloaded().count(), 3);
            for on in [0, 2, 3] {
                let tally = Arc::<Tally>::default();
                queue_on(cx, on, &tally, 200);
                assert!(soon(cx, || tally.ran.load(Ordering::Relaxed) == 200));
                assert_eq!(tally.on.load(), CpuMask::of(CpuId::new(1)), "run on a CPU that is offloaded");
            }
            let mut names = Vec::new();
            sched::thread::for_each(|thread| {
                let name = thread.name().as_str().to_string();
                if name.starts_with("rcuo") {
                    names.push(name);
                }
            });
            names.sort();
            assert_eq!(names, ["rcuog/0", "rcuog/3", "rcuop/0", "rcuop/2", "rcuop/3"]);
        });
    });
}

#[test]
fn the_command_line_makes_callbacks_lazy() {
    in_own_process(|| {
        boot(2, "rcu_nocbs=1 rcutree.enable_rcu_lazy=1 grange.rcu_lazy_flush_ms=200", |cx| {
            let tally = Arc::<Tally>::default();
            let begin = clock::now_ns();
            queue_on(cx, 1, &tally, 50);
            assert!(soon(cx, || tally.ran.load(Ordering::Relaxed) == 50));
            assert!(clock::now_ns() - begin >= 200 * MS, "nobody was lazy");
            queue_on(cx, 1, &tally, 50);
            rcu_barrier(cx);
            assert_eq!(tally.ran.load(Ordering::Relaxed), 100);
        });
    });
}

#[test]
fn a_list_of_cpus_that_is_none_is_refused() {
    in_own_process(|| {
        for wrong in ["rcu_nocbs=2-1", "rcu_nocbs=1,", "rcu_nocbs=some", "rcu_nocbs=100000"] {
            let error = sync::param::parse(wrong).expect_err(wrong).to_string();
            assert!(error.contains("rcu_nocbs") && error.contains("0-2,5"), "{error}");
        }
        sync::param::parse("rcu_nocbs=all").expect("all is a list");
    });
}

/// The message of the panic that a machine ends in whose RCU calls `func`.
#[cfg(debug_assertions)]
fn calling_panics(cmdline: &'static str, func: unsafe fn(*mut CallbackHead)) -> String {
    sync::param::parse(cmdline).expect("the tests' own command line");
    let stopped = machine::try_machine_with(2, rcu::init, |cx| {
        // SAFETY: leaked for good.
        unsafe { call_rcu(Box::into_raw(Box::new(CallbackHead::new())), func) };
        rcu_barrier(cx);
    });
    match stopped {
        Err(arch::hosted::Stopped::Panicked { message, .. }) => message,
        other => panic!("expected a panic, got {other:?}"),
    }
}

#[cfg(debug_assertions)]
fn sleeping_is_found(cmdline: &'static str) {
    unsafe fn sleeper(_: *mut CallbackHead) {
        // SAFETY: it is not. That is what is to be found.
        let mut cx = unsafe { MaySleep::new() };
        sched::sleep_ns(&mut cx, MS);
    }
    let message = calling_panics(cmdline, sleeper);
    assert!(message.contains("blocking in atomic context"), "{message}");
}

#[cfg(debug_assertions)]
#[test]
fn a_callback_that_sleeps_in_the_softirq_is_found() {
    in_own_process(|| sleeping_is_found(""));
}

#[cfg(debug_assertions)]
#[test]
fn a_callback_that_sleeps_in_the_thread_of_its_cpu_is_found() {
    in_own_process(|| sleeping_is_found("rcutree.use_softirq=0"));
}

#[cfg(debug_assertions)]
#[test]
fn a_callback_that_sleeps_in_a_thread_for_offloaded_cpus_is_found() {
    in_own_process(|| sleeping_is_found("rcu_nocbs=all"));
}

#[cfg(debug_assertions)]
#[test]
fn a_callback_that_leaves_preemption_off_is_found_when_it_returns() {
    unsafe fn leaver(_: *mut CallbackHead) {
        std::mem::forget(sync::PreemptGuard::new(ATOMIC));
    }
    in_own_process(|| {
        let message = calling_panics("", leaver);
        assert!(message.contains("RCU: callback") && message.contains("left"), "{message}");
    });
}
