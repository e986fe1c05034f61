//! A kernel ELF with nothing but a test section, and a program that stands in for QEMU.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use xtask::verdict::TestId;

use super::{KINDS, TESTS, Transcript};

/// Where the pretended kernel is linked.
const BASE: u64 = 0xffff_ffff_8000_0000;
const RACE: u32 = 1;

/// An ELF with one loaded segment, in which `linkme_TESTS` and `linkme_TORTURES` lie as the kernel's linker lays them.
fn kernel_elf() -> Vec<u8> {
    const HEADERS: usize = 64 + 56;
    const CASE: usize = 72;
    const KIND: usize = 64;
    let kinds_at = HEADERS + TESTS.len() * CASE;
    let strings = kinds_at + KINDS.len() * KIND;
    let (mut cases, mut kinds, mut text) = (Vec::new(), Vec::new(), Vec::new());
    let mut put = |array: &mut Vec<u8>, string: &str| {
        array.extend((BASE + (strings + text.len()) as u64).to_le_bytes());
        array.extend((string.len() as u64).to_le_bytes());
        text.extend(string.bytes());
    };
    for (name, role) in KINDS {
        [name, "what it does", "tests/src/torture/fake.rs"].into_iter().for_each(|string| put(&mut kinds, string));
        kinds.extend([7_u32, role].into_iter().flat_map(u32::to_le_bytes));
        kinds.extend(BASE.to_le_bytes());
    }
    for (number, (suite, name)) in TESTS.iter().enumerate() {
        [*suite, *name, "tests/src/suites/fake.rs"].into_iter().for_each(|string| put(&mut cases, string));
        let tags = if *suite == "nmi" { RACE } else { 0 };
        for field in [number as u32 + 10, tags, 10_000, 0] {
            cases.extend(field.to_le_bytes());
        }
        cases.extend(BASE.to_le_bytes());
    }
    let names = b"\0linkme_TESTS\0.shstrtab\0linkme_TORTURES\0";
    let names_at = strings + text.len();
    let sections_at = (names_at + names.len()) as u64;
    let words = |fields: &[u64]| fields.iter().flat_map(|field| field.to_le_bytes()).collect::<Vec<u8>>();
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    elf.extend(words(&[BASE, 64, sections_at]));
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 4, 0, 2, 0]);
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    elf.extend(words(&[0, BASE, BASE, names_at as u64, names_at as u64, 4096]));
    elf.extend(&cases);
    elf.extend(&kinds);
    elf.extend(&text);
    elf.extend(names);
    let mut section = |name: u32, kind: u32, address: u64, at: usize, size: usize| {
        elf.extend(name.to_le_bytes());
        elf.extend(kind.to_le_bytes());
        elf.extend(words(&[2, address, at as u64, size as u64, 0, 8, 0]));
    };
    section(0, 0, 0, 0, 0);
    section(1, 1, BASE + HEADERS as u64, HEADERS, cases.len());
    section(14, 3, 0, names_at, names.len());
    section(24, 1, BASE + kinds_at as u64, kinds_at, kinds.len());
    elf
}

/// Stands in for QEMU: finds the files of the two serial lines in its arguments, writes into them what is prepared for
/// the test it is told to start with, and ends as prepared.
const FAKE_QEMU: &str = r#"#!/bin/sh
here=$(dirname "$0")
echo "$*" >> "$here/arguments"
while [ $# -gt 0 ]; do
  case "$1" in
    file,id=com1,path=*) com1=${1#file,id=com1,path=} ;;
    stdio,id=com1,*logfile=*) com1=${1##*logfile=} ;;
    file,id=com2,path=*) com2=${1#file,id=com2,path=} ;;
    -append) line=$2 ;;
  esac
  shift
done
start=first
for word in $line; do
  case "$word" in grange.test_start=*) start=${word#grange.test_start=} ;; esac
done
tee "$com1" < "$here/$start.com1"
frames="$here/$start.boot$(wc -l < "$here/arguments").com2"
[ -f "$frames" ] || frames="$here/$start.com2"
cat "$frames" > "$com2"
for piece in "$here/$start".piece*.com1; do
  [ -f "$piece" ] || break
  sleep "$(cat "$here/$start.pause")"
  cat "$piece" >> "$com1"
  cat "${piece%.com1}.com2" >> "$com2"
done
[ -f "$here/$start.stderr" ] && cat "$here/$start.stderr" >&2
end=$(cat "$here/$start.end")
case "$end" in
  hang) exec sleep 1000 ;;
  killed) kill -KILL $$ ;;
esac
exit "$end"
"#;

