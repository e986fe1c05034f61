//! A table, for a terminal, for a page in Markdown and for one in HTML.

use std::fmt::Write as _;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, LineStyle, Table as Drawn, TableStyle};
use maud::{Markup, html};

/// On a terminal a line below the heads is enough: tables are long.
const STYLE: TableStyle = NOTHING.header_separator(LineStyle::none().fill('─').junction('─'));

/// Heads and cells. The first column says what a row is of; what follows is numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// One for each column.
    pub heads: Vec<String>,
    /// As many cells each.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// Without rows.
    #[must_use]
    pub fn new<'a>(heads: impl IntoIterator<Item = &'a str>) -> Table {
        Table { heads: heads.into_iter().map(str::to_owned).collect(), rows: Vec::new() }
    }

    /// For a terminal.
    #[must_use]
    pub fn terminal(&self) -> String {
        let mut table = Drawn::new();
        table.load_style(STYLE);
        table.set_header(&self.heads);
        self.rows.iter().for_each(|row| {
            table.add_row(row);
        });
        for column in 1..self.heads.len() {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        format!("{table}\n")
    }

    /// For a page in docs/.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text =
            format!("| {} |\n|---|{}\n", self.heads.join(" | "), "--:|".repeat(self.heads.len().saturating_sub(1)));
        for row in &self.rows {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
        text
    }

    /// For a report.
    #[must_use]
    pub fn html(&self) -> Markup {
        html! {
            table {
                thead { tr { @for head in &self.heads { th { (head) } } } }
                tbody { @for row in &self.rows { tr { @for cell in row { td { (cell) } } } } }
            }
        }
    }
}

/// A table with its name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Section {
    /// Its place in a page.
    pub name: String,
    /// What stands above it.
    pub title: String,
    /// The figures.
    pub table: Table,
}

/// With a decimal where that says something.
#[must_use]
pub fn number(value: f64) -> String {
    if value < 1_000.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_cells_stand_in_every_form() {
        let table = Table { rows: vec![vec!["sheaf".to_owned(), "<5".to_owned()]], ..Table::new(["way", "ns"]) };
        assert_eq!(table.markdown(), "| way | ns |\n|---|--:|\n| sheaf | <5 |\n");
        assert!(table.terminal().contains("sheaf") && table.terminal().contains("<5"));
        assert!(table.html().into_string().contains("<td>sheaf</td><td>&lt;5</td>"));
    }
}
