//! What each scenario sets: one row an option, one column a scenario.

use std::collections::BTreeMap;

use comfy_table::{Table, presets};

use super::scenario::Scenario;

/// The table. Options that no scenario sets have no row.
#[must_use]
pub fn table(scenarios: &[Scenario]) -> Table {
    let mut rows: BTreeMap<(u8, String), Vec<String>> = BTreeMap::new();
    for (at, scenario) in scenarios.iter().enumerate() {
        for (group, option, value) in options(scenario) {
            let row = rows.entry((group, option)).or_insert_with(|| vec![String::new(); scenarios.len()]);
            row[at] = value;
        }
    }
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(std::iter::once("").chain(scenarios.iter().map(|scenario| scenario.name.as_str())));
    for ((_, option), values) in rows {
        table.add_row(std::iter::once(option).chain(values));
    }
    table
}

/// What a scenario sets: the machine first, then the kinds, then the kernel command line.
fn options(scenario: &Scenario) -> Vec<(u8, String, String)> {
    let file = &scenario.file;
    let text = |value: &Option<u32>| value.map(|n| n.to_string());
    let list = |values: Vec<String>| Some(values.join(","));
    let machine = [
        ("cpus", text(&file.cpus)),
        ("nodes", text(&file.nodes)),
        ("node cpus", file.node_cpus.as_ref().and_then(|cpus| list(cpus.iter().map(u32::to_string).collect()))),
        ("memory", file.memory.clone()),
        ("node memory", file.node_memory.clone().and_then(list)),
        ("thread", Some(file.thread.clone()).filter(|thread| !thread.is_empty())),
        ("profile", Some(file.profile.clone()).filter(|profile| !profile.is_empty())),
    ];
    let machine = machine.into_iter().filter_map(|(name, value)| Some((0, name.to_owned(), value?)));
    let kinds = file.kinds.iter().map(|kind| (1, format!("kind {kind}"), "x".to_owned()));
    let words = file.append.split_whitespace().map(|word| {
        let (key, value) = word.split_once('=').unwrap_or((word, "x"));
        (2, key.to_owned(), value.to_owned())
    });
    machine.chain(kinds).chain(words).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_option_has_a_row_and_an_empty_cell_where_a_scenario_leaves_it_alone() {
        let scenario = |name: &str, more: &str| {
            let text = format!("covers = \"a\"\nkinds = [\"rcu\"]\nminutes = 1\n{more}");
            Scenario::parse(name, &text).unwrap()
        };
        let text = table(&[scenario("A", "cpus = 8\n"), scenario("B", "append = \"hz=100 slab_debug\"\n")]).to_string();
        let cells = |option: &str| {
            let row = text.lines().find(|line| line.split('|').nth(1).is_some_and(|cell| cell.trim() == option));
            row.unwrap().split('|').skip(2).take(2).map(|cell| cell.trim().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(cells("cpus"), ["8", ""]);
        assert_eq!(cells("kind rcu"), ["x", "x"]);
        assert_eq!((cells("hz"), cells("slab_debug")), (vec!["".into(), "100".into()], vec!["".into(), "x".into()]));
    }
}
