//! Grace periods and what waits for them: `rcu`. What `rcu` tries out is in `rcu_try.rs`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use ::rcu::stall::{Awaited, awaited};
use ::rcu::{Kind, NodeStats, Stats};
use arch::clock;
use grange_kernel::branches::{self, Span};
use grange_kernel::slabtop::per_second_of;
use grange_kernel::table::{Table, Value};

use super::rcu_try;
use super::slab::number;
use crate::console;
use crate::shell::{Complaint, Session, command};

command!(
    rcu,
    "[hist] [watch] [gp N] [expedited] [stall SECONDS] [HOW] [--json]",
    "the grace period, its tree with whom it waits for, callbacks; `hist`: histograms; `watch [SECONDS]`: a line a second, q stops \
     it; `gp N [expedited]`: times N grace periods; `stall SECONDS [cpu|reader|irqs-off]`: holds one up, for a report",
    rcu
);

fn rcu(session: &mut Session<'_>, arguments: &[&str]) -> Result<(), Complaint> {
    match arguments {
        [] => overview(session),
        ["hist"] => histograms(session),
        ["watch"] => watch(session, u64::MAX),
        ["watch", seconds] => watch(session, number("SECONDS", seconds, 1, 86_400)?),
        ["gp", count] => rcu_try::time(session, count, Kind::Normal),
        ["gp", count, "expedited"] => rcu_try::time(session, count, Kind::Expedited),
        ["stall", seconds] => rcu_try::stall(session, seconds, "cpu"),
        ["stall", seconds, how] => rcu_try::stall(session, seconds, how),
        _ => Err(Complaint::new(format_args!(
            "`{}` is none of: rcu, rcu hist, rcu watch [SECONDS], rcu gp N [expedited], rcu stall SECONDS [{}]",
            arguments.join(" "),
            rcu_try::HOWS.join("|")
        ))),
    }
}

fn overview(session: &mut Session<'_>) -> Result<(), Complaint> {
    let stats = ::rcu::stats();
    session.show(&totals(&stats))?;
    show_nodes(session)?;
    let mut table = Table::new(
        "rcu_cpus",
        &["cpu", "online", "watched", "offloaded", "callbacks", "done", "wait", "next ready", "next", "callbacks run"],
    );
    let offloaded = ::rcu::nocb::offloaded();
    for cpu in ::rcu::cpu_stats() {
        let [done, wait, next_ready, next] = ::rcu::segments(cpu.cpu).map_or([None; 4], |counts| counts.map(Some));
        table.row([
            cpu.cpu.index().into(),
            cpu.online.into(),
            cpu.watched.into(),
            offloaded.contains(cpu.cpu).into(),
            cpu.callbacks.into(),
            done.into(),
            wait.into(),
            next_ready.into(),
            next.into(),
            cpu.callbacks_run.into(),
        ]);
    }
    session.show(&table)
}

/// The tree; for people it is drawn.
fn show_nodes(session: &mut Session<'_>) -> Result<(), Complaint> {
    let nodes: Vec<NodeStats> = ::rcu::node_stats().collect();
    let spans: Vec<Span> =
        nodes.iter().map(|node| Span { level: node.level, first: node.first_cpu, last: node.last_cpu }).collect();
    let deepest = nodes.iter().map(|node| node.level).max();
    let columns = ["level", "cpus", "gp_seq", "qsmask", "exp mask", "online", "blocked", "exp blocked", "locked"];
    let mut table = Table::new("rcu_nodes", &columns);
    for (index, front) in branches::draw(&spans) {
        let node = &nodes[index];
        let front = if session.json { "" } else { &*front };
        table.row([
            Value::from(node.level),
            format!("{front}{}-{}", node.first_cpu, node.last_cpu).into(),
            number_of(node.gp_seq),
            mask(node.qsmask),
            mask(node.expmask),
            // Leaves alone know.
            (Some(node.level) == deepest).then(|| format!("{:#x}", node.online)).into(),
            node.has_blockers.into(),
            node.has_exp_blockers.into(),
            node.locked.into(),
        ]);
    }
    session.show(&table)
}

