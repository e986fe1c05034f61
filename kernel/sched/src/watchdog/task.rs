//! The watchdog of threads: `khungtaskd` looks at all of them now and then.
//!
//! A thread that was switched since the last look gets on. One that sleeps without a switch for longer than the limit hangs, unless
//! it has an alarm set, or is a daemon that has said by [`idling`] that it waits for work. One that is runnable but gets
//! no CPU is starved.
//!
//! A thread's frames and what it waits for are read under the lock of its run queue, while it is off its CPU: so it stays
//! so meanwhile (`SCHED-4`).
//!
//! Linux: `kernel/hung_task.c`; daemons there sleep in `TASK_IDLE`.

use core::fmt;
use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arch::{clock, cpu};
use sync::MaySleep;

use super::pace::{Incident, Pace};
use super::report::{Seconds, evidence, locks_of_thread, report};
use super::{Kind, limits};
use crate::ask::Frames;
use crate::spawn::{SpawnError, spawn};
use crate::state::State;
use crate::thread::{Prio, Thread, current, for_each};
use crate::trace::backtrace_of;
use crate::wait::WaitQueue;

/// Looks in a time-out.
const LOOKS: u64 = 4;

/// Looks of which it is told how late they were.
const LATE_LOOKS: usize = 2 * LOOKS as usize;

/// What a thread has for its watchdog.
pub(crate) struct TaskWatch {
    /// A daemon that waits for work. Written by the thread itself.
    idling: AtomicBool,
    /// The word of the mutex that the thread waits for, or null. Written by the thread itself.
    waits_for: AtomicPtr<AtomicUsize>,
    /// Number of the tenant at the last look. This and what follows belongs to `khungtaskd`.
    tid: AtomicU64,
    /// Its switches at the last look.
    switches: AtomicU64,
    /// Watched time when they were first so.
    since_ns: AtomicU64,
    /// As in [`Incident`].
    quiet_below_ns: AtomicU64,
}

impl TaskWatch {
    pub(crate) const fn new() -> TaskWatch {
        TaskWatch {
            idling: AtomicBool::new(false),
            waits_for: AtomicPtr::new(ptr::null_mut()),
            tid: AtomicU64::new(0),
            switches: AtomicU64::new(0),
            since_ns: AtomicU64::new(0),
            quiet_below_ns: AtomicU64::new(0),
        }
    }

    /// The running thread is about to sleep for the mutex of this word (its owner's address), or does so no more.
    pub(crate) fn set_waits_for(&self, word: Option<&AtomicUsize>) {
        self.waits_for.store(word.map_or(ptr::null_mut(), |word| ptr::from_ref(word).cast_mut()), Ordering::Relaxed);
    }

    fn restart(&self, watched_ns: u64) {
        self.since_ns.store(watched_ns, Ordering::Relaxed);
        self.quiet_below_ns.store(0, Ordering::Relaxed);
    }
}

/// The running thread is a daemon without work while this lives: it may sleep for ever, and that is no hang.
#[derive(Debug)]
#[must_use = "the thread is watched again as soon as this is dropped"]
pub struct Idling(PhantomData<*mut ()>);

/// Says that the waits of the running thread from here on are for work, until the value is dropped.
///
/// Context: task.
pub fn idling() -> Idling {
    current().watch.idling.store(true, Ordering::Relaxed);
    Idling(PhantomData)
}

impl Drop for Idling {
    fn drop(&mut self) {
        current().watch.idling.store(false, Ordering::Relaxed);
    }
}

/// `khungtaskd` sleeps here between its looks.
static REST: WaitQueue = WaitQueue::new();
/// Counts changes of the limits. Written by who changes them.
static CHANGES: AtomicU32 = AtomicU32::new(0);

/// The limits have changed.
pub(super) fn look_again() {
    CHANGES.fetch_add(1, Ordering::Relaxed);
    REST.wake_all();
}

/// Makes `khungtaskd`.
pub(super) fn start(cx: &mut MaySleep) -> Result<(), SpawnError> {
    spawn(cx, "khungtaskd", Prio::RCU, None, daemon)?.detach();
    Ok(())
}

