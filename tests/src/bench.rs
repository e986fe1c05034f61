//! Benches: how they register, and how an operation is measured.
//!
//! A bench is written with [`bench!`](crate::bench!) in `benches/<storey>.rs`, and is found like a test, through the link
//! section `linkme_BENCHES`. It runs as a thread of its own, bound to the CPU of the runner, and measures once, with
//! [`Bencher::each`], [`Bencher::sections`] or [`Bencher::waits`]. Its figure goes out as one JSON object, in nanoseconds of
//! the guest's clock; what one number does not tell goes before it as rows ([`Bencher::row`]). Under QEMU's `-icount shift=0` the clock counts instructions: one each nanosecond, those of all CPUs
//! together, and none while all of them halt, when it jumps to the next timer.
//!
//! What measuring itself costs (the loop, the two looks at the clock) is measured by the same code around nothing, and
//! subtracted. Interrupts stay on: the tick hits a few of the samples, so the figure to quote is the median.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::fmt::Write as _;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arch::clock;
use sched::Prio;
use sync::MaySleep;

use crate::case::TestCase;
use crate::outcome::Failure;
use crate::run::Test;

/// Calls of the operation in one sample of [`Bencher::each`].
const CALLS: u64 = 1_000;
/// Samples that a bench takes if it does not say otherwise; odd, so that the median is one of them.
const SAMPLES: usize = 101;

/// What a figure's median should not exceed. 0: no goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goal {
    /// In a run that counts: instructions, or for a bench that waits nanoseconds, counted likewise.
    pub counted: u32,
    /// In a run that takes the time: nanoseconds.
    pub timed: u32,
}

impl Goal {
    /// No goal.
    pub const NONE: Goal = Goal { counted: 0, timed: 0 };

    /// The same with a limit for runs that count.
    pub const fn counted(self, counted: u32) -> Goal {
        Goal { counted, ..self }
    }

    /// The same with a limit for runs that take the time.
    pub const fn timed(self, timed: u32) -> Goal {
        Goal { timed, ..self }
    }
}

/// One bench. The layout is read from the ELF file by `xtask`: change both together.
#[repr(C)]
#[derive(Debug)]
pub struct BenchCase {
    /// Its names, its place, its budget and how to run it.
    pub case: TestCase,
    /// What it should reach.
    pub goal: Goal,
}

/// All benches that are linked in, in the linker's order.
#[linkme::distributed_slice]
pub static BENCHES: [BenchCase];

/// How long a bench may take, in milliseconds of guest time.
pub const BUDGET_MS: u32 = 120_000;

