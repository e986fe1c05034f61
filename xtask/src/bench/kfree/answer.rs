//! Who wins on which load, by how much: what the other tables say, in one.
//!
//! Only back ends compete. A user's own callbacks are in the other tables to compare with, and need a head of 16 bytes.

use crate::bench::record::{Record, Row};
use crate::bench::rows::{benches, medians};
use crate::bench::table::Table;

use super::tables::is_of_tables;

/// What is compared: smaller is better. Nothing where the load does not say it.
type Measure = fn(&Row) -> Option<f64>;

/// A load: its bench, what it is called, and what of its rows is time, memory, and grace periods.
struct Load {
    bench: &'static str,
    name: &'static str,
    measures: [Measure; 3],
}

const NONE: Measure = |_| None;
const TIME: Measure = |row| Some(row["ns"]);
const PEAK: Measure = |row| Some(row["peak"]);
const MEAN: Measure = |row| Some(row["footprint"]);
const GPS: Measure = |row| Some(row["gps"] + row["exp_gps"]);

const LOADS: &[Load] = &[
    Load { bench: "kfree_rcu_scale.kfree_rcu_test", name: "rcuscale", measures: [TIME, PEAK, GPS] },
    Load { bench: "kfree_rcu_flood.small", name: "flood, 64 bytes", measures: [TIME, PEAK, GPS] },
    Load { bench: "kfree_rcu_flood.large", name: "flood, 16 KiB", measures: [TIME, PEAK, GPS] },
    Load { bench: "kfree_rcu_flood.vmalloc", name: "flood, vmalloc", measures: [TIME, PEAK, GPS] },
    Load { bench: "kfree_rcu_flood.slow_readers", name: "flood, slow readers", measures: [TIME, PEAK, GPS] },
    Load {
        bench: "kfree_rcu_flood.waiting_bytes",
        name: "100,000 wait at once",
        measures: [|row| Some(row["free_ns"]), |row| Some(row["bytes"]), NONE],
    },
    Load { bench: "kfree_rcu_flood.held_rate", name: "every 4 ms, objects", measures: [NONE, MEAN, GPS] },
    Load { bench: "kfree_rcu_flood.trickle", name: "trickle", measures: [NONE, MEAN, GPS] },
];

/// The way that is no back end.
const NO_BACK_END: &str = "callback";

/// The table, if anything was measured.
pub(super) fn table(record: &Record) -> Option<Table> {
    let mut table = Table::new(["load", "least time", "least memory", "fewest grace periods"]);
    for load in LOADS {
        for leg in record.legs.iter().filter(|leg| is_of_tables(leg)) {
            for bench in benches(&leg.rows).into_iter().filter(|bench| *bench == load.bench) {
                for (variant, competitors) in variants(medians(&leg.rows, bench)) {
                    let on = leg.name.strip_prefix("rcuscale-");
                    let name = [Some(load.name), on, variant.as_deref()].into_iter().flatten().collect::<Vec<_>>();
                    let cells = load.measures.map(|measure| least(&competitors, measure));
                    table.rows.push([vec![name.join(" ")], cells.to_vec()].concat());
                }
            }
        }
    }
    (!table.rows.is_empty()).then_some(table)
}

/// The back ends' rows by what stands behind the slash, and the name before it.
fn variants(rows: Vec<Row>) -> Vec<(Option<String>, Vec<Row>)> {
    let mut variants: Vec<(Option<String>, Vec<Row>)> = Vec::new();
    for mut row in rows {
        let variant = row.of.split_once('/').map(|(way, variant)| (way.to_owned(), variant.to_owned()));
        let variant = variant.map(|(way, variant)| {
            row.of = way;
            variant
        });
        if row.of == NO_BACK_END {
            continue;
        }
        match variants.iter_mut().find(|(known, _)| *known == variant) {
            Some((_, rows)) => rows.push(row),
            None => variants.push((variant, vec![row])),
        }
    }
    variants
}

/// Who has the least, and how many times as much the next has.
fn least(rows: &[Row], measure: Measure) -> String {
    let mut all: Vec<(f64, &str)> = rows.iter().filter_map(|row| Some((measure(row)?, row.of.as_str()))).collect();
    all.retain(|(value, _)| value.is_finite());
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    match all[..] {
        [] => "-".to_owned(),
        [(_, only)] => only.to_owned(),
        [(first, winner), (second, next), ..] if first > 0.0 && second > first * 1.05 => {
            format!("{winner}; {next} {:.1} ×", second / first)
        }
        [(first, winner), (second, next), ..] if second > first => format!("{winner}; {next} about as much"),
        [(_, winner), (_, next), ..] => format!("{winner}; {next} as much"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn row(of: &str, ns: f64) -> Row {
        Row { bench: "a.x".to_owned(), of: of.to_owned(), values: BTreeMap::from([("ns".to_owned(), ns)]) }
    }

    #[test]
    fn the_winner_is_named_with_the_next_and_by_how_much() {
        assert_eq!(least(&[row("bulk", 30.0), row("sheaf", 10.0), row("call_rcu", 99.0)], TIME), "sheaf; bulk 3.0 ×");
        assert_eq!(least(&[row("bulk", 10.2), row("sheaf", 10.0)], TIME), "sheaf; bulk about as much");
        assert_eq!(least(&[row("bulk", 0.0), row("sheaf", 0.0)], TIME), "bulk; sheaf as much");
        assert_eq!(least(&[row("bulk", 1.0)], NONE), "-");
    }

    #[test]
    fn variants_compete_apart_and_callbacks_of_users_not_at_all() {
        let rows = ["sheaf/16", "bulk/16", "callback/16", "sheaf/256"].map(|of| row(of, 1.0)).to_vec();
        let seen: Vec<(Option<String>, Vec<String>)> = variants(rows)
            .into_iter()
            .map(|(variant, rows)| (variant, rows.into_iter().map(|row| row.of).collect()))
            .collect();
        let name = |text: &str| text.to_owned();
        let expected =
            [(Some(name("16")), vec![name("sheaf"), name("bulk")]), (Some(name("256")), vec![name("sheaf")])];
        assert_eq!(seen, expected);
    }
}
