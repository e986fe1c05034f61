//! SRCU on the hosted machine: OS threads are CPUs, signals are interrupts and NMIs.
//!
//! Each test has a process and a machine of its own. What runs in a machine allocates through `HostAlloc` and prints
//! nothing.

#[path = "../../sched/tests/machine/mod.rs"]
mod machine;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arch::hosted::in_own_process;
use arch::{CpuId, clock};
use grange_rcu::srcu::{
    self, Fast, FastUpDown, Flavour, HandsOver, NmiSafe, Normal, SrcuDomain, SrcuOwner, call_srcu, srcu_barrier,
    srcu_down_read, srcu_read_lock, srcu_start_poll, srcu_up_read, synchronize_srcu, synchronize_srcu_expedited,
};
use grange_rcu::{self as rcu, srcu_domain};
use machine::{machine_with, spawn, try_machine_with};
use sched::{self};
use sync::callback::CallbackHead;
use sync::{ATOMIC, IrqGuard, MaySleep};

const MS: u64 = 1_000_000;

srcu_domain! {
    static NORMAL: Normal;
    static NMI_SAFE: NmiSafe;
    static FAST: Fast;
    static FAST_UPDOWN: FastUpDown;
}

/// Boots a machine with RCU and runs `body` as its boot thread.
fn machine(cpus: usize, cmdline: &'static str, body: impl FnOnce(&mut MaySleep) + Send) {
    sync::param::parse(cmdline).expect("the tests' own command line");
    machine_with(cpus, rcu::init, body);
}

/// Waits until `cond`, at most 20 s; true if it came.
fn soon(cx: &mut MaySleep, cond: impl Fn() -> bool) -> bool {
    let until = clock::now_ns() + 20_000 * MS;
    while !cond() && clock::now_ns() < until {
        sched::sleep_ns(cx, MS);
    }
    cond()
}

/// Queues a callback on `domain` that adds one to `count`.
fn queue<F: Flavour>(domain: &SrcuDomain<F>, count: &Arc<AtomicUsize>) {
    #[repr(C)]
    struct Counted {
        head: CallbackHead,
        count: Arc<AtomicUsize>,
    }
    unsafe fn func(head: *mut CallbackHead) {
        // SAFETY: queued below, the head is first, and it is ours again.
        let counted = unsafe { Box::from_raw(head.cast::<Counted>()) };
        counted.count.fetch_add(1, Ordering::Relaxed);
    }
    let counted = Box::new(Counted { head: CallbackHead::new(), count: count.clone() });
    // SAFETY: leaked to the callback.
    unsafe { call_srcu(domain, Box::into_raw(counted).cast(), func) };
}

/// A reader that sleeps holds up grace periods of its domain, of every kind, and of no other.
fn a_sleeping_reader<F: Flavour>(domain: &'static SrcuDomain<F>, other: &'static SrcuDomain<Normal>) {
    machine(2, "", |cx| {
        for expedited in [false, true] {
            let state = Arc::<(AtomicBool, AtomicBool)>::default();
            let theirs = state.clone();
            let reader = spawn(cx, Some(1), move |cx| {
                let guard = srcu_read_lock(domain);
                theirs.0.store(true, Ordering::SeqCst);
                while !theirs.1.load(Ordering::SeqCst) {
                    sched::sleep_ns(cx, MS);
                }
                drop(guard);
            });
            assert!(soon(cx, || state.0.load(Ordering::SeqCst)));
            let (ended, theirs) = (Arc::<AtomicBool>::default(), state.clone());
            let end = ended.clone();
            let updater = spawn(cx, Some(0), move |cx| {
                if expedited {
                    synchronize_srcu_expedited(domain, cx)
                } else {
                    synchronize_srcu(domain, cx)
                }
                end.store(true, Ordering::SeqCst);
                theirs.1.load(Ordering::SeqCst)
            });
            let count = Arc::new(AtomicUsize::new(0));
            queue(domain, &count);
            let cookie = srcu_start_poll(domain);
            synchronize_srcu(other, cx);
            sched::sleep_ns(cx, 50 * MS);
            assert_eq!(count.load(Ordering::Relaxed), 0);
            assert!(!cookie.is_over() && !ended.load(Ordering::SeqCst));
            state.1.store(true, Ordering::SeqCst);
            assert!(updater.join(cx), "a grace period ended although a reader from before was in its section");
            cookie.cond_synchronize(cx);
            assert!(cookie.is_over());
            srcu_barrier(domain, cx);
            assert_eq!(count.load(Ordering::Relaxed), 1);
            reader.join(cx);
        }
    });
}

