//! RCU on the hosted machine: OS threads are CPUs, signals are interrupts.
//!
//! Each test has a process and a machine of its own. What runs in a machine allocates through `HostAlloc` and prints
//! nothing.

#[path = "../../sched/tests/machine/mod.rs"]
mod machine;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arch::hosted::in_own_process;
use arch::{CpuId, clock, cpu, irq};
use grange_rcu::{
    self as rcu, Rcu, RcuBox, call_rcu, rcu_barrier, read_lock, synchronize_rcu, synchronize_rcu_expedited,
};
use machine::{machine_with, spawn, try_machine_with};
use sched::{self, Prio};
use sync::callback::CallbackHead;
use sync::{ATOMIC, IrqGuard, MaySleep, PreemptGuard};

const MS: u64 = 1_000_000;
/// Boots a machine with RCU and runs `body` as its boot thread.
fn machine(cpus: usize, cmdline: &'static str, body: impl FnOnce(&mut MaySleep) + Send) {
    sync::param::parse(cmdline).expect("the tests' own command line");
    machine_with(cpus, up, body);
}

/// Brings RCU up, to the end of the boot.
fn up(cx: &mut MaySleep) {
    rcu::init(cx);
    rcu::boot_ended();
}

/// Waits until `cond`, at most 20 s; true if it came.
fn soon(cx: &mut MaySleep, cond: impl Fn() -> bool) -> bool {
    let until = clock::now_ns() + 20_000 * MS;
    while !cond() && clock::now_ns() < until {
        sched::sleep_ns(cx, MS);
    }
    cond()
}

/// A callback that counts.
#[repr(C)]
struct Counted {
    head: CallbackHead,
    count: Arc<AtomicUsize>,
}

/// Queues a callback that adds one to `count`.
fn queue(count: &Arc<AtomicUsize>) {
    unsafe fn func(head: *mut CallbackHead) {
        // SAFETY: queued below, the head is first, and it is ours again.
        let counted = unsafe { Box::from_raw(head.cast::<Counted>()) };
        counted.count.fetch_add(1, Ordering::Relaxed);
    }
    let counted = Box::new(Counted { head: CallbackHead::new(), count: count.clone() });
    // SAFETY: leaked to the callback.
    unsafe { call_rcu(Box::into_raw(counted).cast(), func) };
}

#[test]
fn grace_periods_pass_on_one_idle_cpu() {
    in_own_process(|| {
        machine(1, "", |cx| {
            for _ in 0..400 {
                synchronize_rcu(cx); // passes the wrap of the counter at 300
            }
        });
    });
}

#[test]
fn grace_periods_pass_on_four_cpus_with_a_deep_tree() {
    in_own_process(|| {
        machine(4, "grange.rcu_fanout=2 rcutree.rcu_fanout_leaf=2", |cx| {
            for _ in 0..100 {
                synchronize_rcu(cx);
                synchronize_rcu_expedited(cx);
            }
        });
    });
}

