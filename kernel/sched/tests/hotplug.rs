//! CPUs that go and come, sets of CPUs, and stopping all CPUs, on the hosted machine.

mod machine;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arch::hosted::in_own_process;
use arch::{CpuId, CpuMask, clock, cpu, irq};
use grange_sched as sched;
use machine::{machine_with, spawn};
use sched::hotplug::{self, HotplugError, Notifier, Order};
use sched::{
    AffinityError, Completion, MigrateGuard, Softirq, Timer, WorkItem, cpu_off, cpu_on, keep_cpus, park, set_affinity,
    stop_machine,
};
use sync::MaySleep;

const MS: u64 = 1_000_000;

/// Runs the test's body on a machine of its own. A macro, because the process is told by the test it is in.
macro_rules! on_machine {
    ($cpus:literal, $body:expr) => {
        in_own_process(|| machine_with($cpus, |_| (), $body))
    };
}

fn id(cpu: usize) -> CpuId {
    CpuId::new(cpu)
}

#[test]
fn a_cpu_goes_and_comes_again_and_again() {
    on_machine!(3, |cx: &mut MaySleep| {
        for round in 0..100 {
            let cpu = id(1 + round % 2);
            assert_eq!(cpu_off(cpu, cx), Ok(()));
            assert!(!cpu::is_online(cpu));
            assert_eq!(cpu_on(cpu, cx), Ok(()));
            assert!(cpu::is_online(cpu));
            assert_eq!(spawn(cx, Some(cpu.index()), |_| cpu::current()).join(cx), cpu);
        }
    });
}

#[test]
fn what_cannot_be_done_is_refused() {
    on_machine!(3, |cx| {
        assert_eq!(cpu_off(id(0), cx), Err(HotplugError::BootCpu));
        assert_eq!(cpu_off(id(9), cx), Err(HotplugError::NotPresent));
        assert_eq!(cpu_on(id(9), cx), Err(HotplugError::NotPresent));
        assert_eq!(cpu_on(id(1), cx), Err(HotplugError::IsOnline));
        let own = spawn(cx, Some(2), |cx| {
            let _here = MigrateGuard::new(&*cx);
            cpu_off(cpu::current(), cx)
        });
        assert_eq!(own.join(cx), Err(HotplugError::CallerStays));
        cpu_off(id(2), cx).unwrap();
        assert_eq!(cpu_off(id(2), cx), Err(HotplugError::IsOffline));
        let me = sched::current();
        assert_eq!(set_affinity(me, &CpuMask::EMPTY, cx), Err(AffinityError::Empty));
        assert_eq!(set_affinity(me, &CpuMask::of(id(2)), cx), Err(AffinityError::NoneOnline));
        assert_eq!(me.affinity(), CpuMask::of(id(0)), "nothing has changed");
    });
}

#[test]
fn notifiers_see_the_cpu_as_they_are_promised() {
    static SEEN: AtomicU32 = AtomicU32::new(0);
    static FAIL: AtomicBool = AtomicBool::new(false);
    static WATCH: Notifier = Notifier::new("watch", Order::USER)
        .prepare(|cpu, _| {
            assert!(!cpu::is_online(cpu));
            SEEN.fetch_add(1, Ordering::Relaxed);
            if FAIL.load(Ordering::Relaxed) { Err(HotplugError::NoMemory) } else { Ok(()) }
        })
        .online(|cpu, cx| {
            assert!(cpu::is_online(cpu));
            assert_eq!(spawn(cx, Some(cpu.index()), |_| cpu::current()).join(cx), cpu);
            SEEN.fetch_add(0x100, Ordering::Relaxed);
        })
        .dying(|cpu| {
            assert!(cpu == cpu::current() && !cpu::is_online(cpu) && !irq::enabled());
            SEEN.fetch_add(0x1_0000, Ordering::Relaxed);
        })
        .dead(|cpu, cx| {
            assert!(!cpu::is_online(cpu) && cpu::current() != cpu);
            // It does nothing, but is allowed.
            let _cpus = keep_cpus(cx);
            SEEN.fetch_add(0x100_0000, Ordering::Relaxed);
        });
    on_machine!(2, |cx| {
        hotplug::register(&WATCH);
        cpu_off(id(1), cx).unwrap();
        assert_eq!(SEEN.load(Ordering::Relaxed), 0x0101_0000);
        FAIL.store(true, Ordering::Relaxed);
        assert_eq!(cpu_on(id(1), cx), Err(HotplugError::NoMemory));
        assert!(!cpu::is_online(id(1)));
        FAIL.store(false, Ordering::Relaxed);
        cpu_on(id(1), cx).unwrap();
        assert_eq!(SEEN.load(Ordering::Relaxed), 0x0101_0102);
    });
}

