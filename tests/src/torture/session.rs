//! One run of torture: starts all that take part, looks after them, stops and judges them.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::{fmt, mem};

use arch::clock;
use sched::{JoinHandle, Prio};
use sync::MaySleep;

use super::kind::{Kind, ROLE_LOAD, TORTURES, select};
use super::run::{Failed, Ongoing, Run};
use super::stat::Stat;
use super::{config, control};
use crate::report::{Ktap, Output, PlainLines, Start};
use crate::run::Summary;
use crate::together::{MS, Urgent};
use crate::{Failure, com2, ensure, ensure_eq};

/// The suite of all results.
const SUITE: &str = "torture";
/// The result of the time in which all ran together.
const TOGETHER: &str = "run";
/// What the thread of the run may take from one look to the next, and to stop one part.
const STEP_MS: u32 = 60_000;
/// The run goes on for so many times its duration, and so much longer, while work is missing; a host may be slow.
const PATIENCE: (u64, u64) = (4, 20_000 * MS);
/// How long the threads of a part that has failed are waited for: what failed may be what they wait for.
const LAST_WAIT_NS: u64 = 10_000 * MS;

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Kinds, as in `torture.kinds=`.
    pub kinds: &'a str,
    /// How long, in milliseconds.
    pub duration_ms: u32,
    /// Seed of the random numbers.
    pub seed: u64,
}

