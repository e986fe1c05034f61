//! What `sync` offers to look at and to try: `dmesg`, `params`, `nmi`, `ipi`.

use alloc::string::String;
use core::cell::Cell;

use ::sync::nmi::NmiHandler;
use ::sync::{Once, param, smp};
use arch::trap::TrapFrame;
use arch::{AtomicCpuMask, CpuId, CpuMask, clock, cpu, ipi};
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

/// CPUs that shall say where they are when the next NMI comes. Set by the shell; each takes itself out when `TRACE` is
/// written.
static ASKED: AtomicCpuMask = AtomicCpuMask::new();
/// CPUs that shall only answer, by taking themselves out.
static PINGED: AtomicCpuMask = AtomicCpuMask::new();

/// Frames of a backtrace that are shown.
const FRAMES: usize = 32;

/// Where a CPU was: the instruction, and the return addresses; 0 behind the last.
type Trace = [u64; FRAMES];

arch::per_cpu! {
    /// What this CPU has answered. Written by its NMI while it is in `ASKED`, read by the shell when it is not.
    static TRACE: Cell<Trace> = Cell::new([0; FRAMES]);
}

static ANSWER: NmiHandler = NmiHandler::new("shell", on_nmi);

fn on_nmi(frame: &mut TrapFrame) -> bool {
    let me = cpu::current();
    let asked = ASKED.test(me);
    if asked {
        let mut trace = [0; FRAMES];
        trace[0] = frame.ip();
        let mut rest = trace[1..].iter_mut();
        arch::backtrace::walk(frame.regs.rbp, &mut |ip| {
            if let Some(slot) = rest.next() {
                *slot = ip;
            }
        });
        // SAFETY: this CPU's copy, which nobody reads while the CPU is in ASKED.
        unsafe { (*TRACE.this_ptr()).set(trace) };
        ASKED.clear(me);
    }
    asked | PINGED.clear(me)
}

fn register() {
    static DONE: Once<()> = Once::new();
    DONE.call_once(|| ::sync::nmi::register(&ANSWER));
}

/// Waits for answers to an NMI; false if they do not come.
fn wait_until(answered: impl Fn() -> bool) -> bool {
    let end = clock::now_ns() + PATIENCE_NS;
    while !answered() {
        if clock::now_ns() > end {
            return false;
        }
        arch::irq::relax();
    }
    true
}

fn nmi(session: &mut Session<'_>, arguments: &[&str]) -> Result<(), Complaint> {
    register();
    let targets = match arguments.first() {
        None => cpu::online() - CpuMask::of(cpu::current()),
        Some(number) => {
            let id = number.parse().ok().filter(|&index: &usize| index < arch::MAX_CPUS);
            let id = id.map(CpuId::new).filter(|&id| cpu::is_online(id));
            CpuMask::of(
                id.ok_or_else(|| Complaint::new(format_args!("{number} is no online CPU ({})", cpu::online())))?,
            )
        }
    };
    for target in targets.iter() {
        ASKED.set(target);
        ipi::send_nmi(target);
    }
    if !wait_until(|| (ASKED.load() & targets).is_empty()) {
        return Err(Complaint::new(format_args!("no answer from CPUs {}", ASKED.load() & targets)));
    }
    let mut table = Table::new("nmi", &["cpu", "frame", "address"]);
    for target in targets.iter() {
        // SAFETY: the CPU is not in ASKED, so it does not write; what it wrote before is seen.
        let trace = unsafe { (*TRACE.ptr_on(target)).get() };
        for (frame, address) in trace.into_iter().take_while(|&address| address != 0).enumerate() {
            table.row([target.index().into(), frame.into(), alloc::format!("{address:#018x}").into()]);
        }
    }
    session.show(&table)
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
            PINGED.set(id);
            ipi::send_nmi(id);
            wait_until(|| !PINGED.test(id))
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
