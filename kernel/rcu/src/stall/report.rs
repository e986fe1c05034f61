//! What a stall report says, who is told of it, and how often there was one.
//!
//! One record of several lines: the first in Linux's wording, for tools that look for it, the rest in sentences.

use core::fmt::{self, Display, Formatter};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use arch::{CpuId, clock, cpu};
use sched::ask::{self, Frames};
use sched::trace::{NotAtRest, backtrace_of};
use sched::{State, Thread};

use super::{Awaited, awaited, clock as stall_clock, limits, notes, thread};
use crate::config::PANIC_ON_STALL;
use crate::cpu::shared;
use crate::mode::Kind;
use crate::seq::Seq;
use crate::stats::node_stats;
use crate::{fqs, gp};

/// Reports so far, in earnest and as drills.
static COUNTS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Reports so far: in earnest, and as drills. Context: any.
pub fn reports() -> (u64, u64) {
    (COUNTS[0].load(Ordering::Relaxed), COUNTS[1].load(Ordering::Relaxed))
}

/// A grace period that takes too long.
#[derive(Clone, Debug)]
pub struct Stall {
    /// Which one.
    pub kind: Kind,
    /// Its number.
    pub gp: Seq,
    /// For how long it has been waited for, in nanoseconds of the stall clock.
    pub age_ns: u64,
    /// For whom.
    pub awaited: Awaited,
    /// The grace-period thread has not run for so long, though it should have; `None` if it is well.
    pub starved_ns: Option<u64>,
    /// The report is a drill.
    pub drill: bool,
}

/// Somebody who is told of stalls, after the report is in the log. A static; see [`register`].
#[derive(Debug)]
pub struct Notifier {
    /// Context: as that of the report, hardirq included.
    func: fn(&Stall),
    /// The one registered before; constant once this one is in the list.
    next: AtomicPtr<Notifier>,
    registered: AtomicBool,
}

impl Notifier {
    /// One that calls `func`, which may be called in hardirq context and on several CPUs at once.
    pub const fn new(func: fn(&Stall)) -> Notifier {
        Notifier { func, next: AtomicPtr::new(ptr::null_mut()), registered: AtomicBool::new(false) }
    }
}

/// The notifier registered last.
static FIRST: AtomicPtr<Notifier> = AtomicPtr::new(ptr::null_mut());

/// Has `notifier` called for every report from now on, for ever. Context: any; lock-free.
///
/// # Panics
/// If it is registered already.
pub fn register(notifier: &'static Notifier) {
    assert!(!notifier.registered.swap(true, Ordering::Relaxed), "RCU: a stall notifier is registered twice");
    let mut first = FIRST.load(Ordering::Relaxed);
    loop {
        notifier.next.store(first, Ordering::Relaxed);
        let new = ptr::from_ref(notifier).cast_mut();
        // Release: pairs with the Acquire in `tell`: the link is there before the notifier is.
        match FIRST.compare_exchange(first, new, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => first = now,
        }
    }
}

fn tell(stall: &Stall) {
    // Acquire: pairs with the Release in `register`.
    let mut next = FIRST.load(Ordering::Acquire);
    // SAFETY: null, or from a `&'static Notifier`.
    while let Some(notifier) = unsafe { next.as_ref::<'static>() } {
        (notifier.func)(stall);
        next = notifier.next.load(Ordering::Relaxed);
    }
}

/// Reports the normal grace period `gp`; from the tick if the thread is starved. Context: task, hardirq.
#[cold]
pub(super) fn normal(gp: Seq, age_ns: u64, starved_ns: Option<u64>) {
    report(Stall { kind: Kind::Normal, gp, age_ns, awaited: awaited(Kind::Normal), starved_ns, drill: limits().drill });
}

/// Reports the expedited grace period `gp`. Context: task.
#[cold]
pub(super) fn expedited(gp: Seq, age_ns: u64) {
    let awaited = awaited(Kind::Expedited);
    report(Stall { kind: Kind::Expedited, gp, age_ns, awaited, starved_ns: None, drill: limits().drill });
}

fn report(stall: Stall) {
    if stall.awaited.is_empty() && stall.starved_ns.is_none() {
        return; // over, just now
    }
    COUNTS[usize::from(stall.drill)].fetch_add(1, Ordering::Relaxed);
    sync::trace!("rcu.stall", gp = stall.gp.raw(), ms = stall.age_ns / 1_000_000, drill = stall.drill);
    let self_detected = stall.starved_ns.is_some() && stall.awaited.cpus.contains(cpu::current());
    let what = match stall.kind {
        Kind::Normal if self_detected => "self-detected stall on CPU",
        Kind::Normal => "detected stalls on CPUs/tasks:",
        Kind::Expedited => "detected expedited stalls on CPUs/tasks:",
    };
    let mark = if stall.drill { " (drill)" } else { "" };
    log::error!("rcu: INFO: rcu_preempt {what}{mark}{}", fmt::from_fn(|f| stall.tell(f)));
    tell(&stall);
    let (gp, ms) = (stall.gp, stall.age_ns / 1_000_000);
    assert!(stall.drill || !PANIC_ON_STALL.get(), "RCU stall: grace period {gp:?} has been waiting for {ms} ms");
}

