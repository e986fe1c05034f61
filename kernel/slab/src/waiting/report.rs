//! What the out-of-memory report says of memory that waits on RCU: how much at each stage, of which caches, and whether it is
//! the grace period that takes long (S3-17, G-3).
//!
//! Context: any but NMI. Allocates nothing.

use core::fmt::{self, Write};

use mm::oom::Section;
use rcu::Kind;
use rcu::stall::awaited;

use super::{Stage, Waiting, for_each, snapshot};

/// Registered at boot.
pub(crate) static SECTION: Section = Section::new("memory that waits on RCU", write);

/// Caches that are named.
const NAMED: usize = 4;
/// A grace period that takes longer is unusual: one of an idle machine takes some milliseconds, one of a busy machine some
/// tens.
const UNUSUAL_NS: u64 = 500_000_000;

fn write(out: &mut dyn Write) -> fmt::Result {
    let all = snapshot();
    writeln!(out, "  in all: {}", Line(all.total()))?;
    for stage in Stage::ALL.into_iter().filter(|&stage| all.at(stage).objects != 0) {
        writeln!(out, "  {}: {}", stage.name(), Line(all.at(stage)))?;
    }
    for (name, waiting) in most().into_iter().filter(|(_, waiting)| waiting.objects != 0) {
        writeln!(out, "  of {name}: {}", Line(waiting))?;
    }
    let Some(age_ns) = rcu::age_ns() else { return writeln!(out, "  no grace period is under way") };
    writeln!(out, "  the grace period is {} ms old", age_ns / 1_000_000)?;
    if age_ns < UNUSUAL_NS {
        return Ok(());
    }
    let late = awaited(Kind::Normal);
    write!(out, "  which is unusually long: it waits for {} CPUs", late.cpus.count())?;
    for cpu in late.cpus.iter() {
        write!(out, " {cpu}")?;
    }
    writeln!(out, " and {} preempted readers", late.threads().count() + late.more_threads)
}

/// The caches of which the most bytes wait, the most first.
fn most() -> [(&'static str, Waiting); NAMED] {
    let mut most = [("", Waiting::default()); NAMED];
    for_each(|name, by_stage| {
        let total = by_stage.total();
        if let Some(at) = most.iter().position(|(_, other)| other.bytes < total.bytes) {
            most[at..].rotate_right(1);
            most[at] = (name, total);
        }
    });
    most
}

/// How much, and since when.
struct Line(Waiting);

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Waiting { objects, bytes, oldest_ns } = self.0;
        write!(f, "{objects} objects, {bytes} bytes")?;
        oldest_ns.map_or(Ok(()), |oldest_ns| write!(f, ", the oldest for {} ms", oldest_ns / 1_000_000))
    }
}
