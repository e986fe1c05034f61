//! Which machines and benches an experiment takes.
//!
//! A leg is a machine with the benches that run on it in one boot. Where times under the emulator would say more of the host
//! than of the kernel, instructions are counted; where CPUs have to get into each other's way, time is taken.

use crate::cli::Thread;

/// Numbers of CPUs if nothing is said.
const SIZES: [u32; 5] = [1, 2, 4, 8, 16];
/// The same of the boot experiment.
const BOOT_SIZES: [u32; 6] = [1, 2, 4, 8, 16, 64];
/// The most CPUs that the benches beside other allocators use.
const PEERS: u32 = 4;
/// Numbers of CPUs on which a Linux image waits for grace periods.
const LINUX_WAITS: [u32; 2] = [2, 4];
/// The machine whose floods are tables of docs/back-ends.md.
pub const FLOOD_CPUS: u32 = 16;

/// How long writers wait for grace periods: each for ten seconds.
const LATENCY: &[&str] = &["rcu_latency.*"];

/// What to find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Experiment {
    /// The slab allocator.
    Slab,
    /// RCU and its relatives.
    Rcu,
    /// Freeing after a grace period.
    KfreeRcu,
    /// Bringing CPUs online.
    Smp,
    /// The host program.
    Native,
    /// Linux, and ours beside it.
    Linux,
    /// All of them.
    All,
}

impl Experiment {
    /// As it is typed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Experiment::Slab => "slab",
            Experiment::Rcu => "rcu",
            Experiment::KfreeRcu => "kfree-rcu",
            Experiment::Smp => "smp",
            Experiment::Native => "native",
            Experiment::Linux => "linux",
            Experiment::All => "all",
        }
    }

    fn includes(self, other: Experiment) -> bool {
        self == other || self == Experiment::All
    }
}

/// The numbers of rcuscale's test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// CPUs, and as many threads.
    pub cpus: u32,
    /// Times that a thread gives up its objects.
    pub loops: u32,
    /// Objects that it gives up each time.
    pub objects: u32,
}

impl Scale {
    /// The two that Linux figures are known of.
    pub const ALL: [Scale; 2] =
        [Scale { cpus: 2, loops: 2_000, objects: 1_000 }, Scale { cpus: 4, loops: 1_000, objects: 1_000 }];

    /// The name of its leg.
    #[must_use]
    pub fn leg(&self) -> String {
        format!("rcuscale-{}", self.cpus)
    }

    /// For a kernel command line, Linux's or ours.
    #[must_use]
    pub fn words(&self) -> String {
        let Scale { cpus, loops, objects } = self;
        format!("rcuscale.kfree_nthreads={cpus} rcuscale.kfree_loops={loops} rcuscale.kfree_alloc_num={objects}")
    }
}

/// A test of rcuscale's that a Linux image runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinuxTest {
    /// Objects given up by `kfree_rcu`.
    Kfree(Scale),
    /// So many writers that wait for grace periods, and as many readers.
    Waits {
        /// One a CPU.
        writers: u32,
        /// For expedited ones.
        expedited: bool,
    },
}

impl LinuxTest {
    /// For the kernel's command line.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            LinuxTest::Kfree(scale) => format!("rcuscale.kfree_rcu_test=1 {}", scale.words()),
            LinuxTest::Waits { writers, expedited } => format!(
                "rcuscale.nwriters={writers} rcuscale.nreaders={writers} rcuscale.gp_exp={} rcuscale.holdoff=2 \
                 rcuscale.minruntime=10",
                u8::from(*expedited)
            ),
        }
    }

    /// In a few words.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            LinuxTest::Kfree(_) => "kfree_rcu",
            LinuxTest::Waits { expedited: false, .. } => "normal",
            LinuxTest::Waits { expedited: true, .. } => "expedited",
        }
    }
}