/// Declares benches. A body measures once and ends in `Ok(())`.
///
/// ```ignore
/// bench! {
///     /// What it is about.
///     #[goal(counted = 36)]
///     fn alloc_free_pair(b: &mut Bencher) {
///         b.each(1, |_| drop(Box::new(0)));
///         Ok(())
///     }
/// }
/// ```
#[macro_export]
macro_rules! bench {
    ($(
        $(#[doc = $doc:literal])+
        $(#[goal($($kind:ident = $limit:literal),+)])?
        fn $name:ident($bencher:ident: &mut Bencher) $body:block
    )+) => {$(
        $(#[doc = $doc])+
        fn $name($bencher: &mut $crate::bench::Bencher<'_>) -> ::core::result::Result<(), $crate::Failure> {
            $body
        }

        const _: () = {
            const SUITE: &str = $crate::case::last_segment(::core::module_path!());
            const NAME: &str = ::core::stringify!($name);

            #[$crate::private::linkme::distributed_slice($crate::bench::BENCHES)]
            #[linkme(crate = $crate::private::linkme)]
            static CASE: $crate::bench::BenchCase = $crate::bench::BenchCase {
                case: $crate::case::TestCase {
                    suite: SUITE,
                    name: NAME,
                    file: ::core::file!(),
                    line: ::core::line!(),
                    tags: 0,
                    budget_ms: $crate::bench::BUDGET_MS,
                    run: |t| $crate::bench::run_one(t, SUITE, NAME, $name),
                },
                goal: $crate::bench::Goal::NONE$($(.$kind($limit))+)?,
            };
        };
    )+};
}

/// A bench's body.
pub type Body = fn(&mut Bencher<'_>) -> Result<(), Failure>;

/// What a bench is given.
pub struct Bencher<'a> {
    /// The token of the bench's thread.
    pub cx: &'a mut MaySleep,
    /// How many samples to take.
    pub samples: usize,
    figure: Option<Figure>,
    rows: Vec<String>,
}

impl Bencher<'_> {
    /// Measures something short. A call of `op` performs `operations` of what is to be measured.
    pub fn each(&mut self, operations: u64, mut op: impl FnMut(&mut MaySleep)) {
        let empty = median((0..SAMPLES).map(|_| looped(|| ())).collect());
        let samples = (0..self.samples).map(|_| looped(|| op(self.cx)).saturating_sub(empty)).collect();
        self.take(Figure { samples, operations: CALLS * operations, kind: Kind::Runs });
    }

    /// Measures what needs something done before: each sample is one call of `op`, which performs `operations`, after an
    /// unmeasured call of `prepare`.
    pub fn sections<T>(
        &mut self,
        operations: u64,
        mut prepare: impl FnMut(&mut MaySleep) -> T,
        mut op: impl FnMut(&mut MaySleep, T),
    ) {
        let empty = median((0..SAMPLES).map(|_| once(|| ())).collect());
        let sample = |_| {
            let prepared = prepare(self.cx);
            once(|| op(self.cx, prepared)).saturating_sub(empty)
        };
        let samples = (0..self.samples).map(sample).collect();
        self.take(Figure { samples, operations, kind: Kind::Runs });
    }

    /// Measures an operation that waits for others: its time is given as time in every kind of run.
    pub fn waits(&mut self, mut op: impl FnMut(&mut MaySleep)) {
        let samples = (0..self.samples).map(|_| once(|| op(self.cx))).collect();
        self.take(Figure { samples, operations: 1, kind: Kind::Waits });
    }

    /// Gives times that the bench has taken itself, each of so many operations.
    pub fn took(&mut self, operations: u64, samples: Vec<u64>) {
        self.take(Figure { samples, operations, kind: Kind::Runs });
    }

    /// Gives times that the bench has taken itself, each of one operation that waits for others.
    pub fn waited(&mut self, samples: Vec<u64>) {
        self.take(Figure { samples, operations: 1, kind: Kind::Waits });
    }

    /// Gives a count that the bench has made itself, of whatever its name says; no clock comes in.
    pub fn counts(&mut self, samples: Vec<u64>) {
        self.take(Figure { samples, operations: 1, kind: Kind::Counted });
    }

    /// Tells more of what was measured: a row of a table, `of` what it is about and its named numbers.
    pub fn row(&mut self, of: &str, values: &[(&str, u64)]) {
        self.rows.push(row_json(of, values));
    }

    fn take(&mut self, figure: Figure) {
        assert!(self.figure.replace(figure).is_none(), "a bench measures once");
    }
}

/// Nanoseconds of [`CALLS`] calls. The number that is left is an atomic, which makes the loop two instructions (`lock dec`,
/// `jne`) whatever `op` is: the compiler neither unrolls it nor finds another place for its counter.
#[inline(always)]
fn looped(mut op: impl FnMut()) -> u64 {
    let left = AtomicU64::new(CALLS);
    black_box(&left);
    once(|| {
        loop {
            op();
            if left.fetch_sub(1, Relaxed) == 1 {
                break;
            }
        }
    })
}

/// Nanoseconds of one call.
#[inline(always)]
fn once(op: impl FnOnce()) -> u64 {
    let begin = clock::now_ns();
    op();
    clock::now_ns() - begin
}

fn median(mut samples: Vec<u64>) -> u64 {
    samples.sort_unstable();
    samples[samples.len() / 2]
}

/// What the numbers of a figure are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nanoseconds, or instructions in a run that counts them.
    Runs,
    /// Nanoseconds in every kind of run.
    Waits,
    /// A count.
    Counted,
}

/// What was measured, of each sample.
struct Figure {
    samples: Vec<u64>,
    /// Operations in one sample.
    operations: u64,
    kind: Kind,
}

impl Figure {
    /// The share of one operation in the sample that has `percent` of all samples before it.
    fn at(&self, percent: usize) -> PerOperation {
        PerOperation { ns: self.samples[(self.samples.len() - 1) * percent / 100], operations: self.operations }
    }
}

/// A quotient with three decimals; the kernel has no floating point.
struct PerOperation {
    ns: u64,
    operations: u64,
}

impl fmt::Display for PerOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let thousandths = (u128::from(self.ns) * 1_000 + u128::from(self.operations / 2)) / u128::from(self.operations);
        write!(f, "{}.{:03}", thousandths / 1_000, thousandths % 1_000)
    }
}