fn daemon(cx: &mut MaySleep) {
    let _idling = idling();
    // A change of the limits begins all ages anew.
    let (mut pace, mut changes, mut anew) = (Pace::new(), 0, true);
    let mut late = [0; LATE_LOOKS];
    for turn in 0_usize.. {
        let limit = limits().task_ns;
        let changed = || CHANGES.load(Ordering::Relaxed) != changes;
        let period = limit / LOOKS;
        match limit {
            0 => REST.wait_until(cx, changed),
            _ => anew |= REST.wait_timeout(cx, period, changed),
        }
        anew |= limit == 0;
        changes = CHANGES.load(Ordering::Relaxed);
        if anew {
            pace.restart(clock::now_ns());
            late = [0; LATE_LOOKS];
        }
        let watched_ns = pace.look(clock::now_ns(), period);
        late[turn % LATE_LOOKS] = pace.take_late_ns();
        let late_ns = late.iter().copied().max().unwrap_or(0);
        for_each(|thread| look(thread, watched_ns, anew, late_ns, period));
        anew = false;
    }
}

/// One look at one thread.
fn look(thread: &'static Thread, watched_ns: u64, anew: bool, late_ns: u64, period: u64) {
    let watch = &thread.watch;
    let switches = thread.voluntary_switches() + thread.involuntary_switches();
    let same_switches = watch.switches.swap(switches, Ordering::Relaxed) == switches;
    let tid = thread.tid();
    let same_tenant = watch.tid.swap(tid, Ordering::Relaxed) == tid;
    let well = match thread.state() {
        _ if thread.is_idle() || thread.on_cpu() => true,
        State::Sleeping => watch.idling.load(Ordering::Relaxed) || thread.alarm.is_armed(),
        State::Running => !cpu::is_online(thread.cpu()),
        State::Dead => true,
    };
    if anew || !same_switches || !same_tenant || well {
        return watch.restart(watched_ns);
    }
    let age = watched_ns.saturating_sub(watch.since_ns.load(Ordering::Relaxed));
    let mut incident = Incident::quiet_below(watch.quiet_below_ns.load(Ordering::Relaxed));
    if incident.is_due(age, limits().task_ns)
        && let Some(sight) = Sight::of(thread, tid)
    {
        watch.quiet_below_ns.store(incident.threshold(), Ordering::Relaxed);
        sight.report(thread, age, late_ns, period);
    }
}

/// What is seen of a thread that is off its CPU.
struct Sight {
    sleeps: bool,
    /// Of the mutex that it waits for.
    owner: Option<&'static Thread>,
    frames: Frames,
}

impl Sight {
    /// `None` if it is on a CPU after all, or has ended.
    fn of(thread: &'static Thread, tid: u64) -> Option<Sight> {
        let mut sight = Sight { sleeps: thread.state() == State::Sleeping, owner: None, frames: Frames::new() };
        let mut frames = Frames::new();
        let visit = &mut |ip| {
            frames.push(ip);
            sight.sleeps = thread.state() == State::Sleeping;
            // SAFETY: it waits inside `Mutex::lock`, which it cannot leave while the lock is held that waking it takes.
            let word = unsafe { thread.watch.waits_for.load(Ordering::Relaxed).as_ref() };
            sight.owner = word.and_then(|word| crate::mutex::owner_in(word.load(Ordering::Relaxed)));
        };
        backtrace_of(thread, tid, visit).ok()?;
        sight.frames = frames;
        Some(sight)
    }

    fn report(&self, thread: &'static Thread, age: u64, late_ns: u64, period: u64) {
        let (name, tid, s) = (thread.name(), thread.tid(), age / 1_000_000_000);
        let rest = |f: &mut fmt::Formatter<'_>| {
            match (self.sleeps, self.owner) {
                (false, _) => write!(f, "\n  it is ready to run on CPU {}, but others are more urgent", thread.cpu()),
                (true, Some(owner)) => {
                    let (name, tid) = (owner.name(), owner.tid());
                    write!(f, "\n  it sleeps for a mutex that {name}/{tid} holds, which is {:?}", owner.state())
                }
                (true, None) => write!(f, "\n  it sleeps, last on CPU {}", thread.cpu()),
            }?;
            let now = clock::now_ns();
            write!(f, ", since {} after boot or earlier", Seconds(now.saturating_sub(age)))?;
            locks_of_thread(f, thread)?;
            if let Some(owner) = self.owner {
                locks_of_thread(f, owner)?;
            }
            evidence(f, &"khungtaskd", late_ns, period)?;
            write!(f, "{}", self.frames)
        };
        if self.sleeps {
            let first = format_args!("INFO: task {name}:{tid} blocked for more than {s} seconds.");
            report(Kind::HungTask, first, &rest);
        } else {
            let first = format_args!("INFO: task {name}:{tid} got no CPU for more than {s} seconds.");
            report(Kind::StarvedTask, first, &rest);
        }
    }
}
