//! The watchdog of CPUs: a timer that beats on each, and looks at its own CPU and at the next.
//!
//! *Its own CPU* takes interrupts, or the timer would not run. Whether it schedules is found out by wanting a reschedule
//! at each beat: a beat that finds the wish of the one before still there, and the same thread without a switch in
//! between, has seen no schedule. An idle CPU, whose idle thread runs no softirq, is well.
//!
//! *The next CPU online* is well if it has beaten since the last look. If it has not for as long as the limit, an NMI asks
//! it where it is. A CPU whose interrupts are on and that still takes no timer interrupt has lost its clock event; one
//! whose interrupts are off is stuck. So that two stuck neighbours are both found, those behind a silent CPU are looked at
//! as well, up to the first that beats.
//!
//! Invariant `WATCH-2`: what is in a [`Cell`] here is used by its own CPU only, in its timer interrupt or with interrupts
//! off.
//!
//! Contexts: [`beat`] in hardirq context. Linux: `watchdog_timer_fn` in `kernel/watchdog.c`, `kernel/watchdog_buddy.c`.

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::{CpuId, clock, cpu};
use sync::context;
use sync::{ATOMIC, IrqGuard, smp};

use super::pace::{Incident, Pace};
use super::report::{Seconds, evidence, locks_of_cpu, locks_of_thread, report};
use super::{Kind, limits};
use crate::ask::{self, Activity, Frames};
use crate::notifier::{self, Notifier, Order};
use crate::thread::{Thread, current};
use crate::timer::{self, Timer};

/// Beats in `watchdog_thresh`.
const BEATS: u64 = 4;

/// Questions before a CPU whose interrupts are off in all of them counts as stuck, and not its clock event as lost.
const QUESTIONS: usize = 3;

/// What a CPU keeps for the watchdog.
struct Watch {
    timer: Timer,
    /// Beats since boot. Written by this CPU, read by the one before it.
    beats: AtomicU64,
    /// When the last one was, 0 before the first. As above.
    last_ns: AtomicU64,
    /// The latest that one has come since boot. As above, for the shell.
    worst_ns: AtomicU64,
    /// Since the CPU was last seen to schedule.
    unscheduled: Cell<Pace>,
    soft: Cell<Incident>,
    /// Who ran at the last beat, and its switches.
    ran: Cell<(u64, u64)>,
    /// Since the next CPU was last seen to beat.
    unheard: Cell<Pace>,
    hard: Cell<Incident>,
    /// That CPU, and its beats at the last look.
    heard: Cell<(Option<CpuId>, u64)>,
}

arch::per_cpu! {
    static WATCH: Watch = Watch {
        timer: Timer::new(beat),
        beats: AtomicU64::new(0),
        last_ns: AtomicU64::new(0),
        worst_ns: AtomicU64::new(0),
        unscheduled: Cell::new(Pace::new()),
        soft: Cell::new(Incident::new()),
        ran: Cell::new((0, 0)),
        unheard: Cell::new(Pace::new()),
        hard: Cell::new(Incident::new()),
        heard: Cell::new((None, 0)),
    };
}

impl Watch {
    fn of(cpu: CpuId) -> &'static Watch {
        // SAFETY: areas of present CPUs live for ever; on other CPUs than its own only the atomics are used (WATCH-2).
        unsafe { &*WATCH.ptr_on(cpu) }
    }

    /// The caller is pinned.
    fn this() -> &'static Watch {
        Watch::of(cpu::current())
    }
}

/// A CPU's heartbeat, for the shell.
#[derive(Copy, Clone, Debug)]
pub struct Beat {
    /// Beats since boot.
    pub beats: u64,
    /// When the last one was; 0 if there was none.
    pub last_ns: u64,
    /// The latest that one came after its time.
    pub worst_late_ns: u64,
}

