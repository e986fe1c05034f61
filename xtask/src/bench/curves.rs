//! The curves of a record: what depends on the number of CPUs, on time, or is a distribution.

use crate::plot::{Axis, Plot, Scale};
use crate::spread::median;

use super::kfree::tables::a_second;
use super::record::{Boots, Leg, Record, Row, Unit};
use super::report::many;
use super::rows::medians;

const CPUS: Axis = ("CPUs", Scale::Doublings);
/// The same where time is taken.
const TIMED_CPUS: Axis = ("CPUs; where the host has fewer, one host thread runs all", Scale::Doublings);

/// The bench whose rows are one flood of each way.
const SMALL: &str = "kfree_rcu_flood.small";

/// All that there are figures for.
#[must_use]
pub fn all(record: &Record) -> Vec<Plot> {
    let plots = [
        by_cpus(record, "flood-time", "Time of one object, allocated and given up", "ns", "flood-", SMALL, an_object),
        by_cpus(
            record,
            "flood-instructions",
            "Instructions of one object",
            "instructions",
            "counted-flood-",
            SMALL,
            an_object,
        ),
        by_cpus(record, "barns", "CPUs that ran dry and found a sheaf in the barn", "%", "flood-", SMALL, barn_hits),
        of_suite(record, "peers-time", "A pair of alloc and free, over all CPUs", "slab-peers-", "slab_peers."),
        of_suite(record, "peers-instructions", "Instructions of a pair", "counted-slab-peers-", "slab_peers."),
        of_suite(record, "readers-time", "A reader, by flavour", "readers-", "ref_scale."),
        of_suite(
            record,
            "readers-instructions",
            "Instructions of a reader, by flavour",
            "counted-readers-",
            "ref_scale.",
        ),
        over_time(record),
        rates(record),
        lengths(record),
        boots(&record.boots),
    ];
    plots.into_iter().filter(|plot| plot.lines.iter().any(|(_, points)| !points.is_empty())).collect()
}

/// The legs of an experiment over machines, which are called so and a number.
fn sizes<'a>(record: &'a Record, prefix: &str) -> Vec<&'a Leg> {
    let is_size = |leg: &&Leg| leg.name.strip_prefix(prefix).is_some_and(|rest| rest.parse::<u32>().is_ok());
    record.legs.iter().filter(is_size).collect()
}

/// Adds a point to the line of that name.
fn add(lines: &mut Vec<(String, Vec<(f64, f64)>)>, name: &str, point: (f64, f64)) {
    match lines.iter_mut().find(|(known, _)| known == name) {
        Some((_, points)) => points.push(point),
        None => lines.push((name.to_owned(), vec![point])),
    }
}

/// A line for each thing that rows of a bench are of.
fn by_cpus(
    record: &Record,
    name: &'static str,
    title: &str,
    unit: &'static str,
    prefix: &str,
    bench: &str,
    figure: fn(&Row) -> f64,
) -> Plot {
    let mut lines = Vec::new();
    for leg in sizes(record, prefix) {
        for row in medians(&leg.rows, bench).iter().filter(|row| figure(row).is_finite()) {
            add(&mut lines, &row.of, (f64::from(leg.cpus), figure(row)));
        }
    }
    Plot { name, title: title.to_owned(), x: cpus_of(unit), y: (unit, Scale::Even), lines }
}

/// The axis of machines for figures in `unit`.
fn cpus_of(unit: &str) -> Axis {
    if unit == Unit::Ns.name() { TIMED_CPUS } else { CPUS }
}

fn an_object(row: &Row) -> f64 {
    row["ns"] / row["objects"]
}

fn barn_hits(row: &Row) -> f64 {
    row["barn_get"] / (row["barn_get"] + row["barn_get_fail"]) * 100.0
}

/// A line for each bench of a suite.
fn of_suite(record: &Record, name: &'static str, title: &str, prefix: &str, suite: &str) -> Plot {
    let (mut lines, mut unit) = (Vec::new(), Unit::Ns);
    for leg in sizes(record, prefix) {
        for figure in leg.figures.iter().filter(|figure| figure.bench.starts_with(suite)) {
            unit = figure.unit;
            let of = figure.bench[suite.len()..].replace('_', " ");
            add(&mut lines, &of, (f64::from(leg.cpus), figure.p50()));
        }
    }
    Plot { name, title: title.to_owned(), x: cpus_of(unit.name()), y: (unit.name(), Scale::Tens), lines }
}

/// What rows of a bench say by what they are of, a name and a number with `/` between.
fn named_points(
    record: &Record,
    bench: &str,
    point: impl Fn(&Row, f64) -> (f64, f64),
) -> Vec<(String, Vec<(f64, f64)>)> {
    let mut lines = Vec::new();
    for row in record.legs.iter().flat_map(|leg| medians(&leg.rows, bench)) {
        let Some((name, number)) = row.of.rsplit_once('/') else { continue };
        add(&mut lines, name, point(&row, number.parse().unwrap_or(f64::NAN)));
    }
    lines
}

fn over_time(record: &Record) -> Plot {
    let lines = named_points(record, "kfree_rcu_flood.over_time", |row, _| (row["ns"] / 1e6, row["bytes"] / 1024.0));
    let title = "Memory in use by what waits for a grace period, while 4 CPUs give up objects".to_owned();
    Plot { name: "waiting", title, x: ("ms", Scale::Even), y: ("KiB", Scale::Even), lines }
}

fn rates(record: &Record) -> Plot {
    let lines =
        named_points(record, "kfree_rcu_flood.held_rate", |row, _| (row["footprint"] / 1024.0, a_second(row, "gps")));
    let title = "Grace periods against memory, by the rate".to_owned();
    Plot { name: "rates", title, x: ("mean KiB", Scale::Tens), y: ("grace periods a second", Scale::Tens), lines }
}

