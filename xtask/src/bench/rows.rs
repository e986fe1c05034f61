//! Rows: what a bench tells beside its figure, as named numbers of something.

use std::collections::BTreeMap;
use std::ops::Index;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::Value;

use crate::smp::measure::median;

use super::report::number;

/// One row of one boot.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// `suite.bench`
    pub bench: String,
    /// What the numbers are of.
    pub of: String,
    /// The numbers.
    pub values: BTreeMap<String, f64>,
}

impl Row {
    /// The row that a JSON object of the kernel is, if it is one.
    #[must_use]
    pub fn read(object: &Value) -> Option<Row> {
        let text = |key: &str| object[key].as_str().map(str::to_owned);
        let numbers = object["values"].as_object()?.iter();
        let values = numbers.filter_map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect();
        Some(Row { bench: text("row")?, of: text("of")?, values })
    }
}

impl Index<&str> for Row {
    type Output = f64;

    /// A number of that name; one that is not there is no number.
    fn index(&self, name: &str) -> &f64 {
        self.values.get(name).unwrap_or(&f64::NAN)
    }
}

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

/// The medians of a bench for people.
#[must_use]
pub fn table(rows: &[Row], bench: &str) -> Table {
    let medians = medians(rows, bench);
    let names = distinct(medians.iter().flat_map(|row| row.values.keys().map(String::as_str)));
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["of"].iter().chain(&names));
    for row in &medians {
        let numbers = names.iter().map(|name| row.values.get(*name).map_or("-".to_owned(), |value| number(*value)));
        table.add_row([row.of.clone()].into_iter().chain(numbers));
    }
    for column in 1..=names.len() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Each once, where it comes first.
fn distinct<'a>(all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
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

    fn rows(all: &[(&str, &str, f64)]) -> Vec<Row> {
        let row = |(bench, of, ns): &(&str, &str, f64)| Row {
            bench: (*bench).to_owned(),
            of: (*of).to_owned(),
            values: BTreeMap::from([("ns".to_owned(), *ns)]),
        };
        all.iter().map(row).collect()
    }

    #[test]
    fn rows_of_one_thing_become_one_row_of_medians_in_the_order_of_the_first() {
        let rows = rows(&[("a.x", "late", 9.0), ("a.x", "bulk", 1.0), ("b.y", "late", 100.0), ("a.x", "late", 7.0)]);
        assert_eq!(benches(&rows), ["a.x", "b.y"]);
        let merged: Vec<(String, f64)> = medians(&rows, "a.x").iter().map(|row| (row.of.clone(), row["ns"])).collect();
        assert_eq!(merged, [("late".to_owned(), 8.0), ("bulk".to_owned(), 1.0)]);
        let text = table(&rows, "a.x").to_string();
        assert!(text.contains("late") && text.contains("8.0") && !text.contains("100"), "{text}");
    }

    #[test]
    fn only_an_object_with_names_and_numbers_is_a_row() {
        let read = |text: &str| Row::read(&serde_json::from_str(text).unwrap());
        let row = read(r#"{"row":"a.x","of":"bulk","values":{"ns":5,"gps":2}}"#).unwrap();
        assert_eq!((row["ns"], row["gps"], row["none"].is_nan()), (5.0, 2.0, true));
        assert_eq!(read(r#"{"bench":"a.x","operations":1}"#), None);
        assert_eq!(read(r#"{"row":"a.x","of":"bulk"}"#), None);
    }
}
