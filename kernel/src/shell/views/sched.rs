//! Threads: `ps`, `watchdogs`.

use alloc::format;
use alloc::vec::Vec;

use ::sched::{State, Thread, thread, watchdog};
use grange_kernel::table::{Table, Value};

use crate::shell::{Complaint, Session, command};

command!(
    ps,
    "[--json]",
    "threads: state, CPU, where they may run, priority, switches, deepest use of the stack in bytes (in checking builds)",
    ps
);

command!(
    watchdogs,
    "[--json]",
    "what the watchdogs look for, their limits and how often they have reported it",
    watchdogs
);

fn ps(session: &mut Session<'_>, _: &[&str]) -> Result<(), Complaint> {
    let mut threads: Vec<&'static Thread> = Vec::new();
    thread::for_each(|thread| threads.push(thread));
    threads.sort_unstable_by_key(|thread| thread.tid());
    let columns = ["tid", "name", "state", "cpu", "affinity", "prio", "voluntary", "involuntary", "stack used"];
    let mut table = Table::new("ps", &columns);
    for thread in threads {
        let state = match (thread.state(), thread.on_cpu()) {
            (State::Running, true) => "running",
            (State::Running, false) => "ready",
            (State::Sleeping, _) => "sleeping",
            (State::Dead, _) => "dead",
        };
        table.row([
            Value::from(thread.tid()),
            thread.name().as_str().into(),
            state.into(),
            thread.cpu().index().into(),
            format!("{}", thread.affinity()).into(),
            ::sched::prio_of(thread).level().into(),
            thread.voluntary_switches().into(),
            thread.involuntary_switches().into(),
            thread.stack_used().into(),
        ]);
    }
    session.show(&table)
}

fn watchdogs(session: &mut Session<'_>, _: &[&str]) -> Result<(), Complaint> {
    let mut table = Table::new("watchdogs", &["watchdog", "limit ms", "reports", "drills"]);
    for kind in watchdog::Kind::ALL {
        let (reports, drills) = watchdog::reports(kind);
        table.row([kind.name().into(), (kind.limit_ns() / 1_000_000).into(), reports.into(), drills.into()]);
    }
    session.show(&table)
}
