//! `cargo xtask lab check-all`: whether the graders are right. A solution gets all marks; a starting point, and each answer
//! that only looks right, does not. A grader that lets one of those pass is a failure of this command.

use std::path::Path;
use std::time::Instant;

use serde_json::json;

use crate::exit::Exit;
use crate::process::interrupted;
use crate::rundir::RunDir;
use crate::workspace::Workspace;

use super::answer::Answer;
use super::grade::{Grader, Marks};
use super::page::Lab;

/// Runs it over these labs.
///
/// # Errors
/// `Build` when an answer does not build or a page does not fit its grader.
pub fn check(workspace: &Workspace, labs: &[&Lab], qemu: &Path) -> anyhow::Result<Exit> {
    let dir = RunDir::create(workspace, "lab")?;
    dir.describe(workspace, "lab", &json!({ "labs": labs.iter().map(|lab| &lab.name).collect::<Vec<_>>() }))?;
    let grader = Grader::of_all(workspace, &dir, labs, qemu);
    let (mut right, mut wrong) = (0, 0);
    for lab in labs {
        println!("{}", lab.name);
        for answer in Answer::shipped(workspace, lab)? {
            let started = Instant::now();
            let marks = grader.grade(lab, &answer)?;
            if interrupted() {
                return Ok(Exit::Interrupted);
            }
            let is_right = as_wanted(&answer, &marks, lab);
            *(if is_right { &mut right } else { &mut wrong }) += 1;
            println!("{}, {:.1} s", line(&answer, &marks, lab, is_right), started.elapsed().as_secs_f64());
        }
    }
    println!("graded in {:.1} s; logs in {}", dir.age().as_secs_f64(), workspace.short(dir.path()).display());
    println!("{right} answers graded as they should be, {wrong} not");
    Ok(if wrong == 0 { Exit::Passed } else { Exit::TestsFailed })
}

fn as_wanted(answer: &Answer, marks: &Marks, lab: &Lab) -> bool {
    (marks.earned() == lab.marks()) == (*answer == Answer::Solution)
}

fn line(answer: &Answer, marks: &Marks, lab: &Lab, is_right: bool) -> String {
    let word = if is_right { "ok  " } else { "FAIL" };
    let missed = marks.missed();
    let why = if missed.is_empty() { String::new() } else { format!("; misses {}", missed.join(" ")) };
    format!("  {word} {}: {} of {} marks{why}", answer.word(), marks.earned(), lab.marks())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::grade::Judged;
    use crate::lab::page::Point;

    #[test]
    fn a_solution_must_get_all_marks_and_nothing_else_may() {
        let point = Point { marks: 2, test: "counts".to_owned() };
        let lab = Lab { points: vec![point.clone()], ..Lab::default() };
        let marks = |exit| Marks {
            points: vec![Judged { point: point.clone(), exit, detail: Vec::new(), log: String::new() }],
        };
        for answer in [Answer::Solution, Answer::Start, Answer::Wrong("early".to_owned())] {
            let is_solution = answer == Answer::Solution;
            assert_eq!(as_wanted(&answer, &marks(Exit::Passed), &lab), is_solution, "{answer:?}");
            assert_eq!(as_wanted(&answer, &marks(Exit::Panicked), &lab), !is_solution, "{answer:?}");
        }
        let told = line(&Answer::Wrong("early".to_owned()), &marks(Exit::Panicked), &lab, true);
        assert_eq!(told, "  ok   wrong/early: 0 of 2 marks; misses counts");
    }
}
