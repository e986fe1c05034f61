//! Timers under load: never early, none lost, none after it was taken back.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arch::{CpuId, clock, cpu, irq};
use sched::{Prio, Timer};
use sync::MaySleep;

use crate::{Failure, ensure, ensure_eq, ktest};

/// A millisecond in nanoseconds.
const MS: u64 = 1_000_000;

/// A timer that knows when it is due.
#[repr(C)]
struct Alarm {
    /// First, so that the timer's function can get from it to this.
    timer: Timer,
    due_ns: AtomicU64,
    fired: AtomicU32,
    early: AtomicU32,
}

impl Alarm {
    const fn new() -> Alarm {
        Alarm {
            timer: Timer::new(rings),
            due_ns: AtomicU64::new(0),
            fired: AtomicU32::new(0),
            early: AtomicU32::new(0),
        }
    }

    fn arm(&'static self, at_ns: u64) {
        self.due_ns.store(at_ns, Ordering::Relaxed);
        self.timer.arm_at(at_ns);
    }
}

fn rings(timer: &Timer) {
    // SAFETY: only `Alarm::timer` has this function; it is its first field.
    let alarm: &Alarm = unsafe { &*core::ptr::from_ref(timer).cast() };
    alarm.early.fetch_add(u32::from(clock::now_ns() < alarm.due_ns.load(Ordering::Relaxed)), Ordering::Relaxed);
    alarm.fired.fetch_add(1, Ordering::Relaxed);
}

/// Alarms that nothing uses any more, as new.
fn as_new(alarms: &[Alarm]) {
    for alarm in alarms {
        alarm.timer.cancel_sync();
        alarm.fired.store(0, Ordering::Relaxed);
        alarm.early.store(0, Ordering::Relaxed);
    }
}

fn spawn<T: Send + 'static>(
    cx: &mut MaySleep,
    on: CpuId,
    f: impl FnOnce(&mut MaySleep) -> T + Send + 'static,
) -> Result<sched::JoinHandle<T>, Failure> {
    sched::spawn(cx, "alarms", Prio::NORMAL, Some(on), f).map_err(|error| crate::__failed!("{error}"))
}

/// Arms all of `alarms` again and again, in any order; the number of those that were not seen to fire, and of the early.
fn arm_and_wait(cx: &mut MaySleep, alarms: &'static [Alarm], mut seed: u64) -> (u32, u32) {
    const ROUNDS: u32 = 20;
    for round in 1..=ROUNDS {
        let begin = clock::now_ns();
        for alarm in alarms {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            alarm.arm(begin + (seed >> 33) % (4 * MS));
        }
        let rest = || alarms.iter().filter(|alarm| alarm.fired.load(Ordering::Relaxed) < round).count();
        while rest() > 0 && clock::now_ns() - begin < 2_000 * MS {
            sched::sleep_ns(cx, MS);
        }
    }
    let missing = alarms.iter().map(|alarm| ROUNDS.abs_diff(alarm.fired.load(Ordering::Relaxed))).sum();
    (missing, alarms.iter().map(|alarm| alarm.early.load(Ordering::Relaxed)).sum())
}

