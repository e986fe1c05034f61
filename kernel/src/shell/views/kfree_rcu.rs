//! Memory that waits on RCU, and the back ends of `kfree_rcu`: `kfree_rcu`.

use alloc::vec::Vec;

use ::kfree_rcu::backend::{self, BackEnd, Event};
use ::kfree_rcu::kvfree_rcu_barrier;
use ::slab::rcu_bound;
use ::slab::rcu_free::{self, Policy};
use ::slab::waiting::{self, ByStage, Stage, Waiting};
use arch::clock;
use grange_kernel::slabtop::per_second_of;
use grange_kernel::table::{Table, Value};

use super::slab::number;
use crate::console;
use crate::shell::{Complaint, Session, command};

command!(
    kfree_rcu,
    "[hist] [barrier] [watch] [backend] [bound] [sheaves] [VALUE] [--json]",
    "what waits on RCU, by stage and by cache, and the counters of the back ends; `hist`: for how long; `barrier`: waits until all \
     is free; `watch [SECONDS]`: a line a second, q stops it; `backend [NAME]`: which is in use, or uses another; `bound [MS]`: for how long a \
     sheaf is kept that does not get full, 0 for ever; `sheaves [lazy|hurry]`: whether they wait with lazy callbacks",
    kfree_rcu
);

fn kfree_rcu(session: &mut Session<'_>, arguments: &[&str]) -> Result<(), Complaint> {
    match arguments {
        [] => overview(session),
        ["hist"] => histograms(session),
        ["barrier"] => {
            let start_ns = clock::now_ns();
            kvfree_rcu_barrier(session.cx);
            console::print(&alloc::format!("all is free, after {} us\n", (clock::now_ns() - start_ns) / 1_000));
            Ok(())
        }
        ["watch"] => watch(session, u64::MAX),
        ["watch", seconds] => watch(session, number("SECONDS", seconds, 1, 86_400)?),
        ["backend"] => {
            console::print(&alloc::format!("{}\n", backend::current().name()));
            Ok(())
        }
        ["backend", name] => {
            let names = || BackEnd::ALL.map(BackEnd::name).join(", ");
            let to = BackEnd::from_name(name)
                .ok_or_else(|| Complaint::new(format_args!("`{name}` is no back end; allowed: {}", names())))?;
            let was = backend::current();
            backend::switch(to, session.cx);
            console::print(&alloc::format!("{name}, was {}\n", was.name()));
            Ok(())
        }
        ["bound"] => {
            console::print(&alloc::format!("{} ms\n", rcu_bound::bound().unwrap_or(0)));
            Ok(())
        }
        ["bound", ms] => {
            let ms = number("MS", ms, 0, 3_600_000)?;
            rcu_bound::set_bound(Some(ms).filter(|&ms| ms != 0));
            Ok(())
        }
        ["sheaves"] => {
            let name = if rcu_free::policy() == Policy::Hurry { "hurry" } else { "lazy" };
            console::print(&alloc::format!("{name}\n"));
            Ok(())
        }
        ["sheaves", "lazy"] => {
            rcu_free::set_policy(Policy::Lazy);
            Ok(())
        }
        ["sheaves", "hurry"] => {
            rcu_free::set_policy(Policy::Hurry);
            Ok(())
        }
        _ => Err(Complaint::new(format_args!(
            "`{}` is none of: kfree_rcu, kfree_rcu hist, kfree_rcu barrier, kfree_rcu watch [SECONDS], kfree_rcu backend [NAME], \
             kfree_rcu bound [MS], kfree_rcu sheaves [lazy|hurry]",
            arguments.join(" ")
        ))),
    }
}