/// A machine and what is measured on it.
#[derive(Clone, Debug)]
pub struct Leg {
    /// Its name.
    pub name: String,
    /// CPUs.
    pub cpus: u32,
    /// Nodes.
    pub nodes: u32,
    /// Instructions are counted here always.
    pub counted: bool,
    /// Host threads of the emulator.
    pub thread: Thread,
    /// For the kernel's command line.
    pub append: String,
    /// Globs over `suite.bench`.
    pub benches: &'static [&'static str],
    /// What a Linux image runs on the same machine.
    pub linux: Vec<LinuxTest>,
    /// Boots if nothing is said.
    pub boots: u32,
    /// Seconds of a boot, about, on a host with two CPUs that has nothing else to do.
    pub seconds: u32,
}

/// All that an experiment does.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The machines.
    pub legs: Vec<Leg>,
    /// Whether the host program runs.
    pub native: bool,
    /// The boot experiment's numbers of CPUs.
    pub boots: Vec<u32>,
}

/// Seconds of the host program, which is built before.
const NATIVE_SECONDS: u32 = 90;
/// Seconds of a test of a Linux image.
const LINUX_SECONDS: u32 = 25;
/// Boots of a machine that takes the time, from which on it can be told whether a later run's moved.
const TIMED_BOOTS: u32 = super::compare::BOOTS as u32;

/// Boots of a machine in the boot experiment.
#[must_use]
pub fn boots_of(runs: Option<u32>) -> u32 {
    runs.unwrap_or(0).max(TIMED_BOOTS)
}

/// The name of the host program's part.
pub const NATIVE: &str = "native";
/// The name of the boot experiment's part.
const BOOTS: &str = "smp";

impl Plan {
    /// What `experiment` takes, over machines of `sizes`, or of the usual ones.
    #[must_use]
    pub fn of(experiment: Experiment, sizes: &[u32]) -> Plan {
        let of = |usual: &[u32]| if sizes.is_empty() { usual.to_vec() } else { sizes.to_vec() };
        let mut plan = Plan::default();
        if experiment.includes(Experiment::Slab) {
            plan.legs.extend(slab(&of(&SIZES)));
        }
        if experiment.includes(Experiment::Rcu) {
            plan.legs.extend(rcu(&of(&SIZES)));
        }
        if experiment.includes(Experiment::KfreeRcu) {
            plan.legs.extend(kfree_rcu(&of(&SIZES)));
        } else if experiment == Experiment::Linux {
            plan.legs.extend(Scale::ALL.iter().map(rcuscale));
            plan.legs.extend(LINUX_WAITS.map(latency));
        }
        plan.native = [Experiment::Native, Experiment::KfreeRcu].iter().any(|&part| experiment.includes(part));
        if experiment.includes(Experiment::Smp) {
            plan.boots = of(&BOOT_SIZES);
        }
        plan
    }

    /// The same with instructions counted on every machine: one boot of each, since figures are exact, and seconds of a guest
    /// take many of the host.
    #[must_use]
    pub fn counted(mut self) -> Plan {
        let counted: Vec<Leg> = self.legs.iter().filter(|leg| leg.counted).cloned().collect();
        let twice =
            |leg: &Leg| counted.iter().any(|c| c.name == format!("counted-{}", leg.name) && c.benches == leg.benches);
        self.legs.retain(|leg| leg.counted || !twice(leg));
        for leg in self.legs.iter_mut().filter(|leg| !leg.counted) {
            (leg.counted, leg.boots) = (true, 1);
            if leg.benches == LATENCY {
                leg.append = "rcuscale.minruntime=1".to_owned();
            }
        }
        self
    }

    /// How long it takes on a host with two CPUs that has nothing else to do, about, with so many boots of each machine.
    #[must_use]
    pub fn minutes(&self, runs: Option<u32>, linux: bool) -> u32 {
        let leg = |leg: &Leg| {
            let image = if linux { leg.linux.len() as u32 * LINUX_SECONDS } else { 0 };
            runs.unwrap_or(leg.boots) * leg.seconds + image
        };
        let native = if self.native { NATIVE_SECONDS } else { 0 };
        let boots: u32 = self.boots.iter().map(|&cpus| boots_of(runs) * (cpus / 16 + 1)).sum();
        (self.legs.iter().map(leg).sum::<u32>() + native + boots).div_ceil(60)
    }

