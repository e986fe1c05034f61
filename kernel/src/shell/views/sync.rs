//! What `sync` offers to look at and to try: `dmesg`, `params`, `nmi`, `ipi`.

use alloc::string::String;
use core::sync::atomic::{AtomicU64, Ordering};

use ::sync::nmi::NmiHandler;
use ::sync::{Once, param, smp};
use arch::trap::TrapFrame;
use arch::{AtomicCpuMask, CpuId, clock, cpu, ipi};
use grange_kernel::table::{Table, Value};

use crate::console;
use crate::shell::{Complaint, Session, command};

command!(dmesg, "[--json]", "the log, from its oldest line that is still there", dmesg);
command!(params, "[TEXT] [--json]", "command line parameters: default, value, unit, what is allowed, meaning", params);
command!(nmi, "[CPU]", "sends an NMI to a CPU (all others): it logs where it was", nmi);
command!(ipi, "[--json]", "times a call to each CPU and an NMI to it, there and back", ipi);

/// Rounds of `ipi` for each CPU.
const ROUNDS: usize = 21;

/// How long an answer may take, in nanoseconds.
const PATIENCE_NS: u64 = 3_000_000_000;

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

/// CPUs that shall say where they are when the next NMI comes.
static ASKED: AtomicCpuMask = AtomicCpuMask::new();
/// CPUs that shall only answer.
static PINGED: AtomicCpuMask = AtomicCpuMask::new();
/// Answers so far.
static ANSWERS: AtomicU64 = AtomicU64::new(0);

static ANSWER: NmiHandler = NmiHandler::new("shell", on_nmi);

fn on_nmi(frame: &mut TrapFrame) -> bool {
    let me = cpu::current();
    let asked = ASKED.clear(me);
    if asked {
        log::info!("NMI on CPU {me} at {:#018x}", frame.ip());
        let mut depth = 0;
        arch::backtrace::walk(frame.regs.rbp, &mut |ip| {
            depth += 1;
            log::info!("  #{depth} {ip:#018x}");
        });
    }
    let known = asked | PINGED.clear(me);
    if known {
        // Release: pairs with the acquire in `wait_for_answers`: the lines are in the log.
        ANSWERS.fetch_add(1, Ordering::Release);
    }
    known
}

fn register() {
    static DONE: Once<()> = Once::new();
    DONE.call_once(|| ::sync::nmi::register(&ANSWER));
}

/// Waits until `answers` more than `before` have come.
fn wait_for_answers(before: u64, answers: u64) -> bool {
    let end = clock::now_ns() + PATIENCE_NS;
    // Acquire: pairs with the release in `on_nmi`.
    while ANSWERS.load(Ordering::Acquire) < before + answers {
        if clock::now_ns() > end {
            return false;
        }
        arch::irq::relax();
    }
    true
}

fn nmi(session: &mut Session<'_>, arguments: &[&str]) -> Result<(), Complaint> {
    register();
    let targets = match arguments {
        [] => {
            let mut others = cpu::online();
            others.remove(cpu::current());
            others
        }
        [number] => {
            let id = number.parse().ok().filter(|&index: &usize| index < arch::MAX_CPUS);
            let id = id.map(CpuId::new).filter(|&id| cpu::is_online(id));
            arch::CpuMask::of(
                id.ok_or_else(|| Complaint::new(format_args!("{number} is no online CPU ({})", cpu::online())))?,
            )
        }
        _ => return Err(Complaint::usage("nmi")),
    };
    let before = ANSWERS.load(Ordering::Relaxed);
    for target in targets.iter() {
        ASKED.set(target);
        ipi::send_nmi(target);
    }
    let all = wait_for_answers(before, targets.count() as u64);
    ::sync::log::flush();
    if !all {
        return Err(Complaint::new(format_args!("no answer from CPUs {}", ASKED.load())));
    }
    session.say(format_args!("{} answered", targets.count()));
    Ok(())
}

fn ipi(session: &mut Session<'_>, _: &[&str]) -> Result<(), Complaint> {
    register();
    let mut table = Table::new("ipi", &["cpu", "call min ns", "call p50 ns", "nmi min ns", "nmi p50 ns"]);
    for id in cpu::online().iter().filter(|&id| id != cpu::current()) {
        let call = time(|| {
            smp::call_on(id, |_| {}, 0, true);
            true
        })?;
        let nmi = time(|| {
            let before = ANSWERS.load(Ordering::Relaxed);
            PINGED.set(id);
            ipi::send_nmi(id);
            wait_for_answers(before, 1)
        })?;
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
