//! Backtraces of a running machine: `bt`.
//!
//! A CPU is asked by NMI and goes on. A thread that does not run is read under its run queue's lock, so what is shown is
//! one moment of it; a thread that runs is where its CPU says it is.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use ::sched::trace::{NotAtRest, backtrace_of};
use ::sched::{Thread, thread};
use arch::bare::report::Frames;
use arch::{CpuId, CpuMask, cpu};
use grange_kernel::table::{Table, Value};

use super::sync::online_cpu;
use crate::shell::{Complaint, Session, command};
use crate::{ask, console};

command!(
    bt,
    "[cpu|task|all] [CPU|TID] [--json]",
    "backtraces: of all CPUs, of one (`bt cpu 1`), of a thread (`bt task 12`), or of everything (`bt all`)",
    bt
);

/// How often a thread that is neither here nor there is looked for again.
const TRIES: usize = 100;

/// Whose backtrace, in what state, and where it is.
struct Trace {
    who: String,
    state: String,
    frames: Vec<u64>,
}

fn bt(session: &mut Session<'_>, arguments: &[&str]) -> Result<(), Complaint> {
    let traces = match arguments {
        [] | ["cpu"] => of_cpus(cpu::online()),
        ["cpu", number] => of_cpus(CpuMask::of(online_cpu(number)?)),
        ["task", tid] => Vec::from([of_thread(find(tid)?)]),
        ["all"] => of_all(),
        _ => return Err(Complaint::new(format_args!("allowed: bt, bt cpu [CPU], bt task TID, bt all"))),
    };
    if session.json {
        return session.show(&table(&traces));
    }
    let mut text = String::new();
    for Trace { who, state, frames } in &traces {
        writeln!(text, "{who}: {state}")?;
        if frames.is_empty() {
            continue;
        }
        let mut lines = Frames::new(&mut text);
        frames.iter().for_each(|&address| lines.push(address));
        lines.finish()?;
    }
    console::print(&text);
    Ok(())
}

fn table(traces: &[Trace]) -> Table {
    let mut table = Table::new("bt", &["who", "state", "frame", "address"]);
    for Trace { who, state, frames } in traces {
        for (frame, address) in frames.iter().enumerate() {
            table.row([who.as_str().into(), state.as_str().into(), frame.into(), format!("{address:#018x}").into()]);
        }
        if frames.is_empty() {
            table.row([who.as_str().into(), state.as_str().into(), Value::None, Value::None]);
        }
    }
    table
}

/// All CPUs, and all threads that no CPU runs.
fn of_all() -> Vec<Trace> {
    let mut traces = of_cpus(cpu::online());
    let mut threads = Vec::new();
    thread::for_each(|thread| threads.push(thread));
    threads.sort_unstable_by_key(|thread| thread.tid());
    traces.extend(threads.into_iter().filter(|thread| !thread.on_cpu()).map(of_thread));
    traces
}

fn of_cpus(cpus: CpuMask) -> Vec<Trace> {
    let silent = ask::where_are(&cpus);
    cpus.iter().map(|id| if silent.contains(id) { no_answer(id) } else { of_cpu(id) }).collect()
}

/// Of a CPU that has been asked and has answered.
fn of_cpu(id: CpuId) -> Trace {
    let answer = ask::answer(id);
    Trace { who: format!("cpu {id}"), state: format!("{}", answer.context), frames: answer.addresses().collect() }
}

fn no_answer(id: CpuId) -> Trace {
    Trace { who: format!("cpu {id}"), state: String::from("does not answer an NMI"), frames: Vec::new() }
}

fn of_thread(thread: &'static Thread) -> Trace {
    let tid = thread.tid();
    let who = format!("task {}/{tid}", thread.name());
    let mut frames = Vec::with_capacity(ask::FRAMES);
    let mut why = "";
    for _ in 0..TRIES {
        // No more than there is room for: this must not allocate.
        let mut visit = |ip| {
            if frames.len() < ask::FRAMES {
                frames.push(ip);
            }
        };
        match backtrace_of(thread, tid, &mut visit) {
            Ok(()) => {
                return Trace { who, state: format!("{:?}, last on cpu {}", thread.state(), thread.cpu()), frames };
            }
            Err(NotAtRest::Gone) => return Trace { who, state: String::from("has ended"), frames },
            Err(NotAtRest::OnItsWay) => why = "has not run yet",
            Err(NotAtRest::OnCpu(id)) if !cpu::is_online(id) => {
                return Trace { who, state: format!("on cpu {id}, which is offline"), frames };
            }
            Err(NotAtRest::OnCpu(id)) => {
                if !ask::where_are(&CpuMask::of(id)).is_empty() {
                    return Trace { who, ..no_answer(id) };
                }
                if core::ptr::eq(ask::answer(id).context.thread, thread) {
                    return Trace { who, ..of_cpu(id) };
                }
                why = "had moved on each time that it was looked for";
            }
        }
    }
    Trace { who, state: String::from(why), frames }
}

fn find(tid: &str) -> Result<&'static Thread, Complaint> {
    let mut found = None;
    thread::for_each(|thread| {
        if tid.parse() == Ok(thread.tid()) {
            found = Some(thread);
        }
    });
    found.ok_or_else(|| Complaint::new(format_args!("{tid} is no thread; `ps` lists them")))
}
