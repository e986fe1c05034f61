//! Rows of several boots and rounds put together: one for each thing that they are of.

use crate::spread::median;

use super::record::Row;
use super::table::{Table, number};

/// The benches that have rows, in their order.
#[must_use]
pub fn benches(rows: &[Row]) -> Vec<&str> {
    distinct(rows.iter().map(|row| row.bench.as_str()))
}

/// One row for each thing that rows of a bench are of, in their order: the medians of its numbers.
#[must_use]
pub fn medians(rows: &[Row], bench: &str) -> Vec<Row> {
    let of_bench = || rows.iter().filter(|row| row.bench == bench);
    let things = distinct(of_bench().map(|row| row.of.as_str()));
    let merged = things.into_iter().map(|of| {
        let same: Vec<&Row> = of_bench().filter(|row| row.of == of).collect();
        let middle = |name: &String| median(same.iter().map(|row| row[name]).collect()).unwrap_or(f64::NAN);
        let values = same[0].values.keys().map(|name| (name.clone(), middle(name))).collect();
        Row { bench: bench.to_owned(), of: of.to_owned(), values }
    });
    merged.collect()
}

/// Whether a row is a point of a curve: it is of a name, `/` and a number.
fn is_point(row: &Row) -> bool {
    row.of.rsplit_once('/').is_some_and(|(_, number)| number.parse::<f64>().is_ok())
}

/// The medians of a bench as tables, one for each kind of row: those with the same names. Points of curves are left out.
#[must_use]
pub fn tables(rows: &[Row], bench: &str) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    for row in medians(rows, bench).iter().filter(|row| !is_point(row)) {
        let heads: Vec<&str> = ["of"].into_iter().chain(row.values.keys().map(String::as_str)).collect();
        let cells = [row.of.clone()].into_iter().chain(row.values.values().map(|value| number(*value))).collect();
        match tables.iter_mut().find(|table| table.heads == heads) {
            Some(table) => table.rows.push(cells),
            None => tables.push(Table { rows: vec![cells], ..Table::new(heads) }),
        }
    }
    tables
}

/// Each once, where it comes first.
pub(super) fn distinct<'a>(all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for one in all {
        if !seen.contains(&one) {
            seen.push(one);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::tests::row;

    #[test]
    fn rows_of_one_thing_become_one_row_of_medians_in_the_order_of_the_first() {
        let rows = [("a.x", "late", 9.0), ("a.x", "bulk", 1.0), ("b.y", "late", 100.0), ("a.x", "late", 7.0)]
            .map(|(bench, of, ns)| row(bench, of, "ns", ns));
        assert_eq!(benches(&rows), ["a.x", "b.y"]);
        let merged: Vec<(String, f64)> = medians(&rows, "a.x").iter().map(|row| (row.of.clone(), row["ns"])).collect();
        assert_eq!(merged, [("late".to_owned(), 8.0), ("bulk".to_owned(), 1.0)]);
    }

    #[test]
    fn each_kind_of_row_has_a_table_and_points_have_none() {
        let rows = [("late", "ns", 9.0), ("bulk", "ns", 1.0), ("thread", "gps", 3.0), ("bulk/16", "ns", 5.0)]
            .map(|(of, name, value)| row("a.x", of, name, value));
        let seen: Vec<String> = tables(&rows, "a.x").iter().map(Table::markdown).collect();
        assert_eq!(
            seen,
            ["| of | ns |\n|---|--:|\n| late | 9.0 |\n| bulk | 1.0 |\n", "| of | gps |\n|---|--:|\n| thread | 3.0 |\n"]
        );
    }
}