/// The inside of a row's object, but for whose it is.
fn row_json(of: &str, values: &[(&str, u64)]) -> String {
    let mut text = alloc::format!(r#""of":"{of}","values":{{"#);
    for (at, (name, value)) in values.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        // A String takes whatever is written.
        let _ = write!(text, r#"{comma}"{name}":{value}"#);
    }
    text.push('}');
    text
}

/// Runs one bench in a thread on this CPU and reports its rows and its figure.
#[doc(hidden)]
pub fn run_one(t: &mut Test<'_>, suite: &str, name: &str, body: Body) -> Result<(), Failure> {
    let here = arch::cpu::current();
    let thread = sched::spawn(t.cx, "bench", Prio::NORMAL, Some(here), move |cx| {
        let mut bencher = Bencher { cx, samples: SAMPLES, figure: None, rows: Vec::new() };
        body(&mut bencher).map(|()| (bencher.figure, bencher.rows))
    });
    let (figure, rows) = thread.map_err(|error| crate::__failed!("{error}"))?.join(t.cx)?;
    let Some(mut figure) = figure else {
        return Err(crate::__failed!("the bench has measured nothing"));
    };
    for row in rows {
        t.figure(format_args!(r#"{{"row":"{suite}.{name}",{row}}}"#));
    }
    figure.samples.sort_unstable();
    let operations = figure.operations * figure.samples.len() as u64;
    let (min, p50, p99) = (figure.at(0), figure.at(50), figure.at(99));
    t.figure(format_args!(
        r#"{{"bench":"{suite}.{name}","operations":{operations},"min":{min},"p50":{p50},"p99":{p99},"waits":{},"counts":{}}}"#,
        figure.kind == Kind::Waits,
        figure.kind == Kind::Counted,
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::bench! {
        /// With a goal.
        #[goal(counted = 36, timed = 4_000)]
        fn with_a_goal(_b: &mut Bencher) {
            Ok(())
        }

        /// Without.
        fn without_one(_b: &mut Bencher) {
            Ok(())
        }
    }

    #[test]
    fn a_bench_registers_itself_with_its_goal() {
        let goal = |name| BENCHES.iter().find(|bench| bench.case.name == name).expect("registered by bench!").goal;
        assert_eq!(goal("with_a_goal"), Goal { counted: 36, timed: 4_000 });
        assert_eq!(goal("without_one"), Goal::NONE);
    }

    #[test]
    fn the_layout_is_the_one_that_the_list_of_benches_is_read_with() {
        assert_eq!(size_of::<BenchCase>(), 80);
        assert_eq!(core::mem::offset_of!(BenchCase, goal), 72);
        assert_eq!(core::mem::offset_of!(Goal, timed), 4);
    }

    #[test]
    fn a_row_names_its_numbers() {
        assert_eq!(row_json("sheaf", &[("ns", 5), ("gps", 2)]), r#""of":"sheaf","values":{"ns":5,"gps":2}"#);
        assert_eq!(row_json("none", &[]), r#""of":"none","values":{}"#);
    }

    #[test]
    fn figures_are_given_per_operation_and_rounded_to_thousandths() {
        let figure = Figure { samples: (0..=100).map(|i| i * 1_000).collect(), operations: 3, kind: Kind::Runs };
        assert_eq!(figure.at(0).to_string(), "0.000");
        assert_eq!(figure.at(50).to_string(), "16666.667");
        assert_eq!(figure.at(99).to_string(), "33000.000");
        assert_eq!(PerOperation { ns: 1, operations: 1_000 }.to_string(), "0.001");
    }
}