/// The heartbeat of a CPU.
///
/// Context: any.
pub fn beat_of(cpu: CpuId) -> Beat {
    let watch = Watch::of(cpu);
    Beat {
        beats: watch.beats.load(Ordering::Relaxed),
        last_ns: watch.last_ns.load(Ordering::Relaxed),
        worst_late_ns: watch.worst_ns.load(Ordering::Relaxed),
    }
}

static NOTIFIER: Notifier = Notifier::new("watchdog", Order::SCHED)
    .online(|cpu, _| smp::call_on(cpu, restart, 0, true))
    .dying(|_| _ = Watch::this().timer.cancel());

/// Context: boot, once.
pub(super) fn init() {
    notifier::register(&NOTIFIER);
}

/// Lets all CPUs beat at the present limits.
///
/// Context: task, interrupts on.
pub(super) fn restart_everywhere() {
    smp::call_all(restart, 0, true);
}

fn period_ns() -> u64 {
    limits().cpu_ns / BEATS
}

/// Begins to beat on this CPU, or ceases if there is no limit. Ages begin anew.
fn restart(_: usize) {
    let _off = IrqGuard::new(ATOMIC);
    let (watch, now) = (Watch::this(), clock::now_ns());
    let fresh = || {
        let mut pace = Pace::new();
        pace.restart(now);
        pace
    };
    watch.unscheduled.set(fresh());
    watch.unheard.set(fresh());
    watch.soft.set(Incident::new());
    watch.hard.set(Incident::new());
    watch.heard.set((None, 0));
    watch.ran.set((0, 0));
    match period_ns() {
        0 => _ = watch.timer.cancel(),
        period => _ = watch.timer.arm_at(now + period),
    }
}

/// A beat. The timer's function.
fn beat(_: &Timer) {
    let (watch, now, period) = (Watch::this(), clock::now_ns(), period_ns());
    if period == 0 {
        return;
    }
    watch.beats.fetch_add(1, Ordering::Relaxed);
    let late = now.saturating_sub(watch.last_ns.swap(now, Ordering::Relaxed)).saturating_sub(period);
    if watch.beats.load(Ordering::Relaxed) > 1 {
        watch.worst_ns.fetch_max(late, Ordering::Relaxed);
    }
    watch.timer.arm_at(now + period);
    look_at_this(watch, now, period);
    look_at_next(watch, now, period);
}

/// Does this CPU schedule?
fn look_at_this(watch: &Watch, now: u64, period: u64) {
    let thread = current();
    let ran = (thread.tid(), thread.voluntary_switches() + thread.involuntary_switches());
    let idle = thread.is_idle() && !context::in_softirq();
    let (mut pace, mut incident) = (watch.unscheduled.get(), watch.soft.get());
    if idle || watch.ran.replace(ran) != ran || !context::need_resched() {
        pace.restart(now);
        incident = Incident::new();
    } else {
        let age = pace.look(now, period);
        if incident.is_due(age, Kind::SoftLockup.limit_ns()) {
            report_soft(thread, age, pace, period);
        }
    }
    watch.unscheduled.set(pace);
    watch.soft.set(incident);
    if !idle {
        context::set_need_resched();
    }
}

fn report_soft(thread: &Thread, age: u64, pace: Pace, period: u64) {
    let here = cpu::current();
    let mut frames = Frames::new();
    arch::backtrace::current(&mut |ip| frames.push(ip));
    let (name, tid, s) = (thread.name(), thread.tid(), age / 1_000_000_000);
    report(
        Kind::SoftLockup,
        format_args!("watchdog: BUG: soft lockup - CPU#{here} stuck for {s}s! [{name}/{tid}]"),
        &|f| {
            write!(
                f,
                "\n  CPU {here} takes interrupts, but has not scheduled for {}: it runs {name}/{tid}",
                Seconds(age)
            )?;
            write!(f, "\n  under this interrupt: {}", context::state())?;
            locks_of_cpu(f, here)?;
            locks_of_thread(f, thread)?;
            evidence(f, &format_args!("the watchdog of CPU {here}"), pace.late_ns(), period)?;
            write!(f, "{frames}")
        },
    );
}

