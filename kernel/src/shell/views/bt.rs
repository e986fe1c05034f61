//! Backtraces of a running machine: `bt`.
//!
//! A CPU is asked by NMI and goes on. A thread that does not run is read under its run queue's lock, so what is shown is
//! one moment of it; a thread that runs is where its CPU says it is.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use ::sched::ask::{self, Answer, Frames as Called};
use ::sched::trace::{NotAtRest, backtrace_of};
use ::sched::{Thread, thread};
use arch::bare::report::Frames;
use arch::{CpuMask, cpu};
use grange_kernel::table::{Table, Value};

use super::sync::online_cpu;
use crate::console;
use crate::shell::{Complaint, Session, command};

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
    frames: Called,
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
        if frames.addresses().is_empty() {
            continue;
        }
        let mut lines = Frames::new(&mut text);
        frames.addresses().iter().for_each(|&address| lines.push(address));
        lines.finish()?;
    }
    console::print(&text);
    Ok(())
}

fn table(traces: &[Trace]) -> Table {
    let mut table = Table::new("bt", &["who", "state", "frame", "address"]);
    for Trace { who, state, frames } in traces {
        for (frame, address) in frames.addresses().iter().enumerate() {
            table.row([who.as_str().into(), state.as_str().into(), frame.into(), format!("{address:#018x}").into()]);
        }
        if frames.addresses().is_empty() {
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
    cpus.iter().map(|id| of_cpu(format!("cpu {id}"), ask::where_is(id))).collect()
}

/// Of a CPU that has been asked.
fn of_cpu(who: String, answer: Option<Answer>) -> Trace {
    match answer {
        Some(Answer { activity, frames }) => Trace { who, state: format!("{activity}"), frames },
        None => Trace { who, state: String::from("its CPU does not answer an NMI"), frames: Called::new() },
    }
}

fn of_thread(thread: &'static Thread) -> Trace {
    let tid = thread.tid();
    let who = format!("task {}/{tid}", thread.name());
    let mut frames = Called::new();
    let mut why = "";
    for _ in 0..TRIES {
        match backtrace_of(thread, tid, &mut |ip| frames.push(ip)) {
            Ok(()) => {
                return Trace { who, state: format!("{:?}, last on cpu {}", thread.state(), thread.cpu()), frames };
            }
            Err(NotAtRest::Gone) => return Trace { who, state: String::from("has ended"), frames },
            Err(NotAtRest::OnItsWay) => why = "has not run yet",
            Err(NotAtRest::OnCpu(id)) if !cpu::is_online(id) => {
                return Trace { who, state: format!("on cpu {id}, which is offline"), frames };
            }
            Err(NotAtRest::OnCpu(id)) => {
                let answer = ask::where_is(id);
                if answer.is_none_or(|answer| answer.activity.tid == tid) {
                    return of_cpu(who, answer);
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
