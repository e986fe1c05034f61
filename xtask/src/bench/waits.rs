//! How long writers wait for grace periods under load, beside a Linux image's: one table.

use crate::spread::{Spread, median};

use super::record::{LinuxWaits, Record, Row};
use super::rows::medians;
use super::table::{Section, Table};

/// The kinds of wait.
pub const KINDS: [&str; 3] = ["normal", "expedited", "callbacks"];

/// The table, if anything was measured.
#[must_use]
pub fn section(record: &Record) -> Option<Section> {
    let heads =
        ["machine", "wait", "by", "waits", "p50 ms", "p90", "p99", "most", "grace periods", "CPU of their thread"];
    let mut table = Table::new(heads);
    for leg in record.legs.iter().filter(|leg| leg.name.starts_with("latency-")) {
        for kind in KINDS {
            let rows = medians(&leg.rows, &format!("rcu_latency.{kind}"));
            let writers: Vec<&Row> = rows.iter().filter(|row| row.of.starts_with("writer")).collect();
            let thread = rows.iter().find(|row| row.of == "grace-period thread");
            let over = |name: &str| writers.iter().map(|row| row[name]).collect::<Vec<f64>>();
            if let Some(waits) = Spread::of(&over("waits")) {
                let middle = |name: &str| ms(median(over(name)).unwrap_or(f64::NAN));
                let most = over("max").into_iter().fold(0.0, f64::max);
                let gps = thread.map_or(f64::NAN, |row| row["gps"] + row["exp_gps"]);
                let share = thread.map_or(f64::NAN, |row| row["cpu_ns"] / row["ns"] * 100.0);
                let first = [leg.name.clone(), kind.to_owned(), "Grange".to_owned()];
                let count = format!("{:.0}", waits.middle * waits.of as f64);
                let times = [middle("p50"), middle("p90"), middle("p99"), ms(most)];
                let rest =
                    [format!("{gps:.0}"), if kind == "expedited" { "-".to_owned() } else { format!("{share:.2} %") }];
                table.rows.push([&first[..], &[count], &times, &rest].concat());
            }
            let of_linux: Vec<&LinuxWaits> =
                record.linux_waits.iter().filter(|linux| linux.leg == leg.name && linux.kind == kind).collect();
            if let Some(first) = of_linux.first() {
                let mut waits: Vec<f64> = of_linux.iter().flat_map(|linux| linux.waits.iter().copied()).collect();
                waits.sort_unstable_by(f64::total_cmp);
                let at = |percent: usize| ms(waits[(waits.len() - 1) * percent / 100]);
                let by = [leg.name.clone(), kind.to_owned(), format!("Linux {}", first.release)];
                let numbers = [waits.len().to_string(), at(50), at(90), at(99), at(100)];
                table.rows.push([&by[..], &numbers, &["-".to_owned(), "-".to_owned()]].concat());
            }
        }
    }
    let title = "How long a writer waits for a grace period while readers and writers are on all CPUs".to_owned();
    (!table.rows.is_empty()).then_some(Section { name: "waits".to_owned(), title, table })
}

/// Milliseconds, with what an expedited one takes of them.
fn ms(ns: f64) -> String {
    if ns < 1e6 { format!("{:.3}", ns / 1e6) } else { format!("{:.2}", ns / 1e6) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::tests::{leg, record, row};

    #[test]
    fn writers_are_put_together_and_linux_stands_below() {
        let writer = |number: u32, p50: f64| {
            let mut row = row("rcu_latency.normal", &format!("writer {number}"), "p50", p50);
            row.values
                .extend([("waits", 10.0), ("p90", p50), ("p99", p50), ("max", p50)].map(|(n, v)| (n.to_owned(), v)));
            row
        };
        let mut thread = row("rcu_latency.normal", "grace-period thread", "gps", 15.0);
        thread.values.extend([("exp_gps", 0.0), ("ns", 1e9), ("cpu_ns", 1e6)].map(|(n, v)| (n.to_owned(), v)));
        let mut measured = record(leg("latency-2", 2, vec![], vec![writer(0, 4e6), writer(1, 6e6), thread]));
        let text = |kind: &str| kind.to_owned();
        let (leg, release, kind) = (text("latency-2"), text("6.12.1"), text("normal"));
        measured.linux_waits.push(LinuxWaits { leg, release, kind, waits: vec![16e6, 20e6, 18e6] });
        let rows = section(&measured).unwrap().table.rows;
        assert_eq!(rows[0][2..], ["Grange", "20", "5.00", "5.00", "5.00", "6.00", "15", "0.10 %"]);
        assert_eq!(rows[1][2..], ["Linux 6.12.1", "3", "18.00", "18.00", "18.00", "20.00", "-", "-"]);
        assert_eq!([47_600.0, 6_274_123.0].map(ms), ["0.048", "6.27"]);
        assert_eq!(section(&Record::default()), None);
    }
}
