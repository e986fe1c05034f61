//! A trace as the text that ftrace prints, with the names that Linux has for the same events.
//!
//! What Linux has an event for is written as that event is printed in Linux 6.12 (`include/trace/events/rcu.h`, `kmem.h`,
//! `sched.h`), so that what reads such traces, Perfetto among them, reads ours; everything else has its own name with an
//! underscore for the dot, and `field=value`s. What is not recorded, such as priorities, is 0.

use std::fmt::Write as _;

use super::Trace;
use super::memory::Event;

/// The flavour, as Linux calls it.
const FLAVOUR: &str = "rcu_preempt";

/// The whole text.
#[must_use]
pub fn text(trace: &Trace) -> String {
    let mut out = String::from("# tracer: nop\n#\n");
    let (kept, all) = (trace.events.len() as u64, trace.events.len() as u64 + trace.overwritten + trace.lost);
    // Writing to a string cannot fail.
    let _ = writeln!(out, "# entries-in-buffer/entries-written: {kept}/{all}   #P:{}", trace.cpus);
    out.push_str("#\n#           TASK-PID     CPU#  ||||| TIMESTAMP  FUNCTION\n#              | |         |   |||||     |         |\n");
    for event in &trace.events {
        let (name, rest) = line(trace, event);
        let task = format!("{}-{}", trace.thread(event.tid).replace(' ', "_"), event.tid);
        let (s, us) = (event.at_ns / 1_000_000_000, event.at_ns / 1000 % 1_000_000);
        let _ = writeln!(out, "{task:>22} [{:03}] {} {s:5}.{us:06}: {name}: {rest}", event.cpu, flags(event));
    }
    out
}

/// Interrupts off, reschedule wanted, context, levels of "no preemption".
fn flags(event: &Event) -> String {
    let irqs = if event.bits & 4 != 0 { 'd' } else { '.' };
    let resched = if event.bits & 8 != 0 { 'N' } else { '.' };
    let context = ['.', 's', 'h', 'Z'][event.context()];
    let depth = event.bits >> 4 & 0xff;
    let depth = char::from_digit(u32::from(depth.min(15)), 16).filter(|_| depth > 0).unwrap_or('.');
    format!("{irqs}{resched}{context}{depth}.")
}

