//! Timers and ticks: `timers`.

use alloc::format;

use ::arch::{clock, cpu};
use ::sched::{tick, timer};
use grange_kernel::table::{Table, Value};

use crate::shell::{Complaint, Session, command};

command!(timers, "[--json]", "timers by CPU: how many, when the next expires, what it calls; the tick", timers);

fn timers(session: &mut Session<'_>, _: &[&str]) -> Result<(), Complaint> {
    let mut table = Table::new("timers", &["cpu", "armed", "next us", "function", "tick", "ticks"]);
    for cpu in cpu::present().iter() {
        let stat = timer::stat_on(cpu);
        // 0: it is due.
        let next = stat.next_ns.map(|at| at.saturating_sub(clock::now_ns()) / 1_000);
        table.row([
            Value::from(cpu.index()),
            stat.armed.into(),
            next.into(),
            stat.next_func.map(|func| format!("{func:#018x}")).into(),
            if tick::runs_on(cpu) { "runs" } else { "stopped" }.into(),
            tick::count_on(cpu).into(),
        ]);
    }
    session.show(&table)
}
