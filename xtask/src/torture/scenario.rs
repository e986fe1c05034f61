//! Scenarios: a file `torture/NAME.toml` says which kinds of torture run on which machine, with which options.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use globset::Glob;
use serde::Deserialize;

use crate::cli::{MachineArgs, Profile, Thread};
use crate::exit::{Exit, stop, usage};
use crate::qemu::Machine;
use crate::shape::Defaults;
use crate::workspace::Workspace;

/// The machine where a file says nothing.
const DEFAULTS: Defaults = Defaults { cpus: 4, nodes: 2 };

/// The most boots of one scenario that a word asks for.
const MOST_TIMES: u32 = 10_000;

/// A scenario.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The name of its file.
    pub name: String,
    /// What it says.
    pub file: File,
    /// Its build profile.
    pub profile: Profile,
    /// Its way to run the emulator.
    pub thread: Thread,
}

/// What stands in a scenario's file; anything else is refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// What it is there for, in a line.
    pub covers: String,
    /// Kinds of torture, as globs.
    pub kinds: Vec<String>,
    /// How long, in minutes of the guest's time.
    pub minutes: f64,
    /// It is part of a run without names.
    #[serde(default = "yes")]
    pub default: bool,
    /// As `--cpus`.
    pub cpus: Option<u32>,
    /// As `--nodes`.
    pub nodes: Option<u32>,
    /// As `--node-cpus`.
    pub node_cpus: Option<Vec<u32>>,
    /// As `--memory`.
    pub memory: Option<String>,
    /// As `--node-memory`.
    pub node_memory: Option<Vec<String>>,
    /// As `--thread`.
    #[serde(default)]
    pub thread: String,
    /// As `--profile`; `checking` where nothing is said.
    #[serde(default)]
    pub profile: String,
    /// The kernel command line.
    #[serde(default)]
    pub append: String,
    /// Bugs made on purpose that it finds in a deterministic run, as globs; see [`super::mutants`].
    #[serde(default)]
    pub finds: Vec<String>,
}

fn yes() -> bool {
    true
}

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    /// `Usage`, in one line that names the file.
    pub fn parse(name: &str, text: &str) -> anyhow::Result<Scenario> {
        let bad = |what: String| usage(format!("{name}.toml: {what}"));
        let file: File = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            bad(format!("line {line}: {}", error.message()))
        })?;
        if file.covers.trim().is_empty() || file.kinds.is_empty() {
            return Err(bad("covers and kinds: must not be empty".to_owned()));
        }
        if !(file.minutes > 0.0 && file.minutes <= 1440.0) {
            return Err(bad(format!("minutes = {}: above 0 and at most 1440", file.minutes)));
        }
        let profile = word(&file.profile, Profile::Checking).map_err(|words| bad(format!("profile: {words}")))?;
        let thread = word(&file.thread, Thread::Auto).map_err(|words| bad(format!("thread: {words}")))?;
        Ok(Scenario { name: name.to_owned(), file, profile, thread })
    }

    /// How long it goes on.
    #[must_use]
    pub fn duration(&self, minutes: Option<f64>) -> Duration {
        Duration::from_secs_f64(minutes.unwrap_or(self.file.minutes) * 60.0)
    }

    /// Its machine, with what the user wants otherwise.
    ///
    /// # Errors
    /// `Usage` for a machine that cannot be, `Host` when there is no QEMU.
    pub fn machine(&self, workspace: &Workspace, user: &MachineArgs) -> anyhow::Result<Machine> {
        let args = self.machine_args(user);
        let machine = Machine::from_args(workspace, &args, &[], DEFAULTS);
        machine.map_err(|error| stop(crate::exit::of(&error), format!("{}.toml: {error}", self.name)))
    }

    fn machine_args(&self, user: &MachineArgs) -> MachineArgs {
        let file = &self.file;
        let mut args = user.clone();
        // Who gives CPUs means another shape; its nodes are as many as fit.
        match (user.cpus, &user.node_cpus) {
            (None, None) => {
                args.cpus = file.cpus;
                args.node_cpus = file.node_cpus.clone();
                args.nodes = user.nodes.or(file.nodes);
                args.node_memory = user.node_memory.clone().or(file.node_memory.clone());
            }
            (Some(cpus), None) => args.nodes = user.nodes.or(Some(file.nodes.unwrap_or(DEFAULTS.nodes).min(cpus))),
            _ => {}
        }
        if args.node_memory.is_none() {
            args.memory = user.memory.clone().or(file.memory.clone());
        }
        if user.thread == Thread::Auto && !user.deterministic {
            args.thread = self.thread;
        }
        args.append = format!("{} {}", file.append, user.append).trim().to_owned();
        args
    }
}

