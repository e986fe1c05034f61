//! `cargo xtask trace`, and what `--trace` of other commands leaves: the records of a machine's trace points.
//!
//! | file | what |
//! |---|---|
//! | [`points`] | the points of a kernel, from its ELF |
//! | [`memory`] | the records, from the memory of a machine or from a core |
//! | [`ftrace`], [`perfetto`] | the two files that are made of them |
//!
//! Nothing of this needs the machine's help: a traced machine has its memory in files, which stay readable when it hangs
//! or is gone.

pub mod ftrace;
pub mod memory;
pub mod perfetto;
pub mod points;

use std::collections::HashMap;
use std::path::Path;

use crate::cli::{RunArgs, TraceArgs};
use crate::debug::runs;
use crate::exit::{Exit, usage};
use crate::post_mortem::{BUILD, CORE, KERNEL};
use crate::run;
use crate::rundir::write;
use crate::workspace::Workspace;

use memory::{Event, Memory, Ring};
use points::{Names, Point};

/// Names of the files in a boot's folder.
const PERFETTO: &str = "trace.perfetto.json";
const FTRACE: &str = "trace.ftrace.txt";

/// What a machine recorded, in the order of time.
#[derive(Debug, Default)]
pub struct Trace {
    /// The records.
    pub events: Vec<Event>,
    /// Records that were overwritten, and records that were not written.
    pub overwritten: u64,
    /// See above.
    pub lost: u64,
    /// One more than the highest CPU with a ring.
    pub cpus: u64,
    /// What values mean.
    pub names: Names,
    points: Vec<Point>,
    /// Names of threads, as far as a switch told them.
    threads: HashMap<u32, String>,
}

impl Trace {
    /// Joins the rings of a machine that ran this kernel.
    ///
    /// # Errors
    /// `Host` when the kernel cannot be read.
    pub fn new(memory: &Memory, kernel: &Path) -> anyhow::Result<Trace> {
        Ok(Trace::of(memory.rings(), points::list(kernel)?, Names::load(kernel)?))
    }

    fn of(rings: impl IntoIterator<Item = (u64, Ring)>, points: Vec<Point>, names: Names) -> Trace {
        let mut trace = Trace { names, points, ..Trace::default() };
        for (cpu, ring) in rings {
            trace.cpus = trace.cpus.max(cpu + 1);
            trace.overwritten += ring.overwritten;
            trace.lost += ring.lost;
            trace.events.extend(ring.events.into_iter().filter(|event| event.point < trace.points.len()));
        }
        // Stable: what one CPU recorded at one time stays in its order.
        trace.events.sort_by_key(|event| event.at_ns);
        for event in &trace.events {
            if trace.points[event.point].name == "sched.switch" {
                let [next, _, name0, name1] = event.fields;
                trace.threads.insert(next as u32, points::letters([name0, name1]));
            }
        }
        trace
    }

    /// The name of an event's point.
    #[must_use]
    pub fn name(&self, event: &Event) -> &str {
        &self.points[event.point].name
    }

    /// The name of a thread.
    #[must_use]
    pub fn thread(&self, tid: u32) -> String {
        self.threads.get(&tid).cloned().unwrap_or_else(|| "thread".to_owned())
    }

    /// The value of an event's field.
    #[must_use]
    pub fn value(&self, event: &Event, field: &str) -> Option<u64> {
        let place = self.points[event.point].fields.iter().position(|name| name == field)?;
        event.fields.get(place).copied()
    }

    /// The fields of an event with their names, as they are shown.
    pub fn named_fields<'a>(&'a self, event: &'a Event) -> impl Iterator<Item = (&'a str, String)> {
        let names = self.points[event.point].fields.iter().map(String::as_str);
        names.zip(event.fields).map(|(name, value)| (name, self.names.show(name, value)))
    }

    /// The same in one line.
    #[must_use]
    pub fn fields(&self, event: &Event) -> String {
        self.named_fields(event).map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    }

    /// One line for people.
    #[must_use]
    pub fn summary(&self) -> String {
        let span = self.events.first().zip(self.events.last()).map_or(0, |(first, last)| last.at_ns - first.at_ns);
        format!(
            "{} events of {} CPUs in {:.3} ms; {} overwritten, {} lost",
            self.events.len(),
            self.cpus,
            span as f64 / 1e6,
            self.overwritten,
            self.lost
        )
    }
}