fn totals(stats: &Stats) -> Table {
    let mut table = Table::new("rcu", &["what", "value"]);
    let facts = [
        ("gp_seq", number_of(stats.gp_seq)),
        ("state", format!("{}", stats.phase).into()),
        ("age of the grace period, us", ::rcu::age_ns().map(|ns| ns / 1_000).into()),
        ("waits for", whom(&awaited(Kind::Normal)).into()),
        ("grace periods", stats.gps.into()),
        ("its thread at work, us", (stats.active_ns / 1_000).into()),
        ("scans for late CPUs", stats.scans.into()),
        ("CPUs asked to schedule", stats.helped.into()),
        ("ticks switched on", stats.ticks_kept.into()),
        ("idle CPUs left alone", stats.idle_at_start.into()),
        ("expedited gp_seq", number_of(stats.exp_seq)),
        ("expedited waits for", whom(&awaited(Kind::Expedited)).into()),
        ("expedited grace periods", stats.exp_gps.into()),
        ("expedited interrupts", stats.exp_ipis.into()),
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

/// Whom a grace period waits for, in words.
fn whom(awaited: &Awaited) -> String {
    let mut words = Vec::new();
    if !awaited.cpus.is_empty() {
        words.push(format!("CPUs {}", awaited.cpus));
    }
    words.extend(awaited.threads().map(|(thread, tid)| format!("{}/{tid}", thread.name())));
    if awaited.more_threads > 0 {
        words.push(format!("{} more", awaited.more_threads));
    }
    if words.is_empty() { String::from("nobody") } else { words.join(", ") }
}

fn histograms(session: &mut Session<'_>) -> Result<(), Complaint> {
    let mut table = Table::new("rcu_hist", &["what", "unit", "count", "min", "mean", "p50", "p99", "max"]);
    let mut buckets = Table::new("rcu_hist_buckets", &["what", "unit", "from", "to", "count"]);
    for (what, unit, seen) in ::rcu::histograms() {
        table.row([
            what.into(),
            unit.into(),
            seen.count.into(),
            seen.min.into(),
            seen.mean().into(),
            seen.percentile(50).into(),
            seen.percentile(99).into(),
            seen.max.into(),
        ]);
        for (from, to, count) in seen.buckets() {
            buckets.row([what.into(), unit.into(), from.into(), to.into(), count.into()]);
        }
    }
    session.show(&table)?;
    session.show(&buckets)
}

/// What goes on, each second for so many, or until somebody types `q`.
fn watch(session: &mut Session<'_>, seconds: u64) -> Result<(), Complaint> {
    let mut before = ::rcu::stats();
    for second in 0..seconds {
        let start = clock::now_ns();
        if console::quits_within(session.cx, 1_000_000_000) {
            return Ok(());
        }
        let (now, elapsed) = (::rcu::stats(), clock::now_ns() - start);
        // As wide in each line, since the names of the columns stand above the first alone.
        let phase = if session.json { format!("{}", now.phase) } else { format!("{:<17}", now.phase) }.into();
        let rate = |of: fn(&Stats) -> u64| Value::from(per_second_of(of(&before), of(&now), elapsed));
        let mut table = Table::new(
            "rcu_watch",
            &["gp_seq", "state", "gps/s", "expedited/s", "IPIs/s", "scans/s", "run/s", "callbacks", "waits for"],
        );
        table.row([
            number_of(now.gp_seq),
            phase,
            rate(|stats| stats.gps),
            rate(|stats| stats.exp_gps),
            rate(|stats| stats.exp_ipis),
            rate(|stats| stats.scans),
            rate(|stats| stats.callbacks_run),
            now.callbacks_waiting.into(),
            whom(&awaited(Kind::Normal)).into(),
        ]);
        match second {
            0 => session.show(&table)?,
            _ => session.show_rows(&table)?,
        }
        before = now;
    }
    Ok(())
}

/// A grace period's number: it begins below zero, so that it wraps early.
fn number_of(seq: ::rcu::seq::Seq) -> Value {
    format!("{seq}").into()
}

/// A mask of CPUs or children.
fn mask(bits: u64) -> Value {
    format!("{bits:#x}").into()
}
