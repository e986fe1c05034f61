//! What moved since a saved run.
//!
//! Instructions are exact, so any other figure has moved; where boots of one run differ among themselves, only one outside of
//! what both runs have seen. Time has moved when each run has at least [`BOOTS`] boots, they have no figure in common, and
//! their medians are further apart than the boots of either: by what factor, since a path that takes ten times as long varies ten
//! times as much.

use crate::spread::Spread;

use super::record::{Figure, Leg, Record, Unit};
use super::rows::distinct;
use super::table::{Section, Table, number};

/// Boots, or rounds within boots, from which on times can be judged.
pub const BOOTS: usize = 3;

/// What is to say of a figure beside an earlier one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// It did not move.
    None,
    /// It moved, and is so many times what it was.
    Times(f64),
    /// There are too few boots to tell.
    Unknown,
}

impl Change {
    /// For a table.
    #[must_use]
    pub fn cell(self) -> String {
        match self {
            Change::None => "=".to_owned(),
            Change::Times(ratio) => format!("{:+.1} %", (ratio - 1.0) * 100.0),
            Change::Unknown => format!("under {BOOTS} boots"),
        }
    }
}

fn change(before: &[f64], now: &[f64], exact: bool) -> Change {
    let tenths = |values: &[f64]| Spread::of(&values.iter().map(|v| (v * 10.0).round()).collect::<Vec<_>>());
    let (Some(before), Some(now)) = (tenths(before), tenths(now)) else { return Change::Unknown };
    let moved = !before.overlaps(&now);
    // A tenth stands for none of them, by which nothing can be divided.
    let factor = |a: f64, b: f64| (a.max(1.0) / b.max(1.0)).ln().abs();
    let apart = factor(now.middle, before.middle) > factor(now.most, now.least).max(factor(before.most, before.least));
    match () {
        () if exact && moved => Change::Times(now.middle / before.middle),
        () if exact => Change::None,
        () if before.of.min(now.of) < BOOTS => Change::Unknown,
        () if moved && apart => Change::Times(now.middle / before.middle),
        () => Change::None,
    }
}

/// A figure beside that of an earlier run.
#[must_use]
pub fn figure(before: &Figure, now: &Figure) -> Change {
    if before.unit != now.unit {
        return Change::Unknown;
    }
    change(&before.medians, &now.medians, now.unit == Unit::Instructions)
}

/// All that moved: figures, and numbers of rows that were taken several times.
#[must_use]
pub fn moved(before: &Record, now: &Record) -> Section {
    let mut table = Table::new(["figure", "machine", "unit", "before", "now", "moved"]);
    for leg in &now.legs {
        let Some(earlier) = before.leg(&leg.name).filter(|earlier| earlier.counted == leg.counted) else { continue };
        for figure in &leg.figures {
            let Some(was) = earlier.figure(&figure.bench) else { continue };
            let change @ Change::Times(_) = self::figure(was, figure) else { continue };
            let numbers = [number(was.p50()), number(figure.p50()), change.cell()];
            table.rows.push(
                [&[figure.bench.clone(), leg.name.clone(), figure.unit.name().to_owned()], &numbers[..]].concat(),
            );
        }
        for (what, name, was, is) in rows(earlier, leg) {
            let change @ Change::Times(_) = change(&was, &is, false) else { continue };
            let middle = |values: &[f64]| Spread::of(values).map_or(String::new(), |spread| number(spread.middle));
            table.rows.push([what, leg.name.clone(), name, middle(&was), middle(&is), change.cell()].to_vec());
        }
    }
    let title = format!("Moved against {} of {}", before.commit, before.utc);
    Section { name: "moved".to_owned(), title, table }
}

/// The numbers that both have: of what, which, and all that each has of them.
fn rows(before: &Leg, now: &Leg) -> Vec<(String, String, Vec<f64>, Vec<f64>)> {
    let mut all = Vec::new();
    for bench in distinct(now.rows.iter().map(|row| row.bench.as_str())) {
        let of_bench = |leg: &'_ Leg| leg.rows.iter().filter(|row| row.bench == bench).cloned().collect::<Vec<_>>();
        let (was, is) = (of_bench(before), of_bench(now));
        for of in distinct(is.iter().map(|row| row.of.as_str())) {
            let Some(first) = is.iter().find(|row| row.of == of) else { continue };
            for name in first.values.keys() {
                let values = |rows: &[super::record::Row]| {
                    let same = rows.iter().filter(|row| row.of == of);
                    same.filter_map(|row| row.values.get(name).copied()).collect::<Vec<f64>>()
                };
                all.push((format!("{bench}: {of}"), name.clone(), values(&was), values(&is)));
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::tests::{figure as made, leg, record, row};

    #[test]
    fn instructions_move_with_every_tenth_and_time_beyond_its_spread() {
        assert_eq!(change(&[34.0], &[34.0], true), Change::None);
        assert_eq!(change(&[34.0], &[34.04], true), Change::None);
        assert_eq!(change(&[50.0], &[55.0], true), Change::Times(1.1));
        assert_eq!(change(&[34.0, 34.2], &[34.1], true), Change::None);
        assert_eq!(change(&[34.0], &[50.0], false), Change::Unknown);
        assert_eq!(change(&[10.0, 11.0, 12.0], &[11.5, 20.0, 30.0], false), Change::None);
        assert_eq!(change(&[10.0, 10.0, 20.0], &[21.0, 22.0, 23.0], false), Change::Times(2.2));
        // What is slower varies more.
        assert_eq!(change(&[36.0, 36.0, 37.0], &[5_400.0, 7_200.0, 16_000.0], false), Change::Times(200.0));
        assert_eq!(change(&[0.0, 0.0, 0.0], &[0.1, 0.2, 0.3], false), Change::None);
        // No figure in common, but nearer than what one run differs by itself.
        assert_eq!(change(&[10.0, 19.0, 20.0], &[21.0, 22.0, 23.0], false), Change::None);
    }

    #[test]
    fn only_what_moved_is_listed() {
        let before = record(leg(
            "counted",
            2,
            vec![made("a.x", Unit::Instructions, &[34.0]), made("a.y", Unit::Ns, &[50.0])],
            [1.0, 2.0, 3.0].map(|ns| row("a.x", "near", "ns", ns)).to_vec(),
        ));
        let now = record(leg(
            "counted",
            2,
            vec![made("a.x", Unit::Instructions, &[35.0]), made("a.y", Unit::Ns, &[70.0])],
            [11.0, 12.0, 13.0].map(|ns| row("a.x", "near", "ns", ns)).to_vec(),
        ));
        let seen: Vec<_> = moved(&before, &now).table.rows.iter().map(|row| (row[0].clone(), row[5].clone())).collect();
        let name = str::to_owned;
        assert_eq!(seen, [(name("a.x"), name("+2.9 %")), (name("a.x: near"), name("+500.0 %"))]);
        assert_eq!(moved(&before, &before).table.rows, [] as [Vec<String>; 0]);
    }
}
