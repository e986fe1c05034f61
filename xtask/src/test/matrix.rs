//! Which tests run on which machines.
//!
//! Without a shape from the user: one CPU; two on two nodes with real concurrency; four on two nodes; seven on three
//! nodes of unequal size, the smallest of them without memory. Tests tagged `race` also run on four CPUs with a host
//! thread each, because one host thread for all of them would hide what they look for. Those of the slab allocator and of
//! `kfree_rcu` also run on two CPUs on two nodes with every cache a debug cache, the torture of `kfree_rcu` on sixteen CPUs
//! with 256 MiB, and the suite `rcu_tree` on up to 64 CPUs with trees of up to six levels. Deterministic runs take the four CPUs on
//! two nodes alone.

use crate::cli::{MachineArgs, TestArgs, Thread};
use crate::kernel_tests::{Filter, KernelTest};
use crate::qemu::{Engine, Machine};
use crate::shape::Defaults;
use crate::verdict::TestId;
use crate::workspace::Workspace;

/// The kernel parameter that makes every cache a debug cache.
const SLAB_DEBUG: &str = "slab_debug=FZPU";

/// Which of the wanted tests a machine is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of them.
    All,
    /// Those tagged `race`.
    Race,
    /// The suites of the slab allocator and of `kfree_rcu`, with [`SLAB_DEBUG`].
    SlabDebug,
    /// The suite of RCU's combining tree, with a tree of these fan-outs.
    RcuTree(Fanouts),
    /// The torture of `kfree_rcu`, on many CPUs with little memory.
    Crowd,
}

/// The fan-outs of a combining tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fanouts {
    leaf: u32,
    inner: u32,
}

/// The CPUs and the trees that [`Part::RcuTree`] runs on: every fan-out of 2, 3, 16 and 64, one level to six. Machines of the
/// matrix itself have the default tree.
const RCU_TREES: [(u32, Fanouts); 4] = [
    (4, Fanouts { leaf: 2, inner: 2 }),
    (16, Fanouts { leaf: 3, inner: 3 }),
    (64, Fanouts { leaf: 2, inner: 2 }),
    (64, Fanouts { leaf: 16, inner: 64 }),
];

impl Part {
    fn has(self, test: &KernelTest) -> bool {
        let suite = test.id.suite.as_str();
        match self {
            Part::All => true,
            Part::Race => test.is_race(),
            Part::RcuTree(_) => suite == "rcu_tree",
            Part::Crowd => suite == "kfree_rcu_torture",
            Part::SlabDebug => {
                let is_of = |storey: &str| {
                    suite.strip_prefix(storey).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
                };
                is_of("slab") || is_of("kfree_rcu") || suite == "rcu_pending" || suite == "rcu_sheaf"
            }
        }
    }
}

/// A machine of the matrix before it is known which tests there are.
#[derive(Clone, Debug)]
pub struct Place {
    /// The machine.
    pub machine: Machine,
    /// What runs there.
    pub part: Part,
}

/// A machine and its tests.
#[derive(Clone, Debug)]
pub struct Leg {
    /// The machine.
    pub machine: Machine,
    /// The tests, sorted as the kernel runs them.
    pub tests: Vec<KernelTest>,
    /// What was chosen for it.
    pub part: Part,
    /// The bug that the kernel is told to have.
    pub bug: Option<String>,
}

impl Leg {
    /// The machine in words.
    #[must_use]
    pub fn place(&self) -> String {
        let bug = self.bug.as_ref().map_or_else(String::new, |bug| format!(" with the bug {bug}"));
        let with = match self.part {
            Part::All | Part::Race | Part::Crowd => String::new(),
            Part::SlabDebug => format!(" with {SLAB_DEBUG}"),
            Part::RcuTree(Fanouts { leaf, inner }) => format!(" with RCU's fan-outs {leaf} and {inner}"),
        };
        format!("{} ({}){with}{bug}", self.machine.shape, self.machine.engine.name())
    }

