//! Trace points: `trace`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

use ::sync::trace::{self, Event, POINTS};
use grange_kernel::table::{Table, Value};

use crate::console;
use crate::shell::{Complaint, Session, command};

command!(
    trace,
    "[WHAT] [GLOB] [COUNT] [--json]",
    "trace points: `on`, `off` or `list` those that fit GLOB[,GLOB…], `status`, `clear`, `dump` the last COUNT records of GLOB",
    trace
);

/// Records that `dump` shows if it is not told how many.
const SHOWN: usize = 40;

fn trace(session: &mut Session<'_>, arguments: &[&str]) -> Result<(), Complaint> {
    let (glob, count) = match *arguments {
        ["dump", typed] if typed.parse::<usize>().is_ok() => (None, Some(typed)),
        _ => (arguments.get(1).copied(), arguments.get(2).copied()),
    };
    match (arguments.first().copied().unwrap_or("status"), glob) {
        (what @ ("on" | "off" | "list"), Some(_)) if count.is_some() => {
            Err(Complaint::new(format_args!("`{what}` takes one GLOB, or several with commas between them")))
        }
        ("status", None) => status(session),
        ("clear", None) => {
            trace::clear();
            Ok(())
        }
        ("on", Some(glob)) => {
            ::mm::trace::bring_memory()
                .map_err(|cpu| Complaint::new(format_args!("no memory for the trace ring of CPU {cpu}")))?;
            switch(glob, true)
        }
        ("on", None) => Err(Complaint::new(format_args!("GLOB is missing; `trace list` has the names, `*` is all"))),
        ("off", glob) => switch(glob.unwrap_or("*"), false),
        ("list", glob) => list(session, glob.unwrap_or("*")),
        ("dump", glob) => {
            let count = match count {
                None => SHOWN,
                Some(typed) => typed
                    .parse()
                    .map_err(|_| Complaint::new(format_args!("`{typed}` is no COUNT; allowed: a whole number")))?,
            };
            dump(session, glob.unwrap_or("*"), count)
        }
        (what @ ("status" | "clear"), Some(_)) => Err(Complaint::new(format_args!("`{what}` takes no GLOB"))),
        (what, _) => {
            Err(Complaint::new(format_args!("`{what}` is not allowed; allowed: on, off, list, status, clear, dump")))
        }
    }
}

fn check(glob: &str) -> Result<(), Complaint> {
    if trace::any_matches(glob) {
        return Ok(());
    }
    Err(Complaint::new(format_args!("no trace point fits `{glob}`; `trace list` has the names")))
}

fn switch(glob: &str, on: bool) -> Result<(), Complaint> {
    check(glob)?;
    let count = trace::switch(glob, on);
    let (s, to) = (if count == 1 { "" } else { "s" }, if on { "on" } else { "off" });
    console::print(&format!("{count} trace point{s} {to}\n"));
    Ok(())
}

fn list(session: &mut Session<'_>, glob: &str) -> Result<(), Complaint> {
    check(glob)?;
    let mut points: Vec<_> = POINTS.iter().filter(|point| trace::fits(glob, point.name)).collect();
    points.sort_unstable_by_key(|point| (point.name, point.file, point.line));
    let mut table = Table::new("trace_points", &["point", "on", "fields", "at"]);
    for point in points {
        let at = format!("{}:{}", point.file, point.line);
        table.row([Value::from(point.name), point.is_on().into(), point.fields.join(" ").into(), at.into()]);
    }
    session.show(&table)
}

fn status(session: &mut Session<'_>) -> Result<(), Complaint> {
    let on = POINTS.iter().filter(|point| point.is_on()).count();
    let mut table = Table::new("trace", &["cpu", "kept", "overwritten", "lost", "room"]);
    for cpu in arch::cpu::present().iter() {
        if let Some(counts) = trace::counts(cpu) {
            let trace::Counts { kept, overwritten, lost, room } = counts;
            table.row([Value::from(cpu.index()), kept.into(), overwritten.into(), lost.into(), room.into()]);
        }
    }
    if !session.json {
        console::print(&format!(
            "{on} of {} trace points on; when a ring is full: {}\n",
            POINTS.len(),
            trace::FULL.get()
        ));
    }
    session.show(&table)
}

/// The last `count` records of all CPUs, in the order of time.
fn dump(session: &mut Session<'_>, glob: &str, count: usize) -> Result<(), Complaint> {
    check(glob)?;
    let mut events: Vec<(usize, Event)> = Vec::new();
    for cpu in arch::cpu::present().iter() {
        let of_cpu = trace::read(cpu).into_iter().flatten().filter(|event| trace::fits(glob, event.point.name));
        events.extend(of_cpu.map(|event| (cpu.index(), event)));
    }
    events.sort_by_key(|(_, event)| event.at_ns);
    let mut table = Table::new("trace_records", &["time us", "cpu", "thread", "in", "point", "fields"]);
    for (cpu, event) in &events[events.len().saturating_sub(count)..] {
        let time = format!("{}.{:03}", event.at_ns / 1000, event.at_ns % 1000);
        let context = ["task", "softirq", "hardirq", "nmi"][usize::from(event.context & 3)];
        let (tid, name) = (event.tid, event.point.name);
        table.row([time.into(), Value::from(*cpu), tid.into(), context.into(), name.into(), fields(event).into()]);
    }
    session.show(&table)
}

fn fields(event: &Event) -> String {
    let mut text = String::new();
    for (name, value) in event.point.fields.iter().zip(event.fields) {
        // Writing to a string cannot fail.
        let _ = match (*name, value) {
            // A grace period, as reports of stalls have it.
            ("gp", raw) => write!(text, "gp={:?} ", ::rcu::seq::Seq::from_raw(raw)),
            (_, 0..0x1_0000_0000) => write!(text, "{name}={value} "),
            _ => write!(text, "{name}={value:#x} "),
        };
    }
    text
}
