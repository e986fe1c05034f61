//! The words of the line that runs a scenario again.

use std::path::PathBuf;

use clap::ValueEnum;

use crate::cli::{Accel, Distance, Profile, Thread, TortureArgs};
use crate::process::quoted;

/// All that is other than in the scenario's file, but for the seed.
#[must_use]
pub fn options(args: &TortureArgs) -> String {
    let (machine, kernel) = (&args.machine, &args.kernel);
    let join = |sizes: &Option<Vec<String>>| sizes.as_ref().map(|sizes| sizes.join(","));
    let chosen = |word: String, default: String| Some(word).filter(|word| *word != default);
    let profile = kernel.profile.is_some() || kernel.release || kernel.debug;
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let options = [
        ("--minutes", args.minutes.map(|minutes| minutes.to_string())),
        ("--cpus", machine.cpus.map(|cpus| cpus.to_string())),
        ("--nodes", machine.nodes.map(|nodes| nodes.to_string())),
        ("--node-cpus", join(&machine.node_cpus.as_ref().map(|cpus| cpus.iter().map(u32::to_string).collect()))),
        ("--memory", machine.memory.clone()),
        ("--node-memory", join(&machine.node_memory)),
        ("--distance", chosen(name(machine.distance), name(Distance::default()))),
        ("--accel", chosen(name(machine.accel), name(Accel::default()))),
        ("--thread", chosen(name(machine.thread), name(Thread::default()))),
        ("--append", chosen(machine.append.trim().to_owned(), String::new())),
        ("--profile", profile.then(|| kernel.profile_or(Profile::Checking).name().to_owned())),
        ("--kernel", path(&kernel.kernel)),
        ("--loader", path(&kernel.loader)),
    ];
    let given = options.into_iter().filter_map(|(option, value)| Some((option, value?)));
    given.map(|(option, value)| format!(" {option} {}", quoted(value.as_ref()))).collect()
}

/// The word for a value.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{KernelArgs, MachineArgs};

    #[test]
    fn only_what_the_user_said_is_said_again() {
        assert_eq!(options(&TortureArgs::default()), "");
        let machine = MachineArgs {
            node_cpus: Some(vec![4, 2]),
            node_memory: Some(vec!["256M".to_owned(), "0".to_owned()]),
            thread: Thread::Multi,
            append: " grange.bug=rcu.x".to_owned(),
            ..MachineArgs::default()
        };
        let kernel = KernelArgs { profile: Some(Profile::Mutants), ..KernelArgs::default() };
        let args = TortureArgs { minutes: Some(0.5), machine, kernel, ..TortureArgs::default() };
        assert_eq!(
            options(&args),
            " --minutes 0.5 --node-cpus 4,2 --node-memory 256M,0 --thread multi --append grange.bug=rcu.x --profile mutants"
        );
    }
}
