//! Which tests run on which machines.
//!
//! Without a shape from the user: one CPU; two on two nodes with real concurrency; four on two nodes; seven on three
//! nodes of unequal size, the smallest of them without memory. Tests tagged `race` also run on four CPUs with a host thread each, because one host thread for
//! all of them would hide what they look for. Deterministic runs take the four CPUs on two nodes alone.

use crate::cli::{MachineArgs, TestArgs, Thread};
use crate::kernel_tests::{Filter, KernelTest};
use crate::qemu::{Engine, Machine};
use crate::shape::Defaults;
use crate::verdict::TestId;
use crate::workspace::Workspace;

/// A machine of the matrix before it is known which tests there are.
#[derive(Clone, Debug)]
pub struct Place {
    /// The machine.
    pub machine: Machine,
    /// Only tests tagged `race`.
    pub race_only: bool,
}

/// A machine and its tests.
#[derive(Clone, Debug)]
pub struct Leg {
    /// The machine.
    pub machine: Machine,
    /// The tests, sorted as the kernel runs them.
    pub tests: Vec<KernelTest>,
    /// Only tests tagged `race`.
    pub race_only: bool,
    /// The bug that the kernel is told to have.
    pub bug: Option<String>,
}

impl Leg {
    /// The machine in words.
    #[must_use]
    pub fn place(&self) -> String {
        let bug = self.bug.as_ref().map_or_else(String::new, |bug| format!(" with the bug {bug}"));
        format!("{} ({}){bug}", self.machine.shape, self.machine.engine.name())
    }

    /// The machine in a word, for folders.
    #[must_use]
    pub fn slug(&self) -> String {
        let bug = self.bug.as_ref().map_or_else(String::new, |bug| format!("-{bug}"));
        format!("{}{}{bug}", self.machine.shape.slug(), if self.race_only { "-race" } else { "" })
    }

    /// The names of its tests.
    #[must_use]
    pub fn ids(&self) -> Vec<TestId> {
        self.tests.iter().map(|test| test.id.clone()).collect()
    }
}

/// The machines: the one the user describes, or the matrix.
///
/// # Errors
/// `Usage` for a bad shape, `Host` when there is no QEMU.
pub fn machines(workspace: &Workspace, args: &TestArgs) -> anyhow::Result<Vec<Place>> {
    let asked = &args.machine;
    // What a deterministic run shows does not depend on real concurrency, and each machine costs its time.
    let one = asked.deterministic
        || asked.cpus.is_some()
        || asked.nodes.is_some()
        || asked.node_cpus.is_some()
        || asked.node_memory.is_some();
    let make = |args_of: &MachineArgs, race_only| {
        let machine = Machine::from_args(workspace, args_of, &args.qemu_args, Defaults { cpus: 4, nodes: 2 })?;
        Ok::<_, anyhow::Error>(Place { machine, race_only })
    };
    if one {
        return Ok(vec![make(asked, false)?]);
    }
    let shape = |node_cpus: &[u32], node_memory: Option<&[&str]>, thread: Thread| MachineArgs {
        node_cpus: Some(node_cpus.to_vec()),
        // A user who says how much memory there is means all nodes.
        node_memory: node_memory
            .filter(|_| asked.memory.is_none())
            .map(|sizes| sizes.iter().map(|&size| size.into()).collect()),
        thread: if asked.thread == Thread::Auto { thread } else { asked.thread },
        ..asked.clone()
    };
    let mut places = vec![
        make(&shape(&[1], None, Thread::Auto), false)?,
        make(&shape(&[1, 1], None, Thread::Multi), false)?,
        make(&shape(&[2, 2], None, Thread::Auto), false)?,
        make(&shape(&[4, 2, 1], Some(&["256M", "256M", "0"]), Thread::Auto), false)?,
    ];
    let race = make(&shape(&[2, 2], None, Thread::Multi), true)?;
    // On a host with four cores the third machine is that one already.
    if places[2].machine.engine != race.machine.engine && race.machine.engine == Engine::Multi {
        places.push(race);
    }
    Ok(places)
}

/// Deals the wanted tests out to the machines; machines without a test are left out.
#[must_use]
pub fn legs(places: Vec<Place>, tests: &[KernelTest], filter: &Filter, slow: bool) -> Vec<Leg> {
    let wanted = |race_only: bool| -> Vec<KernelTest> {
        let tests = tests.iter().filter(|test| filter.wants(&test.id) && (slow || !test.is_slow()));
        tests.filter(|test| !race_only || test.is_race()).cloned().collect()
    };
    let legs = places.into_iter().map(|Place { machine, race_only }| Leg {
        machine,
        tests: wanted(race_only),
        race_only,
        bug: None,
    });
    legs.filter(|leg| !leg.tests.is_empty()).collect()
}