#[test]
fn a_sleeping_normal_reader_delays_its_domain_and_no_other() {
    srcu_domain! { static OTHER: Normal; }
    in_own_process(|| a_sleeping_reader(&NORMAL, &OTHER));
}

#[test]
fn a_sleeping_nmi_safe_reader_delays_its_domain_and_no_other() {
    in_own_process(|| a_sleeping_reader(&NMI_SAFE, &NORMAL));
}

#[test]
fn a_sleeping_fast_reader_delays_its_domain_and_no_other() {
    in_own_process(|| a_sleeping_reader(&FAST, &NORMAL));
}

#[test]
fn a_sleeping_fast_updown_reader_delays_its_domain_and_no_other() {
    in_own_process(|| a_sleeping_reader(&FAST_UPDOWN, &NORMAL));
}

#[test]
fn grace_periods_pass_through_the_wrap_of_the_counter() {
    in_own_process(|| {
        machine(2, "", |cx| {
            for _ in 0..400 {
                synchronize_srcu_expedited(&NORMAL, cx);
            }
            assert!(NORMAL.stats().gps >= 400 && (NORMAL.stats().seq.raw() >> 2) < 1_000);
        });
    });
}

fn handed_over<F: HandsOver>(domain: &'static SrcuDomain<F>, cx: &mut MaySleep) {
    for _ in 0..20 {
        let guard = srcu_down_read(domain);
        let cookie = srcu_start_poll(domain);
        let other = spawn(cx, Some(1), move |cx| {
            sched::sleep_ns(cx, MS);
            let waited = !cookie.is_over();
            srcu_up_read(guard);
            waited
        });
        assert!(other.join(cx), "a grace period ended although a handed-over reader was in its section");
        cookie.cond_synchronize(cx);
    }
}

#[test]
fn a_reader_that_is_handed_over_ends_elsewhere() {
    in_own_process(|| {
        machine(2, "", |cx| {
            handed_over(&NORMAL, cx);
            handed_over(&FAST_UPDOWN, cx);
        });
    });
}

