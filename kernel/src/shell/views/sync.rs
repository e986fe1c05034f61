//! What `sync` offers to look at and to try: `dmesg`, `params`, `nmi`, `ipi`.

use alloc::string::String;

use ::sched::ask;
use ::sync::{param, smp};
use arch::{CpuId, CpuMask, clock, cpu};
use grange_kernel::table::{Table, Value};

use crate::console;
use crate::shell::{Complaint, Session, command};

command!(dmesg, "[--json]", "the log, from its oldest line that is still there", dmesg);
command!(params, "[TEXT] [--json]", "command line parameters: default, value, unit, what is allowed, meaning", params);
command!(
    nmi,
    "[CPU] [--json]",
    "sends an NMI to a CPU (all others) and shows where it was: its instruction, and who called",
    nmi
);
command!(ipi, "[--json]", "times a call to each CPU and an NMI to it, there and back", ipi);

/// Rounds of `ipi` for each CPU.
const ROUNDS: usize = 21;

fn dmesg(session: &mut Session<'_>, _: &[&str]) -> Result<(), Complaint> {
    let mut table = Table::new("dmesg", &["line"]);
    let mut text = String::new();
    ::sync::log::for_each_line(|line| text.push_str(&String::from_utf8_lossy(line)));
    if !session.json {
        console::print(&text);
        return Ok(());
    }
    for line in text.lines() {
        table.row([Value::from(line)]);
    }
    session.show(&table)
}

fn params(session: &mut Session<'_>, arguments: &[&str]) -> Result<(), Complaint> {
    let mut table = Table::new("params", &["key", "default", "value", "unit", "allowed", "meaning"]);
    let mut entries: alloc::vec::Vec<_> =
        param::PARAMS.iter().filter(|entry| arguments.iter().all(|text| entry.key.contains(text))).collect();
    entries.sort_unstable_by_key(|entry| entry.key);
    for entry in entries {
        let meaning: String = entry.doc.concat();
        table.row([
            Value::from(entry.key),
            alloc::format!("{}", entry.show_default()).into(),
            alloc::format!("{}", entry.show()).into(),
            entry.unit.into(),
            alloc::format!("{}", entry.kind).into(),
            meaning.trim().into(),
        ]);
    }
    session.show(&table)
}

/// The online CPU with this number.
///
/// # Errors
///
/// It is none.
pub(super) fn online_cpu(number: &str) -> Result<CpuId, Complaint> {
    let id = number.parse().ok().filter(|&index: &usize| index < arch::MAX_CPUS).map(CpuId::new);
    let id = id.filter(|&id| cpu::is_online(id));
    id.ok_or_else(|| Complaint::new(format_args!("{number} is no online CPU ({})", cpu::online())))
}

fn nmi(session: &mut Session<'_>, arguments: &[&str]) -> Result<(), Complaint> {
    let targets = match arguments.first() {
        None => cpu::online() - CpuMask::of(cpu::current()),
        Some(number) => CpuMask::of(online_cpu(number)?),
    };
    let mut table = Table::new("nmi", &["cpu", "frame", "address"]);
    for target in targets.iter() {
        let Some(answer) = ask::where_is(target) else {
            return Err(Complaint::new(format_args!("no answer from CPU {target}")));
        };
        for (frame, address) in answer.frames.addresses().iter().enumerate() {
            table.row([target.index().into(), frame.into(), alloc::format!("{address:#018x}").into()]);
        }
    }
    session.show(&table)
}

fn ipi(session: &mut Session<'_>, _: &[&str]) -> Result<(), Complaint> {
    let mut table = Table::new("ipi", &["cpu", "call min ns", "call p50 ns", "nmi min ns", "nmi p50 ns"]);
    for id in cpu::online().iter().filter(|&id| id != cpu::current()) {
        let call = time(|| {
            smp::call_on(id, |_| {}, 0, true);
            true
        })?;
        let nmi = time(|| ask::where_is(id).is_some())?;
        table.row([id.index().into(), call.0.into(), call.1.into(), nmi.0.into(), nmi.1.into()]);
    }
    session.show(&table)
}

/// Shortest and middle time of some rounds.
fn time(mut round: impl FnMut() -> bool) -> Result<(u64, u64), Complaint> {
    let mut times = [0; ROUNDS];
    for slot in &mut times {
        let start = clock::now_ns();
        if !round() {
            return Err(Complaint::new(format_args!("a CPU did not answer")));
        }
        *slot = clock::now_ns() - start;
    }
    times.sort_unstable();
    Ok((times[0], times[ROUNDS / 2]))
}