impl Stall {
    fn tell(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let kind = if self.kind == Kind::Normal { "" } else { "expedited " };
        let began = Seconds(clock::now_ns().saturating_sub(self.age_ns));
        write!(
            f,
            "\n  {kind}grace period {:?} has taken {}, since {began} after boot or earlier",
            self.gp,
            Seconds(self.age_ns)
        )?;
        let seen_by = cpu::current();
        let threads = self.awaited.threads().count() + self.awaited.more_threads;
        let cpus = self.awaited.cpus;
        match (cpus.is_empty(), threads) {
            (true, 0) => f.write_str(": nobody holds it up but its thread"),
            (false, 0) => write!(f, ": it waits for CPUs {cpus}"),
            (true, _) => write!(f, ": it waits for preempted readers, {threads} of them"),
            (false, _) => write!(f, ": it waits for CPUs {cpus} and preempted readers, {threads} of them"),
        }?;
        write!(f, "; seen by CPU {seen_by}")?;
        self.awaited.cpus.iter().try_for_each(|cpu| self.tell_cpu(f, cpu))?;
        self.awaited.threads().try_for_each(|(thread, tid)| tell_thread(f, thread, tid))?;
        if self.awaited.more_threads > 0 {
            write!(f, "\n  and {} more preempted readers", self.awaited.more_threads)?;
        }
        self.tell_tree(f)?;
        self.tell_gp_thread(f)?;
        match stall_clock::lost() {
            0 => Ok(()),
            lost => write!(f, "\n  the machine stood still for {} besides, which is not counted", Seconds(lost)),
        }
    }

    fn tell_cpu(&self, f: &mut Formatter<'_>, cpu: CpuId) -> fmt::Result {
        let shared = shared(cpu);
        write!(f, "\n  CPU {cpu} has not passed a quiescent state: ")?;
        if self.kind == Kind::Normal {
            let doings = notes::of(cpu, self.gp);
            write!(f, "{} ticks and {} RCU softirqs in this grace period, ", doings.ticks, doings.softirqs)?;
        }
        let watching = shared.watching.load(Ordering::Relaxed);
        let callbacks = shared.cb_len.load(Ordering::Relaxed);
        write!(f, "watching counter {watching:#x}, {callbacks} callbacks")?;
        if !cpu::is_online(cpu) {
            return f.write_str("; it is offline");
        }
        tell_where(f, "it", cpu)
    }

    /// The masks of all nodes that wait for something.
    fn tell_tree(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for node in node_stats() {
            let (mask, blocked) = match self.kind {
                Kind::Normal => (node.qsmask, node.has_blockers),
                Kind::Expedited => (node.expmask, node.has_exp_blockers),
            };
            if mask != 0 || blocked {
                let readers = if blocked { " and for preempted readers" } else { "" };
                let (level, lo, hi) = (node.level, node.first_cpu, node.last_cpu);
                write!(f, "\n  node of level {level}, CPUs {lo}-{hi}, waits for {mask:#x}{readers}")?;
            }
        }
        Ok(())
    }

    fn tell_gp_thread(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Some(thread) = thread().filter(|_| self.kind == Kind::Normal) else { return Ok(()) };
        let (name, tid) = (thread.name(), thread.tid());
        let phase = gp::Phase::now();
        let scans = fqs::SCANS.load(Ordering::Relaxed);
        let Some(starved) = self.starved_ns else {
            return write!(f, "\n  {name}/{tid}, the grace-period thread, runs: {phase}, {scans} scans since boot");
        };
        let ms = starved / 1_000_000;
        write!(
            f,
            "\n  rcu_preempt kthread starved for {ms} ms! {name}/{tid}: {phase}, {scans} scans since boot, {}",
            Sight(thread)
        )?;
        let told = self.awaited.cpus.contains(thread.cpu());
        if thread.state() == State::Running && !thread.on_cpu() && !told {
            tell_where(f, "that CPU", thread.cpu())?;
        }
        Ok(())
    }
}

/// Where a CPU is, by its own word.
fn tell_where(f: &mut Formatter<'_>, who: &str, cpu: CpuId) -> fmt::Result {
    match ask::where_is(cpu) {
        Some(answer) => write!(f, "\n  {who} is in {}{}", answer.activity, answer.frames),
        None => write!(f, "\n  {who} does not even answer an NMI"),
    }
}

fn tell_thread(f: &mut Formatter<'_>, thread: &'static Thread, tid: u64) -> fmt::Result {
    write!(f, "\n  {}/{tid} was preempted inside a reader and has not left it: {}", thread.name(), Sight(thread))?;
    let mut frames = Frames::new();
    match backtrace_of(thread, tid, &mut |ip| frames.push(ip)) {
        Ok(()) => write!(f, "{frames}"),
        Err(NotAtRest::OnCpu(cpu)) => tell_where(f, "that CPU", cpu),
        Err(_) => Ok(()),
    }
}

/// What a thread is up to.
struct Sight(&'static Thread);

impl Display for Sight {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let cpu = self.0.cpu();
        match (self.0.state(), self.0.on_cpu()) {
            (State::Running, true) => write!(f, "it runs on CPU {cpu}"),
            (State::Running, false) => write!(f, "it is ready to run on CPU {cpu}"),
            (State::Sleeping, _) => write!(f, "it sleeps, last on CPU {cpu}"),
            (State::Dead, _) => f.write_str("it has ended"),
        }
    }
}

/// Nanoseconds as seconds: `12.3 s`.
struct Seconds(u64);

impl Display for Seconds {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} s", self.0 / 1_000_000_000, self.0 / 100_000_000 % 10)
    }
}