/// How many of all waits are not longer: a line for each kind of wait and machine, Linux's behind ours.
fn lengths(record: &Record) -> Plot {
    let mut lines = Vec::new();
    for kind in super::waits::KINDS {
        for leg in sizes(record, "latency-") {
            let rows = medians(&leg.rows, &format!("rcu_latency.{kind}"));
            let buckets = rows.iter().filter(|row| row.values.contains_key("up_to_ns"));
            let buckets = buckets.map(|row| (row["up_to_ns"], row["waits"])).collect();
            lines.extend(added_up(&format!("{kind}, {}", many(leg.cpus, "CPU")), buckets));
            let linux = record.linux_waits.iter().filter(|waits| waits.leg == leg.name && waits.kind == kind);
            let waits: Vec<f64> = linux.flat_map(|waits| waits.waits.iter().copied()).collect();
            let buckets = (10..40).map(|doubling| {
                let (from, to) = (2_f64.powi(doubling - 1), 2_f64.powi(doubling));
                (to, waits.iter().filter(|wait| (from..to).contains(wait)).count() as f64)
            });
            let buckets = buckets.filter(|(_, waits)| *waits > 0.0).collect();
            lines.extend(added_up(&format!("Linux {kind}, {}", many(leg.cpus, "CPU")), buckets));
        }
    }
    let title = "How long a writer waits for a grace period, under load".to_owned();
    Plot { name: "lengths", title, x: ("µs", Scale::Tens), y: ("% of waits not longer", Scale::Even), lines }
}

/// The line of that name, in µs and per cent, of how many waits were up to how long; none of none.
fn added_up(name: &str, buckets: Vec<(f64, f64)>) -> Option<(String, Vec<(f64, f64)>)> {
    let all: f64 = buckets.iter().map(|(_, waits)| waits).sum();
    let mut below = 0.0;
    let points = buckets.iter().map(|(up_to_ns, waits)| {
        below += waits;
        (up_to_ns / 1e3, below / all * 100.0)
    });
    (!buckets.is_empty()).then(|| (name.to_owned(), points.collect()))
}

/// Time to all CPUs online, a line for each number of nodes.
#[must_use]
pub fn boots(all: &[Boots]) -> Plot {
    let mut lines = Vec::new();
    for boots in all {
        let nodes = format!("{} node{}", boots.nodes, if boots.nodes == 1 { "" } else { "s" });
        add(&mut lines, &nodes, (f64::from(boots.cpus), median(boots.online_ms.clone()).unwrap_or(f64::NAN)));
    }
    Plot {
        name: "smp",
        title: "From QEMU's start to all CPUs online".to_owned(),
        x: TIMED_CPUS,
        y: ("ms", Scale::Even),
        lines,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::LinuxWaits;
    use crate::bench::record::tests::{figure, leg, row};

    type Line = (String, Vec<(f64, f64)>);

    fn lines(record: &Record) -> Vec<(&'static str, Vec<Line>)> {
        all(record).into_iter().map(|plot| (plot.name, plot.lines)).collect()
    }

    #[test]
    fn what_was_not_measured_makes_no_plot() {
        assert!(all(&Record::default()).is_empty());
    }

    #[test]
    fn machines_of_one_experiment_are_the_points_of_a_line() {
        let peers = |cpus, ns| {
            leg(&format!("slab-peers-{cpus}"), cpus, vec![figure("slab_peers.sheaves", Unit::Ns, &[ns])], vec![])
        };
        let record = Record { legs: vec![peers(1, 10.0), peers(4, 12.0)], ..Record::default() };
        assert_eq!(lines(&record), [("peers-time", vec![("sheaves".to_owned(), vec![(1.0, 10.0), (4.0, 12.0)])])]);
    }

    #[test]
    fn waits_add_up_to_all_of_them() {
        let bucket = |up_to: f64, waits: f64| {
            let mut bucket = row("rcu_latency.normal", &format!("waits/{up_to}"), "up_to_ns", up_to);
            bucket.values.insert("waits".to_owned(), waits);
            bucket
        };
        let writer = row("rcu_latency.normal", "writer 0", "p50", 7.0);
        let legs = vec![leg("latency-2", 2, vec![], vec![writer, bucket(1e6, 1.0), bucket(2e6, 3.0)])];
        let (leg, release, kind) = ("latency-2".to_owned(), "6.12.1".to_owned(), "normal".to_owned());
        let linux_waits = vec![LinuxWaits { leg, release, kind, waits: vec![1_024.0, 1_025.0, 5_000.0, 1_000.0] }];
        let record = Record { legs, linux_waits, ..Record::default() };
        let ours = ("normal, 2 CPUs".to_owned(), vec![(1e3, 25.0), (2e3, 100.0)]);
        let linux = ("Linux normal, 2 CPUs".to_owned(), vec![(1.024, 25.0), (2.048, 75.0), (8.192, 100.0)]);
        assert_eq!(lines(&record), [("lengths", vec![ours, linux])]);
    }

    #[test]
    fn boots_are_a_line_for_each_number_of_nodes() {
        let boots = |cpus, nodes| Boots { cpus, nodes, engine: "tcg".to_owned(), online_ms: vec![90.0, 80.0, 100.0] };
        let record = Record { boots: vec![boots(1, 1), boots(2, 1), boots(2, 2)], ..Record::default() };
        let seen = lines(&record);
        let points: Vec<(&str, usize)> = seen[0].1.iter().map(|(name, points)| (name.as_str(), points.len())).collect();
        assert_eq!((seen[0].0, points), ("smp", vec![("1 node", 2), ("2 nodes", 1)]));
    }
}