    /// The machine in a word, for folders.
    #[must_use]
    pub fn slug(&self) -> String {
        let bug = self.bug.as_ref().map_or_else(String::new, |bug| format!("-{bug}"));
        let part = match self.part {
            Part::All => String::new(),
            Part::Race => "-race".to_owned(),
            Part::Crowd => "-crowd".to_owned(),
            Part::SlabDebug => "-slab-debug".to_owned(),
            Part::RcuTree(Fanouts { leaf, inner }) => format!("-rcu-tree-{leaf}-{inner}"),
        };
        format!("{}{part}{bug}", self.machine.shape.slug())
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
    let make = |args_of: &MachineArgs, part| {
        let machine = Machine::from_args(workspace, args_of, &args.qemu_args, Defaults { cpus: 4, nodes: 2 })?;
        Ok::<_, anyhow::Error>(Place { machine, part })
    };
    if one {
        return Ok(vec![make(asked, Part::All)?]);
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
        make(&shape(&[1], None, Thread::Auto), Part::All)?,
        make(&shape(&[1, 1], None, Thread::Multi), Part::All)?,
        make(&shape(&[2, 2], None, Thread::Auto), Part::All)?,
        make(&shape(&[4, 2, 1], Some(&["256M", "256M", "0"]), Thread::Auto), Part::All)?,
    ];
    let race = make(&shape(&[2, 2], None, Thread::Multi), Part::Race)?;
    // On a host with four cores the third machine is that one already.
    if places[2].machine.engine != race.machine.engine && race.machine.engine == Engine::Multi {
        places.push(race);
    }
    places.push(make(&shape(&[8, 8], Some(&["128M", "128M"]), Thread::Auto), Part::Crowd)?);
    // Who says what is to be checked means every machine.
    if !asked.append.contains("slab_debug") {
        let two = shape(&[1, 1], None, Thread::Multi);
        let append = format!("{} {SLAB_DEBUG}", asked.append);
        places.push(make(&MachineArgs { append: append.trim().to_owned(), ..two }, Part::SlabDebug)?);
    }
    if !asked.append.contains("rcu_fanout") {
        for (cpus, fanouts) in RCU_TREES {
            let Fanouts { leaf, inner } = fanouts;
            let append = format!("{} rcutree.rcu_fanout_leaf={leaf} grange.rcu_fanout={inner}", asked.append);
            let machine = MachineArgs { append: append.trim().to_owned(), ..shape(&[cpus], None, Thread::Auto) };
            places.push(make(&machine, Part::RcuTree(fanouts))?);
        }
    }
    Ok(places)
}

/// Deals the wanted tests out to the machines; machines without a test are left out.
#[must_use]
pub fn legs(places: Vec<Place>, tests: &[KernelTest], filter: &Filter, slow: bool) -> Vec<Leg> {
    let wanted = |part: Part| -> Vec<KernelTest> {
        let tests = tests.iter().filter(|test| filter.wants(&test.id) && (slow || !test.is_slow()));
        tests.filter(|test| part.has(test)).cloned().collect()
    };
    let legs = places.into_iter().map(|Place { machine, part }| Leg { machine, tests: wanted(part), part, bug: None });
    legs.filter(|leg| !leg.tests.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_has_its_tests() {
        let test = |suite: &str, tags| KernelTest {
            id: TestId { suite: suite.to_owned(), name: "a_name".to_owned() },
            file: String::new(),
            line: 0,
            tags,
            budget_ms: 0,
            entry: 0,
        };
        let tests = [
            test("slab", 0),
            test("slab_numa", 1),
            test("kfree_rcu", 0),
            test("kfree_rcu_torture", 0),
            test("slabs", 0),
            test("rcu", 1),
            test("rcu_tree", 0),
        ];
        let of =
            |part: Part| tests.iter().filter(|test| part.has(test)).map(|test| &*test.id.suite).collect::<Vec<_>>();
        assert_eq!(of(Part::All).len(), tests.len());
        assert_eq!(of(Part::Race), ["slab_numa", "rcu"]);
        assert_eq!(of(Part::RcuTree(Fanouts { leaf: 2, inner: 2 })), ["rcu_tree"]);
        assert_eq!(of(Part::SlabDebug), ["slab", "slab_numa", "kfree_rcu", "kfree_rcu_torture"]);
        assert_eq!(of(Part::Crowd), ["kfree_rcu_torture"]);
    }
}
