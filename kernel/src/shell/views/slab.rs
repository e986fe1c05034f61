//! Caches: `slabinfo`, `slabtop`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use ::arch::{PAGE_SIZE, clock, cpu};
use ::slab::info::{CpuSheaves, Fill, HEADER, SlabInfo};
use ::slab::{RawCache, Stat, registry};
use ::sync::{MaySleep, glob};
use grange_kernel::slabtop::{self, Key, Sample, Totals, percent};
use grange_kernel::table::{Table, Value};
use grange_kernel::words;

use crate::console;
use crate::shell::{Complaint, Session, command};

command!(
    slabinfo,
    "[GLOB] [-v CACHE] [-T] [-a] [--json]",
    "caches, as /proc/slabinfo 2.1 has them; -v: one cache, all that is known of it; -T: totals; -a: aliases",
    slabinfo
);
command!(
    slabtop,
    "[-s KEY] [-n LINES] [SECONDS] [--json]",
    "the caches by memory, objects, active, use, rate or name; each second for SECONDS, q stops it",
    top
);

fn slabinfo(session: &mut Session<'_>, arguments: &[&str]) -> Result<(), Complaint> {
    match arguments {
        [] => all(session, "*"),
        ["-T"] => totals(session),
        ["-a"] => aliases(session),
        ["-v", name] => one(session, name),
        [pattern] => all(session, pattern),
        _ => Err(Complaint::new(format_args!("only one of GLOB, -v CACHE, -T and -a"))),
    }
}

