//! Threads: `ps`.

use alloc::format;
use alloc::vec::Vec;

use ::sched::{State, Thread, thread};
use grange_kernel::table::{Table, Value};

use crate::shell::{Complaint, Session, command};

command!(ps, "[--json]", "threads: state, CPU, where they may run, priority, switches", ps);

fn ps(session: &mut Session<'_>, _: &[&str]) -> Result<(), Complaint> {
    let mut threads: Vec<&'static Thread> = Vec::new();
    thread::for_each(|thread| threads.push(thread));
    threads.sort_unstable_by_key(|thread| thread.tid());
    let columns = ["tid", "name", "state", "cpu", "affinity", "prio", "voluntary", "involuntary"];
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
        ]);
    }
    session.show(&table)
}