ktest! {
    /// Fifty timers on each CPU, armed again and again while other threads keep all CPUs busy: each fires once a time, and none
    /// early (SCHED-11).
    #[tags(race)]
    #[budget_ms(60_000)]
    fn under_load_each_fires_once_and_none_early(t: &mut Test) {
        static ALARMS: [[Alarm; 50]; 8] = [const { [const { Alarm::new() }; 50] }; 8];
        let stop = Arc::new(AtomicBool::new(false));
        let (mut busy, mut armers) = (Vec::new(), Vec::new());
        for (cpu, alarms) in cpu::online().iter().zip(&ALARMS) {
            as_new(alarms);
            let stop = stop.clone();
            busy.push(spawn(t.cx, cpu, move |_| {
                while !stop.load(Ordering::Relaxed) {
                    irq::relax();
                }
            })?);
            let seed = t.rng.next_u64();
            armers.push(spawn(t.cx, cpu, move |cx| arm_and_wait(cx, alarms, seed))?);
        }
        let outcomes: Vec<_> = armers.into_iter().map(|armer| armer.join(t.cx)).collect();
        stop.store(true, Ordering::Relaxed);
        busy.into_iter().for_each(|thread| thread.join(t.cx));
        for (missing, early) in outcomes {
            ensure_eq!((missing, early), (0, 0), "timers that did not fire once, and early ones");
        }
        Ok(())
    }

    /// Timers that all CPUs arm, move and take back at once fire as often as they were armed and not taken back.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn shared_by_all_cpus_none_is_lost_and_none_fires_after_its_cancel(t: &mut Test) {
        const SHARED: usize = 8;
        static ALARMS: [Alarm; SHARED] = [const { Alarm::new() }; SHARED];
        as_new(&ALARMS);
        let mut threads = Vec::new();
        for cpu in cpu::online().iter() {
            let mut seed = t.rng.next_u64();
            threads.push(spawn(t.cx, cpu, move |cx| {
                // Times that this thread armed one that was not, less those that it took one back.
                let mut due = [0_i64; SHARED];
                for i in 0..1_500 {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let which = (seed >> 60) as usize % SHARED;
                    let timer = &ALARMS[which].timer;
                    if (seed >> 40).is_multiple_of(3) {
                        due[which] -= i64::from(timer.cancel());
                    } else {
                        due[which] += i64::from(!timer.arm_in((seed >> 33) % (MS / 2)));
                    }
                    if i % 50 == 0 {
                        sched::sleep_ns(cx, MS / 5);
                    }
                }
                due
            })?);
        }
        let mut due = [0_i64; SHARED];
        for thread in threads {
            due.iter_mut().zip(thread.join(t.cx)).for_each(|(sum, of_thread)| *sum += of_thread);
        }
        for (alarm, due) in ALARMS.iter().zip(due) {
            let due = due - i64::from(alarm.timer.cancel_sync());
            ensure_eq!(i64::from(alarm.fired.load(Ordering::Relaxed)), due);
        }
        Ok(())
    }

    /// After `cancel_sync` the memory is the owner's: its function does not run any more.
    #[tags(race)]
    #[budget_ms(30_000)]
    fn a_timer_is_freed_after_cancel_sync(t: &mut Test) {
        let mut fired = 0;
        for _ in 0..500 {
            let alarm = Box::new(Alarm::new());
            let ns = t.rng.next_u64() % (MS / 4);
            alarm.due_ns.store(clock::now_ns() + ns, Ordering::Relaxed);
            // SAFETY: it stays in its box until it is cancelled below.
            unsafe { alarm.timer.arm_at_raw(clock::now_ns() + ns) };
            let begin = clock::now_ns();
            while clock::now_ns() - begin < MS / 8 {
                irq::relax();
            }
            let was_armed = alarm.timer.cancel_sync();
            let rang = alarm.fired.load(Ordering::Relaxed);
            ensure_eq!(rang + u32::from(was_armed), 1);
            ensure_eq!(alarm.early.load(Ordering::Relaxed), 0);
            fired += rang;
        }
        ensure!(fired > 0, "none fired before it was cancelled");
        Ok(())
    }

    /// The report counts what is armed, and names the next.
    fn the_report_shows_what_is_armed(t: &mut Test) {
        static ALARM: Alarm = Alarm::new();
        let _pin = sync::PreemptGuard::new(&*t.cx);
        let at = clock::now_ns() + 3_600_000 * MS;
        ALARM.arm(at);
        let stat = sched::timer::stat_on(cpu::current());
        ALARM.timer.cancel();
        ensure!(stat.armed > 0 && stat.next_func.is_some());
        ensure!(stat.next_ns.is_some_and(|next| next <= at));
        Ok(())
    }
}