#[test]
fn threads_of_a_cpu_that_goes_run_elsewhere() {
    on_machine!(3, |cx| {
        let stop = Arc::new(AtomicBool::new(false));
        let busy = |cx: &mut MaySleep, sleeps: bool| {
            let stop = stop.clone();
            spawn(cx, Some(2), move |cx| {
                while !stop.load(Ordering::Relaxed) {
                    if sleeps {
                        sched::sleep_ns(cx, MS / 10);
                    }
                    irq::relax();
                }
                (cpu::current(), sched::current().affinity())
            })
        };
        let threads = [busy(cx, false), busy(cx, false), busy(cx, true)];
        sched::sleep_ns(cx, MS);
        cpu_off(id(2), cx).unwrap();
        sched::sleep_ns(cx, 5 * MS);
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            let (ran_on, affinity) = thread.join(cx);
            assert_ne!(ran_on, id(2));
            assert_eq!(affinity, cpu::present());
        }
        // One that is born bound to it too.
        assert_ne!(spawn(cx, Some(2), |_| cpu::current()).join(cx), id(2));
    });
}

#[test]
fn a_cpu_waits_for_threads_that_stay() {
    on_machine!(3, |cx| {
        for _ in 0..20 {
            let thread = spawn(cx, Some(1), |cx| {
                let _here = MigrateGuard::new(&*cx);
                let here = cpu::current();
                sched::sleep_ns(cx, 2 * MS);
                assert_eq!(cpu::current(), here);
                assert!(cpu::is_online(here));
            });
            sched::sleep_ns(cx, MS / 2);
            cpu_off(id(1), cx).unwrap();
            thread.join(cx);
            cpu_on(id(1), cx).unwrap();
        }
    });
}

#[test]
fn timers_of_a_cpu_that_goes_expire_elsewhere_and_not_early() {
    static FIRED: AtomicU64 = AtomicU64::new(0);
    static ON: AtomicUsize = AtomicUsize::new(usize::MAX);
    static TIMERS: [Timer; 50] = [const {
        Timer::new(|_| {
            FIRED.fetch_add(1, Ordering::Relaxed);
            ON.store(cpu::current().index(), Ordering::Relaxed);
        })
    }; 50];
    on_machine!(2, |cx| {
        let until = clock::now_ns() + 50 * MS;
        spawn(cx, Some(1), move |_| TIMERS.iter().for_each(|timer| assert!(!timer.arm_at(until)))).join(cx);
        cpu_off(id(1), cx).unwrap();
        while clock::now_ns() < until - MS {
            assert!(FIRED.load(Ordering::Relaxed) == 0 || clock::now_ns() >= until, "early");
            sched::sleep_ns(cx, MS);
        }
        while FIRED.load(Ordering::Relaxed) < 50 {
            sched::sleep_ns(cx, MS);
        }
        assert_eq!(ON.load(Ordering::Relaxed), 0);
        cpu_on(id(1), cx).unwrap();
    });
}

