//! Both stores against a bag of addresses, and what they ask for against what they use.

use std::collections::BTreeSet;
use std::string::ToString;
use std::vec::Vec;

use core::num::NonZero;
use core::ptr::NonNull;

use arch::hosted::in_own_process;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::store::{Stash, Store};
use super::{Pages, Radix};
use crate::test_machine::machine;

#[derive(Clone, Debug)]
enum Op {
    /// So many addresses are put in.
    Push(usize),
    /// So many are taken out.
    Pop(usize),
    /// What is in the other one is joined to this one.
    Append,
    /// From here on the other one is meant.
    Swap,
    /// All is taken out.
    Drain,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let count = || prop_oneof![4 => 0..4_usize, 4 => 0..130_usize, 1 => 0..5_000_usize];
    let op = prop_oneof![
        6 => count().prop_map(Op::Push),
        4 => count().prop_map(Op::Pop),
        2 => Just(Op::Append),
        2 => Just(Op::Swap),
        1 => Just(Op::Drain),
    ];
    proptest::collection::vec(op, 1..60)
}

/// A store, and what should be in it.
struct Model<S: Store> {
    store: S,
    within: BTreeSet<usize>,
}

impl<S: Store> Default for Model<S> {
    fn default() -> Self {
        Self { store: S::default(), within: BTreeSet::new() }
    }
}

impl<S: Store> Model<S> {
    /// Puts a number in, with exactly the nodes that are asked for.
    fn push(&mut self, number: usize) -> Result<(), TestCaseError> {
        let mut stash = Stash::new();
        let (needs, before) = (self.store.needs(), self.store.nodes());
        prop_assert!(stash.fill(needs), "no memory");
        self.store.push(NonNull::without_provenance(NonZero::new(number * 8).expect("not 0")), &mut stash);
        prop_assert_eq!(stash.len(), 0, "it asked for more nodes than it used");
        prop_assert_eq!(self.store.nodes(), before + needs);
        self.within.insert(number);
        Ok(())
    }

    fn pop(&mut self) -> Result<(), TestCaseError> {
        let (mut stash, before) = (Stash::new(), self.store.nodes());
        match self.store.pop(&mut stash) {
            Some(object) => prop_assert!(self.within.remove(&(object.addr().get() / 8)), "not in it, or twice"),
            None => prop_assert!(self.within.is_empty()),
        }
        prop_assert_eq!(self.store.nodes() + stash.len(), before, "a node is lost");
        Ok(())
    }

    fn drain(&mut self) -> Result<(), TestCaseError> {
        let mut missing = core::mem::take(&mut self.within);
        let mut odd = 0;
        self.store.drain(&mut |objects| {
            odd += objects.iter().filter(|object| !missing.remove(&(object.addr().get() / 8))).count();
        });
        prop_assert_eq!((odd, missing.len()), (0, 0), "addresses that were not in it, and that are lost");
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.store.len(), self.within.len());
        prop_assert_eq!(self.store.nodes() == 0, self.within.is_empty(), "nodes without addresses, or the other way");
        Ok(())
    }
}

fn agrees<S: Store>(ops: Vec<Op>) -> Result<(), TestCaseError> {
    let (mut this, mut other, mut number) = (Model::<S>::default(), Model::<S>::default(), 0);
    for op in ops {
        match op {
            Op::Push(count) => {
                for _ in 0..count {
                    number += 1;
                    this.push(number)?;
                }
            }
            Op::Pop(count) => {
                for _ in 0..count {
                    this.pop()?;
                }
            }
            Op::Append => {
                this.store.append(&mut other.store);
                this.within.append(&mut other.within);
            }
            Op::Swap => core::mem::swap(&mut this, &mut other),
            Op::Drain => this.drain()?,
        }
        this.check()?;
        other.check()?;
    }
    this.drain()?;
    other.drain()
}

/// Has a test of both run with many lists of operations, on a machine with its memory.
fn check(test: fn(Vec<Op>) -> Result<(), TestCaseError>) {
    let config = Config { cases: 100, failure_persistence: None, max_shrink_iters: 2_000, ..Config::default() };
    let mut failure = None;
    machine(1, 1, |_| failure = TestRunner::new(config).run(&ops(), test).err().map(|error| error.to_string()));
    assert_eq!(failure, None);
}

#[test]
fn a_tree_of_pointers_is_a_bag_of_addresses() {
    in_own_process(|| check(agrees::<Radix>));
}

#[test]
fn a_list_of_pages_is_a_bag_of_addresses() {
    in_own_process(|| check(agrees::<Pages>));
}

#[test]
fn a_tree_grows_to_depth_three_and_shrinks_to_nothing() {
    in_own_process(|| {
        machine(1, 1, |_| {
            // A root of depth 2 holds 61 * 64 * 64.
            let mut model = Model::<Radix>::default();
            for number in 1..=61 * 64 * 64 + 200 {
                model.push(number).expect("as in the model");
            }
            assert!(
                model.store.nodes() > 61 * 64 && model.store.nodes() < 61 * 64 + 61 * 2,
                "{} nodes",
                model.store.nodes()
            );
            while !model.within.is_empty() {
                model.pop().expect("as in the model");
            }
            model.check().expect("empty");
        });
    });
}
