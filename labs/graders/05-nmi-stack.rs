//! Grades lab 5: pushes by an NMI and by another CPU between any two instructions of a push and of a take.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use alloc::vec::Vec;
use tests::stepping::{Visit, only, runs, step};
use tests::together::two_cpus;
use tests::{Failure, ensure_eq, ktest};

use super::answer::{Node, Stack};
use crate::elsewhere;

/// Enough for a push at each boundary of a step.
const NODES: usize = 4_096;

static POOL: [Node; NODES] = {
    let mut pool = [const { Node::new(0) }; NODES];
    let mut at = 0;
    while at < NODES {
        pool[at] = Node::new(at as u64);
        at += 1;
    }
    pool
};

/// Nodes that were pushed since all were taken, and how many of these pushes found the stack empty.
static PUSHED: AtomicUsize = AtomicUsize::new(0);
static FOUND_EMPTY: AtomicU64 = AtomicU64::new(0);

static STACK: Stack = Stack::new();

/// Boundaries that are visited in all: more than a push or a take has instructions.
const BOUNDARIES: usize = 150;

/// For `step`: each boundary alone, and then some that lie far apart. Who was in the way each time would keep a push from
/// ever being done, and rightly.
fn each_alone() -> impl Iterator<Item = (usize, usize)> {
    (0..BOUNDARIES).map(only).chain(runs(&[37]))
}

/// Pushes the next node.
fn push() {
    let at = PUSHED.fetch_add(1, Relaxed);
    assert!(at < NODES, "a push is endless");
    FOUND_EMPTY.fetch_add(u64::from(STACK.push(&POOL[at])), Relaxed);
}

/// Pushes while something is stepped.
struct Pushes;

impl Visit for Pushes {
    fn visit() {
        push();
    }
}

/// The other CPU does its work.
struct Elsewhere;

impl Visit for Elsewhere {
    fn visit() {
        elsewhere::ask();
    }
}

/// The values of a chain; too many of one that goes in a circle.
fn values(stack: &Stack) -> Vec<u64> {
    stack.take_all().take(NODES + 1).map(|node| node.value).collect()
}

/// Every node that was pushed was taken once: `taken` before, the rest now.
fn nothing_is_lost(mut taken: Vec<u64>) -> Result<(), Failure> {
    taken.extend(values(&STACK));
    taken.sort_unstable();
    let pushed = PUSHED.swap(0, Relaxed) as u64;
    let missing = (0..pushed).filter(|value| taken.binary_search(value).is_err()).count();
    ensure_eq!(missing, 0, "nodes that never came out, of {pushed} that were pushed");
    ensure_eq!(taken.len() as u64, pushed, "nodes that came out");
    Ok(())
}

ktest! {
    /// A queue, seen from outside.
    #[budget_ms(2_000)]
    fn nodes_come_out_oldest_first(_t: &mut Test) {
        static OWN: Stack = Stack::new();
        for count in [0, 1, 2, 10] {
            (0..count).for_each(|at| _ = OWN.push(&POOL[at]));
            let expected: Vec<u64> = (0..count as u64).collect();
            ensure_eq!(values(&OWN), expected, "{count} nodes");
        }
        Ok(())
    }

    /// Whoever gets a node owns it: it may go onto another stack while the rest of the chain is still to come.
    #[budget_ms(2_000)]
    fn a_node_can_be_pushed_again_as_soon_as_it_is_handed_out(_t: &mut Test) {
        static ONE: Stack = Stack::new();
        static OTHER: Stack = Stack::new();
        (0..10).for_each(|at| _ = ONE.push(&POOL[at]));
        let mut moved = 0;
        for node in ONE.take_all().take(NODES) {
            OTHER.push(node);
            moved += 1;
        }
        ensure_eq!((moved, values(&OTHER).len()), (10, 10), "nodes that were moved, and that came out again");
        Ok(())
    }

    /// An NMI pushes between any two instructions of a push.
    #[budget_ms(5_000)]
    fn an_nmi_that_pushes_in_a_push_loses_nothing(_t: &mut Test) {
        for run in each_alone() {
            step::<Pushes>(run, push);
            nothing_is_lost(Vec::new())?;
        }
        Ok(())
    }

    /// An NMI pushes between any two instructions of a take.
    #[budget_ms(5_000)]
    fn an_nmi_that_pushes_in_a_take_loses_nothing(_t: &mut Test) {
        for run in each_alone() {
            (0..4).for_each(|_| push());
            let mut chain = None;
            step::<Pushes>(run, || chain = Some(STACK.take_all()));
            let taken = chain.into_iter().flatten().take(NODES + 1).map(|node| node.value).collect();
            nothing_is_lost(taken)?;
        }
        Ok(())
    }

    /// Who finds it empty has to wake whoever takes; so exactly one push a batch does.
    #[budget_ms(5_000)]
    fn one_push_of_a_batch_finds_the_stack_empty(_t: &mut Test) {
        for run in each_alone() {
            FOUND_EMPTY.store(0, Relaxed);
            let boundaries = step::<Pushes>(run, push);
            let found_empty = FOUND_EMPTY.load(Relaxed);
            let pushed = PUSHED.load(Relaxed);
            nothing_is_lost(Vec::new())?;
            ensure_eq!(found_empty, 1, "pushes that found it empty, of {pushed} in {boundaries} instructions");
        }
        Ok(())
    }

    /// The other CPU pushes between any two instructions of a push.
    #[budget_ms(5_000)]
    fn two_cpus_that_push_at_the_same_time_lose_nothing(t: &mut Test) {
        let (_, other) = two_cpus()?;
        elsewhere::with(t.cx, other, push, |_| {
            for run in each_alone() {
                step::<Elsewhere>(run, push);
                nothing_is_lost(Vec::new())?;
            }
            Ok(())
        })?
    }

    /// The other CPU takes all between any two instructions of a push.
    #[budget_ms(5_000)]
    fn what_is_taken_elsewhere_in_the_middle_of_a_push_is_not_lost(t: &mut Test) {
        static TAKEN: AtomicU64 = AtomicU64::new(0);
        let (_, other) = two_cpus()?;
        let take = || _ = TAKEN.fetch_add(values(&STACK).len() as u64, Relaxed);
        elsewhere::with(t.cx, other, take, |_| {
            for run in each_alone() {
                TAKEN.store(0, Relaxed);
                step::<Elsewhere>(run, || (0..3).for_each(|_| push()));
                let taken = TAKEN.load(Relaxed) + values(&STACK).len() as u64;
                ensure_eq!(taken, PUSHED.swap(0, Relaxed) as u64, "nodes that came out, of those that were pushed");
            }
            Ok(())
        })?
    }
}