/// A folder with the pretended kernel and QEMU.
pub(crate) struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    pub(crate) fn new() -> Machine {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        write("kernel.elf", &kernel_elf());
        write("loader.elf", b"loader");
        write("qemu", FAKE_QEMU.as_bytes());
        std::fs::set_permissions(dir.path().join("qemu"), std::fs::Permissions::from_mode(0o755)).unwrap();
        Machine { dir }
    }

    /// What the boot that starts with `start` ("first" for the one that starts at the beginning) says and how it ends:
    /// a status, `hang` or `killed`.
    pub(crate) fn prepare(&self, start: &str, console: &str, frames: &str, end: &str) {
        for (kind, content) in [("com1", console), ("com2", frames), ("end", end)] {
            std::fs::write(self.path(&format!("{start}.{kind}")), content).unwrap();
        }
    }

    /// What boot number `boot`, from 1, says on COM2 instead of what is prepared for every boot.
    pub(crate) fn prepare_boot(&self, boot: u32, frames: &str) {
        std::fs::write(self.path(&format!("first.boot{boot}.com2")), frames).unwrap();
    }

    /// The same in pieces of both lines, one after the other with a pause of so many seconds.
    pub(crate) fn prepare_pieces(&self, pieces: &[(String, String)], pause: &str, end: &str) {
        self.prepare("first", "", "", end);
        std::fs::write(self.path("first.pause"), pause).unwrap();
        for (number, (console, frames)) in pieces.iter().enumerate() {
            std::fs::write(self.path(&format!("first.piece{number}.com1")), console).unwrap();
            std::fs::write(self.path(&format!("first.piece{number}.com2")), frames).unwrap();
        }
    }

    /// The same for a run of [`Transcript::run`] over the tests from `first` on.
    pub(crate) fn prepare_run(&self, first: usize, failing: &[&str], dies_in: Option<&str>, end: &str) {
        let (suite, name) = TESTS[first];
        let start = if first == 0 { "first".to_owned() } else { format!("{suite}.{name}") };
        let log = Transcript::run(7, (4, 2), &TESTS[first..], failing, dies_in);
        let console = if end == "37" { "PANIC cpu 1: oops\nbacktrace:\n  #0 0xffffffff80000010\n" } else { "fine\n" };
        self.prepare(&start, console, &log.encode(), end);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs this tool on the pretended machine, in the shape and with the seed that the transcripts are made for.
    pub(crate) fn test(&self, more: &[&str]) -> Run {
        let mut words = vec!["test", "--kernel-only", "--seed", "7", "--cpus", "4", "--nodes", "2"];
        words.extend(more);
        self.xtask(&words)
    }

    /// Runs `torture` with words of its own, on the pretended machine.
    pub(crate) fn torture(&self, words: &[&str]) -> Run {
        self.xtask(&[&["torture", "--seed", "7"], words].concat())
    }

    /// Runs `torture merge`.
    pub(crate) fn merge(&self, files: &[PathBuf]) -> Run {
        self.run(self.command().args(["torture", "merge"]).args(files))
    }

    /// Runs `rerun`, which takes the rest from the run that it is given.
    pub(crate) fn rerun(&self, words: &[&str]) -> Run {
        self.run(self.command().arg("rerun").args(words))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.arg("--no-install").env("CARGO_TARGET_DIR", self.path("target"));
        command
    }

    fn run(&self, command: &mut Command) -> Run {
        Run { output: command.output().unwrap(), latest: self.path("target/grange/runs/latest") }
    }

    /// Runs this tool with the pretended kernel, loader and QEMU.
    pub(crate) fn xtask(&self, words: &[&str]) -> Run {
        let mut command = self.command();
        command.args(words);
        for (option, file) in [("--qemu", "qemu"), ("--kernel", "kernel.elf"), ("--loader", "loader.elf")] {
            command.arg(option).arg(self.path(file));
        }
        self.run(&mut command)
    }

    /// How often the pretended QEMU was started, and with what.
    pub(crate) fn boots(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("arguments")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// What a command left.
pub(crate) struct Run {
    output: Output,
    latest: PathBuf,
}

impl Run {
    pub(crate) fn code(&self) -> i32 {
        self.output.status.code().unwrap()
    }

    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned() + &String::from_utf8_lossy(&self.output.stderr)
    }

    pub(crate) fn last_line(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).lines().last().unwrap_or_default().to_owned()
    }

    /// A file of the run's folder.
    pub(crate) fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.latest.join(Path::new(name))).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The tests of a kind in `results.json`.
    pub(crate) fn tests(&self, outcome: &str) -> Vec<String> {
        let json: serde_json::Value = serde_json::from_str(&self.file("results.json")).unwrap();
        let tests = json["tests"].as_array().unwrap().iter().filter(|test| test["outcome"] == outcome);
        let id = |test: &serde_json::Value| TestId {
            suite: test["suite"].as_str().unwrap().into(),
            name: test["name"].as_str().unwrap().into(),
        };
        tests.map(|test| id(test).to_string()).collect()
    }
}