    /// Whether all of it runs on the host.
    #[must_use]
    pub fn boots_nothing(&self) -> bool {
        self.legs.is_empty() && self.boots.is_empty()
    }

    /// Leaves out what is not called so.
    pub fn keep(&mut self, word: &str) {
        self.legs.retain(|leg| leg.name.contains(word));
        self.native &= NATIVE.contains(word);
        if !BOOTS.contains(word) {
            self.boots.clear();
        }
    }

    /// The names of all parts.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        let legs = self.legs.iter().map(|leg| leg.name.as_str());
        legs.chain(self.native.then_some(NATIVE)).chain((!self.boots.is_empty()).then_some(BOOTS)).collect()
    }
}

fn leg(name: impl Into<String>, cpus: u32, counted: bool, benches: &'static [&'static str]) -> Leg {
    let (name, append) = (name.into(), String::new());
    let (boots, seconds) = if counted { (1, 2) } else { (TIMED_BOOTS, 1) };
    Leg { name, cpus, nodes: 1, counted, thread: Thread::Auto, append, benches, linux: Vec::new(), boots, seconds }
}

/// A leg for each size, timed and then counted, and how long each takes.
fn over(
    name: &str,
    sizes: &[u32],
    benches: &'static [&'static str],
    timed_seconds: fn(u32) -> u32,
    counted_seconds: fn(u32) -> u32,
) -> Vec<Leg> {
    let timed = sizes
        .iter()
        .map(|&cpus| Leg { seconds: timed_seconds(cpus), ..leg(format!("{name}-{cpus}"), cpus, false, benches) });
    let counted = sizes.iter().map(|&cpus| Leg {
        seconds: counted_seconds(cpus),
        ..leg(format!("counted-{name}-{cpus}"), cpus, true, benches)
    });
    timed.chain(counted).collect()
}

fn slab(sizes: &[u32]) -> Vec<Leg> {
    let few: Vec<u32> = sizes.iter().copied().filter(|&cpus| cpus <= PEERS).collect();
    let single = &["slab.*", "slab_harden.*", "slab_tune.*", "slab_memory.*", "sync.*", "sched.*"];
    let mut legs = vec![Leg { seconds: 6, ..leg("slab", 2, true, single) }];
    legs.extend(over("slab-peers", &few, &["slab_peers.*"], |_| 1, |_| 3));
    legs.push(Leg { nodes: 2, seconds: 3, ..leg("slab-remote", 2, false, &["slab_remote.*"]) });
    legs
}

fn rcu(sizes: &[u32]) -> Vec<Leg> {
    let mut legs = vec![leg("rcu", 2, true, &["rcu.*", "rcu_list.*", "srcu.*"])];
    legs.extend(over("readers", sizes, &["ref_scale.*"], |cpus| 1 + cpus * cpus / 10, |cpus| 3 * cpus + 3));
    legs.extend(sizes.iter().map(|&cpus| leg(format!("grace-periods-{cpus}"), cpus, false, &["rcu_scale.*"])));
    legs.extend(sizes.iter().map(|&cpus| latency(cpus)));
    legs
}

fn latency(cpus: u32) -> Leg {
    let waits = |expedited| LinuxTest::Waits { writers: cpus, expedited };
    let (linux, thread) = if LINUX_WAITS.contains(&cpus) {
        // rcuscale's readers never pause: one host thread for all CPUs would make Linux's waits its own turns.
        (vec![waits(false), waits(true)], Thread::Multi)
    } else {
        (Vec::new(), Thread::Auto)
    };
    Leg { linux, thread, boots: 1, seconds: 31, ..leg(format!("latency-{cpus}"), cpus, false, LATENCY) }
}

fn rcuscale(scale: &Scale) -> Leg {
    let leg = leg(scale.leg(), scale.cpus, false, &["kfree_rcu_scale.*"]);
    Leg {
        thread: Thread::Multi,
        append: scale.words(),
        linux: vec![LinuxTest::Kfree(*scale)],
        boots: 1,
        seconds: 45,
        ..leg
    }
}

