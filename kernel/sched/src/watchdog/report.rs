//! What a report looks like.
//!
//! One record of several lines, so that nobody's line comes in between: the first in Linux's wording, the rest in sentences.

use core::fmt::{self, Display};
use core::sync::atomic::Ordering;

use arch::CpuId;
use sync::lock_order::{self, HeldLock};

use super::{Kind, REPORTS, limits};
use crate::thread::Thread;

/// Logs a report and counts it. `first` is its first line, `rest` writes the lines after it.
///
/// # Panics
///
/// After the report, if the command line wants that for this kind.
pub(super) fn report(kind: Kind, first: fmt::Arguments<'_>, rest: &dyn Fn(&mut fmt::Formatter<'_>) -> fmt::Result) {
    let drill = limits().drill;
    REPORTS[kind as usize][usize::from(drill)].fetch_add(1, Ordering::Relaxed);
    let mark = if drill { " (drill)" } else { "" };
    log::error!("{first}{mark}{}", fmt::from_fn(rest));
    if kind.panics() && !drill {
        panic!("{}: the command line asks for a panic", kind.name());
    }
}

/// Nanoseconds as seconds: `12.3 s`.
pub(super) struct Seconds(pub(super) u64);

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} s", self.0 / 1_000_000_000, self.0 / 100_000_000 % 10)
    }
}

/// The line that lets a reader judge whether the guest ran at all.
pub(super) fn evidence(f: &mut fmt::Formatter<'_>, who: &dyn Display, late_ns: u64, period_ns: u64) -> fmt::Result {
    let us = late_ns / 1_000;
    let judgement = match late_ns > period_ns / 2 {
        true => "the machine itself stood still for a part of it",
        false => "the machine ran",
    };
    write!(f, "\n  {who} was itself {us} us late at most in this time: {judgement}")
}

/// `locks held …: "a.b" (0x…) since …, …`.
pub(super) fn locks_of_cpu(f: &mut fmt::Formatter<'_>, cpu: CpuId) -> fmt::Result {
    locks(f, &format_args!("CPU {cpu}"), |each| lock_order::for_each_held(cpu, each))
}

/// The same of a thread.
pub(super) fn locks_of_thread(f: &mut fmt::Formatter<'_>, thread: &Thread) -> fmt::Result {
    locks(f, &format_args!("{}/{}", thread.name(), thread.tid()), |each| thread.for_each_lock(each))
}

fn locks(
    f: &mut fmt::Formatter<'_>,
    holder: &dyn Display,
    for_each: impl FnOnce(&mut dyn FnMut(HeldLock)),
) -> fmt::Result {
    if !cfg!(debug_assertions) {
        return write!(f, "\n  locks held by {holder}: not known, this build does not check locks");
    }
    let (mut any, mut result) = (false, write!(f, "\n  locks held by {holder}:"));
    for_each(&mut |lock| {
        let comma = if any { "," } else { "" };
        result = result.and_then(|()| write!(f, "{comma} {lock}"));
        any = true;
    });
    result.and_then(|()| if any { Ok(()) } else { f.write_str(" none") })
}
