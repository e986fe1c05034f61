//! Reports up trees of all shapes, against a model that knows only who is waited for.
//!
//! Nodes, lists of blocked readers, set-up of nodes and reports are the real ones; the test is all CPUs, and its steps are
//! what happens under a node's lock. So it has any order of steps, and no races, which are for loom ([`crate::model`]).

use std::format;
use std::string::String;
use std::sync::Mutex;
use std::vec::Vec;

use arch::CpuId;
use arch::hosted::in_own_process;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use sched::{self, Completion, Thread};
use sync::{ATOMIC, MaySleep};

use crate::blkd::Blocks;
use crate::geometry::{Geometry, Spread};
use crate::gp;
use crate::report::{report, report_unblocked};
use crate::seq::Seq;
use crate::tree::{Node, Tree};

#[path = "../../sched/tests/machine/mod.rs"]
mod machine;

/// Readers that can be blocked at a time.
const READERS: usize = 12;

/// One step. Numbers are taken modulo what there is to choose from.
#[derive(Clone, Debug)]
enum Step {
    /// The next node is set up, of a new grace period if none is being set up or waits. Bits say which CPUs are busy.
    SetUp(u64),
    /// The grace period ends, if it is clear.
    End,
    /// A CPU reports.
    Report(usize),
    /// A CPU reports for the grace period before.
    ReportLate(usize),
    /// A look at a leaf finds these CPUs idle.
    Look(usize, u64),
    /// A CPU switches out of a reader, and reports perhaps.
    Block { cpu: usize, reader: usize, reports: bool },
    /// A blocked reader ends.
    Unblock(usize),
    /// A CPU goes offline.
    Down(usize),
    /// A CPU comes online.
    Up(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let mask = prop_oneof![Just(u64::MAX), Just(0), any::<u64>()];
    let step = prop_oneof![
        30 => mask.prop_map(Step::SetUp),
        5 => Just(Step::End),
        30 => any::<usize>().prop_map(Step::Report),
        3 => any::<usize>().prop_map(Step::ReportLate),
        8 => any::<(usize, u64)>().prop_map(|(leaf, quiet)| Step::Look(leaf, quiet)),
        8 => any::<(usize, usize, bool)>().prop_map(|(cpu, reader, reports)| Step::Block { cpu, reader, reports }),
        8 => any::<usize>().prop_map(Step::Unblock),
        3 => any::<usize>().prop_map(Step::Down),
        3 => any::<usize>().prop_map(Step::Up),
    ];
    proptest::collection::vec(step, 1..600)
}

fn shapes() -> impl Strategy<Value = Geometry> {
    (1..=64_usize, 2..=64_u32, 2..=64_u32, any::<(bool, bool)>()).prop_map(
        |(cpus, fanout, leaf_fanout, (small, even))| {
            // Half of the trees are deep ones.
            let (fanout, leaf_fanout) =
                if small { (2 + fanout % 3, 2 + leaf_fanout % 3) } else { (fanout, leaf_fanout) };
            let spread = if even { Spread::Even } else { Spread::Exact };
            Geometry::new(cpus, fanout, leaf_fanout, spread).expect("64 CPUs fit into eight levels")
        },
    )
}

/// A blocked reader, as the model knows it.
#[derive(Copy, Clone)]
struct Blocked {
    leaf: &'static Node,
    /// The grace period waits for it.
    waited_for: bool,
}

/// The tree, and what the model knows.
struct Run<'a> {
    tree: Tree,
    threads: &'a [&'static Thread],
    /// The grace period that is set up or waits, or the last one.
    gp: Seq,
    /// Nodes that are set up for it; `None` if none runs.
    set_up: Option<usize>,
    /// CPUs that it waits for.
    cpus: u64,
    online: u64,
    readers: [Option<Blocked>; READERS],
}