/// Does the next CPU beat?
fn look_at_next(watch: &Watch, now: u64, period: u64) {
    let here = cpu::current();
    let next = next_online(here, here);
    let heard = (next, next.map_or(0, |next| Watch::of(next).beats.load(Ordering::Relaxed)));
    let (mut pace, mut incident) = (watch.unheard.get(), watch.hard.get());
    if watch.heard.replace(heard) != heard || next.is_none_or(|next| beat_of(next).last_ns == 0) {
        pace.restart(now);
        incident = Incident::new();
    } else {
        let age = pace.look(now, period);
        if incident.is_due(age, Kind::HardLockup.limit_ns()) {
            let mut silent = next;
            while let Some(other) = silent {
                report_silent(other, pace, period);
                silent = next_online(other, here).filter(|&behind| is_silent(behind, now, age));
            }
        }
    }
    watch.unheard.set(pace);
    watch.hard.set(incident);
}

/// The CPU online behind `cpu`, in a circle; `None` when that is `end`.
fn next_online(cpu: CpuId, end: CpuId) -> Option<CpuId> {
    let online = cpu::online();
    let behind = online.iter().find(|other| other.index() > cpu.index());
    behind.or_else(|| online.iter().next()).filter(|&next| next != end && next != cpu)
}

fn is_silent(cpu: CpuId, now: u64, age: u64) -> bool {
    let last = beat_of(cpu).last_ns;
    last != 0 && now.saturating_sub(last) >= age
}

/// `cpu` has not beaten for longer than it may: finds out why.
fn report_silent(cpu: CpuId, pace: Pace, period: u64) {
    let mut answer = None;
    for _ in 0..QUESTIONS {
        answer = ask::where_is(cpu);
        if answer.is_none_or(|answer| answer.activity.irqs_on) {
            break;
        }
    }
    let (here, now) = (cpu::current(), clock::now_ns());
    let last = beat_of(cpu).last_ns;
    let silent = Seconds(now.saturating_sub(last));
    let tell = |f: &mut core::fmt::Formatter<'_>, what: &str| {
        write!(f, "\n  CPU {cpu} has not beaten for {silent}, since {} after boot: {what}", Seconds(last))?;
        if let Some(answer) = answer {
            write!(f, "\n  it is in {}", answer.activity)?;
            locks_of_thread(f, answer.activity.thread)?;
        }
        locks_of_cpu(f, cpu)?;
        evidence(f, &format_args!("CPU {here}, which looks after it,"), pace.late_ns(), period)?;
        answer.map_or(Ok(()), |answer| write!(f, "{}", answer.frames))
    };
    match answer.map(|answer| answer.activity) {
        Some(Activity { irqs_on: true, thread, tid, .. }) => {
            let programmed = timer::programmed_on(cpu);
            let overdue = Seconds(now.saturating_sub(programmed));
            report(
                Kind::LostTimer,
                format_args!("watchdog: BUG: lost timer - CPU#{cpu} stuck for {silent}! [{}/{tid}]", thread.name()),
                &|f| {
                    tell(f, "it takes NMIs and its interrupts are on, but its timer interrupt does not come")?;
                    match programmed {
                        timer::NEVER => f.write_str("\n  its clock event is not programmed"),
                        _ => write!(f, "\n  its clock event is overdue for {overdue}"),
                    }
                },
            );
        }
        Some(_) => report(
            Kind::HardLockup,
            format_args!("watchdog: CPU{here}: Watchdog detected hard LOCKUP on cpu {cpu}"),
            &|f| tell(f, "its interrupts are off"),
        ),
        None => report(
            Kind::HardLockup,
            format_args!("watchdog: CPU{here}: Watchdog detected hard LOCKUP on cpu {cpu}"),
            &|f| tell(f, "it does not even answer an NMI"),
        ),
    }
}
