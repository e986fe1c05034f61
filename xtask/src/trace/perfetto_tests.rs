//! The timeline against the rules of its format, which are checked here: no tool is at hand that would.

use std::collections::HashMap;

use super::*;
use crate::trace::tests::{Record, trace};

/// What is wrong with a timeline: times that go back on a track, ends without beginnings and the other way round, slices
/// that overlap, arrows that do not go from one slice to a later one.
fn faults(timeline: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let (mut last, mut stacks, mut nests, mut flows) =
        (HashMap::new(), HashMap::<_, Vec<String>>::new(), HashMap::<_, Vec<String>>::new(), HashMap::new());
    let mut busy_until: HashMap<(u64, u64), f64> = HashMap::new();
    for event in timeline["traceEvents"].as_array().expect("an array") {
        let ph = event["ph"].as_str().expect("a phase");
        let (Some(pid), Some(tid), Some(name)) = (event["pid"].as_u64(), event["tid"].as_u64(), event["name"].as_str())
        else {
            faults.push(format!("no pid, tid or name: {event}"));
            continue;
        };
        if ph == "M" {
            continue;
        }
        let (track, name) = ((pid, tid), name.to_owned());
        let Some(ts) = event["ts"].as_f64() else {
            faults.push(format!("no time: {event}"));
            continue;
        };
        if ts < last.insert(track, ts).unwrap_or(0.0) {
            faults.push(format!("back in time: {event}"));
        }
        let is_busy = ts < busy_until.get(&track).copied().unwrap_or(0.0);
        let nest = (event["cat"].to_string(), event["id"].to_string());
        match ph {
            "B" | "E" | "X" if is_busy => faults.push(format!("overlaps: {event}")),
            "B" => stacks.entry(track).or_default().push(name),
            "E" if stacks.entry(track).or_default().pop().as_ref() != Some(&name) => {
                faults.push(format!("no beginning: {event}"))
            }
            "X" => _ = busy_until.insert(track, ts + event["dur"].as_f64().unwrap_or(f64::NAN)),
            "b" => nests.entry(nest).or_default().push(name),
            "e" if nests.entry(nest.clone()).or_default().pop().as_ref() != Some(&name) => {
                faults.push(format!("no beginning: {event}"));
            }
            "s" if flows.insert(event["id"].to_string(), ts).is_some() => faults.push(format!("again: {event}")),
            "f" if event["bp"] != "e" || flows.get(&event["id"].to_string()).is_none_or(|from| ts < *from) => {
                faults.push(format!("from nowhere: {event}"));
            }
            "E" | "e" | "s" | "f" => {}
            "i" if event["s"] == "t" => {}
            "C" if event["args"].as_object().is_some_and(|args| args.values().all(Value::is_number)) => {}
            _ => faults.push(format!("no such phase: {event}")),
        }
    }
    let open = stacks.values().flatten().chain(nests.values().flatten());
    faults.extend(open.map(|name| format!("no end: {name}")));
    faults
}

fn of_phase<'a>(timeline: &'a Value, ph: &str) -> Vec<&'a Value> {
    timeline["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == ph).collect()
}

/// A grace period of CPU 0 with a callback of CPU 1, whose head is used twice.
const STORY: &[Record<'_>] = &[
    (1_000, 1, "rcu.callback", &[("head", 0x40), ("func", 0x1), ("waiting", 1)]),
    (2_000, 0, "rcu.gp_start", &[("gp", 9)]),
    (2_100, 0, "rcu.gp_wait", &[("gp", 9)]),
    (2_150, 1, "rcu.blocked", &[("gp", 9), ("tid", 7), ("norm", 1), ("exp", 0)]),
    (2_200, 1, "rcu.unblocked", &[("gp", 9), ("tid", 7), ("last_norm", 1), ("last_exp", 0)]),
    (3_000, 0, "rcu.gp_cleanup", &[("gp", 9)]),
    (3_100, 0, "rcu.gp_end", &[("gp", 9), ("wanted", 0)]),
    (4_000, 1, "rcu.batch_start", &[("waiting", 1), ("limit", 10)]),
    (4_010, 1, "rcu.invoke", &[("head", 0x40), ("func", 0x1)]),
    (4_020, 1, "rcu.callback", &[("head", 0x40), ("func", 0x1), ("waiting", 2)]),
    (4_030, 1, "rcu.batch_end", &[("ran", 1), ("waiting", 1)]),
    (5_000, 1, "rcu.batch_start", &[("waiting", 1), ("limit", 10)]),
    (5_010, 1, "rcu.invoke", &[("head", 0x40), ("func", 0x1)]),
    (5_030, 1, "rcu.batch_end", &[("ran", 1), ("waiting", 0)]),
    (5_040, 1, "sched.switch", &[("next", 7), ("state", 1), ("name0", 0x61), ("name1", 0)]),
];

#[test]
fn a_story_keeps_the_rules_of_the_format() {
    let timeline = json(&trace(STORY));
    assert_eq!(faults(&timeline), [""; 0]);
    let names = |ph| of_phase(&timeline, ph).iter().map(|event| event["name"].as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(names("b"), ["grace period 2", "set up", "wait for readers", "a blocked in a reader", "clean up"]);
    assert_eq!(names("e").len(), 5);
    assert_eq!(names("B"), ["callbacks", "callbacks", "a/7"]);
    assert_eq!(of_phase(&timeline, "i").len(), STORY.len());
    assert_eq!(of_phase(&timeline, "C").len(), 4);
}

#[test]
fn each_use_of_a_head_has_an_arrow_of_its_own() {
    let timeline = json(&trace(STORY));
    let ids = |ph| of_phase(&timeline, ph).iter().map(|event| event["id"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!((ids("s"), ids("f")), (vec![1, 2], vec![1, 2]));
    let from = of_phase(&timeline, "s")[1]["ts"].as_f64().unwrap();
    assert!(from > of_phase(&timeline, "f")[0]["ts"].as_f64().unwrap());
}

#[test]
fn any_part_of_a_story_keeps_the_rules_too() {
    // A ring has overwritten what came first, or the machine died in the middle.
    for first in 0..STORY.len() {
        for last in first..=STORY.len() {
            let timeline = json(&trace(&STORY[first..last]));
            assert_eq!(faults(&timeline), [""; 0], "events {first} to {last}");
        }
    }
}

#[test]
fn the_checks_find_what_breaks_a_rule() {
    let good = json(&trace(STORY));
    let broken = |change: &dyn Fn(&mut Vec<Value>)| {
        let mut timeline = good.clone();
        change(timeline["traceEvents"].as_array_mut().unwrap());
        faults(&timeline)
    };
    let at = |ph: &str| good["traceEvents"].as_array().unwrap().iter().position(|event| event["ph"] == ph).unwrap();
    for ph in ["b", "e", "B", "E", "s"] {
        assert!(!broken(&|events| _ = events.remove(at(ph))).is_empty(), "without its first {ph}");
    }
    assert!(!broken(&|events| events.reverse()).is_empty(), "back in time");
    assert!(!broken(&|events| events[at("X")]["dur"] = json!(5000.0)).is_empty(), "overlapping");
    assert!(
        !broken(&|events| events.iter_mut().filter(|e| e["ph"] == "s").for_each(|e| e["id"] = json!(1))).is_empty()
    );
    assert!(!broken(&|events| events[at("i")]["ph"] = json!("?")).is_empty(), "a phase that is none");
}