/// Name and text of an event.
fn line(trace: &Trace, event: &Event) -> (String, String) {
    let [a, b, c, d] = event.fields;
    let gp = a as i64;
    let node = |id: u64| (id >> 32 & 0xffff, id >> 16 & 0xffff, id & 0xffff);
    let period = |what: &str| ("rcu_grace_period", format!("{FLAVOUR} {gp} {what}"));
    let expedited = |what: &str| ("rcu_exp_grace_period", format!("{FLAVOUR} {gp} {what}"));
    let barrier = |what: &str, cpu: i64| ("rcu_barrier", format!("{FLAVOUR} {what} cpu {cpu} remaining 0 # {gp}"));
    let (name, text) = match trace.name(event) {
        "rcu.gp_start" => period("start"),
        "rcu.gp_wait" => period("fqswait"),
        "rcu.gp_end" => period("end"),
        "rcu.gp_noted" => period(if gp & 1 != 0 { "cpustart" } else { "cpuend" }),
        "rcu.fqs" => period("fqsstart"),
        "rcu.gp_leaf" => {
            let (level, low, high) = node(b);
            ("rcu_grace_period_init", format!("{FLAVOUR} {gp} {level} {low} {high} {c:x}"))
        }
        "rcu.wish" => {
            let (level, low, high) = node(b);
            let what = if c != 0 { "Startedleaf" } else { "Startleaf" };
            ("rcu_future_grace_period", format!("{FLAVOUR} {gp} {gp} {level} {low} {high} {what}"))
        }
        "rcu.qs_report" => {
            let (level, low, high) = node(b);
            ("rcu_quiescent_state_report", format!("{FLAVOUR} {gp} {c:x}>{d:x} {level} {low} {high} 0"))
        }
        "rcu.blocked" => ("rcu_preempt_task", format!("{FLAVOUR} {gp} {b}")),
        "rcu.unblocked" => ("rcu_unlock_preempted_task", format!("{FLAVOUR} {gp} {b}")),
        "rcu.callback" => ("rcu_callback", format!("{FLAVOUR} rhp={a:016x} func={} {c}", trace.names.function(b))),
        "rcu.batch_start" => ("rcu_batch_start", format!("{FLAVOUR} CBs={a} bl={b}")),
        "rcu.invoke" => ("rcu_invoke_callback", format!("{FLAVOUR} rhp={a:016x} func={}", trace.names.function(b))),
        "rcu.batch_end" => ("rcu_batch_end", format!("{FLAVOUR} CBs-invoked={a} idle=....")),
        "rcu.exp_start" => expedited("start"),
        "rcu.exp_select" => expedited("select"),
        "rcu.exp_end" => expedited("end"),
        "rcu.barrier_start" => barrier("Begin", -1),
        "rcu.barrier_end" => barrier("Inc2", -1),
        "slab.alloc" => {
            let (cache, flags) = (trace.names.text(a), if d == 0 { "0".to_owned() } else { format!("{d:#x}") });
            let text = format!(
                "call_site=0 ptr={b:016x} name={cache} bytes_req={c} bytes_alloc={c} gfp_flags={flags} node=-1 accounted=false"
            );
            ("kmem_cache_alloc", text)
        }
        "slab.free" => ("kmem_cache_free", format!("call_site=0 ptr={b:016x} name={}", trace.names.text(a))),
        "sched.switch" => {
            let (from, state) = (trace.thread(event.tid), if b == 0 { 'R' } else { 'S' });
            let text = format!(
                "prev_comm={from} prev_pid={} prev_prio=0 prev_state={state} ==> next_comm={} next_pid={a} next_prio=0",
                event.tid,
                trace.thread(a as u32)
            );
            ("sched_switch", text)
        }
        other => return (other.replace('.', "_"), trace.fields(event)),
    };
    (name.to_owned(), text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::tests::trace;

    #[test]
    fn events_that_linux_has_are_written_as_linux_writes_them() {
        let gp = (-1199_i64) as u64;
        let node = 1 << 32 | 2 << 16 | 3;
        let trace = trace(&[
            (1_000_001_000, 0, "rcu.gp_start", &[("gp", gp)]),
            (1_000_002_000, 0, "rcu.gp_leaf", &[("gp", gp), ("node", node), ("busy", 3), ("online", 3)]),
            (1_000_003_000, 1, "rcu.qs_report", &[("gp", gp), ("node", node), ("mask", 2), ("left", 1)]),
            (1_000_004_000, 1, "rcu.callback", &[("head", 0x1000), ("func", 0x20), ("waiting", 9)]),
            (1_000_005_000, 1, "slab.refill", &[("cache", 0), ("sheaf", 1), ("objects", 60)]),
        ]);
        let text = text(&trace);
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        for (line, end) in lines.iter().zip([
            "[000] .....     1.000001: rcu_grace_period: rcu_preempt -1199 start",
            "[000] .....     1.000002: rcu_grace_period_init: rcu_preempt -1199 1 2 3 3",
            "[001] .....     1.000003: rcu_quiescent_state_report: rcu_preempt -1199 2>1 1 2 3 0",
            "[001] .....     1.000004: rcu_callback: rcu_preempt rhp=0000000000001000 func=0x20 9",
            "[001] .....     1.000005: slab_refill: cache=0x0 sheaf=1 objects=60",
        ]) {
            assert!(line.ends_with(end), "{line}\nnot {end}");
        }
        assert_eq!(lines.len(), 5);
        assert!(text.contains("# entries-in-buffer/entries-written: 5/5   #P:2"), "{text}");
    }

    #[test]
    fn flags_say_what_the_cpu_was_in() {
        for (bits, shown) in [(0, "....."), (2 | 4, "d.h.."), (3 | 4 | 8 | 1 << 4, "dNZ1.")] {
            assert_eq!(flags(&Event { bits, ..Event::default() }), shown);
        }
    }
}