fn callbacks_and_barriers(cmdline: &'static str) {
    machine(4, cmdline, |cx| {
        for round in 0..5 {
            let count = Arc::new(AtomicUsize::new(0));
            let threads: Vec<_> = (0..4)
                .map(|on| {
                    let count = count.clone();
                    spawn(cx, Some(on), move |cx| {
                        for i in 0..200 {
                            if (i + round) % 2 == 0 {
                                let _off = IrqGuard::new(&*cx);
                                queue(&NORMAL, &count);
                            } else {
                                queue(&NORMAL, &count);
                            }
                        }
                        if round == 0 {
                            srcu_barrier(&NORMAL, cx);
                        }
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join(cx));
            srcu_barrier(&NORMAL, cx);
            assert_eq!(count.load(Ordering::Relaxed), 800);
        }
        assert_eq!(NORMAL.stats().callbacks_waiting, 0);
    });
}

#[test]
fn callbacks_of_all_cpus_run_and_barriers_wait_for_them() {
    in_own_process(|| {
        callbacks_and_barriers("");
        assert!(!NORMAL.stats().big);
    });
}

#[test]
fn a_domain_that_is_big_from_its_first_grace_period_works_as_well() {
    in_own_process(|| {
        callbacks_and_barriers("srcutree.convert_to_big=1 grange.rcu_fanout=2 rcutree.rcu_fanout_leaf=2");
        assert!(NORMAL.stats().big);
    });
}

#[test]
fn a_domain_becomes_big_when_it_is_contended() {
    in_own_process(|| {
        machine(4, "srcutree.small_contention_lim=1 rcutree.rcu_fanout_leaf=2", |cx| {
            let stop = Arc::<AtomicBool>::default();
            let threads: Vec<_> = (0..4)
                .map(|on| {
                    let stop = stop.clone();
                    spawn(cx, Some(on), move |cx| {
                        while !stop.load(Ordering::Relaxed) {
                            let _ = srcu_start_poll(&NORMAL);
                            sched::cond_resched(cx);
                        }
                    })
                })
                .collect();
            assert!(soon(cx, || NORMAL.stats().big));
            stop.store(true, Ordering::Relaxed);
            threads.into_iter().for_each(|thread| thread.join(cx));
            synchronize_srcu(&NORMAL, cx);
        });
    });
}

#[test]
fn domains_come_and_go() {
    in_own_process(|| {
        machine(2, "", |cx| {
            for round in 0..50 {
                let domain: SrcuOwner<Normal> = SrcuOwner::new("passing").expect("there is room");
                let count = Arc::new(AtomicUsize::new(0));
                if round % 3 == 0 {
                    domain.make_big();
                }
                drop(srcu_read_lock(&domain));
                synchronize_srcu(&domain, cx);
                for _ in 0..round {
                    queue(&domain, &count);
                }
                if round % 2 == 0 {
                    synchronize_srcu_expedited(&domain, cx);
                }
                srcu_barrier(&domain, cx);
                drop(domain);
                assert_eq!(count.load(Ordering::Relaxed), round);
            }
            assert_eq!(srcu::leaked(), 0);
        });
    });
}

#[test]
fn a_domain_that_is_dropped_in_use_stays() {
    in_own_process(|| {
        machine(2, "", |cx| {
            let make = || SrcuOwner::<Normal>::new("kept").expect("there is room");
            let domain = make();
            std::mem::forget(srcu_read_lock(&domain));
            drop(domain);
            assert_eq!(srcu::leaked(), 1);
            let domain = make();
            let count = Arc::new(AtomicUsize::new(0));
            queue(&domain, &count);
            drop(domain);
            assert_eq!(srcu::leaked(), 2);
            assert!(soon(cx, || count.load(Ordering::Relaxed) == 1));
            let domain = make();
            let _ = srcu_start_poll(&domain);
            drop(domain);
            assert_eq!(srcu::leaked(), 3);
        });
    });
}

#[test]
fn callbacks_of_a_cpu_that_goes_run_elsewhere() {
    in_own_process(|| {
        machine(2, "", |cx| {
            for _ in 0..10 {
                let count = Arc::new(AtomicUsize::new(0));
                let theirs = count.clone();
                spawn(cx, Some(1), move |_| {
                    let _irqs = IrqGuard::new(ATOMIC);
                    (0..100).for_each(|_| queue(&NORMAL, &theirs));
                })
                .join(cx);
                sched::cpu_off(CpuId::new(1), cx).unwrap();
                assert!(soon(cx, || count.load(Ordering::Relaxed) == 100));
                srcu_barrier(&NORMAL, cx);
                sched::cpu_on(CpuId::new(1), cx).unwrap();
            }
        });
    });
}

#[test]
fn a_flood_of_callbacks_expedites_its_domain() {
    in_own_process(|| {
        machine(2, "grange.srcu_flood=100 grange.srcu_flood_rate=1000000", |cx| {
            let stats = || NORMAL.stats();
            let count = Arc::new(AtomicUsize::new(0));
            // So that what comes next is not the first after a while.
            synchronize_srcu(&NORMAL, cx);
            let before = stats();
            (0..99).for_each(|_| queue(&NORMAL, &count));
            assert_eq!(stats().floods, before.floods);
            queue(&NORMAL, &count);
            assert_eq!(stats().floods, before.floods + 1);
            srcu_barrier(&NORMAL, cx);
            assert!(stats().expedited > before.expedited);
        });
    });
}

#[test]
fn a_callback_whose_grace_period_was_an_instant_runs_when_threads_do() {
    in_own_process(|| {
        let (count, ours) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (early, late) = (count.clone(), ours.clone());
        let before = |cx: &mut MaySleep| {
            queue(&NORMAL, &early);
            synchronize_srcu(&NORMAL, cx);
            rcu::init(cx);
        };
        machine_with(1, before, |cx| {
            assert!(soon(cx, || count.load(Ordering::Relaxed) == 1), "nobody runs the callback");
            queue(&NORMAL, &late);
            srcu_barrier(&NORMAL, cx);
            assert_eq!(ours.load(Ordering::Relaxed), 1);
        });
    });
}

#[test]
fn an_instant_inside_a_section_is_no_grace_period() {
    in_own_process(|| {
        let before = |cx: &mut MaySleep| {
            let section = srcu_read_lock(&NORMAL);
            synchronize_srcu(&NORMAL, cx);
            drop(section);
            rcu::init(cx);
        };
        let stopped = try_machine_with(1, before, |_| ());
        let said = format!("{stopped:?}");
        assert!(said.contains("MODE-1"), "{said}");
    });
}