#[test]
fn a_softirq_that_a_cpu_has_not_got_round_to_runs_elsewhere() {
    static RAN: AtomicU32 = AtomicU32::new(0);
    static RAISES: Notifier = Notifier::new("raises", Order::USER).dying(|_| sched::softirq::raise_lazy(Softirq::Test));
    on_machine!(2, |cx| {
        sched::softirq::register(Softirq::Test, || {
            // Never done there.
            match cpu::current().index() {
                1 => sched::softirq::raise_lazy(Softirq::Test),
                _ => _ = RAN.fetch_add(1, Ordering::Relaxed),
            }
        });
        hotplug::register(&RAISES);
        cpu_off(id(1), cx).unwrap();
        while RAN.load(Ordering::Relaxed) == 0 {
            sched::sleep_ns(cx, MS);
        }
        assert_eq!(sched::softirq::pending_on(id(1)), 0);
        cpu_on(id(1), cx).unwrap();
    });
}

#[test]
fn a_per_cpu_thread_is_back_on_its_cpu_when_that_is() {
    on_machine!(3, |cx| {
        for round in 0..20 {
            let cpu = id(1 + round % 2);
            cpu_off(cpu, cx).unwrap();
            cpu_on(cpu, cx).unwrap();
            let mut own = 0;
            sched::thread::for_each(|thread| {
                let name = thread.name();
                let ours = ["kworker/", "ksoftirqd/", "migration/"].map(|what| format!("{what}{cpu}"));
                if ours.iter().any(|ours| name.as_str() == ours || name.as_str().starts_with(&format!("{ours}:"))) {
                    own += 1;
                    assert_eq!(thread.affinity(), CpuMask::of(cpu), "{thread:?}");
                }
            });
            assert!(own >= 3, "{own} threads of CPU {cpu}");
        }
    });
}