/// Writes what a machine recorded into its folder, and sums it up in one line.
///
/// # Errors
/// `Host` when the disk does not let files be written.
pub fn keep(trace: &Trace, dir: &Path) -> anyhow::Result<String> {
    write(&dir.join(PERFETTO), &format!("{}\n", perfetto::json(trace)))?;
    write(&dir.join(FTRACE), &ftrace::text(trace))?;
    Ok(format!("trace: {}; in {}: {PERFETTO}, {FTRACE}", trace.summary(), dir.display()))
}

/// Runs the command.
///
/// # Errors
/// See [`crate::exit`]; a kernel that fails is an [`Exit`] and not an error.
pub fn trace(workspace: &Workspace, args: &TraceArgs) -> anyhow::Result<Exit> {
    match (&args.run, args.commands.join(" ")) {
        (Some(run), commands) if commands.is_empty() => of_core(workspace, run),
        (Some(run), _) => Err(usage(format!("either {run} or commands after `--`, not both"))),
        (None, commands) if commands.trim().is_empty() => {
            Err(usage("name a run whose machine died with a core, or commands of the kernel's shell after `--`"))
        }
        (None, commands) => run::run(
            workspace,
            &RunArgs {
                machine: args.machine.clone(),
                kernel: args.kernel.clone(),
                exec: Some(commands),
                trace: Some(args.points.clone()),
                seed: args.seed,
                timeout: args.timeout,
                qemu_args: Vec::new(),
            },
        ),
    }
}

/// The trace in the core of a run.
fn of_core(workspace: &Workspace, run: &str) -> anyhow::Result<Exit> {
    let dir = runs::find(workspace, run, CORE, "core")?;
    let kernel = dir.join(BUILD).join(KERNEL);
    if !kernel.exists() {
        return Err(usage(format!("{}: its kernel is no longer kept", workspace.short(&dir).display())));
    }
    let memory = Memory::of_core(&dir.join(CORE))?;
    if memory.rings().is_empty() {
        return Err(usage(format!("{}: nothing was traced in it", workspace.short(&dir).display())));
    }
    println!("{} in {}", keep(&Trace::new(&memory, &kernel)?, &dir)?, workspace.short(&dir).display());
    Ok(Exit::Passed)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Time, CPU, point, fields.
    pub(crate) type Record<'a> = (u64, u64, &'a str, &'a [(&'a str, u64)]);

    /// The trace of these records; names in it are those that a switch to thread 7, `a`, would tell.
    pub(crate) fn trace(records: &[Record<'_>]) -> Trace {
        let mut points: Vec<Point> = Vec::new();
        let events = records.iter().map(|&(at_ns, cpu, name, fields)| {
            let point = points.iter().position(|point| point.name == name).unwrap_or_else(|| {
                let fields = fields.iter().map(|(field, _)| (*field).to_owned()).collect();
                points.push(Point { name: name.to_owned(), fields, place: String::new() });
                points.len() - 1
            });
            let mut values = [0; points::MAX_FIELDS];
            values.iter_mut().zip(fields).for_each(|(to, (_, from))| *to = *from);
            Event { at_ns, cpu, point, fields: values, ..Event::default() }
        });
        let events: Vec<_> = events.collect();
        let rings = (0..2).map(|cpu| {
            let events = events.iter().filter(|event| event.cpu == cpu).cloned().collect();
            (cpu, Ring { events, ..Ring::default() })
        });
        let mut trace = Trace::of(rings, points, Names::default());
        trace.threads.insert(7, "a".to_owned());
        trace
    }

    #[test]
    fn records_of_all_cpus_come_in_the_order_of_time_and_one_line_sums_them_up() {
        let trace = trace(&[
            (3_000_000, 0, "b.c", &[("x", 1), ("gp", u64::MAX)]),
            (1_000_000, 1, "a.b", &[]),
            (2_000_000, 1, "sched.switch", &[("next", 4), ("state", 0), ("name0", 0x6f6f), ("name1", 0)]),
        ]);
        let times: Vec<_> = trace.events.iter().map(|event| event.at_ns / 1_000_000).collect();
        assert_eq!(times, [1, 2, 3]);
        assert_eq!(trace.summary(), "3 events of 2 CPUs in 2.000 ms; 0 overwritten, 0 lost");
        assert_eq!((trace.thread(4).as_str(), trace.fields(&trace.events[2]).as_str()), ("oo", "x=1 gp=-1"));
    }
}
