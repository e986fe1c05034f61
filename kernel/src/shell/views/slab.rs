//! Caches: `slabinfo`.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use ::slab::info::{self, HEADER, SlabInfo};
use ::slab::{RawCache, Stat, registry};
use grange_kernel::table::{Table, Value};
use grange_kernel::words;

use crate::console;
use crate::shell::{Complaint, Session, command};

command!(
    slabinfo,
    "[-v CACHE] [--json]",
    "caches, as /proc/slabinfo 2.1 has them; -v: one cache, all counters, its barns",
    slabinfo
);

fn slabinfo(session: &mut Session<'_>, arguments: &[&str]) -> Result<(), Complaint> {
    match arguments {
        [_, name] => one(session, find(name)?),
        _ => all(session),
    }
}

/// The caches, newest first as in Linux: collected under the lock of their list, without an allocation there.
fn caches() -> Vec<SlabInfo> {
    let mut count = 0;
    info::for_each(|_| count += 1);
    let mut found = Vec::with_capacity(count);
    info::for_each(|cache| {
        if found.len() < count {
            found.push(cache);
        }
    });
    found
}

fn find(name: &str) -> Result<&'static RawCache, Complaint> {
    registry::find(name).ok_or_else(|| match words::nearest(name, caches().iter().map(|cache| cache.name)) {
        Some(near) => Complaint::new(format_args!("no such cache; did you mean `{near}`?")),
        None => Complaint::new(format_args!("no such cache")),
    })
}

fn all(session: &mut Session<'_>) -> Result<(), Complaint> {
    if !session.json {
        let mut text = String::new();
        writeln!(text, "{HEADER}")?;
        caches().iter().try_for_each(|cache| writeln!(text, "{cache}"))?;
        console::print(&text);
        return Ok(());
    }
    let columns = ["name", "active_objs", "num_objs", "objsize", "objperslab", "pagesperslab", "num_slabs"];
    let mut table = Table::new("slabinfo", &columns);
    for cache in caches() {
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

fn one(session: &mut Session<'_>, cache: &RawCache) -> Result<(), Complaint> {
    let info = cache.info();
    let mut table = Table::new("cache", &["what", "value"]);
    let facts = [
        ("object_size", Value::from(cache.object_size())),
        ("slab_size", cache.size().into()),
        ("flags", alloc::format!("{:?}", cache.flags().iter_names().map(|(name, _)| name).collect::<Vec<_>>()).into()),
        ("active_objs", info.active_objs.into()),
        ("num_objs", info.num_objs.into()),
        ("objs_per_slab", info.objperslab.into()),
        ("pages_per_slab", info.pagesperslab.into()),
        ("slabs", info.num_slabs.into()),
        ("partial", cache.nr_partial().into()),
        ("min_partial", cache.min_partial().into()),
        ("sheaf_capacity", cache.sheaf_capacity().into()),
    ];
    let counters = Stat::ALL.iter().map(|&stat| (stat.name(), Value::from(cache.stat(stat))));
    for (what, value) in facts.into_iter().chain(counters) {
        table.row([what.into(), value]);
    }
    session.show(&table)?;
    let mut table = Table::new("barns", &["node", "full sheaves", "empty sheaves"]);
    for (node, full, empty) in cache.barns() {
        table.row([Value::from(node.index()), full.into(), empty.into()]);
    }
    session.show(&table)
}
