//! What scenarios set: a row for each value of an option, with the scenarios that give it.

use std::collections::BTreeMap;

use comfy_table::{ContentArrangement, Table, presets};

use super::scenario::Scenario;

/// Columns that the table may take.
const WIDTH: u16 = 120;

/// The table. What no scenario sets has no row.
#[must_use]
pub fn table(scenarios: &[Scenario]) -> Table {
    let mut rows: BTreeMap<(u8, String, Option<u64>, String), Vec<&str>> = BTreeMap::new();
    for scenario in scenarios {
        for (group, option, value) in options(scenario) {
            let number = value.parse().ok();
            rows.entry((group, option, number, value)).or_default().push(&scenario.name);
        }
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(WIDTH);
    table.set_header(["option", "value", "scenarios"]);
    let mut last = String::new();
    for ((_, option, _, value), names) in rows {
        let shown = if option == last { "" } else { &option };
        table.add_row([shown, &value, &names.join(" ")]);
        last = option;
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
    fn each_value_of_an_option_has_a_row_with_those_that_set_it() {
        let scenario = |name: &str, more: &str| {
            let text = format!("covers = \"a\"\nkinds = [\"rcu\"]\nminutes = 1\n{more}");
            Scenario::parse(name, &text).unwrap()
        };
        let (more, other) = ("cpus = 8\nappend = \"hz=25\"\n", "append = \"hz=100 slab_debug\"\n");
        let text = table(&[scenario("A", more), scenario("B", other)]).to_string();
        let rows: Vec<String> =
            text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(rows, ["cpus 8 A", "kind rcu x A B", "hz 25 A", "100 B", "slab_debug x B"]);
    }

    #[test]
    fn many_scenarios_do_not_make_it_wider() {
        let text = "covers = \"a\"\nkinds = [\"rcu\"]\nminutes = 1\n";
        let many: Vec<_> = (0..100).map(|n| Scenario::parse(&format!("TREE{n:02}"), text).unwrap()).collect();
        assert!(table(&many).to_string().lines().all(|line| line.chars().count() <= usize::from(WIDTH)));
    }
}