impl<'a> Run<'a> {
    fn new(shape: Geometry, gp: Seq, threads: &'a [&'static Thread]) -> Run<'a> {
        let (tree, readers) = (Tree::new(shape), [None; READERS]);
        Run { tree, threads, gp, set_up: None, cpus: 0, online: 0, readers }
    }

    /// What the model says: everybody it waited for has reported.
    fn is_clear(&self) -> bool {
        let blocked = self.readers.iter().flatten().any(|reader| reader.waited_for);
        self.set_up == Some(self.tree.nodes().len()) && self.cpus == 0 && !blocked
    }

    fn cpu(&self, pick: usize) -> (usize, &'static Node, u64) {
        let cpu = pick % self.tree.shape.cpus();
        let leaf = self.tree.leaf_of(CpuId::new(cpu));
        (cpu, leaf, leaf.bit_of(CpuId::new(cpu)))
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::SetUp(busy) => self.set_up(busy),
            Step::End if self.is_clear() => {
                self.tree.nodes().iter().for_each(|node| node.gp_seq.store(self.gp.ended()));
                self.set_up = None;
            }
            Step::Report(pick) => self.report(pick),
            Step::ReportLate(pick) => {
                let (_, leaf, bit) = self.cpu(pick);
                report(leaf, leaf.lock(ATOMIC), bit, Seq::from_raw(self.gp.raw().wrapping_sub(4)));
            }
            Step::Look(pick, quiet) => {
                let leaf = self.tree.leaves()[pick % self.tree.leaves().len()];
                let state = leaf.lock(ATOMIC);
                let quiet = state.qsmask & quiet;
                self.cpus &= !(quiet << leaf.place.cpu_lo);
                report(leaf, state, quiet, self.gp);
            }
            Step::Block { cpu, reader, reports } => {
                self.block(cpu, reader % READERS);
                if reports {
                    self.report(cpu);
                }
            }
            Step::Unblock(pick) => {
                if let Some(Blocked { leaf, .. }) = self.readers[pick % READERS].take() {
                    let mut state = leaf.lock(ATOMIC);
                    if state.blkd.remove(self.threads[pick % READERS]).norm {
                        report_unblocked(leaf, state);
                    }
                }
            }
            Step::Down(pick) => {
                let (cpu, leaf, bit) = self.cpu(pick);
                self.online &= !(1 << cpu);
                self.cpus &= !(1 << cpu);
                let mut state = leaf.lock(ATOMIC);
                state.online &= !bit;
                report(leaf, state, bit, leaf.gp_seq.current());
            }
            Step::Up(pick) => {
                let (cpu, leaf, bit) = self.cpu(pick);
                self.online |= 1 << cpu;
                leaf.lock(ATOMIC).online |= bit;
            }
            Step::End => {}
        }
    }

    fn set_up(&mut self, busy: u64) {
        let at = self.set_up.unwrap_or(0);
        let Some(&node) = self.tree.nodes().get(at) else { return };
        if at == 0 {
            self.gp = Seq::from_raw(self.gp.ended().raw() + 1);
        }
        self.set_up = Some(at + 1);
        let state = node.lock(ATOMIC);
        if !self.tree.is_leaf(node) {
            return gp::set_up_inner(node, state, self.gp);
        }
        let busy = busy & state.online;
        self.cpus |= busy << node.place.cpu_lo;
        for reader in self.readers.iter_mut().flatten() {
            reader.waited_for |= core::ptr::eq(reader.leaf, node);
        }
        gp::set_up_leaf(node, state, self.gp, busy);
    }

    fn report(&mut self, pick: usize) {
        let (cpu, leaf, bit) = self.cpu(pick);
        // One whose leaf is not set up knows nothing of the grace period yet.
        self.cpus &= !(1 << cpu);
        report(leaf, leaf.lock(ATOMIC), bit, leaf.gp_seq.current());
    }

    fn block(&mut self, pick: usize, reader: usize) {
        let (cpu, leaf, bit) = self.cpu(pick);
        if self.online & 1 << cpu == 0 || self.readers[reader].is_some() {
            return;
        }
        let mut state = leaf.lock(ATOMIC);
        let blocks = Blocks { norm: state.qsmask & bit != 0, exp: false };
        state.blkd.queue(self.threads[reader], blocks);
        self.readers[reader] = Some(Blocked { leaf, waited_for: self.cpus & 1 << cpu != 0 });
    }

    /// Everybody goes, and the grace period has to be clear.
    fn finish(&mut self) -> Vec<Step> {
        let nodes = self.tree.nodes().len();
        let set_up = self.set_up.map_or(0, |done| nodes - done);
        let cpus = (0..self.tree.shape.cpus()).map(Step::Report);
        let readers = (0..READERS).map(Step::Unblock);
        (0..set_up).map(|_| Step::SetUp(u64::MAX)).chain(cpus).chain(readers).collect()
    }
}

/// The tree is clear exactly when the model is, after every step and in the end.
fn check(run: &mut Run<'_>, steps: &[Step]) -> Result<(), TestCaseError> {
    let each = |run: &mut Run<'_>, step: &Step| {
        run.take(step);
        let (clear, expected) = (gp::is_clear(run.gp), run.is_clear());
        prop_assert!(!clear || expected || run.set_up.is_none(), "clear too early, after {:?}", step);
        prop_assert!(clear || !expected, "not clear though all have reported, after {:?}", step);
        Ok(())
    };
    (0..run.tree.shape.cpus()).try_for_each(|cpu| each(run, &Step::Up(cpu)))?;
    steps.iter().try_for_each(|step| each(run, step))?;
    run.finish().iter().try_for_each(|step| each(run, step))?;
    run.take(&Step::End);
    Ok(())
}

fn machine_checks(cx: &mut MaySleep) -> Result<(), String> {
    // They sleep until the end, so that no two are the same structure; without `rcu::init` what is theirs for RCU is free.
    static OVER: Completion = Completion::new();
    let handles: Vec<_> = (0..READERS).map(|_| machine::spawn(cx, None, |cx| OVER.wait(cx))).collect();
    let threads: Vec<&'static Thread> = handles.iter().map(|handle| handle.thread()).collect();
    let last = Mutex::new(Seq::INITIAL);
    let config = Config { cases: 150, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&(shapes(), steps()), |(shape, steps)| {
        let mut run = Run::new(shape, *last.lock().unwrap(), &threads);
        let result = check(&mut run, &steps);
        // Numbers go on from tree to tree: which one is clear is known of the last alone.
        *last.lock().unwrap() = run.gp;
        for (at, reader) in run.readers.iter().enumerate().filter_map(|(at, reader)| Some((at, (*reader)?))) {
            reader.leaf.lock(ATOMIC).blkd.remove(threads[at]);
        }
        result
    });
    OVER.complete_all();
    handles.into_iter().for_each(|handle| handle.join(cx));
    result.map_err(|failure| format!("{failure}"))
}

#[test]
fn a_grace_period_is_clear_when_all_that_it_waits_for_have_reported_and_not_before() {
    in_own_process(|| {
        let result = Mutex::new(Ok(()));
        machine::machine_with(1, |_| (), |cx| *result.lock().unwrap() = machine_checks(cx));
        result.into_inner().unwrap().unwrap_or_else(|failure| panic!("{failure}"));
    });
}