/// What `f` finds in every cache.
fn of_caches<T>(cx: &mut MaySleep, mut f: impl FnMut(&'static RawCache) -> T) -> Vec<T> {
    let mut found = Vec::new();
    registry::for_each_unlocked(cx, |cache| found.push(f(cache)));
    found
}

/// Why no cache is called `name`.
pub(super) fn no_such_cache(cx: &mut MaySleep, name: &str) -> Complaint {
    match words::nearest(name, of_caches(cx, RawCache::name).into_iter()) {
        Some(near) => Complaint::new(format_args!("no cache is called `{name}`; did you mean `{near}`?")),
        None => Complaint::new(format_args!("no cache is called `{name}`; `slabinfo` lists all")),
    }
}

/// The family that a cache belongs to, and its size in it: `kmalloc-64` comes before `kmalloc-1k`.
fn family(name: &str) -> &str {
    name.rsplit_once('-').map_or(name, |(family, _)| family)
}

fn all(session: &mut Session<'_>, pattern: &str) -> Result<(), Complaint> {
    let mut caches: Vec<SlabInfo> = of_caches(session.cx, RawCache::info);
    caches.retain(|cache| glob(pattern, cache.name));
    if caches.is_empty() {
        return Err(no_such_cache(session.cx, pattern));
    }
    caches.sort_by_key(|cache| (family(cache.name), cache.objsize, cache.name));
    if !session.json {
        let mut text = String::new();
        writeln!(text, "{HEADER}")?;
        caches.iter().try_for_each(|cache| writeln!(text, "{cache}"))?;
        console::print(&text);
        return Ok(());
    }
    let columns = ["name", "active_objs", "num_objs", "objsize", "objperslab", "pagesperslab", "num_slabs"];
    let mut table = Table::new("slabinfo", &columns);
    for cache in caches {
        table.row([
            Value::from(cache.name),
            cache.active_objs.into(),
            cache.num_objs.into(),
            cache.objsize.into(),
            cache.objperslab.into(),
            cache.pagesperslab.into(),
            cache.num_slabs.into(),
        ]);
    }
    session.show(&table)
}

/// All that is known of one cache: attributes, counters, nodes, sheaves.
fn one(session: &mut Session<'_>, name: &str) -> Result<(), Complaint> {
    let look = |cache, _: &mut MaySleep| [attributes(cache), counters(cache), nodes(cache), sheaves(cache)];
    let tables = registry::with(name, session.cx, look).ok_or_else(|| no_such_cache(session.cx, name))?;
    tables.iter().try_for_each(|table| session.show(table))
}

fn attributes(cache: &RawCache) -> Table {
    let mut table = Table::new("cache", &["attribute", "value"]);
    table.row(["name".into(), cache.name().into()]);
    for (name, value) in cache.attributes() {
        table
            .row([name.into(), if name == "ctor" && value != 0 { format!("{value:#x}").into() } else { value.into() }]);
    }
    table
}

fn counters(cache: &RawCache) -> Table {
    let cpus: Vec<_> = cpu::present().iter().collect();
    let mut table = Table::new("counters", &["counter", "sum"]);
    cpus.iter().for_each(|cpu| table.column(format!("cpu {cpu}")));
    for &stat in Stat::ALL {
        let each: Vec<u64> = cpus.iter().map(|&cpu| cache.stat_on(cpu, stat)).collect();
        let sum = each.iter().sum::<u64>();
        table.row([stat.name().into(), sum.into()].into_iter().chain(each.into_iter().map(Value::from)));
    }
    let locks = cache.lock_counts();
    for (name, count) in [("barn locks", locks.barn), ("list locks", locks.list)] {
        table.row([name.into(), count.into()].into_iter().chain(cpus.iter().map(|_| Value::None)));
    }
    table
}

fn nodes(cache: &RawCache) -> Table {
    let columns = [
        "node",
        "slabs",
        "partial",
        "objects",
        "free in partial",
        "free %",
        "barn full",
        "barn empty",
        "partial slabs by tenths in use",
    ];
    let mut table = Table::new("nodes", &columns);
    for node in cache.by_node() {
        let fill: Vec<String> = node.fill.iter().map(|count| format!("{count}")).collect();
        let free = if node.total_objects == 0 { 0 } else { percent(node.free_objects, node.total_objects) };
        table.row([
            Value::from(node.node.index()),
            node.slabs.into(),
            node.partial.into(),
            node.total_objects.into(),
            node.free_objects.into(),
            free.into(),
            format!("{}/{}", node.barn_full.0, node.barn_full.1).into(),
            format!("{}/{}", node.barn_empty.0, node.barn_empty.1).into(),
            fill.join(" ").into(),
        ]);
    }
    table
}

/// The sheaves of each CPU, one CPU after the other; nothing of a CPU that is offline.
fn sheaves(cache: &'static RawCache) -> Table {
    let mut table = Table::new("sheaves", &["cpu", "main", "spare", "rcu_free", "remote"]);
    let text = |fill: Fill| format!("{fill}");
    for cpu in cpu::present().iter() {
        let row = match cache.sheaves_on(cpu) {
            Some(CpuSheaves { main, spare, rcu_free, remote }) => [
                Some(main).filter(|main| main.capacity != 0).map(text).into(),
                spare.map(text).into(),
                rcu_free.map(text).into(),
                remote.map(text).into(),
            ],
            None => [const { Value::None }; 4],
        };
        table.row([Value::from(cpu.index())].into_iter().chain(row));
    }
    table
}

fn sample(cache: &'static RawCache) -> Sample {
    let info = cache.info();
    let sum = |stats: &[Stat]| stats.iter().map(|&stat| cache.stat(stat)).sum();
    Sample {
        name: info.name,
        size: info.objsize as u64,
        active: info.active_objs,
        objects: info.num_objs,
        slabs: info.num_slabs,
        memory: info.num_slabs * (info.pagesperslab * PAGE_SIZE) as u64,
        allocs: sum(&[Stat::AllocFastpath, Stat::AllocSlowpath]),
        frees: sum(&[Stat::FreeFastpath, Stat::FreeSlowpath, Stat::FreeRcuSheaf]),
    }
}

fn totals(session: &mut Session<'_>) -> Result<(), Complaint> {
    let totals = Totals::of(&of_caches(session.cx, sample));
    let mut table = Table::new("totals", &["what", "all", "in use", "%"]);
    for (what, (whole, part)) in [
        ("caches", totals.caches),
        ("objects", totals.objects),
        ("KiB of slabs", (totals.memory.0 / 1024, totals.memory.1 / 1024)),
    ] {
        table.row([what.into(), whole.into(), part.into(), percent(part, whole).into()]);
    }
    table.row(["slabs".into(), totals.slabs.into(), Value::None, Value::None]);
    session.show(&table)
}

/// Caches that several users share, with the names that these know it by.
fn aliases(session: &mut Session<'_>) -> Result<(), Complaint> {
    let shared = of_caches(session.cx, |cache| {
        let names: Vec<&str> = cache.alias_names().collect();
        (cache.name(), cache.aliases(), names.join(" "))
    });
    let mut table = Table::new("aliases", &["cache", "more users", "also called"]);
    for (name, users, names) in shared.into_iter().filter(|(_, users, names)| *users > 0 || !names.is_empty()) {
        table.row([name.into(), users.into(), names.into()]);
    }
    session.show(&table)
}

fn top(session: &mut Session<'_>, arguments: &[&str]) -> Result<(), Complaint> {
    let (mut key, mut lines, mut seconds) = (Key::Memory, 20, None);
    let mut words = arguments.iter().copied();
    while let Some(word) = words.next() {
        match word {
            "-s" => key = words.next().and_then(Key::parse).ok_or_else(|| bad_key(arguments))?,
            "-n" => lines = number("LINES", words.next().unwrap_or(""), 1, 10_000)? as usize,
            _ => seconds = Some(number("SECONDS", word, 1, 86_400)?),
        }
    }
    let mut before = of_caches(session.cx, sample);
    let Some(seconds) = seconds else { return screen(session, before, key, lines, ["allocs", "frees"]) };
    for _ in 0..seconds {
        let start = clock::now_ns();
        if console::quits_within(session.cx, 1_000_000_000) {
            return Ok(());
        }
        let now = of_caches(session.cx, sample);
        let rates = slabtop::per_second(&before, &now, clock::now_ns() - start);
        screen(session, rates, key, lines, ["allocs/s", "frees/s"])?;
        before = now;
    }
    Ok(())
}

fn bad_key(arguments: &[&str]) -> Complaint {
    let typed = arguments.iter().skip_while(|&&word| word != "-s").nth(1).copied().unwrap_or("");
    Complaint::new(format_args!("`{typed}` is no KEY; allowed: {}", Key::ALL.map(|(name, _)| name).join(", ")))
}

/// The number that was typed for `what`.
pub(super) fn number(what: &str, typed: &str, min: u64, max: u64) -> Result<u64, Complaint> {
    let number = typed.parse().ok().filter(|number| (min..=max).contains(number));
    number.ok_or_else(|| Complaint::new(format_args!("`{typed}` is no {what}; allowed: a number from {min} to {max}")))
}

fn screen(
    session: &mut Session<'_>,
    mut samples: Vec<Sample>,
    key: Key,
    lines: usize,
    traffic: [&str; 2],
) -> Result<(), Complaint> {
    let totals = Totals::of(&samples);
    let columns = ["objects", "active", "use %", "size", "slabs", "KiB", traffic[0], traffic[1], "cache"];
    let mut table = Table::new("slabtop", &columns);
    key.sort(&mut samples);
    for sample in samples.iter().take(lines) {
        table.row([
            Value::from(sample.objects),
            sample.active.into(),
            (sample.objects != 0).then(|| percent(sample.active, sample.objects)).into(),
            sample.size.into(),
            sample.slabs.into(),
            (sample.memory / 1024).into(),
            sample.allocs.into(),
            sample.frees.into(),
            sample.name.into(),
        ]);
    }
    if !session.json {
        let ((objects, active), (memory, used)) = (totals.objects, totals.memory);
        console::print(&format!(
            "{} caches, {active} of {objects} objects in use, {} of {} KiB\n",
            totals.caches.0,
            used / 1024,
            memory / 1024
        ));
    }
    session.show(&table)?;
    let hidden = samples.len().saturating_sub(lines);
    if hidden != 0 && !session.json {
        console::print(&format!("and {hidden} more; -n LINES shows so many\n"));
    }
    Ok(())
}
