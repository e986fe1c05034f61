//! What can be turned while the kernel runs, turned through its shell: each says what it is now, and refuses what it is not.

use std::path::Path;
use std::process::Command;

use xtask::artifact::{self, Artifacts};
use xtask::cli::{Global, KernelArgs, Profile};
use xtask::exit::{self, Exit};
use xtask::workspace::Workspace;

/// With the kernel that tests run; none where this host can build or boot none.
fn artifacts() -> Option<Artifacts> {
    let global = Global { no_install: true, ..Global::default() };
    let workspace = Workspace::find(&global).unwrap();
    let made = xtask::toolchain::emulator::ensure(&workspace, Path::new("qemu-system-x86_64"))
        .and_then(|_| artifact::make(&workspace, &KernelArgs::default(), Profile::Checking));
    match made {
        Ok(artifacts) => Some(artifacts),
        Err(error) if exit::of(&error) == Exit::Host => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error:#}"),
    }
}

/// Boots and types; the status and all that was said.
fn typed(artifacts: &Artifacts, line: &str) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["run", "--no-install", "--no-core", "--cpus", "2", "--nodes", "1", "--exec", line]);
    command.arg("--loader").arg(&artifacts.loader).arg("--kernel").arg(&artifacts.kernel);
    let output = command.env("CARGO_TARGET_DIR", dir.path()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).replace('\r', ""))
}

#[test]
fn capacity_barn_limits_and_how_sheaves_wait_are_changed_while_the_kernel_runs() {
    let Some(artifacts) = artifacts() else { return };
    let (code, said) = typed(
        &artifacts,
        "slab kmalloc-64 capacity 28; slab kmalloc-64 barn 3 4; slabinfo -v kmalloc-64; kfree_rcu bound 250; \
         kfree_rcu bound; kfree_rcu sheaves lazy; kfree_rcu sheaves; kfree_rcu sheaves hurry; kfree_rcu sheaves",
    );
    assert_eq!(code, Some(0), "{said}");
    let words: Vec<String> = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let has = |wanted: &str| assert!(words.iter().any(|line| line.contains(wanted)), "no {wanted:?} in {said}");
    // What is said, and what the cache then is.
    has("kmalloc-64: sheaf capacity 28, was 60");
    has("sheaf_capacity 28");
    has("kmalloc-64: each barn keeps 3 full and 4 empty sheaves");
    assert!(words.iter().any(|line| line.contains("/3 ") && line.contains("/4 ")), "the barn's limits in {said}");
    let asked: Vec<&str> =
        words.iter().map(|line| &**line).filter(|line| ["250 ms", "lazy", "hurry"].contains(line)).collect();
    assert_eq!(asked, ["250 ms", "lazy", "hurry"], "{said}");
}

#[test]
fn what_is_no_value_of_a_tunable_is_refused_with_what_is() {
    let Some(artifacts) = artifacts() else { return };
    for (line, told) in [
        ("slab kmalloc-64 capacity many", "slab: `many` is no capacity; allowed: a number from 0 to 4294967295"),
        ("kfree_rcu sheaves slowly", "kfree_rcu sheaves [lazy|hurry]"),
    ] {
        let (code, said) = typed(&artifacts, line);
        assert_eq!(code, Some(Exit::TestsFailed.code().into()), "{said}");
        assert!(said.contains(told), "{said}");
    }
}