#[test]
fn a_running_thread_leaves_a_cpu_at_once_when_it_may_not_use_it() {
    on_machine!(3, |cx| {
        let stop = Arc::new(AtomicBool::new(false));
        let over = stop.clone();
        let allowed = Arc::new(AtomicUsize::new(usize::MAX));
        let now = allowed.clone();
        let thread = spawn(cx, None, move |cx| {
            let mut wrong = 0;
            while !over.load(Ordering::Relaxed) {
                let _pin = sync::PreemptGuard::new(&*cx);
                let at = now.load(Ordering::Acquire);
                wrong += u64::from(at != usize::MAX && at != cpu::current().index());
            }
            wrong
        });
        for round in 0..100 {
            let to = 1 + round % 2;
            allowed.store(usize::MAX, Ordering::Release);
            // Nobody relies on the old place once the thread has looked again.
            set_affinity(thread.thread(), &CpuMask::of(id(to)), cx).unwrap();
            allowed.store(to, Ordering::Release);
            // Time to be seen on the wrong one.
            sched::sleep_ns(cx, MS / 10);
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(thread.join(cx), 0);
    });
}

#[test]
fn a_thread_that_stays_moves_when_it_stays_no_longer() {
    on_machine!(2, |cx| {
        let step = Arc::new(AtomicUsize::new(0));
        let theirs = step.clone();
        let thread = spawn(cx, Some(1), move |cx| {
            let guard = MigrateGuard::new(&*cx);
            theirs.store(1, Ordering::Relaxed);
            while theirs.load(Ordering::Relaxed) == 1 {
                sched::sleep_ns(cx, MS / 10);
                assert_eq!(cpu::current(), id(1));
            }
            drop(guard);
            cpu::current()
        });
        while step.load(Ordering::Relaxed) == 0 {
            sched::sleep_ns(cx, MS / 10);
        }
        set_affinity(thread.thread(), &CpuMask::of(id(0)), cx).unwrap();
        sched::sleep_ns(cx, MS);
        step.store(2, Ordering::Relaxed);
        assert_eq!(thread.join(cx), id(0));
    });
}

#[test]
fn the_machine_stands_still_while_a_function_runs() {
    on_machine!(4, |cx| {
        let stop = Arc::new(AtomicBool::new(false));
        let counts: Arc<[AtomicU64; 4]> = Arc::new([const { AtomicU64::new(0) }; 4]);
        let threads: Vec<_> = (0..4)
            .map(|cpu| {
                let (stop, counts) = (stop.clone(), counts.clone());
                spawn(cx, Some(cpu), move |_| {
                    while !stop.load(Ordering::Relaxed) {
                        counts[cpu].fetch_add(1, Ordering::Relaxed);
                        irq::relax();
                    }
                })
            })
            .collect();
        let all = || counts.iter().map(|count| count.load(Ordering::Relaxed)).sum::<u64>();
        for round in 0..50 {
            let ran = AtomicU32::new(0);
            let mask = CpuMask::first_n(1 + round % 4);
            stop_machine(cx, &mask, |here| {
                assert!(mask.contains(here) && here == cpu::current() && !irq::enabled());
                let before = all();
                clock::udelay(20);
                assert_eq!(all(), before, "somebody ran");
                ran.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(ran.load(Ordering::Relaxed) as usize, mask.count());
        }
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|thread| thread.join(cx));
    });
}

#[test]
fn a_parked_thread_stands_still_until_it_is_told_to_go_on() {
    on_machine!(2, |cx| {
        let (turns, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (theirs, end) = (turns.clone(), over.clone());
        let thread = spawn(cx, Some(1), move |cx| {
            while !end.load(Ordering::Relaxed) {
                if park::should_park() {
                    park::park_me(cx);
                }
                theirs.fetch_add(1, Ordering::Relaxed);
                sched::sleep_ns(cx, MS / 50);
            }
        });
        for _ in 0..20 {
            park::park(thread.thread(), cx);
            let at = turns.load(Ordering::Relaxed);
            // A wake-up that is meant for something else.
            sched::wake(thread.thread());
            sched::sleep_ns(cx, MS / 2);
            assert_eq!(turns.load(Ordering::Relaxed), at, "it goes on while it is parked");
            park::unpark(thread.thread());
            while turns.load(Ordering::Relaxed) == at {
                sched::sleep_ns(cx, MS / 10);
            }
        }
        over.store(true, Ordering::Relaxed);
        thread.join(cx);
    });
}

#[test]
fn who_keeps_the_cpus_holds_a_controller_up() {
    on_machine!(2, |cx| {
        let kept = Arc::new(AtomicBool::new(false));
        let theirs = kept.clone();
        let keeper = spawn(cx, Some(0), move |cx| {
            let outer = keep_cpus(cx);
            theirs.store(true, Ordering::Relaxed);
            sched::sleep_ns(cx, 3 * MS);
            // Nests though somebody waits.
            let inner = keep_cpus(cx);
            assert!(cpu::is_online(id(1)));
            drop((inner, outer));
        });
        while !kept.load(Ordering::Relaxed) {
            sched::sleep_ns(cx, MS / 10);
        }
        cpu_off(id(1), cx).unwrap();
        keeper.join(cx);
    });
}

#[test]
fn a_cpu_waits_for_a_work_item_that_stays_on_it() {
    static GATE: Completion = Completion::new();
    static BEGUN: Completion = Completion::new();
    static STAYED: AtomicBool = AtomicBool::new(false);
    static ITEM: WorkItem = WorkItem::new(|_, cx| {
        let _here = MigrateGuard::new(&*cx);
        BEGUN.complete();
        GATE.wait(cx);
        STAYED.store(cpu::current() == id(1) && cpu::is_online(id(1)), Ordering::Relaxed);
    });
    on_machine!(3, |cx| {
        assert!(sched::queue_work_on(id(1), &ITEM));
        BEGUN.wait(cx);
        let controller = spawn(cx, Some(0), |cx| cpu_off(id(1), cx));
        // It waits for longer than the CPU would take to go.
        sched::sleep_ns(cx, 200 * MS);
        let waits = !controller.is_finished();
        GATE.complete();
        assert_eq!(controller.join(cx), Ok(()));
        assert!(waits, "CPU 1 went under a MigrateGuard");
        ITEM.flush(cx);
        assert!(STAYED.load(Ordering::Relaxed), "the item was elsewhere in the end");
        assert_eq!(cpu_on(id(1), cx), Ok(()));
    });
}
