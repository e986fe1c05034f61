//! `cargo xtask lab`: exercises of a course. Hands out tasks, grades answers, and checks that the graders are right.
//!
//! | module | does |
//! |---|---|
//! | [`page`] | a lab's page in `docs/labs/`: the task, the machine, the marks of each point |
//! | [`answer`] | the files that are graded: the student's, and those that come with the lab |
//! | [`grade`] | runs a lab's grader over one answer, in the kernel or on the host |
//! | [`check`] | `--check`: the marks, for people and as JSON |
//! | [`all`] | `check-all`: solutions pass, starting points and wrong answers do not |
//!
//! How a lab is made of files is told in `labs/src/lib.rs`.

pub mod all;
pub mod answer;
pub mod check;
pub mod grade;
pub mod page;

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use comfy_table::{Table, presets};

use crate::cli::{LabArgs, LabWhat};
use crate::exit::{Exit, usage};
use crate::workspace::Workspace;

use answer::Answer;
use page::Lab;

/// Runs the command.
///
/// # Errors
/// See [`crate::exit`]; marks that are missing are an [`Exit`] and not an error.
pub fn lab(workspace: &Workspace, args: &LabArgs) -> anyhow::Result<Exit> {
    let labs = page::all(&workspace.root)?;
    match (&args.what, &args.lab) {
        (Some(LabWhat::CheckAll { labs: names, qemu }), _) => {
            let chosen: Vec<&Lab> = match names.is_empty() {
                true => labs.iter().collect(),
                false => names.iter().map(|name| find(&labs, name)).collect::<anyhow::Result<_>>()?,
            };
            all::check(workspace, &chosen, qemu)
        }
        (Some(LabWhat::List), _) | (_, None) => {
            println!("{}", table(workspace, &labs));
            Ok(Exit::Passed)
        }
        (None, Some(name)) => {
            let lab = find(&labs, name)?;
            match (args.check, args.reset) {
                (true, _) => check::check(workspace, lab, args),
                (_, true) => reset(workspace, lab),
                _ => hand_out(workspace, lab),
            }
        }
    }
}

/// The lab of that number, or whose name begins so.
fn find<'a>(labs: &'a [Lab], name: &str) -> anyhow::Result<&'a Lab> {
    let is_it = |lab: &&Lab| match name.parse::<u32>() {
        Ok(number) => lab.number == number,
        Err(_) => {
            lab.name.starts_with(name) || lab.name.split_once('-').is_some_and(|(_, rest)| rest.starts_with(name))
        }
    };
    let known = || labs.iter().map(|lab| lab.name.as_str()).collect::<Vec<_>>().join(", ");
    match labs.iter().filter(is_it).collect::<Vec<_>>()[..] {
        [lab] => Ok(lab),
        _ => Err(usage(format!("lab {name}: one of {}", known()))),
    }
}

/// What there is.
fn table(workspace: &Workspace, labs: &[Lab]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["lab", "level", "marks", "begun", "about"]);
    for lab in labs {
        let begun = if Answer::Work.file(workspace, lab).is_file() { "yes" } else { "" };
        table.add_row([&*lab.name, &*lab.level, &*lab.marks().to_string(), begun, &*lab.title]);
    }
    table
}

/// Shows the task, and puts the starting point where it is worked on.
fn hand_out(workspace: &Workspace, lab: &Lab) -> anyhow::Result<Exit> {
    let work = Answer::Work.file(workspace, lab);
    println!("{}", lab.text.trim_end());
    println!();
    if work.is_file() {
        println!("Your answer is in {}.", workspace.short(&work).display());
    } else {
        begin(workspace, lab)?;
    }
    println!("`cargo xtask lab {} --check` grades it.", lab.number);
    Ok(Exit::Passed)
}

/// Puts the starting point back; what was there is kept.
fn reset(workspace: &Workspace, lab: &Lab) -> anyhow::Result<Exit> {
    let work = Answer::Work.file(workspace, lab);
    if work.is_file() {
        let kept = PathBuf::from(format!("{}~", work.display()));
        fs::rename(&work, &kept).with_context(|| work.display().to_string())?;
        println!("What was there is now {}.", workspace.short(&kept).display());
    }
    begin(workspace, lab)?;
    Ok(Exit::Passed)
}

fn begin(workspace: &Workspace, lab: &Lab) -> anyhow::Result<()> {
    let (start, work) = (Answer::Start.file(workspace, lab), Answer::Work.file(workspace, lab));
    let folder = work.parent().unwrap_or(&work);
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    fs::copy(&start, &work).with_context(|| start.display().to_string())?;
    println!("The starting point is in {}: work there.", workspace.short(&work).display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_is_found_by_its_number_and_by_how_its_name_begins() {
        let lab = |number, name: &str| Lab { number, name: name.to_owned(), ..Lab::default() };
        let labs = [lab(1, "01-counter"), lab(2, "02-leak"), lab(10, "10-leaf")];
        for (name, found) in [("1", 1), ("01", 1), ("10", 10), ("counter", 1), ("02-", 2), ("leak", 2)] {
            assert_eq!(find(&labs, name).unwrap().number, found, "{name}");
        }
        for name in ["3", "lea", "x"] {
            let error = find(&labs, name).unwrap_err();
            assert_eq!(error.to_string(), format!("lab {name}: one of 01-counter, 02-leak, 10-leaf"));
        }
    }

    #[test]
    fn what_a_reset_replaces_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let workspace = Workspace::for_tests(root.path());
        let lab = Lab { name: "01-counter".to_owned(), ..Lab::default() };
        fs::create_dir_all(root.path().join("labs/starts")).unwrap();
        fs::write(root.path().join("labs/starts/01-counter.rs"), "start").unwrap();
        let read = |file: &str| fs::read_to_string(root.path().join("labs/work").join(file)).unwrap();
        hand_out(&workspace, &lab).unwrap();
        assert_eq!(read("01-counter.rs"), "start");
        fs::write(root.path().join("labs/work/01-counter.rs"), "mine").unwrap();
        hand_out(&workspace, &lab).unwrap();
        assert_eq!(read("01-counter.rs"), "mine");
        reset(&workspace, &lab).unwrap();
        assert_eq!((read("01-counter.rs"), read("01-counter.rs~")), ("start".to_owned(), "mine".to_owned()));
    }
}
