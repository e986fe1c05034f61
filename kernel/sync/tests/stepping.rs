//! At any instruction: single-step plays the NMI.
#![cfg(not(any(loom, miri)))]

mod common;

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use arch::hosted::in_own_process;
use common::{bump, machine};
use grange_sync::{
    ATOMIC, IrqGuard, IrqWork, LocalTryLock, LockClass, MaySleep, PreemptGuard, SpinLock, context,
    hooks::HOOKS,
    llist::{LlistHead, LlistNode},
    nmi::as_nmi,
};

arch::per_cpu! {
    static LOCAL: LocalTryLock<u64> = LocalTryLock::new(0);
}

#[test]
fn a_local_lock_holds_against_an_nmi_at_any_instruction() {
    static INSIDE: AtomicBool = AtomicBool::new(false);
    static GOT: AtomicUsize = AtomicUsize::new(0);
    machine(1, |cx| {
        let boundaries = arch::step::single_step(
            || {
                let mut local = LocalTryLock::this(&LOCAL, cx).expect("nobody else is inside");
                INSIDE.store(true, Ordering::Relaxed);
                let now = *local;
                core::hint::black_box(&now);
                *local = now + 1;
                INSIDE.store(false, Ordering::Relaxed);
            },
            || {
                as_nmi(|| {
                    if let Some(mut local) = LocalTryLock::this(&LOCAL, ATOMIC) {
                        assert!(!INSIDE.load(Ordering::Relaxed), "LT-2");
                        *local += 1;
                        GOT.fetch_add(1, Ordering::Relaxed);
                    }
                });
            },
        );
        let got = GOT.load(Ordering::Relaxed);
        let local = LocalTryLock::this(&LOCAL, cx).expect("free at the end");
        assert_eq!(*local, got as u64 + 1, "no increment is lost");
        assert!(got > 0 && (got as u64) < boundaries, "{got} of {boundaries}");
    });
}

#[test]
fn the_list_takes_an_nmi_at_any_instruction() {
    static LIST: LlistHead = LlistHead::new();
    static FREE: AtomicPtr<LlistNode> = AtomicPtr::new(core::ptr::null_mut());
    static LEFT: AtomicUsize = AtomicUsize::new(0);
    const NODES: usize = 4_000;
    machine(1, |_| {
        let nodes: Vec<LlistNode> = (0..NODES).map(|_| LlistNode::new()).collect();
        let first = nodes.leak().as_mut_ptr();
        // The last node is the stepped code's, the others are for the NMIs.
        FREE.store(first, Ordering::Relaxed);
        LEFT.store(NODES - 1, Ordering::Relaxed);
        let boundaries = arch::step::single_step(
            || {
                // SAFETY: a node of our own, never freed.
                unsafe { LIST.add(first.add(NODES - 1)) };
            },
            || {
                as_nmi(|| {
                    let left = LEFT.load(Ordering::Relaxed);
                    if left > 0 {
                        LEFT.store(left - 1, Ordering::Relaxed);
                        // SAFETY: each node is pushed once, and never freed.
                        unsafe { LIST.add(FREE.load(Ordering::Relaxed).add(left - 1)) };
                    }
                });
            },
        );
        let pushed_by_nmis = NODES - 1 - LEFT.load(Ordering::Relaxed);
        assert_eq!(pushed_by_nmis as u64, boundaries.min(NODES as u64 - 1));
        assert_eq!(LIST.take_all().count(), pushed_by_nmis + 1);
    });
}

