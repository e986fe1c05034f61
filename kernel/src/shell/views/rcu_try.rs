//! Trying grace periods out: `rcu gp` times them, `rcu stall` holds one up.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use ::rcu::stall::{self, Limits};
use ::rcu::{Kind, Stats};
use ::sched::Prio;
use ::sync::{IrqGuard, MaySleep, PreemptGuard};
use arch::{clock, cpu, irq};
use grange_kernel::table::{Table, Value};

use super::slab::number;
use crate::console;
use crate::shell::{Complaint, Session};

/// Most grace periods that are timed.
const MOST: u64 = 100_000;

/// Longest stall, in seconds.
const LONGEST: u64 = 60;

/// Times `count` grace periods of this kind, one after the other, and shows what they took.
pub(super) fn time(session: &mut Session<'_>, count: &str, kind: Kind) -> Result<(), Complaint> {
    let count = number("N", count, 1, MOST)?;
    let mut times = Vec::with_capacity(count as usize);
    let before = ::rcu::stats();
    for _ in 0..count {
        let start = clock::now_ns();
        match kind {
            Kind::Normal => ::rcu::synchronize_rcu(session.cx),
            Kind::Expedited => ::rcu::synchronize_rcu_expedited(session.cx),
        }
        times.push(clock::now_ns() - start);
    }
    let after = ::rcu::stats();
    times.sort_unstable();
    // The time that `percent` of them did not need more than.
    let at = |percent: usize| Value::from(times[(times.len() * percent).div_ceil(100).max(1) - 1] / 1_000);
    let more = |of: fn(&Stats) -> u64| Value::from(of(&after) - of(&before));
    let mut table = Table::new("rcu_gp", &["what", "value"]);
    let facts = [
        ("grace periods waited for", count.into()),
        ("min us", Value::from(times[0] / 1_000)),
        ("p50 us", at(50)),
        ("p99 us", at(99)),
        ("max us", at(100)),
        ("normal ones that passed", more(|stats| stats.gps)),
        ("idle CPUs left alone by them", more(|stats| stats.idle_at_start)),
        ("scans by them", more(|stats| stats.scans)),
        ("CPUs asked to schedule", more(|stats| stats.helped)),
        ("their thread at work, us", (after.active_ns.saturating_sub(before.active_ns) / 1_000).into()),
        ("expedited ones that passed", more(|stats| stats.exp_gps)),
        ("interrupts by them", more(|stats| stats.exp_ipis)),
    ];
    for (what, value) in facts {
        table.row([what.into(), value]);
    }
    session.show(&table)
}

/// The ways to hold a grace period up.
pub(super) const HOWS: [&str; 3] = ["cpu", "reader", "irqs-off"];

/// Holds a grace period up for so many seconds, on another CPU if there is one. A quarter of that is the limit meanwhile, if it
/// is less than the one in force, so that there is a report.
pub(super) fn stall(session: &mut Session<'_>, seconds: &str, how: &str) -> Result<(), Complaint> {
    let seconds = number("SECONDS", seconds, 1, LONGEST)?;
    let Some(way) = HOWS.iter().position(|&known| known == how) else {
        return Err(Complaint::new(format_args!("`{how}` is no HOW; allowed: {}", HOWS.join(", "))));
    };
    let ns = seconds * 1_000_000_000;
    let hold: fn(&AtomicBool, u64, &mut MaySleep) = [with_preemption_off, in_a_reader, with_interrupts_off][way];
    let other = cpu::online().iter().find(|&other| other != cpu::current());
    let old = stall::limits();
    let limit = |limit: u64| if limit == 0 { ns / 4 } else { limit.min(ns / 4) };
    stall::set_limits(Limits { normal_ns: limit(old.normal_ns), expedited_ns: limit(old.expedited_ns), drill: true });
    let (_, drills) = stall::reports();
    let begun = Arc::new(AtomicBool::new(false));
    let theirs = begun.clone();
    let staller = ::sched::spawn(session.cx, "staller", Prio::NORMAL, other, move |cx| hold(&theirs, ns, cx));
    if staller.is_ok() {
        while !begun.load(Ordering::Relaxed) {
            ::sched::sleep_ns(session.cx, 1_000_000);
        }
        // It waits for the staller; on the only CPU it is over by now, and the staller's own wish did.
        ::rcu::synchronize_rcu(session.cx);
    }
    stall::set_limits(old);
    staller.map_err(|error| Complaint::new(format_args!("{error}")))?.join(session.cx);
    let reports = stall::reports().1 - drills;
    let s = if reports == 1 { "" } else { "s" };
    console::print(&alloc::format!("held up for {seconds} s, {reports} report{s}; `dmesg` shows the log\n"));
    Ok(())
}

/// Wishes for a grace period, which waits for the caller, and takes its time. With interrupts off it leaves the wish to
/// others: the grace-period thread would not hear of it before they are on.
fn spin(begun: &AtomicBool, ns: u64) {
    let end = clock::now_ns() + ns;
    if irq::enabled() {
        let _ = ::rcu::start_poll();
    }
    begun.store(true, Ordering::Relaxed);
    while clock::now_ns() < end {
        irq::relax();
    }
}

#[inline(never)]
fn with_preemption_off(begun: &AtomicBool, ns: u64, cx: &mut MaySleep) {
    let _off = PreemptGuard::new(cx);
    spin(begun, ns);
}

#[inline(never)]
fn in_a_reader(begun: &AtomicBool, ns: u64, cx: &mut MaySleep) {
    let _reader = ::rcu::read_lock(cx);
    spin(begun, ns);
}

#[inline(never)]
fn with_interrupts_off(begun: &AtomicBool, ns: u64, cx: &mut MaySleep) {
    let _off = IrqGuard::new(cx);
    spin(begun, ns);
}