fn overview(session: &mut Session<'_>) -> Result<(), Complaint> {
    let all = waiting::snapshot();
    let mut table = Table::new("kfree_rcu", &["stage", "objects", "bytes", "oldest, us"]);
    for stage in Stage::ALL {
        table.row(row(stage.name(), oldest(all, stage)));
    }
    table.row(row("all", total(all)));
    session.show(&table)?;

    let mut caches = Vec::new();
    waiting::for_each(|name, by_stage| {
        // The list of caches is locked: nothing may be printed, nor memory waited for.
        if by_stage.total().objects != 0 {
            caches.push((name, *by_stage));
        }
    });
    let mut table = Table::new("kfree_rcu_caches", &["cache", "objects", "bytes", "oldest, us"]);
    Stage::ALL.iter().for_each(|stage| table.column(stage.name()));
    for (name, by_stage) in caches {
        let mut cells = Vec::from(row(name, by_stage.total()));
        cells.extend(Stage::ALL.map(|stage| Value::from(by_stage.at(stage).objects)));
        table.row(cells);
    }
    session.show(&table)?;

    let mut sheaf = (0, 0);
    ::slab::registry::for_each(|cache| {
        sheaf.0 += cache.stat(::slab::Stat::FreeRcuSheaf);
        sheaf.1 += cache.stat(::slab::Stat::FreeRcuSheafFail);
    });
    let mut table = Table::new("kfree_rcu_back_ends", &["back end", "in use"]);
    Event::ALL.iter().for_each(|event| table.column(event.name()));
    let in_use = backend::current();
    let mut cells = Vec::from([Value::from("sheaves"), (in_use == BackEnd::Sheaf).into()]);
    // Of the events of a back end sheaves count what they take in.
    cells.extend(Event::ALL.iter().map(|&event| Value::from((event == Event::Enqueued).then_some(sheaf.0))));
    table.row(cells);
    for back_end in BackEnd::ENGINES {
        let used = in_use == back_end || (in_use == BackEnd::Sheaf && back_end == BackEnd::Bulk);
        let mut cells = Vec::from([Value::from(back_end.name()), used.into()]);
        cells.extend(Event::ALL.iter().map(|&event| Value::from(backend::total(back_end, event))));
        table.row(cells);
    }
    session.show(&table)
}

/// What waits at `stage`, with the age that for some only the back end knows.
fn oldest(all: ByStage, stage: Stage) -> Waiting {
    let engine = match stage {
        Stage::Bulk => Some(BackEnd::Bulk),
        Stage::Pending => Some(BackEnd::Pending),
        Stage::CallRcu => Some(BackEnd::CallRcu),
        Stage::Sheaf | Stage::Detached | Stage::Deferred => None,
    };
    // 0: nothing waits, or it has no room to note since when.
    let known = engine.map(|engine| engine.waiting()).filter(|waiting| waiting.oldest_ns != 0);
    Waiting { oldest_ns: known.map(|waiting| waiting.oldest_ns).or(all.at(stage).oldest_ns), ..all.at(stage) }
}

/// The same of all stages together.
fn total(all: ByStage) -> Waiting {
    Waiting { oldest_ns: Stage::ALL.into_iter().filter_map(|stage| oldest(all, stage).oldest_ns).max(), ..all.total() }
}

fn row(name: &str, waiting: Waiting) -> [Value; 4] {
    let oldest_us = waiting.oldest_ns.map(|ns| ns / 1_000);
    [name.into(), waiting.objects.into(), waiting.bytes.into(), oldest_us.into()]
}

fn histograms(session: &mut Session<'_>) -> Result<(), Complaint> {
    let mut table = Table::new("kfree_rcu_hist", &["stage", "recorded", "p50, us", "p90, us", "p99, us", "max, us"]);
    for stage in Stage::ALL {
        let seen = waiting::residence(stage);
        let us = |ns: u64| Value::from(ns / 1_000);
        let [p50, p90, p99] = [50, 90, 99].map(|percent| us(seen.percentile(percent)));
        table.row([stage.name().into(), seen.count.into(), p50, p90, p99, us(seen.max)]);
    }
    session.show(&table)
}

fn watch(session: &mut Session<'_>, seconds: u64) -> Result<(), Complaint> {
    let given = || {
        let mut given = 0;
        ::slab::registry::for_each(|cache| given += cache.stat(::slab::Stat::FreeRcuSheaf));
        let into = |&back_end: &BackEnd| backend::total(back_end, Event::Enqueued);
        given + BackEnd::ENGINES.iter().map(into).sum::<u64>()
    };
    let mut before = given();
    for second in 0..seconds {
        let start_ns = clock::now_ns();
        if console::quits_within(session.cx, 1_000_000_000) {
            return Ok(());
        }
        let (now, all) = (given(), waiting::snapshot());
        let mut table = Table::new("kfree_rcu_watch", &["given/s", "objects", "bytes", "oldest, us"]);
        Stage::ALL.iter().for_each(|stage| table.column(stage.name()));
        let [_, objects, bytes, oldest] = row("", total(all));
        let rate = Value::from(per_second_of(before, now, clock::now_ns() - start_ns));
        let mut cells = Vec::from([rate, objects, bytes, oldest]);
        cells.extend(Stage::ALL.map(|stage| Value::from(all.at(stage).bytes)));
        table.row(cells);
        match second {
            0 => session.show(&table)?,
            _ => session.show_rows(&table)?,
        }
        before = now;
    }
    Ok(())
}