#[test]
fn lock_tracking_takes_an_nmi_at_any_instruction() {
    static CLASS: LockClass = LockClass::new("test.stepped");
    static NMI_CLASS: LockClass = LockClass::new("test.stepping");
    static LOCK: SpinLock<u64> = SpinLock::new(0, &CLASS);
    static NMI_LOCK: SpinLock<u64> = SpinLock::new(0, &NMI_CLASS);
    static STEP: AtomicUsize = AtomicUsize::new(0);
    static STRIDE: AtomicUsize = AtomicUsize::new(1);
    static VISITS: AtomicUsize = AtomicUsize::new(0);
    /// An NMI at each boundary would tidy up before the next one is reached; so each is also the first of its run.
    const STRIDES: [usize; 3] = [1, 7, 61];
    machine(1, |cx| {
        let mut rounds = 0;
        for stride in STRIDES {
            for first in 0..stride {
                STRIDE.store(stride, Ordering::Relaxed);
                STEP.store(stride - first, Ordering::Relaxed);
                let _ = arch::step::single_step(
                    || *LOCK.lock_irqsave(cx) += 1,
                    || {
                        if !STEP.fetch_add(1, Ordering::Relaxed).is_multiple_of(STRIDE.load(Ordering::Relaxed)) {
                            return;
                        }
                        as_nmi(|| {
                            // Free or held, and one that is always free: push and pop in the middle of both.
                            drop(LOCK.try_lock(ATOMIC));
                            *NMI_LOCK.try_lock(ATOMIC).expect("no NMI nests") += 1;
                            VISITS.fetch_add(1, Ordering::Relaxed);
                        });
                    },
                );
                rounds += 1;
            }
        }
        assert_eq!(*NMI_LOCK.lock_irqsave(cx), VISITS.load(Ordering::Relaxed) as u64);
        assert_eq!(*LOCK.lock_irqsave(cx), rounds);
    });
}

#[test]
fn irq_work_queued_by_an_nmi_at_any_instruction_of_queueing_runs() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    static STEPS: AtomicUsize = AtomicUsize::new(0);
    static OUTER: IrqWork = IrqWork::new(|_| bump(&RUNS, 1));
    static OF_NMI: IrqWork = IrqWork::new(|_| bump(&RUNS, 1000));
    machine(1, |cx| {
        let _ = arch::step::single_step(
            || {
                let _off = IrqGuard::new(cx);
                OUTER.queue();
            },
            || {
                // Not for ever: an interrupt may itself be stepped through.
                if STEPS.fetch_add(1, Ordering::Relaxed) < 2_000 {
                    as_nmi(|| OF_NMI.queue());
                }
            },
        );
        OUTER.sync(cx);
        OF_NMI.sync(cx);
        let runs = RUNS.load(Ordering::Relaxed);
        assert_eq!(runs % 1000, 1);
        assert!(runs > 1000);
    });
}

#[test]
fn an_nmi_that_wants_soft_interrupts_at_any_instruction_neither_hides_a_reschedule_nor_makes_one_up() {
    /// The boundary at which the NMI comes, and boundaries so far.
    static AT: AtomicUsize = AtomicUsize::new(0);
    static STEP: AtomicUsize = AtomicUsize::new(0);
    static PENDING: AtomicBool = AtomicBool::new(false);
    static RESCHEDULES: AtomicUsize = AtomicUsize::new(0);
    fn guarded(cx: &MaySleep, wants: fn()) {
        let guard = PreemptGuard::new(cx);
        wants();
        drop(guard);
    }
    fn both() {
        context::want_softirqs();
        context::set_need_resched();
    }
    in_own_process(|| {
        HOOKS.irq_exit_softirq.set(|| PENDING.store(false, Ordering::Relaxed));
        HOOKS.preempt_schedule.set(|| {
            context::clear_need_resched();
            bump(&RESCHEDULES, 1);
        });
        machine(1, |cx| {
            let wants: [(fn(), usize); 3] = [(|| (), 0), (context::want_softirqs, 0), (both, 1)];
            for (wants, reschedules) in wants {
                for at in 0.. {
                    AT.store(at, Ordering::Relaxed);
                    STEP.store(0, Ordering::Relaxed);
                    RESCHEDULES.store(0, Ordering::Relaxed);
                    let boundaries = arch::step::single_step(
                        || guarded(cx, wants),
                        || {
                            if STEP.fetch_add(1, Ordering::Relaxed) == AT.load(Ordering::Relaxed) {
                                as_nmi(|| {
                                    PENDING.store(true, Ordering::Relaxed);
                                    context::want_softirqs();
                                });
                            }
                        },
                    );
                    guarded(cx, || ());
                    let seen = (RESCHEDULES.load(Ordering::Relaxed), PENDING.load(Ordering::Relaxed));
                    assert_eq!(seen, (reschedules, false), "PC-7: NMI at {at} of {boundaries}");
                    if at as u64 >= boundaries {
                        break;
                    }
                }
            }
        });
    });
}
