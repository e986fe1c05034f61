//! Work queues: `wq`.

use alloc::format;
use alloc::string::String;

use ::arch::clock;
use ::sched::work::{self, Home, Kind};
use grange_kernel::table::{Table, Value};

use crate::shell::{Complaint, Session, command};

command!(wq, "[--json]", "work queues, pools of workers, what runs since when", wq);

fn wq(session: &mut Session<'_>, _: &[&str]) -> Result<(), Complaint> {
    let queues = queues(session);
    session.show(&queues)?;
    session.show(&pools())?;
    session.show(&running())
}

fn queues(session: &mut Session<'_>) -> Table {
    let mut table = Table::new("wq", &["queue", "kind", "max active", "in flight", "active", "delayed"]);
    work::queues(session.cx, |queue| {
        let (kind, max_active) = match queue.kind {
            Kind::PerCpu { max_active } => ("per CPU", max_active),
            Kind::Unbound { max_active } => ("unbound", max_active),
            Kind::Ordered => ("ordered", 1),
        };
        table.row([
            Value::from(queue.name),
            kind.into(),
            max_active.into(),
            queue.in_flight.into(),
            queue.active.into(),
            queue.delayed.into(),
        ]);
    });
    table
}

fn pools() -> Table {
    let mut table = Table::new("wq_pools", &["pool", "workers", "idle", "running", "pending", "ended"]);
    for pool in work::pools() {
        table.row([
            Value::from(home(pool.home)),
            pool.workers.into(),
            pool.idle.into(),
            // Nobody counts them where they are not held back.
            matches!(pool.home, Home::Cpu(_)).then_some(pool.running).into(),
            pool.pending.into(),
            pool.ended.into(),
        ]);
    }
    table
}

fn running() -> Table {
    let now = clock::now_ns();
    let mut table = Table::new("wq_running", &["worker", "tid", "pool", "queue", "since us", "function"]);
    for pool in work::pools() {
        for worker in (0..).map_while(|at| work::worker_stat(pool.home, at)) {
            table.row([
                Value::from(worker.thread.name().as_str()),
                worker.thread.tid().into(),
                home(pool.home).into(),
                worker.queue.into(),
                (now.saturating_sub(worker.since_ns) / 1_000).into(),
                format!("{:#018x}", worker.func).into(),
            ]);
        }
    }
    table
}

fn home(home: Home) -> String {
    match home {
        Home::Cpu(cpu) => format!("cpu {cpu}"),
        Home::Node(node) => format!("node {node}"),
    }
}
