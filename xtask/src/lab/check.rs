//! `cargo xtask lab N --check`: the marks of the student's answer.

use serde_json::{Value, json};

use crate::cli::LabArgs;
use crate::exit::{Exit, usage};
use crate::rundir::RunDir;
use crate::workspace::Workspace;

use super::answer::Answer;
use super::grade::{Grader, Judged, Marks};
use super::page::Lab;

/// Lines of log shown with a point that was missed; the run's folder has all.
const LOG_LINES: usize = 40;

/// Runs it.
///
/// # Errors
/// `Usage` when there is no answer yet, `Build` when it does not build.
pub fn check(workspace: &Workspace, lab: &Lab, args: &LabArgs) -> anyhow::Result<Exit> {
    let file = Answer::Work.file(workspace, lab);
    let shown = workspace.short(&file).display().to_string();
    if !file.is_file() {
        return Err(usage(format!("{shown} is not there: `cargo xtask lab {}` begins the lab", lab.number)));
    }
    let dir = RunDir::create(workspace, "lab")?;
    dir.describe(workspace, "lab", &json!({ "lab": lab.name, "seed": args.seed }))?;
    let marks = Grader::of_work(workspace, &dir, lab, args).grade(lab, &Answer::Work)?;
    let told = as_json(lab, &shown, &marks);
    dir.write("marks.json", &format!("{told:#}\n"))?;
    if args.json {
        println!("{told:#}");
    } else {
        println!("Lab {}: {}, {shown}", lab.number, lab.title);
        marks.points.iter().for_each(|point| print!("{}", line(point)));
        println!("{} of {} marks; logs in {}", marks.earned(), lab.marks(), workspace.short(dir.path()).display());
    }
    Ok(marks.exit())
}

/// A point, and why it was missed.
fn line(judged: &Judged) -> String {
    use std::fmt::Write as _;
    let Judged { point, exit, detail, log } = judged;
    if *exit == Exit::Passed {
        return format!("  ok    {0} of {0}  {1}\n", point.marks, point.test);
    }
    let kind = if *exit == Exit::TestsFailed { String::new() } else { format!(" ({})", exit.word()) };
    let mut text = format!("  MISS  0 of {}  {}{kind}\n", point.marks, point.test);
    let log = log.lines().map(str::trim_end).filter(|line| !line.is_empty()).take(LOG_LINES);
    for line in detail.iter().map(String::as_str).chain(log) {
        let _ = writeln!(text, "          {line}");
    }
    text
}

fn as_json(lab: &Lab, file: &str, marks: &Marks) -> Value {
    let points: Vec<Value> = marks
        .points
        .iter()
        .map(|judged| {
            let marks = if judged.exit == Exit::Passed { judged.point.marks } else { 0 };
            json!({
                "test": judged.point.test, "marks": marks, "of": judged.point.marks,
                "outcome": judged.exit.word(), "detail": judged.detail, "log": judged.log,
            })
        })
        .collect();
    json!({
        "v": 1, "lab": lab.name, "file": file, "marks": marks.earned(), "of": lab.marks(),
        "verdict": marks.exit().word(), "exit": marks.exit().code(), "points": points,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::page::Point;

    fn judged(marks: u32, exit: Exit) -> Judged {
        let point = Point { marks, test: format!("worth_{marks}") };
        Judged { point, exit, detail: vec!["a.rs:7: 1 is 2".to_owned()], log: "[ 1.0] a line\n\n".to_owned() }
    }

    #[test]
    fn a_point_is_earned_whole_or_not_at_all_and_a_miss_says_why() {
        assert_eq!(line(&judged(2, Exit::Passed)), "  ok    2 of 2  worth_2\n");
        let missed = line(&judged(3, Exit::Panicked));
        let lines: Vec<&str> = missed.lines().map(str::trim).collect();
        assert_eq!(lines, ["MISS  0 of 3  worth_3 (panic)", "a.rs:7: 1 is 2", "[ 1.0] a line"]);
    }

    #[test]
    fn the_json_has_the_marks_of_each_point_and_the_worst_end() {
        let marks = Marks { points: vec![judged(2, Exit::Passed), judged(3, Exit::TestsFailed)] };
        let lab = Lab { points: marks.points.iter().map(|judged| judged.point.clone()).collect(), ..Lab::default() };
        let told = as_json(&lab, "labs/work/x.rs", &marks);
        assert_eq!((&told["marks"], &told["of"], &told["exit"]), (&json!(2), &json!(5), &json!(1)));
        assert_eq!((&told["points"][1]["marks"], &told["points"][1]["outcome"]), (&json!(0), &json!("failed")));
        assert_eq!(marks.missed(), ["worth_3"]);
    }
}