fn kfree_rcu(sizes: &[u32]) -> Vec<Leg> {
    let mut legs: Vec<Leg> = Scale::ALL.iter().map(rcuscale).collect();
    let single = leg("kfree-rcu", 2, true, &["kfree_rcu.*", "kfree_rcu_nolock.*", "kfree_rcu_barriers.*"]);
    legs.push(Leg { seconds: 12, ..single });
    // One boot of each: they have rounds.
    let floods = over("flood", sizes, &["kfree_rcu_flood.small"], |cpus| 3 * cpus, |cpus| 6 + cpus);
    legs.extend(floods.into_iter().map(|leg| Leg { boots: 1, ..leg }));
    let all: &[&str] =
        &["kfree_rcu_flood.small", "kfree_rcu_flood.large", "kfree_rcu_flood.vmalloc", "kfree_rcu_flood.slow_readers"];
    let tables = format!("flood-{FLOOD_CPUS}");
    legs.iter_mut().filter(|leg| leg.name == tables).for_each(|leg| leg.benches = all);
    let rates = &[
        "kfree_rcu_flood.held_rate",
        "kfree_rcu_flood.trickle",
        "kfree_rcu_flood.residence",
        "kfree_rcu_flood.waiting_bytes",
        "kfree_rcu_flood.over_time",
        "kfree_rcu_fragments.*",
    ];
    legs.push(Leg { seconds: 60, ..leg("rates", 4, true, rates) });
    legs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_every_other_experiment_together() {
        let names = |experiment| Plan::of(experiment, &[]).names().into_iter().map(str::to_owned).collect::<Vec<_>>();
        let all = names(Experiment::All);
        for part in [Experiment::Slab, Experiment::Rcu, Experiment::KfreeRcu, Experiment::Smp, Experiment::Native] {
            assert!(names(part).iter().all(|name| all.contains(name)), "{part:?}");
            assert!(!names(part).is_empty(), "{part:?}");
        }
        let mut once = all.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), all.len(), "a name stands for two legs: {all:?}");
    }

    #[test]
    fn the_sizes_are_those_that_are_asked_for() {
        let plan = Plan::of(Experiment::All, &[2, 8]);
        assert_eq!(plan.boots, [2, 8]);
        for name in ["flood-2", "counted-flood-8", "readers-8", "latency-2", "slab-peers-2"] {
            assert!(plan.names().contains(&name), "{name}");
        }
        for name in ["flood-4", "slab-peers-8"] {
            assert!(!plan.names().contains(&name), "{name}");
        }
    }

    #[test]
    fn where_instructions_are_counted_each_machine_is_booted_once_and_none_is_there_twice() {
        let plan = Plan::of(Experiment::All, &[]).counted();
        assert!(plan.legs.iter().all(|leg| leg.counted && leg.boots == 1));
        // flood-16 has more benches than its counted twin.
        for name in ["counted-readers-4", "flood-16", "counted-flood-16", "latency-2", "rcuscale-2"] {
            assert!(plan.names().contains(&name), "{name}");
        }
        assert!(!plan.names().contains(&"readers-4"));
        let latency = plan.legs.iter().find(|leg| leg.name == "latency-2").unwrap();
        assert_eq!(latency.append, "rcuscale.minruntime=1");
    }

    #[test]
    fn more_boots_and_an_image_take_longer() {
        let minutes = |runs, linux| Plan::of(Experiment::All, &[]).minutes(runs, linux);
        assert!(minutes(Some(1), false) < minutes(None, false));
        assert!(minutes(None, false) < minutes(None, true) && minutes(None, true) <= 30);
        assert_eq!(Plan::of(Experiment::Native, &[]).minutes(None, true), NATIVE_SECONDS.div_ceil(60));
    }

    #[test]
    fn one_word_leaves_the_legs_that_hold_it() {
        let mut plan = Plan::of(Experiment::KfreeRcu, &[]);
        plan.keep("rcuscale");
        assert_eq!(plan.names(), ["rcuscale-2", "rcuscale-4"]);
        assert_eq!(plan.legs[0].append, Scale::ALL[0].words());
        assert!(!plan.boots_nothing() && Plan::of(Experiment::Native, &[]).boots_nothing());
        plan.keep("none");
        assert!(plan.names().is_empty());
    }
}
