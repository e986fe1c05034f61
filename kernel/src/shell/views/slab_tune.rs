//! Changing caches while they are used: `slab`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::fmt::Write;

use ::slab::debug::{Traces, Track, Validation, validate_all};
use ::slab::fail::{self, FailError, Plan};
use ::slab::{DebugFlags, RawCache, registry};
use ::sync::MaySleep;

use super::slab::{no_such_cache, number};
use crate::shell::{Complaint, Session, command};
use crate::{cmdline, console};

command!(
    slab,
    "CACHE|failslab ACTION [VALUE] [SECOND]",
    "ACTION: shrink, validate (of CACHE `all` too), traces alloc|free, capacity N, barn FULL [EMPTY] (default: by the CPUs), min_partial N, defrag_ratio N, stats clear; \
     or `slab failslab RULE[,CACHES]`, `slab failslab nth N[,CACHES]`, `slab failslab off|status`",
    slab
);

/// Each action as it is typed, in the order of `help`.
const ACTIONS: [&str; 8] = [
    "shrink",
    "validate",
    "traces alloc|free",
    "capacity N",
    "barn FULL [EMPTY]|default",
    "min_partial N",
    "defrag_ratio N",
    "stats clear",
];

/// Why nothing is done for `action`: what is allowed behind its first word, or which actions there are.
fn no_such_action(action: &[&str]) -> Complaint {
    let first = action.first().copied().unwrap_or("");
    match ACTIONS.iter().find(|form| form.split(' ').next() == Some(first)) {
        Some(form) => {
            Complaint::new(format_args!("`{}` is not complete, or too much; allowed: {form}", action.join(" ")))
        }
        None => Complaint::new(format_args!("`{first}` is no ACTION; allowed: {}", ACTIONS.join(", "))),
    }
}

fn slab(session: &mut Session<'_>, arguments: &[&str]) -> Result<(), Complaint> {
    match arguments {
        ["failslab", arguments @ ..] => failslab(session, arguments),
        ["all", "validate"] => verdict("all caches", validate_all(session.cx)).map(|text| console::print(&text)),
        [name, action @ ..] => {
            let done = registry::with(name, session.cx, |cache, cx| act(cache, action, cx));
            console::print(&done.ok_or_else(|| no_such_cache(session.cx, name))??);
            Ok(())
        }
        [] => unreachable!("checked against the declaration"),
    }
}

/// Does it; what it came to, in one line.
fn act(cache: &'static RawCache, action: &[&str], cx: &mut MaySleep) -> Result<String, Complaint> {
    let count = |what, typed| number(what, typed, 0, u32::MAX.into());
    let name = cache.name();
    match *action {
        ["shrink"] => Ok(format!("{name}: {} given back\n", counted(cache.shrink() as u64, "page"))),
        ["validate"] => verdict(name, cache.validate()),
        ["traces", "alloc"] => traces(cache, Traces::Alloc),
        ["traces", "free"] => traces(cache, Traces::Free),
        ["capacity", typed] => {
            let was = cache.sheaf_capacity();
            let now = cache.set_capacity(count("capacity", typed)? as usize, cx).map_err(say)?;
            Ok(format!("{name}: sheaf capacity {now}, was {was}\n"))
        }
        ["barn", "default"] => {
            cache.reset_barn_limits(cx);
            Ok(format!("{name}: barn limits follow the CPUs of each node\n"))
        }
        ["barn", full, ref empty @ ..] if empty.len() <= 1 => {
            let full = count("limit", full)? as u32;
            let empty = empty.first().map_or(Ok(full), |typed| count("limit", typed).map(|empty| empty as u32))?;
            cache.set_barn_limits(full, empty, cx);
            Ok(format!("{name}: each barn keeps {full} full and {empty} empty sheaves\n"))
        }
        ["min_partial", typed] => {
            cache.set_min_partial(count("min_partial", typed)? as usize);
            Ok(format!("{name}: each node keeps {} empty slabs\n", cache.min_partial()))
        }
        ["defrag_ratio", typed] => {
            cache.set_remote_node_defrag_ratio(count("ratio", typed)? as u32).map_err(say)?;
            Ok(format!("{name}: remote_node_defrag_ratio {}\n", cache.remote_node_defrag_ratio()))
        }
        ["stats", "clear"] => {
            cache.clear_stats(&::sched::keep_cpus(cx));
            Ok(format!("{name}: all counters set back\n"))
        }
        _ => Err(no_such_action(action)),
    }
}

