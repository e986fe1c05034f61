//! What the samples of the book are made with, and the samples themselves: each Rust block of a chapter is a test.
//!
//! A chapter shows that something fails by a *schedule*: an order of two CPUs' steps, or a place at which an NMI comes.
//! [`schedules`] goes through all orders, [`interrupted`] through all places, so a chapter that says "four of six are
//! wrong" is checked, and so is the step by which it mends that. A step is one access to memory that others see.
//!
//! This looks at orders only. What a processor may do besides, delay a store for one, is a matter for loom
//! (`cargo xtask models`), and chapters say where it matters.

/// One access to memory that others see.
pub type Step<S> = fn(&mut S);

/// What [`schedules`] found.
#[derive(Debug, PartialEq, Eq)]
pub struct Schedules {
    /// How many orders there are.
    pub all: usize,
    /// Those that end wrong, as the CPUs that take the steps: `ABBA`.
    pub wrong: Vec<String>,
}

/// Takes the steps of the CPUs A and B in every order that keeps those of each CPU in theirs, each time on a copy of `start`,
/// and asks whether what comes of it is wrong.
pub fn schedules<S: Clone>(start: &S, a: &[Step<S>], b: &[Step<S>], is_wrong: impl Fn(&S) -> bool) -> Schedules {
    let mut found = Schedules { all: 0, wrong: Vec::new() };
    go_on(start, a, b, &is_wrong, "", &mut found);
    found
}

fn go_on<S: Clone>(
    state: &S,
    a: &[Step<S>],
    b: &[Step<S>],
    is_wrong: &impl Fn(&S) -> bool,
    order: &str,
    found: &mut Schedules,
) {
    if a.is_empty() && b.is_empty() {
        found.all += 1;
        if is_wrong(state) {
            found.wrong.push(order.to_owned());
        }
    }
    if let [step, rest @ ..] = a {
        go_on(&stepped(state, *step), rest, b, is_wrong, &format!("{order}A"), found);
    }
    if let [step, rest @ ..] = b {
        go_on(&stepped(state, *step), a, rest, is_wrong, &format!("{order}B"), found);
    }
}

fn stepped<S: Clone>(state: &S, step: Step<S>) -> S {
    let mut state = state.clone();
    step(&mut state);
    state
}

/// Runs `nmi` as a whole at each boundary of `steps` in turn, 0 being before the first step, and says at which of them the
/// outcome is wrong.
pub fn interrupted<S: Clone>(start: &S, steps: &[Step<S>], nmi: Step<S>, is_wrong: impl Fn(&S) -> bool) -> Vec<usize> {
    let is_wrong_at = |boundary: &usize| {
        let mut state = start.clone();
        let (before, after) = steps.split_at(*boundary);
        before.iter().for_each(|step| step(&mut state));
        nmi(&mut state);
        after.iter().for_each(|step| step(&mut state));
        is_wrong(&state)
    };
    (0..=steps.len()).filter(is_wrong_at).collect()
}

macro_rules! chapters {
    ($($name:ident: $file:literal,)*) => {
        $(
            #[cfg(doctest)]
            #[doc = include_str!($file)]
            mod $name {}
        )*
    };
}

chapters! {
    machine: "01-machine.md",
    contexts: "02-contexts.md",
    pages: "03-pages.md",
    threads: "04-threads.md",
    tree: "05-rcu.md",
    sleeping_readers: "06-srcu.md",
    slabs: "07-slab.md",
    freeing: "08-kfree-rcu.md",
    nmi: "09-nolock.md",
    testing: "10-testing.md",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_of_two_lists_is_taken_once() {
        let push: [Step<String>; 2] = [|s| s.push('a'), |s| s.push('b')];
        let other: [Step<String>; 2] = [|s| s.push('x'), |s| s.push('y')];
        let found = schedules(&String::new(), &push, &other, |s| s == "axby");
        assert_eq!(found, Schedules { all: 6, wrong: vec!["ABAB".to_owned()] });
    }

    #[test]
    fn an_nmi_comes_at_each_boundary_once() {
        let steps: [Step<String>; 2] = [|s| s.push('a'), |s| s.push('b')];
        assert_eq!(interrupted(&String::new(), &steps, |s| s.push('!'), |s| s.len() == 3), [0, 1, 2]);
        assert_eq!(interrupted(&String::new(), &steps, |s| s.push('!'), |s| s == "a!b"), [1]);
    }
}