/// The value that a word stands for; else the words that are allowed.
fn word<T: ValueEnum>(text: &str, default: T) -> Result<T, String> {
    if text.is_empty() {
        return Ok(default);
    }
    T::from_str(text, false).map_err(|_| {
        let values = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let names: Vec<String> = values.map(|value| value.get_name().to_owned()).collect();
        format!("{text:?} is none of {}", names.join(", "))
    })
}

/// Reads all scenarios of a folder, by name.
///
/// # Errors
/// `Usage` for one that is wrong, `Host` for a folder that cannot be read.
pub fn all(folder: &Path) -> anyhow::Result<Vec<Scenario>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut scenarios = Vec::new();
    for path in entries.map(|entry| entry.map(|entry| entry.path())) {
        let path = path?;
        if path.extension().is_some_and(|extension| extension == "toml") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            scenarios.push(Scenario::parse(&name, &text)?);
        }
    }
    scenarios.sort_by(|a, b| a.name.cmp(&b.name));
    match scenarios.is_empty() {
        true => Err(stop(Exit::Host, format!("{}: no scenarios", folder.display()))),
        false => Ok(scenarios),
    }
}

/// Those that the user's words name, in their order, as often as they name them: globs, with `3*` before one for three times.
/// Without words, those of the default list.
///
/// # Errors
/// `Usage` for a word that names none.
pub fn chosen(all: &[Scenario], words: &[String]) -> anyhow::Result<Vec<Scenario>> {
    if words.is_empty() {
        return Ok(all.iter().filter(|scenario| scenario.file.default).cloned().collect());
    }
    let mut chosen = Vec::new();
    for word in words {
        let (times, pattern) = match word.split_once('*').map(|(times, rest)| (times.parse::<u32>(), rest)) {
            Some((Ok(times), rest)) => (times, rest),
            _ => (1, word.as_str()),
        };
        if !(1..=MOST_TIMES).contains(&times) {
            return Err(usage(format!("{word}: {times} times, allowed are 1 to {MOST_TIMES}")));
        }
        let glob = Glob::new(pattern).map_err(|error| usage(format!("{word}: {error}")))?.compile_matcher();
        let fits: Vec<&Scenario> = all.iter().filter(|scenario| glob.is_match(&scenario.name)).collect();
        if fits.is_empty() {
            let likeness = |name: &str| strsim::jaro(name, &pattern.to_uppercase());
            let near = all.iter().map(|scenario| (likeness(&scenario.name), &scenario.name));
            let near = near.filter(|(likeness, _)| *likeness > 0.7).max_by(|a, b| a.0.total_cmp(&b.0));
            let near = near.map_or_else(String::new, |(_, name)| format!(", did you mean {name}"));
            return Err(usage(format!("no scenario {pattern}{near}; `cargo xtask torture --list` names all")));
        }
        for _ in 0..times {
            chosen.extend(fits.iter().map(|&scenario| scenario.clone()));
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "covers = \"a\"\nkinds = [\"rcu\"]\nminutes = 0.5\n";

    fn refused(text: &str) -> String {
        let error = Scenario::parse("X", text).unwrap_err();
        assert_eq!(crate::exit::of(&error), Exit::Usage);
        error.to_string()
    }

    #[test]
    fn a_file_needs_little_and_nothing_unknown_passes() {
        let scenario = Scenario::parse("X", GOOD).unwrap();
        assert_eq!((scenario.profile, scenario.thread), (Profile::Checking, Thread::Auto));
        assert_eq!(scenario.duration(None), Duration::from_secs(30));
        assert_eq!(scenario.duration(Some(2.0)), Duration::from_secs(120));
        let unknown = refused(&format!("{GOOD}cpu = 3\n"));
        assert!(unknown.starts_with("X.toml: line 4: unknown field `cpu`"), "{unknown}");
        assert!(refused("covers = \"a\"\nkinds = []\nminutes = 1\n").contains("must not be empty"));
        assert!(refused(&format!("{GOOD}thread = \"many\"\n")).contains("\"many\" is none of auto, multi, single"));
        assert!(refused(&GOOD.replace("0.5", "0")).contains("minutes = 0"));
    }

    #[test]
    fn scenarios_are_named_by_globs_and_repeated_by_a_number() {
        let named = |name: &str, default: bool| Scenario::parse(name, &format!("{GOOD}default = {default}\n")).unwrap();
        let all = [named("SLAB01", true), named("TREE01", true), named("TREE100", false)];
        let names = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
            chosen(&all, &words).map(|chosen| chosen.iter().map(|scenario| scenario.name.clone()).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap(), ["SLAB01", "TREE01"]);
        assert_eq!(names(&["TREE*", "SLAB01"]).unwrap(), ["TREE01", "TREE100", "SLAB01"]);
        assert_eq!(names(&["2*TREE01"]).unwrap(), ["TREE01", "TREE01"]);
        assert_eq!(names(&["*1"]).unwrap(), ["SLAB01", "TREE01"]);
        for (word, times) in [("0*TREE01", 0), ("4000000000*TREE01", 4_000_000_000_u32)] {
            let told = names(&[word]).unwrap_err().to_string();
            assert_eq!(told, format!("{word}: {times} times, allowed are 1 to 10000"));
        }
        assert!(names(&["TREE02"]).unwrap_err().to_string().contains("did you mean TREE0"));
        assert!(names(&["tree01"]).unwrap_err().to_string().contains("did you mean TREE01;"));
        assert!(names(&["nosuch"]).unwrap_err().to_string().contains("no scenario nosuch; `cargo"));
    }

    #[test]
    fn the_default_list_has_the_shapes_that_rcu_can_go_wrong_on() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../torture");
        let list = chosen(&all(&folder).unwrap(), &[]).unwrap();
        let rcu =
            || list.iter().map(|scenario| &scenario.file).filter(|file| file.kinds.iter().any(|kind| kind == "rcu"));
        for cpus in [1, 8, 16, 100] {
            assert!(rcu().any(|file| file.cpus == Some(cpus)), "{cpus} CPUs");
        }
        let shapes = [
            "fanout=2",
            "fanout=3",
            "fanout=4",
            "fanout=6",
            "fanout_leaf=2",
            "grange.hz=",
            "rcu_nocbs=all",
            "preempt=none",
        ];
        let disturbers =
            ["torture.onoff_", "torture.shuffle_", "torture.nmi_", "nocbs_toggle=", "stall_cpu=", "stall_gp_kthread="];
        for word in shapes.into_iter().chain(disturbers) {
            assert!(rcu().any(|file| file.append.contains(word)), "{word}");
        }
        let without_memory = |file: &File| file.node_memory.iter().flatten().any(|size| size == "0");
        assert!(rcu().any(|file| file.profile.is_empty()) && rcu().any(|file| file.profile == "release"));
        assert!(rcu().any(|file| file.thread == "multi") && rcu().any(without_memory));
    }

    #[test]
    fn the_default_list_tortures_calls_between_cpus_and_locks() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../torture");
        let list = chosen(&all(&folder).unwrap(), &[]).unwrap();
        for kind in ["scf", "lock"] {
            let named = |scenario: &Scenario| scenario.file.kinds.iter().any(|name| name == kind);
            assert!(list.iter().any(named), "{kind}");
        }
    }
}