#[test]
fn fan_outs_that_no_tree_can_have_are_refused_in_one_line() {
    in_own_process(|| {
        for (cmdline, line) in [
            ("grange.rcu_fanout=1", r#"bad value "1" for "grange.rcu_fanout": allowed is a number from 2 to 64"#),
            (
                "rcutree.rcu_fanout_leaf=65",
                r#"bad value "65" for "rcutree.rcu_fanout_leaf": allowed is a number from 2 to 64"#,
            ),
        ] {
            assert_eq!(sync::param::parse(cmdline).unwrap_err().to_string(), line);
        }
    });
}

#[test]
fn grace_periods_pass_on_a_tree_that_is_filled_up() {
    in_own_process(|| {
        machine(5, "grange.rcu_fanout=2 rcutree.rcu_fanout_leaf=4 rcutree.rcu_fanout_exact", |cx| {
            let leaves = rcu::node_stats().filter(|node| node.level == 1);
            let spans: Vec<_> = leaves.map(|leaf| (leaf.first_cpu, leaf.last_cpu)).collect();
            assert_eq!(spans, [(0, 3), (4, 4)]);
            for _ in 0..20 {
                synchronize_rcu(cx);
                synchronize_rcu_expedited(cx);
            }
        });
    });
}

/// How many normal and expedited grace periods pass in `f`.
fn passed(f: impl FnOnce()) -> (u64, u64) {
    let before = rcu::stats();
    f();
    let after = rcu::stats();
    (after.gps - before.gps, after.exp_gps - before.exp_gps)
}

/// In builds that do not check, too: else safe code could free what it is reading.
#[test]
fn no_wait_inside_a_reader_returns() {
    in_own_process(|| {
        let inside = |cx: &mut MaySleep| {
            let _quickly = rcu::expedite();
            let _reader = read_lock(ATOMIC);
            synchronize_rcu(cx);
        };
        let stopped = format!("{:?}", try_machine_with(2, up, inside));
        assert!(stopped.contains("MODE-2"), "{stopped}");
    });
}

#[test]
fn before_there_are_threads_an_instant_is_a_grace_period() {
    in_own_process(|| {
        let before = |cx: &mut MaySleep| {
            for wait in [synchronize_rcu, synchronize_rcu_expedited] {
                // Past the wrap of the counter.
                for _ in 0..200 {
                    let (short, full) = (rcu::get_state(), rcu::get_state_full());
                    assert!(!rcu::poll(short) && !rcu::poll(full));
                    wait(cx);
                    assert!(rcu::poll(short) && rcu::poll(full));
                }
            }
            up(cx);
        };
        machine_with(2, before, |cx| {
            let count = Arc::new(AtomicUsize::new(0));
            queue(&count);
            let cookie = rcu::get_state_full();
            // Also ends what `init` has begun, which would count below.
            rcu_barrier(cx);
            assert_eq!(count.load(Ordering::Relaxed), 1);
            assert!(rcu::poll(cookie));
            assert_eq!(passed(|| synchronize_rcu(cx)), (1, 0));
        });
    });
}

#[test]
fn grace_periods_are_expedited_until_the_boot_ends() {
    in_own_process(|| {
        machine_with(2, rcu::init, |cx| {
            assert_eq!(passed(|| synchronize_rcu(cx)), (0, 1));
            rcu::boot_ended();
            rcu::boot_ended();
            assert_eq!(passed(|| synchronize_rcu(cx)), (1, 0));
            assert_eq!(passed(|| synchronize_rcu_expedited(cx)), (0, 1));
        });
    });
}

/// With `cmdline`, checks what the two ways to wait wait for, while the machine boots and after.
fn check_kinds(cmdline: &'static str, booting: (u64, u64), booted: (u64, u64)) {
    sync::param::parse(cmdline).expect("the tests' own command line");
    machine_with(2, rcu::init, |cx| {
        for expected in [booting, booted] {
            assert_eq!(passed(|| synchronize_rcu(cx)), expected);
            assert_eq!(passed(|| synchronize_rcu_expedited(cx)), expected);
            rcu::boot_ended();
        }
    });
}

#[test]
fn rcu_expedited_makes_every_wait_expedited() {
    in_own_process(|| check_kinds("rcupdate.rcu_expedited", (0, 1), (0, 1)));
}

#[test]
fn rcu_normal_wins_over_rcu_expedited() {
    in_own_process(|| check_kinds("rcupdate.rcu_normal rcupdate.rcu_expedited", (1, 0), (1, 0)));
}

#[test]
fn rcu_normal_after_boot_allows_expedited_ones_until_then() {
    in_own_process(|| check_kinds("rcupdate.rcu_normal_after_boot", (0, 1), (1, 0)));
}

#[test]
fn a_reader_from_before_the_grace_period_delays_it() {
    in_own_process(|| {
        machine(2, "", |cx| {
            let state = Arc::new((AtomicBool::new(false), AtomicBool::new(false)));
            let theirs = state.clone();
            let reader = spawn(cx, Some(1), move |cx| {
                let guard = read_lock(cx);
                theirs.0.store(true, Ordering::SeqCst);
                while !theirs.1.load(Ordering::SeqCst) {
                    irq::relax();
                }
                drop(guard);
            });
            assert!(soon(cx, || state.0.load(Ordering::SeqCst)));
            let count = Arc::new(AtomicUsize::new(0));
            queue(&count);
            let cookie = rcu::start_poll();
            sched::sleep_ns(cx, 100 * MS);
            assert_eq!(count.load(Ordering::Relaxed), 0);
            assert!(!rcu::poll(cookie));
            state.1.store(true, Ordering::SeqCst);
            assert!(soon(cx, || count.load(Ordering::Relaxed) == 1));
            assert!(soon(cx, || rcu::poll(cookie)));
            reader.join(cx);
        });
    });
}

#[test]
fn callbacks_of_all_cpus_run_and_a_barrier_waits_for_them() {
    in_own_process(|| {
        machine(4, "", |cx| {
            for round in 0..5 {
                let count = Arc::new(AtomicUsize::new(0));
                let threads: Vec<_> = (0..4)
                    .map(|on| {
                        let count = count.clone();
                        spawn(cx, Some(on), move |cx| {
                            for i in 0..500 {
                                if (i + round) % 2 == 0 {
                                    let _off = IrqGuard::new(&*cx);
                                    queue(&count);
                                } else {
                                    queue(&count);
                                }
                            }
                        })
                    })
                    .collect();
                threads.into_iter().for_each(|thread| thread.join(cx));
                rcu_barrier(cx);
                assert_eq!(count.load(Ordering::Relaxed), 2000);
            }
        });
    });
}

/// Stages of the pipe: so many grace periods an element is kept after it was replaced.
const STAGES: usize = 10;

/// What the pipe's threads share.
struct Pipe {
    /// The element that readers find: the number of grace periods since it was replaced.
    current: Rcu<Arc<AtomicUsize>>,
    stop: AtomicBool,
    /// Sections by the age of their element at their end.
    ages: [AtomicU64; STAGES + 1],
}

/// Reads until told to stop; sections are short for the most part, and at times longer than a slice, so that they are
/// preempted.
fn pipe_reader(pipe: &Pipe, mut turn: u32) {
    while !pipe.stop.load(Ordering::Relaxed) {
        turn = turn.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let long = turn >> 26 == 0;
        let off = (!long && turn & 0x3000 == 0).then(|| PreemptGuard::new(ATOMIC));
        let guard = read_lock(ATOMIC);
        let age = pipe.current.read(&guard).expect("never null");
        let ns = if long { 20 * MS } else { u64::from(turn >> 20) };
        let end = clock::now_ns() + ns;
        while clock::now_ns() < end {
            irq::relax();
        }
        let age = age.load(Ordering::Relaxed).min(STAGES);
        drop(guard);
        drop(off);
        pipe.ages[age].fetch_add(1, Ordering::Relaxed);
    }
}

/// Replaces elements for `ns`, and makes the replaced ones a grace period older after each `wait`; returns how often.
fn pipe_updater(cx: &mut MaySleep, pipe: &Pipe, ns: u64, wait: fn(&mut MaySleep)) -> u64 {
    let until = clock::now_ns() + ns;
    let mut turns = 0;
    let fresh = || Arc::new(AtomicUsize::new(0));
    let mut current = fresh();
    pipe.current.replace(Some(RcuBox::new(current.clone()))).expect("never null").retire();
    let mut old = Vec::new();
    // And longer, where the host is slow.
    while clock::now_ns() < until || turns <= 10 {
        let next = fresh();
        let retired = pipe.current.replace(Some(RcuBox::new(next.clone()))).expect("never null");
        old.push((retired, std::mem::replace(&mut current, next)));
        wait(cx);
        turns += 1;
        let older = |(retired, age): (rcu::Retired<Arc<AtomicUsize>>, Arc<AtomicUsize>)| {
            if age.fetch_add(1, Ordering::Relaxed) + 1 < STAGES {
                return Some((retired, age));
            }
            retired.retire();
            None
        };
        old = old.into_iter().filter_map(older).collect();
    }
    old.into_iter().for_each(|(retired, _)| retired.retire());
    turns
}

/// First one reader a CPU, which runs most of the time; then three, which are preempted most of the time.
fn run_pipe(wait: fn(&mut MaySleep)) {
    machine(3, "", |cx| {
        for readers in [3_usize, 9] {
            let pipe = Arc::new(Pipe {
                current: Rcu::new(RcuBox::new(Arc::new(AtomicUsize::new(0)))),
                stop: AtomicBool::new(false),
                ages: [const { AtomicU64::new(0) }; STAGES + 1],
            });
            let spawn_reader = |i| {
                let pipe = pipe.clone();
                spawn(cx, Some(i % 3), move |_| pipe_reader(&pipe, i as u32))
            };
            let readers: Vec<_> = (0..readers).map(spawn_reader).collect();
            let theirs = pipe.clone();
            let update = move |cx: &mut MaySleep| pipe_updater(cx, &theirs, 2_000 * MS, wait);
            let updater = sched::spawn(cx, "updater", Prio::HIGH, None, update);
            let turns = updater.expect("memory for a thread").join(cx);
            pipe.stop.store(true, Ordering::Relaxed);
            readers.into_iter().for_each(|reader| reader.join(cx));
            let ages: Vec<_> = pipe.ages.iter().map(|age| age.load(Ordering::Relaxed)).collect();
            assert!(turns > 10 && ages[0] > 100, "{turns} grace periods, {ages:?}");
            assert!(ages[1..].iter().all(|&n| n == 0), "too old after {turns} grace periods: {ages:?}");
            rcu_barrier(cx);
        }
    });
}

#[test]
fn no_reader_outlasts_a_grace_period() {
    in_own_process(|| run_pipe(synchronize_rcu));
}

#[test]
fn no_reader_outlasts_an_expedited_grace_period() {
    in_own_process(|| run_pipe(synchronize_rcu_expedited));
}

#[test]
fn a_reader_that_ends_with_interrupts_off_does_not_hold_the_grace_period() {
    in_own_process(|| {
        machine(2, "", |cx| {
            for round in 0..20 {
                let state = Arc::new(AtomicUsize::new(0));
                let theirs = state.clone();
                let reader = spawn(cx, Some(1), move |_| {
                    let guard = read_lock(ATOMIC);
                    theirs.store(1, Ordering::SeqCst);
                    // Long enough to be preempted by the rival, so that the thread is queued as blocked.
                    while theirs.load(Ordering::SeqCst) < 2 {
                        irq::relax();
                    }
                    let off = IrqGuard::new(ATOMIC);
                    drop(guard);
                    drop(off);
                    while theirs.load(Ordering::SeqCst) < 3 {
                        irq::relax();
                    }
                });
                assert!(soon(cx, || state.load(Ordering::SeqCst) == 1));
                let rival = spawn(cx, Some(1), move |cx| sched::sleep_ns(cx, MS));
                rival.join(cx);
                let cookie = rcu::start_poll();
                state.store(2, Ordering::SeqCst);
                if round % 2 == 0 {
                    synchronize_rcu(cx);
                } else {
                    synchronize_rcu_expedited(cx);
                }
                assert!(soon(cx, || rcu::poll(cookie)));
                state.store(3, Ordering::SeqCst);
                reader.join(cx);
            }
        });
    });
}

/// Interrupts of any kind that `cpu` has taken.
fn interrupts(cpu: CpuId) -> u64 {
    (0..=255).map(|vector| sync::irq::count(cpu, vector)).sum()
}

#[test]
fn idle_cpus_are_not_woken_by_grace_periods() {
    in_own_process(|| {
        machine(8, "", |cx| {
            let per_gp = spawn(cx, Some(0), |cx| {
                sched::sleep_ns(cx, 100 * MS);
                let all = || cpu::online().iter().map(interrupts).sum::<u64>();
                let (before, idle) = (all(), rcu::stats().idle_at_start);
                for _ in 0..50 {
                    synchronize_rcu(cx);
                    synchronize_rcu_expedited(cx);
                }
                assert!(rcu::stats().idle_at_start >= idle + 250, "CPUs are not found idle");
                (all() - before) / 50
            });
            // The wake-ups of the grace-period thread and of the waiter, the thread's alarm, and a self-interrupt where
            // the last report may not wake. To wake the idle CPUs would be six more of each kind.
            let per_gp = per_gp.join(cx);
            assert!(per_gp <= 6, "{per_gp} interrupts for two grace periods");
        });
    });
}

#[test]
fn a_leaf_whose_cpus_have_all_gone_holds_nothing_up_but_its_readers() {
    in_own_process(|| {
        machine(4, "grange.rcu_fanout=2 rcutree.rcu_fanout_leaf=2", |cx| {
            let far = [2, 3].map(CpuId::new);
            for round in 0..10 {
                let (ran, state) = (Arc::<AtomicUsize>::default(), Arc::<(AtomicBool, AtomicBool)>::default());
                let (theirs, theirs_too) = (state.clone(), ran.clone());
                let reader = spawn(cx, Some(3), move |cx| {
                    for _ in 0..100 {
                        queue(&theirs_too);
                    }
                    let guard = read_lock(cx);
                    theirs.0.store(true, Ordering::SeqCst);
                    while !theirs.1.load(Ordering::SeqCst) {
                        irq::relax();
                    }
                    drop(guard);
                });
                assert!(soon(cx, || state.0.load(Ordering::SeqCst)));
                far.iter().for_each(|&cpu| sched::cpu_off(cpu, cx).unwrap());
                assert!(rcu::cpu_stats().filter(|cpu| far.contains(&cpu.cpu)).all(|cpu| !cpu.online && !cpu.watched));
                let (ended, theirs) = (Arc::<AtomicBool>::default(), state.clone());
                let end = ended.clone();
                let updater = spawn(cx, None, move |cx| {
                    if round % 2 == 0 {
                        synchronize_rcu(cx)
                    } else {
                        synchronize_rcu_expedited(cx)
                    }
                    end.store(true, Ordering::SeqCst);
                    theirs.1.load(Ordering::SeqCst)
                });
                sched::sleep_ns(cx, 20 * MS);
                assert!(!ended.load(Ordering::SeqCst), "the reader is still in its section");
                state.1.store(true, Ordering::SeqCst);
                assert!(updater.join(cx));
                reader.join(cx);
                rcu_barrier(cx);
                assert_eq!(ran.load(Ordering::Relaxed), 100);
                synchronize_rcu(cx);
                synchronize_rcu_expedited(cx);
                far.iter().for_each(|&cpu| sched::cpu_on(cpu, cx).unwrap());
            }
        });
    });
}
