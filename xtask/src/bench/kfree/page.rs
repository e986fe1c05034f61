//! docs/back-ends.md: the tables and plots in it are those of a run, put there by `bench kfree-rcu --write`.
//!
//! A table stands between the comments `<!-- figures NAME -->` and `<!-- end -->`; all else on the page is written by hand.

use crate::bench::curves;
use crate::bench::record::Record;
use crate::exit::{Exit, stop};
use crate::rundir;
use crate::workspace::Workspace;

use super::tables;

/// The page, and the folder of its plots.
const PAGE: &str = "docs/back-ends.md";
const PLOTS: &str = "docs/back-ends";

/// The plots that the page shows.
const SHOWN: &[&str] = &["rates", "waiting", "flood-instructions"];

/// The tables of several machines: without all of them the table stays as it is.
const SEVERAL: &[(&str, &[&str])] =
    &[("answer", &["rcuscale-2", "rcuscale-4", "flood-16", "rates"]), ("rcuscale", &["rcuscale-2", "rcuscale-4"])];

const END: &str = "<!-- end -->";

/// Replaces what was measured; what was not stays.
///
/// # Errors
/// `Host` when the page or a place in it is missing.
pub fn write(workspace: &Workspace, record: &Record) -> anyhow::Result<()> {
    let path = workspace.root.join(PAGE);
    let mut page = std::fs::read_to_string(&path).map_err(|error| stop(Exit::Host, format!("{PAGE}: {error}")))?;
    for section in tables::all(record) {
        let legs = SEVERAL.iter().find(|(name, _)| *name == section.name).map_or(&[][..], |(_, legs)| legs);
        if !legs.iter().all(|leg| record.leg(leg).is_some()) {
            continue;
        }
        page = replace(&page, &section.name, &section.table.markdown())
            .ok_or_else(|| stop(Exit::Host, format!("{PAGE}: no place for the figures {}", section.name)))?;
    }
    rundir::write(&path, &page)?;
    let plots = workspace.root.join(PLOTS);
    std::fs::create_dir_all(&plots)?;
    for plot in curves::all(record).iter().filter(|plot| SHOWN.contains(&plot.name)) {
        rundir::write(&plots.join(plot.name).with_extension("svg"), &plot.svg()?)?;
    }
    println!("figures put into {PAGE}");
    Ok(())
}

/// `page` with `content` in the place of that name, if it has one.
fn replace(page: &str, name: &str, content: &str) -> Option<String> {
    let begin = format!("<!-- figures {name} -->");
    let (before, rest) = page.split_once(&begin)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{begin}\n{}\n{END}{after}", content.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "A.\n<!-- figures one -->\nold\n<!-- end -->\nB.\n<!-- figures two -->\n<!-- end -->\nC.\n";

    #[test]
    fn only_the_place_of_that_name_is_replaced_and_doing_it_again_changes_nothing() {
        let new = "A.\n<!-- figures one -->\n| x |\n<!-- end -->\nB.\n<!-- figures two -->\n<!-- end -->\nC.\n";
        let once = replace(TEXT, "one", "| x |\n").unwrap();
        assert_eq!(once, new);
        assert_eq!(replace(&once, "one", "| x |\n").unwrap(), new);
        assert_eq!(replace(TEXT, "three", "x"), None);
    }

    #[test]
    fn the_page_has_a_place_for_every_table() {
        let page = include_str!("../../../../docs/back-ends.md");
        for name in tables::NAMES {
            assert!(replace(page, name, "").is_some(), "{PAGE} has no place for the figures {name}");
        }
    }
}
