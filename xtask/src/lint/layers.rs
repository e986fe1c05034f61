//! The one rule of the house: a storey uses only storeys that come before it.
//!
//! Cargo already refuses a crate that is not in `[dependencies]`; this check refuses the line in `[dependencies]`.

use std::process::Stdio;

use anyhow::Context as _;
use serde_json::Value;

use crate::exit::{Exit, stop};
use crate::workspace::Workspace;

/// The storeys, bottom first. Each may use those before it; `grange-tests` and `grange-labs` use storeys as any user would,
/// and the kernel on top links them into itself. The samples of the book use storeys, and nobody uses them.
const STOREYS: [&str; 11] = [
    "grange-arch",
    "grange-sync",
    "grange-mm",
    "grange-sched",
    "grange-rcu",
    "grange-slab",
    "grange-kfree-rcu",
    "grange-tests",
    "grange-labs",
    "grange",
    "grange-book",
];

/// Crates of the workspace that stand beside the house and use none of it.
const APART: [&str; 2] = ["grange-boot", "xtask"];

/// Reads `cargo metadata` and prints one line for each dependency that the design does not allow.
///
/// # Errors
/// `Host` when cargo does not answer.
pub fn check(workspace: &Workspace) -> anyhow::Result<bool> {
    let mut cargo = workspace.cargo();
    cargo.args(["metadata", "--format-version=1", "--no-deps"]).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = cargo.output().context("cargo metadata")?;
    if !output.status.success() {
        return Err(stop(Exit::Host, "cargo metadata failed"));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let violations = violations(&metadata);
    violations.iter().for_each(|line| println!("{line}"));
    Ok(violations.is_empty())
}

fn violations(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names: Vec<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let mut lines = Vec::new();
    for package in packages {
        let Some(name) = package["name"].as_str() else {
            continue;
        };
        let own = storey(name);
        if own.is_none() && !APART.contains(&name) {
            lines.push(format!("{name} has no place in the house: name it in the storeys of xtask's layer check"));
        }
        let dependencies = package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
        for dependency in dependencies.iter().filter_map(|dependency| dependency["name"].as_str()) {
            let allowed = matches!((storey(dependency), own), (Some(below), Some(own)) if below < own);
            if names.contains(&dependency) && !allowed {
                lines.push(format!("{name} must not use {dependency}: {}", reason(own, dependency)));
            }
        }
    }
    lines
}

fn storey(name: &str) -> Option<usize> {
    STOREYS.iter().position(|&storey| storey == name)
}

fn reason(own: Option<usize>, dependency: &str) -> &'static str {
    match (own, storey(dependency)) {
        (None, _) => "it stands apart from the storeys",
        (_, None) => "that crate is no storey",
        _ => "that storey comes later",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn package(name: &str, dependencies: &[&str]) -> Value {
        let dependencies: Vec<Value> = dependencies.iter().map(|name| json!({ "name": name })).collect();
        json!({ "name": name, "dependencies": dependencies })
    }

    #[test]
    fn storeys_may_use_what_is_below_them_and_crates_from_outside() {
        let metadata = json!({ "packages": [
            package("grange-arch", &["x86_64"]),
            package("grange-slab", &["grange-arch", "grange-rcu", "bitflags"]),
            package("grange-rcu", &["grange-arch"]),
            package("grange-tests", &["grange-slab"]),
            package("grange", &["grange-tests"]),
            package("xtask", &["clap"]),
        ]});
        assert_eq!(violations(&metadata), [] as [&str; 0]);
    }

    #[test]
    fn a_dependency_upward_sideways_or_from_apart_is_one_line_that_names_it() {
        let metadata = json!({ "packages": [
            package("grange-arch", &["grange-sync"]),
            package("grange-sync", &["xtask"]),
            package("xtask", &["grange-sync"]),
            package("grange-new", &[]),
        ]});
        assert_eq!(
            violations(&metadata),
            [
                "grange-arch must not use grange-sync: that storey comes later",
                "grange-sync must not use xtask: that crate is no storey",
                "xtask must not use grange-sync: it stands apart from the storeys",
                "grange-new has no place in the house: name it in the storeys of xtask's layer check",
            ]
        );
    }
}
