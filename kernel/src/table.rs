//! One table, two faces: aligned columns for people, a line of JSON for programs. Every view of the
//! shell is made of these, so that `--json` is never forgotten and never says something else.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::{self, Write};

/// One cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Int(u64),
    /// A text.
    Text(String),
    /// Yes or no.
    Bool(bool),
    /// Nothing to say.
    None,
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Int(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Int(value as u64)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Int(value.into())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_string())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::None, Into::into)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(value) => f.pad_integral(true, "", &value.to_string()),
            Self::Text(text) => f.pad(text),
            Self::Bool(value) => f.pad(if *value { "yes" } else { "no" }),
            Self::None => f.pad("-"),
        }
    }
}

/// Characters of a cell beyond which it goes on in the next line.
const LONG: usize = 56;

/// A table with named columns.
#[derive(Clone, Debug)]
pub struct Table {
    name: &'static str,
    columns: Vec<String>,
    rows: Vec<Vec<Value>>,
}

impl Table {
    /// An empty table. `name` is its key in JSON.
    pub fn new(name: &'static str, columns: &[&str]) -> Self {
        Self { name, columns: columns.iter().map(|c| c.to_string()).collect(), rows: Vec::new() }
    }

    /// Adds a column behind the others, for the rows to come.
    pub fn column(&mut self, name: impl Into<String>) {
        self.columns.push(name.into());
    }

    /// Adds a row.
    ///
    /// # Panics
    ///
    /// Unless it has one cell for each column.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Value>) {
        let row: Vec<_> = cells.into_iter().collect();
        assert_eq!(row.len(), self.columns.len(), "a row of table {}", self.name);
        self.rows.push(row);
    }

    /// Writes it for people: numbers to the right, the rest to the left, long texts on several lines.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn text(&self, out: &mut dyn Write) -> fmt::Result {
        let header = self.columns.iter().map(|name| wrap(name)).collect();
        let cells = |row: &Vec<Value>| row.iter().map(|cell| wrap(&cell.to_string())).collect();
        let rows: Vec<Vec<Vec<String>>> = core::iter::once(header).chain(self.rows.iter().map(cells)).collect();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|at| rows.iter().flat_map(|row| &row[at]).map(|line| line.chars().count()).max().unwrap_or(0))
            .collect();
        let right = |at: usize| self.rows.iter().all(|row| matches!(row[at], Value::Int(_) | Value::None));
        for row in &rows {
            for number in 0..row.iter().map(Vec::len).max().unwrap_or(0) {
                let mut line = String::new();
                for (at, cell) in row.iter().enumerate() {
                    let width = widths[at];
                    let gap = if at == 0 { "" } else { "  " };
                    let text = cell.get(number).map_or("", String::as_str);
                    if right(at) {
                        write!(line, "{gap}{text:>width$}")?;
                    } else {
                        write!(line, "{gap}{text:<width$}")?;
                    }
                }
                writeln!(out, "{}", line.trim_end())?;
            }
        }
        Ok(())
    }

    /// Writes it for programs: `{"name":[{"column":value,…},…]}` on one line.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn json(&self, out: &mut dyn Write) -> fmt::Result {
        write!(out, "{{{}:[", Json(self.name))?;
        for (number, row) in self.rows.iter().enumerate() {
            out.write_str(if number == 0 { "{" } else { ",{" })?;
            for (at, (column, cell)) in self.columns.iter().zip(row).enumerate() {
                let comma = if at == 0 { "" } else { "," };
                write!(out, "{comma}{}:", Json(column))?;
                match cell {
                    Value::Int(value) => write!(out, "{value}")?,
                    Value::Text(text) => write!(out, "{}", Json(text))?,
                    Value::Bool(value) => write!(out, "{value}")?,
                    Value::None => out.write_str("null")?,
                }
            }
            out.write_char('}')?;
        }
        out.write_str("]}\n")
    }
}

/// A text as lines of [`LONG`] characters at the most, broken at blanks; a word that is longer stays whole.
fn wrap(text: &str) -> Vec<String> {
    if text.chars().count() <= LONG {
        return alloc::vec![text.to_string()];
    }
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut().filter(|line| line.chars().count() + 1 + word.chars().count() <= LONG) {
            Some(line) => line.extend([" ", word]),
            None => lines.push(word.to_string()),
        }
    }
    lines
}

/// A JSON string.
struct Json<'a>(&'a str);

impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                c if c.is_control() => write!(f, "\\u{:04x}", c as u32)?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    fn table() -> Table {
        let mut table = Table::new("cpus", &["cpu", "node", "state"]);
        table.row([Value::from(0u64), 0u64.into(), "online".into()]);
        table.row([Value::from(10u64), Value::None, "say \"hi\"\n".into()]);
        table
    }

    #[test]
    fn columns_are_aligned_numbers_to_the_right() {
        let mut table = table();
        table.rows.pop();
        table.row([Value::from(10u64), Value::None, "off".into()]);
        let mut text = String::new();
        table.text(&mut text).unwrap();
        assert_eq!(text, "cpu  node  state\n  0     0  online\n 10     -  off\n");
    }

    #[test]
    fn a_long_text_goes_on_below_and_a_long_word_stays_whole() {
        let mut table = Table::new("help", &["what it does", "n"]);
        let (half, word) = ("a".repeat(LONG / 2), "b".repeat(LONG + 5));
        table.row([format!("{half} {half} {word} c").into(), 7u64.into()]);
        table.row(["short".into(), 8u64.into()]);
        let (mut text, mut json) = (String::new(), String::new());
        table.text(&mut text).unwrap();
        table.json(&mut json).unwrap();
        let lines: Vec<&str> = text.lines().skip(1).map(str::trim_end).collect();
        let gap = |text: &str, n| format!("{text:<width$}  {n}", width = word.len());
        assert_eq!(lines, [&gap(&half, 7), &half, &word, "c", &gap("short", 8)]);
        assert!(json.contains(&format!("{half} {half} {word} c")), "a program gets it whole");
    }

    #[test]
    fn json_is_one_line_with_everything_escaped() {
        let mut text = String::new();
        table().json(&mut text).unwrap();
        assert_eq!(
            text,
            "{\"cpus\":[{\"cpu\":0,\"node\":0,\"state\":\"online\"},\
             {\"cpu\":10,\"node\":null,\"state\":\"say \\\"hi\\\"\\u000a\"}]}\n"
        );
    }

    #[test]
    fn an_empty_table_is_its_header_and_an_empty_list() {
        let table = Table::new("x", &["a", "b"]);
        let (mut text, mut json) = (String::new(), String::new());
        table.text(&mut text).unwrap();
        table.json(&mut json).unwrap();
        assert_eq!((text.as_str(), json.as_str()), ("a  b\n", "{\"x\":[]}\n"));
    }

    #[test]
    #[should_panic(expected = "a row of table x")]
    fn a_row_of_the_wrong_length_is_a_bug() {
        Table::new("x", &["a"]).row([]);
    }
}
