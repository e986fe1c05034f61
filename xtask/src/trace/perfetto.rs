//! A trace as a timeline: the JSON of Chrome's trace event format, which Perfetto (ui.perfetto.dev) and `chrome://tracing` open.
//!
//! | process | tracks | what is on them |
//! |---|---|---|
//! | `CPUs` | one a CPU | each event as an instant; batches of callbacks as slices; `call_rcu` and the call of the function as short slices with an arrow between them; how many callbacks wait, as a counter |
//! | `threads` | one a CPU | which thread runs there |
//! | `RCU` | one a kind | grace periods with their phases, expedited ones, barriers, blocked readers, waiting threads: from beginning to end, whatever CPU that is on |
//!
//! What began before the trace does is left out, what has not ended is ended where the trace does: every beginning has
//! its end. Slices of one track lie inside of each other or apart.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::Trace;
use super::memory::Event;

const CPUS: u64 = 1;
const THREADS: u64 = 2;
const RCU: u64 = 3;

/// How long a `call_rcu` or a called function is shown, if nothing else happens on that CPU: an arrow needs a slice at
/// both ends.
const MOMENT_NS: u64 = 200;

/// The whole timeline.
#[must_use]
pub fn json(trace: &Trace) -> Value {
    let mut out = Timeline { trace, events: Vec::new(), open: HashMap::new(), calls: HashMap::new(), flows: 0 };
    for (at, event) in trace.events.iter().enumerate() {
        out.event(event, next_on_cpu(&trace.events[at + 1..], event));
    }
    out.finish();
    // Stable: what is at one time stays in the order in which it was recorded, ends before beginnings.
    out.events.sort_by_key(|(at_ns, _)| *at_ns);
    let mut events = names(trace);
    events.extend(out.events.into_iter().map(|(_, event)| event));
    json!({
        "displayTimeUnit": "ns",
        "otherData": { "events": trace.events.len(), "overwritten": trace.overwritten, "lost": trace.lost },
        "traceEvents": events,
    })
}

/// When something next happens on the CPU of `event`.
fn next_on_cpu(later: &[Event], event: &Event) -> u64 {
    let limit = event.at_ns + MOMENT_NS;
    let near = later.iter().take_while(|later| later.at_ns < limit);
    near.filter(|later| later.cpu == event.cpu).map(|later| later.at_ns).next().unwrap_or(limit)
}

/// What the processes and tracks are called.
fn names(trace: &Trace) -> Vec<Value> {
    let named = |what: &str, pid: u64, tid: u64, name: String| json!({ "ph": "M", "name": what, "pid": pid, "tid": tid, "args": { "name": name } });
    let mut names: Vec<_> = [(CPUS, "CPUs"), (THREADS, "threads"), (RCU, "RCU")]
        .map(|(pid, name)| named("process_name", pid, 0, name.to_owned()))
        .into();
    for pid in [CPUS, THREADS] {
        names.extend((0..trace.cpus).map(|cpu| named("thread_name", pid, cpu, format!("CPU {cpu}"))));
    }
    names
}

/// Something that has begun: its kind, and which one of that kind.
type Key = (&'static str, u64);

struct Timeline<'a> {
    trace: &'a Trace,
    /// With their times.
    events: Vec<(u64, Value)>,
    /// What has begun and not ended, with its name.
    open: HashMap<Key, (String, u64)>,
    /// For each head that waits for its callback: the number of its arrow.
    calls: HashMap<u64, u64>,
    /// Arrows so far. A head is used again and again; the number of an arrow is not.
    flows: u64,
}