/// Tortures, and reports to `out`; lines of statistics go to the log, too.
///
/// Context: a thread without any guard; sleeps. One run at a time.
pub fn torture(request: &Request<'_>, cx: &mut MaySleep, out: &mut dyn Output) -> Summary {
    let chosen = select(&TORTURES, request.kinds);
    let mut ktap = Ktap::begin(out, &Start::here(request.seed), 1);
    let mut summary = Summary { planned: chosen.len() + 1, ..Summary::default() };
    ktap.begin_suite(SUITE, summary.planned);
    let _urgent = Urgent::new();
    let mut parts = Vec::new();
    let mut end = Ending { begun_ns: clock::now_ns(), cut: false };
    judge(&mut ktap, &mut summary, TOGETHER, |out| {
        let gps = rcu::stats().gps;
        control::begin();
        // Disturbers last: they are first in the report.
        let alone = chosen.iter().filter(|kind| kind.role == ROLE_LOAD).count() == 1;
        parts = chosen.into_iter().rev().map(|kind| Part::start(kind, request.seed, alone, cx)).collect();
        parts.reverse();
        end.cut = look_after(&parts, request, end.begun_ns, cx, out);
        control::end();
        let ms = (clock::now_ns() - end.begun_ns) / MS;
        let gps = rcu::stats().gps - gps;
        out.figure(format_args!(r#"{{"torture":"{TOGETHER}","ms":{ms},"last":true,"stat":{{"GPs":{gps}}}}}"#));
        out.ktap(format_args!("  # {ms} ms{}", if end.cut { ", cut short by a failure" } else { "" }));
        Ok(())
    });
    for part in parts {
        judge(&mut ktap, &mut summary, part.kind.name, |out| part.finish(end, cx, out));
    }
    com2::set_deadline(None);
    ktap.end_suite(SUITE);
    ktap.out.end(&summary);
    summary
}

/// Tortures with `kind` alone, registered or not, as part of a test: as long as `request` says, and until it has worked.
///
/// Context: as [`torture`].
///
/// # Errors
/// What the kind fails with.
pub(crate) fn rehearse(kind: &'static Kind, request: &Request<'_>, cx: &mut MaySleep) -> Result<(), Failure> {
    let mut silent = |_: fmt::Arguments<'_>| ();
    let out = &mut PlainLines(&mut silent);
    let _urgent = Urgent::new();
    let begun_ns = clock::now_ns();
    control::begin();
    let parts = [Part::start(kind, request.seed, true, cx)];
    let cut = look_after(&parts, request, begun_ns, cx, out);
    control::end();
    let [part] = parts;
    part.finish(Ending { begun_ns, cut }, cx, out)
}

/// One result: what `body` says, if no slab was damaged meanwhile.
fn judge(
    ktap: &mut Ktap<'_>,
    summary: &mut Summary,
    name: &str,
    body: impl FnOnce(&mut dyn Output) -> Result<(), Failure>,
) {
    ktap.out.begin(SUITE, name, STEP_MS);
    com2::set_deadline(Some(STEP_MS));
    let before = slab::debug::reports();
    let result = body(ktap.out).and_then(|()| {
        ensure_eq!(slab::debug::reports() - before, 0, "damage to slabs was reported, see the log");
        Ok(())
    });
    match &result {
        Ok(()) => summary.passed += 1,
        Err(Failure::Failed { .. }) => summary.failed += 1,
        Err(Failure::Skipped(_)) => summary.skipped += 1,
    }
    ktap.verdict(name, &result);
}

/// Waits for the end of the run, with a line of statistics now and then. Returns whether a failure cut it short.
fn look_after(parts: &[Part], request: &Request<'_>, begun_ns: u64, cx: &mut MaySleep, out: &mut dyn Output) -> bool {
    let lasts = u64::from(request.duration_ms) * MS;
    let interval = u64::from(config::STAT_INTERVAL.get()) * 1_000 * MS;
    let (ends, gives_up) = (begun_ns + lasts, begun_ns + PATIENCE.0 * lasts + PATIENCE.1);
    let mut next_stat = begun_ns + interval;
    while !control::should_stop() {
        com2::set_deadline(Some(STEP_MS));
        let now = clock::now_ns();
        let (due, over) = (now >= next_stat, now >= ends);
        let mut all_worked = true;
        for part in parts.iter().filter(|_| due || over) {
            let stat = part.stat();
            if due {
                part.print(&stat, begun_ns, false, out);
            }
            if let Some(wrong) = stat.wrong() {
                part.failed.report(crate::__failed!("{wrong}"));
            }
            all_worked &= stat.idle().is_none();
        }
        if over && (all_worked || now >= gives_up) {
            break;
        }
        if due {
            next_stat = now + interval;
        }
        let next = if over { now + 50 * MS } else { ends.min(next_stat) };
        control::rest(cx, next.saturating_sub(now));
    }
    control::should_stop()
}

/// How a run came to its end.
#[derive(Clone, Copy)]
struct Ending {
    begun_ns: u64,
    /// A failure ended it: nobody else had the time to do all the work.
    cut: bool,
}

/// One that takes part.
struct Part {
    kind: &'static Kind,
    ongoing: Result<Box<dyn Ongoing>, Failure>,
    threads: Vec<JoinHandle<()>>,
    failed: Arc<Failed>,
}

impl Part {
    /// Starts it. A failure ends the run.
    fn start(kind: &'static Kind, seed: u64, alone: bool, cx: &mut MaySleep) -> Part {
        let failed = Failed::new();
        let mut run = Run { cx, name: kind.name, seed, alone, failed: failed.clone(), threads: Vec::new() };
        let ongoing = (kind.start)(&mut run);
        if let Err(Failure::Failed { .. }) = &ongoing {
            control::end();
        }
        Part { kind, ongoing, threads: run.threads, failed }
    }

    fn stat(&self) -> Stat {
        let mut stat = Stat::default();
        if let Ok(ongoing) = &self.ongoing {
            ongoing.stat(&mut stat);
        }
        stat
    }

    fn print(&self, stat: &Stat, begun_ns: u64, last: bool, out: &mut dyn Output) {
        if self.ongoing.is_err() {
            return;
        }
        let name = self.kind.name;
        let target = alloc::format!("{name}-torture");
        let mark = if stat.wrong().is_some() { "!!! " } else { "" };
        for line in stat.lines().filter(|line| !line.is_empty()) {
            log::info!(target: &target, "{mark}{line}");
        }
        let ms = (clock::now_ns() - begun_ns) / MS;
        let json = stat.json();
        out.figure(format_args!(r#"{{"torture":"{name}","ms":{ms},"last":{last},"stat":{{{json}}}}}"#));
    }

    /// Waits for its threads, stops it, and says how it went.
    fn finish(mut self, end: Ending, cx: &mut MaySleep, out: &mut dyn Output) -> Result<(), Failure> {
        if let Err(left) = self.threads_end(cx) {
            // They are left as they are, with what they use.
            self.threads.into_iter().for_each(JoinHandle::detach);
            mem::forget(self.ongoing);
            return Err(self.failed.take().unwrap_or(left));
        }
        self.threads.drain(..).for_each(|thread| thread.join(cx));
        let failure = self.failed.take();
        let stopped = match self.ongoing {
            Ok(ongoing) => {
                let (ongoing, stopped) = match stop(ongoing, cx) {
                    Ok(both) => both,
                    Err(stuck) => return Err(failure.unwrap_or(stuck)),
                };
                self.ongoing = Ok(ongoing);
                stopped
            }
            Err(failure) => {
                self.ongoing = Err(failure);
                Ok(())
            }
        };
        let stat = self.stat();
        self.print(&stat, end.begun_ns, true, out);
        // The first of all reasons, in the order in which they came about.
        failure.or_else(|| self.failed.take()).map_or(Ok(()), Err)?;
        self.ongoing?;
        stopped?;
        ensure!(stat.wrong().is_none(), "{}", stat.wrong().unwrap_or_default());
        ensure!(end.cut || stat.idle().is_none(), "tortured nothing: {}", stat.idle().unwrap_or_default());
        Ok(())
    }

    /// Waits for its threads, as long as one of them ends now and then; not so long if it has failed. Who is left is a failure.
    fn threads_end(&self, cx: &mut MaySleep) -> Result<(), Failure> {
        let left = || self.threads.iter().filter(|thread| !thread.is_finished());
        let (mut count, mut since_ns) = (left().count(), clock::now_ns());
        while count != 0 {
            sched::sleep_ns(cx, MS);
            let (now, now_ns) = (left().count(), clock::now_ns());
            if now != count {
                (count, since_ns) = (now, now_ns);
            }
            let patience_ns = if self.failed.is_some() { LAST_WAIT_NS.min(patience_ns()) } else { patience_ns() };
            if now_ns - since_ns > patience_ns {
                let names: Vec<_> = left().map(|thread| thread.thread().name()).collect();
                let names: Vec<_> = names.iter().map(|name| name.as_str()).collect();
                let ms = patience_ns / MS;
                return Err(crate::__failed!(
                    "for {ms} ms no thread has ended of those that are left: {}",
                    names.join(", ")
                ));
            }
        }
        Ok(())
    }
}

/// How long what is to end may stand.
fn patience_ns() -> u64 {
    u64::from(config::PATIENCE.get()) * MS
}

/// A kind that was stopped, and what it says to that.
type Stopped = (Box<dyn Ongoing>, Result<(), Failure>);

/// Stops a kind whose threads have ended. An error if it says nothing.
fn stop(mut ongoing: Box<dyn Ongoing>, cx: &mut MaySleep) -> Result<Stopped, Failure> {
    let thread = sched::spawn(cx, "torture stop", Prio::CRITICAL, None, move |cx| {
        let stopped = ongoing.stop(cx);
        (ongoing, stopped)
    });
    let thread = thread.map_err(|error| crate::__failed!("stop: {error}"))?;
    let until = clock::now_ns() + patience_ns();
    while !thread.is_finished() && clock::now_ns() < until {
        sched::sleep_ns(cx, MS);
    }
    // A thread that is stuck is left as it is, with what it uses.
    ensure!(thread.is_finished(), "its last checks, barriers among them, are not done after {} ms", patience_ns() / MS);
    Ok(thread.join(cx))
}
