//! Writes the modules of this crate: each answer that is to be graded, beside a copy of its lab's grader.
//!
//! `GRANGE_LABS` chooses: the name of a lab means the file in `work/` alone, so that a half-done lab does not keep another from
//! being built; `all` means every starting point, solution and wrong answer; unset, the solutions.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let chosen = env::var("GRANGE_LABS").unwrap_or_default();
    println!("cargo::rerun-if-env-changed=GRANGE_LABS");
    let mut modules = String::new();
    for (lab, grader) in files(&root.join("graders")) {
        let number = lab.split('-').next().unwrap_or_default();
        let mut put = |kind: &str, answer: &Path| {
            let suite = format!("lab{number}{kind}").replace('-', "_");
            let lints = "#[allow(dead_code, missing_docs, unreachable_pub)]";
            writeln!(modules, "mod of_{suite} {{\n{lints}\n#[path = {answer:?}]\nmod answer;").expect("a string");
            writeln!(modules, "#[path = {grader:?}]\nmod {suite};\n}}").expect("a string");
        };
        let file = |folder: &str| root.join(folder).join(format!("{lab}.rs"));
        if chosen == lab {
            put("", &file("work"));
        }
        if chosen.is_empty() || chosen == "all" {
            put("_solution", &file("solutions"));
        }
        if chosen == "all" {
            put("_start", &file("starts"));
            for (wrong, path) in files(&root.join("wrong").join(&lab)) {
                put(&format!("_wrong_{wrong}"), &path);
            }
        }
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("modules.rs");
    fs::write(out, modules).expect("the folder that cargo gives can be written");
}

/// The Rust files of a folder, by name without ending; none where there is no folder.
fn files(folder: &Path) -> Vec<(String, PathBuf)> {
    println!("cargo::rerun-if-changed={}", folder.display());
    let entries = folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
    let rust = entries.filter(|path| path.extension().is_some_and(|ending| ending == "rs"));
    let mut files: Vec<_> =
        rust.filter_map(|path| Some((path.file_stem()?.to_str()?.to_owned(), path.clone()))).collect();
    files.sort();
    files
}