impl Timeline<'_> {
    fn event(&mut self, event: &Event, next_ns: u64) {
        let [a, b, ..] = event.fields;
        let number = a as i64 >> 2;
        self.instant(event);
        match self.trace.name(event) {
            "rcu.gp_start" => {
                self.begin(event, ("grace period", a >> 2), format!("grace period {number}"));
                self.begin(event, ("phase", a >> 2), "set up".to_owned());
            }
            "rcu.gp_wait" => self.change_phase(event, a >> 2, "wait for readers"),
            "rcu.gp_cleanup" => self.change_phase(event, a >> 2, "clean up"),
            "rcu.gp_end" => {
                self.end(event.at_ns, ("phase", a >> 2));
                self.end(event.at_ns, ("grace period", a >> 2));
            }
            "rcu.exp_start" => self.begin(event, ("expedited", a >> 2), format!("expedited {number}")),
            "rcu.exp_end" => self.end(event.at_ns, ("expedited", a >> 2)),
            "rcu.barrier_start" => self.begin(event, ("barrier", a), "rcu_barrier".to_owned()),
            "rcu.barrier_end" => self.end(event.at_ns, ("barrier", a)),
            "rcu.blocked" => {
                let name = format!("{} blocked in a reader", self.trace.thread(b as u32));
                self.begin(event, ("reader", b), name);
            }
            "rcu.unblocked" => self.end(event.at_ns, ("reader", b)),
            "rcu.sync_wait" => {
                let name = format!("{} in synchronize_rcu", self.trace.thread(event.tid));
                self.begin(event, ("waiter", u64::from(event.tid)), name);
            }
            "rcu.sync_done" => self.end(event.at_ns, ("waiter", u64::from(event.tid))),
            "rcu.batch_start" => self.slice(event, CPUS, ("batch", event.cpu), "callbacks".to_owned()),
            "rcu.batch_end" => {
                self.end(event.at_ns, ("batch", event.cpu));
                self.counter(event, b);
            }
            "rcu.callback" => {
                self.flows += 1;
                self.calls.insert(a, self.flows);
                self.moment(event, next_ns, format!("call_rcu {}", self.trace.names.function(b)));
                self.arrow(event, "s", self.flows);
                self.counter(event, event.fields[2]);
            }
            "rcu.invoke" => {
                self.moment(event, next_ns, self.trace.names.function(b));
                if let Some(flow) = self.calls.remove(&a) {
                    self.arrow(event, "f", flow);
                }
            }
            "sched.switch" => {
                self.end(event.at_ns, ("thread", event.cpu));
                let name = self.trace.thread(a as u32);
                self.slice(event, THREADS, ("thread", event.cpu), format!("{name}/{a}"));
            }
            _ => {}
        }
    }

    fn push(&mut self, at_ns: u64, mut event: Value) {
        event["ts"] = json!(at_ns as f64 / 1000.0);
        self.events.push((at_ns, event));
    }

    fn instant(&mut self, event: &Event) {
        let context = ["task", "softirq", "hardirq", "NMI"][event.context()];
        let mut args = json!({ "thread": event.tid, "in": context });
        for (field, value) in self.trace.named_fields(event) {
            args[field] = json!(value);
        }
        let name = self.trace.name(event).to_owned();
        let category = name.split('.').next().unwrap_or_default().to_owned();
        self.push(
            event.at_ns,
            json!({ "ph": "i", "s": "t", "name": name, "cat": category, "pid": CPUS, "tid": event.cpu, "args": args }),
        );
    }

    /// A stretch on the track of a CPU begins.
    fn slice(&mut self, event: &Event, pid: u64, key: Key, name: String) {
        self.push(event.at_ns, json!({ "ph": "B", "name": name, "cat": key.0, "pid": pid, "tid": event.cpu }));
        self.open.insert(key, (name, pid));
    }

    /// A stretch on no CPU's track begins. Two of one kind and number cannot be told apart: the first is ended.
    fn begin(&mut self, event: &Event, key: Key, name: String) {
        self.end(event.at_ns, key);
        self.push(event.at_ns, nested("b", key, &name));
        self.open.insert(key, (name, RCU));
    }

    fn end(&mut self, at_ns: u64, key: Key) {
        match self.open.remove(&key) {
            Some((name, RCU)) => self.push(at_ns, nested("e", key, &name)),
            Some((name, pid)) => {
                self.push(at_ns, json!({ "ph": "E", "name": name, "cat": key.0, "pid": pid, "tid": key.1 }));
            }
            None => {}
        }
    }

    fn change_phase(&mut self, event: &Event, number: u64, name: &str) {
        if self.open.contains_key(&("grace period", number)) {
            self.begin(event, ("phase", number), name.to_owned());
        }
    }

    fn moment(&mut self, event: &Event, next_ns: u64, name: String) {
        let dur = (next_ns - event.at_ns) as f64 / 1000.0;
        self.push(
            event.at_ns,
            json!({ "ph": "X", "name": name, "cat": "callback", "pid": CPUS, "tid": event.cpu, "dur": dur }),
        );
    }

    fn arrow(&mut self, event: &Event, ph: &str, id: u64) {
        let mut arrow =
            json!({ "ph": ph, "name": "callback", "cat": "callback", "id": id, "pid": CPUS, "tid": event.cpu });
        if ph == "f" {
            // To the slice that it lies in, not to the next one.
            arrow["bp"] = json!("e");
        }
        self.push(event.at_ns, arrow);
    }

    fn counter(&mut self, event: &Event, waiting: u64) {
        let name = format!("callbacks waiting, CPU {}", event.cpu);
        let args = json!({ "waiting": waiting });
        self.push(event.at_ns, json!({ "ph": "C", "name": name, "pid": CPUS, "tid": event.cpu, "args": args }));
    }

    /// Ends what is open behind all that is shown; what began last first.
    fn finish(&mut self) {
        let last = self.trace.events.last().map_or(0, |event| event.at_ns + MOMENT_NS);
        let mut open: Vec<_> = self.open.keys().copied().collect();
        // A phase lies inside of its grace period.
        open.sort_by_key(|&(kind, number)| (kind != "phase", kind, number));
        open.into_iter().for_each(|key| self.end(last, key));
    }
}

fn nested(ph: &str, (kind, number): Key, name: &str) -> Value {
    // A grace period and its phases are one nest.
    let category = if kind == "phase" { "grace period" } else { kind };
    json!({ "ph": ph, "name": name, "cat": category, "id": format!("{:#x}", number), "pid": RCU, "tid": 0 })
}

#[cfg(test)]
#[path = "perfetto_tests.rs"]
mod tests;
