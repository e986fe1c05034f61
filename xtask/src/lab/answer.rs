//! The files that a lab's grader can be run over.

use std::path::PathBuf;

use crate::workspace::Workspace;

use super::page::Lab;

/// An answer to a lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The student's.
    Work,
    /// The one that gets all marks.
    Solution,
    /// What a student begins with.
    Start,
    /// One that looks right; the name of its file.
    Wrong(String),
}

impl Answer {
    /// Those that come with a lab.
    ///
    /// # Errors
    /// When the folder of the wrong ones cannot be read.
    pub fn shipped(workspace: &Workspace, lab: &Lab) -> anyhow::Result<Vec<Answer>> {
        let folder = workspace.root.join("labs/wrong").join(&lab.name);
        let mut wrong = Vec::new();
        for entry in folder.read_dir().into_iter().flatten() {
            let path = entry?.path();
            if let Some(name) = path.file_stem().filter(|_| path.extension().is_some_and(|ending| ending == "rs")) {
                wrong.push(name.to_string_lossy().into_owned());
            }
        }
        wrong.sort();
        Ok([Answer::Solution, Answer::Start].into_iter().chain(wrong.into_iter().map(Answer::Wrong)).collect())
    }

    /// Where it is.
    #[must_use]
    pub fn file(&self, workspace: &Workspace, lab: &Lab) -> PathBuf {
        let name = &lab.name;
        workspace.root.join("labs").join(match self {
            Answer::Work => format!("work/{name}.rs"),
            Answer::Solution => format!("solutions/{name}.rs"),
            Answer::Start => format!("starts/{name}.rs"),
            Answer::Wrong(wrong) => format!("wrong/{name}/{wrong}.rs"),
        })
    }

    /// The suite that grades it: the name that `labs/build.rs` gives its grader.
    #[must_use]
    pub fn suite(&self, lab: &Lab) -> String {
        let kind = match self {
            Answer::Work => String::new(),
            Answer::Solution => "_solution".to_owned(),
            Answer::Start => "_start".to_owned(),
            Answer::Wrong(wrong) => format!("_wrong_{wrong}"),
        };
        format!("lab{:02}{kind}", lab.number).replace('-', "_")
    }

    /// What it is, for a line.
    #[must_use]
    pub fn word(&self) -> String {
        match self {
            Answer::Work => "your answer".to_owned(),
            Answer::Solution => "solution".to_owned(),
            Answer::Start => "start".to_owned(),
            Answer::Wrong(wrong) => format!("wrong/{wrong}"),
        }
    }
}