/// So many of them.
fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// What a look at all slabs has found; damage is a complaint.
fn verdict(what: &str, seen: Validation) -> Result<String, Complaint> {
    let Validation { slabs, objects, errors } = seen;
    match errors {
        0 => Ok(format!("{what}: {}, {} looked at, no errors\n", counted(slabs, "slab"), counted(objects, "object"))),
        _ => Err(Complaint::new(format_args!(
            "{what}: {} in {}; `dmesg` has the reports",
            counted(errors, "error"),
            counted(slabs, "slab")
        ))),
    }
}

/// The calls behind the cache's objects, those of one path together, the most first.
fn traces(cache: &RawCache, which: Traces) -> Result<String, Complaint> {
    if !cache.debug().contains(DebugFlags::STORE_USER) {
        let name = cache.name();
        return Err(Complaint::new(format_args!("{name} does not remember its users; boot with slab_debug=U,{name}")));
    }
    // Room first: nothing may be allocated while the cache is looked at.
    let mut calls: Vec<Track> = Vec::with_capacity(cache.info().num_objs as usize + 64);
    let mut more = 0;
    cache.for_each_trace(which, |call| if calls.len() < calls.capacity() { calls.push(*call) } else { more += 1 });
    calls.sort_by(|a, b| a.frames().cmp(b.frames()));
    let mut paths: Vec<&[Track]> = calls.chunk_by(|a, b| a.frames().eq(b.frames())).collect();
    paths.sort_by_key(|path| Reverse(path.len()));
    let mut text = String::new();
    for path in paths {
        match path {
            [one] => writeln!(text, "1 object, {one}")?,
            _ => writeln!(text, "{} objects, one of them {}", path.len(), path[0])?,
        }
    }
    if more != 0 {
        writeln!(text, "and {more} objects that came meanwhile")?;
    }
    Ok(text)
}

fn say(error: impl core::fmt::Display) -> Complaint {
    Complaint::new(format_args!("{error}"))
}

fn failslab(session: &mut Session<'_>, arguments: &[&str]) -> Result<(), Complaint> {
    let seed = cmdline::SEED.get();
    let (plan, caches) = match *arguments {
        ["off"] => return report(fail::stop(session.cx), "over"),
        ["status"] => return report(fail::status(session.cx), "armed"),
        ["nth"] => return Err(Complaint::new(format_args!("N is missing; allowed: nth N[,CACHES]"))),
        ["nth", typed] => {
            let (nth, caches) = typed.split_once(',').unwrap_or((typed, ""));
            (Plan::Nth(number("N", nth, 1, u64::MAX)?), caches)
        }
        [rule] => match fail::parse(rule) {
            Some((rule, caches)) => (Plan::Rule { rule, seed }, caches),
            None => return Err(Complaint::new(format_args!("`{rule}` is no RULE; allowed: {}", fail::FORM))),
        },
        _ => return Err(Complaint::new(format_args!("allowed: RULE[,CACHES], nth N[,CACHES], off, status"))),
    };
    fail::start(plan, caches, None, session.cx).map_err(|error| match error {
        FailError::Busy => Complaint::new(format_args!("{error}; `slab failslab off` ends that")),
        FailError::NoCache => say(error),
    })?;
    report(fail::status(session.cx), "armed")
}

fn report(report: Option<fail::Report>, state: &str) -> Result<(), Complaint> {
    console::print(&match report {
        Some(fail::Report { seen, failed }) => {
            format!("failslab: {state}; {}, {failed} of them failed\n", counted(seen, "allocation"))
        }
        None => String::from("failslab: nothing is armed\n"),
    });
    Ok(())
}
