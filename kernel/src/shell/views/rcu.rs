//! Grace periods and what waits for them: `rcu`, `kfree_rcu`.

use alloc::string::String;

use ::rcu::Stats;
use grange_kernel::table::{Table, Value};

use crate::shell::{Complaint, Session, command};

command!(rcu, "[--json]", "the grace period, its tree with the CPUs it waits for, callbacks by CPU", rcu);
command!(kfree_rcu, "[--json]", "objects that wait in kfree_rcu's back end, and totals", kfree_rcu);

fn rcu(session: &mut Session<'_>, _: &[&str]) -> Result<(), Complaint> {
    let stats = ::rcu::stats();
    session.show(&totals(&stats))?;

    let mut table = Table::new("rcu_nodes", &["level", "cpus", "gp_seq", "qsmask", "exp mask", "online", "blocked"]);
    for node in ::rcu::node_stats() {
        table.row([
            Value::from(node.level),
            alloc::format!("{}-{}", node.first_cpu, node.last_cpu).into(),
            number(node.gp_seq),
            mask(node.qsmask),
            mask(node.expmask),
            mask(node.online),
            node.has_blockers.into(),
        ]);
    }
    session.show(&table)?;

    let mut table = Table::new("rcu_cpus", &["cpu", "online", "watched", "callbacks", "callbacks run"]);
    for cpu in ::rcu::cpu_stats() {
        table.row([
            cpu.cpu.index().into(),
            cpu.online.into(),
            cpu.watched.into(),
            cpu.callbacks.into(),
            cpu.callbacks_run.into(),
        ]);
    }
    session.show(&table)
}

fn totals(stats: &Stats) -> Table {
    let mut table = Table::new("rcu", &["what", "value"]);
    let facts = [
        ("gp_seq", number(stats.gp_seq)),
        ("state", alloc::format!("{}", stats.phase).into()),
        ("grace periods", stats.gps.into()),
        ("expedited gp_seq", number(stats.exp_seq)),
        ("expedited grace periods", stats.exp_gps.into()),
        ("expedited interrupts", stats.exp_ipis.into()),
        ("scans for late CPUs", stats.scans.into()),
        ("idle CPUs left alone", stats.idle_at_start.into()),
        ("callbacks waiting", stats.callbacks_waiting.into()),
        ("callbacks run", stats.callbacks_run.into()),
        ("callback floods", stats.floods.into()),
        ("barriers", stats.barriers.into()),
        ("stalls", stats.stalls.into()),
        ("root lock taken", stats.root_locked.into()),
        ("most taken node lock", stats.most_locked.into()),
    ];
    for (what, value) in facts {
        table.row([what.into(), value]);
    }
    table
}

/// A grace period's number: it begins below zero, so that it wraps early.
fn number(seq: ::rcu::seq::Seq) -> Value {
    alloc::format!("{seq}").into()
}

/// A mask of CPUs or children.
fn mask(bits: u64) -> Value {
    let text: String = alloc::format!("{bits:#x}");
    text.into()
}

fn kfree_rcu(session: &mut Session<'_>, _: &[&str]) -> Result<(), Complaint> {
    let (objects, by_head) = ::kfree_rcu::bulk::totals();
    let mut sheaf = (0, 0);
    ::slab::registry::for_each(|cache| {
        sheaf.0 += cache.stat(::slab::Stat::FreeRcuSheaf);
        sheaf.1 += cache.stat(::slab::Stat::FreeRcuSheafFail);
    });
    let mut table = Table::new("kfree_rcu", &["what", "value"]);
    let facts: [(&str, u64); 5] = [
        ("into sheaves", sheaf.0),
        ("refused by sheaves", sheaf.1),
        ("into the back end", objects),
        ("of these through their heads", by_head),
        ("pending in the back end", ::kfree_rcu::bulk::pending() as u64),
    ];
    for (what, value) in facts {
        table.row([what.into(), value.into()]);
    }
    session.show(&table)
}
