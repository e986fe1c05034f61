//! The pages of `docs/`: a book without broken links, that names only files that are there.
//!
//! | looked at | is wrong if |
//! |---|---|
//! | a link or picture to a file | the file is not there, or has no heading with that anchor |
//! | a link out of `docs/`, but for README.md's | always: the built book does not have it; a code span does |
//! | a file in a code span, such as `docs/book.toml` | it is not there |
//! | `docs/SUMMARY.md` | a page below `docs/` is not in it, or twice |
//!
//! Where there is mdbook the book is built, too.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use anyhow::Context as _;
use pulldown_cmark::{Event, Options, Parser, Tag};

use super::evidence::{Evidence, files};
use crate::process::{output_of, run_shown};
use crate::workspace::Workspace;

/// Where pages lie, and the one that names them all.
const DOCS: &str = "docs";
const SUMMARY: &str = "docs/SUMMARY.md";
/// The page beside them, which is no part of the book.
const README: &str = "README.md";
/// A code span that begins so, and has nothing in it but letters of names, is a file or a folder.
const FOLDERS: [&str; 8] = ["kernel/", "tests/", "xtask/", "boot/", "native/", "docs/", "labs/src/", "torture/"];

/// Reads all pages, and prints one line for each thing that is wrong.
///
/// # Errors
/// `Host` when a file cannot be read or mdbook cannot be started.
pub fn check(workspace: &Workspace) -> anyhow::Result<bool> {
    let book = Book::of(&workspace.root)?;
    let lines = book.complaints(|path| workspace.root.join(path).exists());
    lines.iter().for_each(|line| println!("{line}"));
    let mut mdbook = std::process::Command::new("mdbook");
    if output_of(mdbook.arg("--version")).is_none() {
        return Ok(lines.is_empty());
    }
    let target = workspace.target.join("book");
    let mut mdbook = std::process::Command::new("mdbook");
    mdbook.args(["build", "--dest-dir"]).arg(target).arg(workspace.root.join(DOCS));
    Ok(run_shown(&mut mdbook)?.success() && lines.is_empty())
}

/// The pages.
struct Book {
    /// Path from the root of the checkout, and text.
    pages: Vec<(String, String)>,
    sections: BTreeSet<String>,
}

impl Book {
    fn of(root: &Path) -> anyhow::Result<Book> {
        let mut pages = vec![(README.to_owned(), std::fs::read_to_string(root.join(README)).context(README)?)];
        pages.extend(files(&root.join(DOCS), "md")?.into_iter().map(|(path, text)| (format!("{DOCS}/{path}"), text)));
        Ok(Book::new(pages))
    }

    fn new(mut pages: Vec<(String, String)>) -> Book {
        pages.sort();
        let mut evidence = Evidence::default();
        pages.iter().for_each(|(path, text)| evidence.read_page(path, text));
        Book { pages, sections: evidence.sections }
    }

    /// A line for each thing that is wrong; `exists` knows the files of the checkout.
    fn complaints(&self, exists: impl Fn(&str) -> bool) -> Vec<String> {
        let mut lines = Vec::new();
        let mut listed = BTreeSet::from([SUMMARY.to_owned(), README.to_owned()]);
        for (page, text) in &self.pages {
            for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
                match event {
                    Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                        let Some(target) = local(page, &dest_url) else { continue };
                        if page == SUMMARY && !listed.insert(target.clone()) {
                            lines.push(format!("{page}: {dest_url} is there twice"));
                        }
                        lines.extend(self.about_link(page, &dest_url, &target, &exists));
                    }
                    Event::Code(code) if is_file(&code) && !exists(code.trim_end_matches('/')) => {
                        lines.push(format!("{page}: there is no {code}"));
                    }
                    _ => {}
                }
            }
        }
        let unlisted = self.pages.iter().filter(|(page, _)| !listed.contains(page));
        lines.extend(unlisted.map(|(page, _)| format!("{page} is in no chapter: name it in {SUMMARY}")));
        lines
    }

    fn about_link(&self, page: &str, link: &str, target: &str, exists: &impl Fn(&str) -> bool) -> Option<String> {
        let (file, anchor) = target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
        if !exists(file) {
            return Some(format!("{page}: {link} leads to no file"));
        }
        if page != README && !file.starts_with(DOCS) {
            return Some(format!("{page}: {link} leads out of the book; name the file in a code span"));
        }
        let is_page = file.ends_with(".md") && anchor.is_some();
        (is_page && !self.sections.contains(target)).then(|| format!("{page}: {link} leads to no heading"))
    }
}

/// Where a link of a page leads, as a path from the root of the checkout; nothing for one to elsewhere.
fn local(page: &str, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
    let path = match file {
        "" => PathBuf::from(page),
        file => plain(&Path::new(page).parent().unwrap_or(Path::new("")).join(file)),
    };
    let path = path.display().to_string();
    Some(anchor.map_or(path.clone(), |anchor| format!("{path}#{anchor}")))
}

/// A path without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut plain, part| {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            part => plain.push(part),
        }
        plain
    })
}

/// Whether a code span names a file or a folder of the checkout. NAME stands for a name.
fn is_file(code: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    FOLDERS.iter().any(|folder| code.starts_with(folder)) && code.chars().all(is_plain) && !code.contains("NAME")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(pages: &[(&str, &str)]) -> Vec<String> {
        let book = Book::new(pages.iter().map(|(path, text)| (path.to_string(), text.to_string())).collect());
        let files = ["kernel/rcu/src/gp.rs", "kernel/rcu", "docs/figures/a.svg"];
        book.complaints(|file| files.contains(&file) || pages.iter().any(|(page, _)| *page == file))
    }

    #[test]
    fn links_to_pages_headings_pictures_and_elsewhere_are_right() {
        let page = "# A b, c!\n[x](#a-b-c) [y](sub/b.md#d) ![z](figures/a.svg) [w](https://a/b.md)\n`kernel/rcu/src/gp.rs` \
                    `kernel/rcu/` `kernel/{a,b}` `kernel/NAME.rs` `tests`\n\n```text\n[no link](nowhere.md)\n```\n";
        let found = complaints(&[
            ("README.md", "[gp](kernel/rcu/src/gp.rs) [a](docs/a.md)"),
            ("docs/SUMMARY.md", "- [A](a.md)\n- [B](sub/b.md)\n"),
            ("docs/a.md", page),
            ("docs/sub/b.md", "# D\n[up](../a.md)"),
        ]);
        assert_eq!(found, [""; 0]);
    }

    #[test]
    fn each_broken_link_file_and_forgotten_page_is_one_line() {
        let found = complaints(&[
            ("docs/SUMMARY.md", "- [A](a.md)\n- [A](a.md)\n"),
            ("docs/a.md", "[x](b.md#nothing) [y](c.md) [z](../kernel/rcu/src/gp.rs) `kernel/rcu/src/no.rs`"),
            ("docs/b.md", "# B\n"),
        ]);
        assert_eq!(
            found,
            [
                "docs/SUMMARY.md: a.md is there twice",
                "docs/a.md: b.md#nothing leads to no heading",
                "docs/a.md: c.md leads to no file",
                "docs/a.md: ../kernel/rcu/src/gp.rs leads out of the book; name the file in a code span",
                "docs/a.md: there is no kernel/rcu/src/no.rs",
                "docs/b.md is in no chapter: name it in docs/SUMMARY.md",
            ]
        );
    }
}
