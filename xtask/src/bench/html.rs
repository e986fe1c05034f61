//! A record as one page that needs nothing else: no script, no font, no file beside it.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::record::Record;
use super::report::{about, sections};
use super::table::Section;
use super::{curves, record};

const STYLE: &str = "\
body{font:15px/1.45 system-ui,sans-serif;max-width:1180px;margin:2em auto;padding:0 1em;color:#222}\
h1{margin-bottom:0}h2{margin-top:2em;border-bottom:1px solid #ccc;font-size:1.15em}\
table{border-collapse:collapse;font-size:13px}th,td{padding:.2em .7em;text-align:right;border-bottom:1px solid #eee}\
th{border-bottom:2px solid #bbb;vertical-align:bottom}th:first-child,td:first-child{text-align:left}\
tr:hover td{background:#f4f7fb}td{font-variant-numeric:tabular-nums}\
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(480px,1fr));gap:1em}.plots svg{width:100%;height:auto}\
nav{columns:3;font-size:13px}.about{color:#666}.scroll{overflow-x:auto}";

/// The page.
///
/// # Errors
/// When a plot cannot be drawn.
pub fn page(record: &Record, against: Option<&Record>) -> anyhow::Result<String> {
    let plots =
        curves::all(record).iter().map(|plot| Ok((plot.name, plot.svg()?))).collect::<anyhow::Result<Vec<_>>>()?;
    let mut sections = sections(record, against);
    name_apart(&mut sections);
    let (first, rest) = sections.split_at(sections.iter().take_while(|s| HEAD.contains(&s.name.as_str())).count());
    let section = |section: &Section| -> Markup {
        html! {
            h2 id=(section.name) { (section.title) }
            @if section.table.rows.is_empty() { p { "nothing" } } @else { div.scroll { (section.table.html()) } }
        }
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { "Grange: bench " (record.what) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "Grange: bench " (record.what) }
                p.about { (record.utc) ": " (about(record)) ". Version " (record::VERSION) " of the figures." }
                @for part in first { (section(part)) }
                @if !plots.is_empty() {
                    h2 id="plots" { "Plots" }
                    div.plots { @for (name, svg) in &plots { figure id=(format!("plot-{name}")) { (PreEscaped(svg)) } } }
                }
                h2 id="contents" { "All tables" }
                nav { @for part in rest { div { a href=(format!("#{}", part.name)) { (part.title) } } } }
                @for part in rest { (section(part)) }
            }
        }
    };
    Ok(page.into_string())
}

/// Gives each section a name of its own, to be led to by: an experiment's figures and its table may be called the same.
fn name_apart(sections: &mut [Section]) {
    for at in 0..sections.len() {
        let (before, rest) = sections.split_at_mut(at);
        let section = &mut rest[0];
        if before.iter().any(|other| other.name == section.name) {
            section.name = format!("{}-{at}", section.name);
        }
    }
}

/// The sections that come before the plots.
const HEAD: [&str; 2] = ["headline", "moved"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::tests::{figure, leg, record};
    use crate::bench::record::{Boots, Unit};

    #[test]
    fn sections_of_one_name_can_be_told_apart() {
        let section = |name: &str| Section { name: name.to_owned(), ..Section::default() };
        let mut sections = ["flood", "rcu", "flood"].map(section);
        name_apart(&mut sections);
        assert_eq!(sections.map(|section| section.name), ["flood", "rcu", "flood-2"]);
    }

    #[test]
    fn the_page_holds_tables_and_plots_and_asks_for_nothing() {
        let mut measured =
            record(leg("rcu", 2, vec![figure("rcu.read_lock_unlock", Unit::Instructions, &[3.0])], vec![]));
        let engine = "tcg".to_owned();
        measured.boots = vec![Boots { cpus: 2, nodes: 1, engine, online_ms: vec![100.0] }];
        let page = page(&measured, None).unwrap();
        assert!(page.contains("rcu.read_lock_unlock") && page.contains("<svg"), "{page}");
        for outside in ["<script", "src=", "http-equiv", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.find("id=\"headline\"") < page.find("id=\"plots\""), "the headline comes first");
    }
}
