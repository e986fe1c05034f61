//! The figures of one or several boots, and what the goals say to them.

use serde_json::Value;

use crate::exit::{Exit, stop};
use crate::frames::Kind;
use crate::kernel_tests::KernelBench;
use crate::ktap::Outcome;
use crate::smp::measure::median;
use crate::verdict::{Stream, TestId, Verdict, id_of};

use super::rows::Row;

/// What one operation costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Executed by all CPUs together.
    Instructions,
    /// Of the guest's clock.
    Nanoseconds,
    /// Whatever the bench counts.
    Count,
}

impl Unit {
    /// As it stands in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Unit::Instructions => "instructions",
            Unit::Nanoseconds => "ns",
            Unit::Count => "times",
        }
    }
}

/// What a boot said of a bench.
#[derive(Clone, Copy, Debug)]
struct Sample {
    operations: u64,
    min: f64,
    p50: f64,
    p99: f64,
}

/// A bench's figure over all boots.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Its names.
    pub id: TestId,
    /// What the numbers are.
    pub unit: Unit,
    /// What the median should not exceed.
    pub goal: Option<u32>,
    /// One a boot.
    samples: Vec<Sample>,
}

impl Figure {
    /// Operations in all boots together.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.samples.iter().map(|sample| sample.operations).sum()
    }

    /// The least of all boots.
    #[must_use]
    pub fn min(&self) -> f64 {
        self.samples.iter().map(|sample| sample.min).fold(f64::INFINITY, f64::min)
    }

    /// The median over the boots of their medians.
    #[must_use]
    pub fn p50(&self) -> f64 {
        median(self.medians()).unwrap_or(f64::NAN)
    }

    /// The greatest of all boots' 99th percentiles.
    #[must_use]
    pub fn p99(&self) -> f64 {
        self.samples.iter().map(|sample| sample.p99).fold(0.0, f64::max)
    }

    /// The median of each boot.
    #[must_use]
    pub fn medians(&self) -> Vec<f64> {
        self.samples.iter().map(|sample| sample.p50).collect()
    }

    /// Whether the goal is reached, if there is one. A tenth is what tables show, and what counts here.
    #[must_use]
    pub fn meets_goal(&self) -> Option<bool> {
        self.goal.map(|goal| (self.p50() * 10.0).round() <= f64::from(goal) * 10.0)
    }
}

/// The figures of a command, in the order of the benches.
#[derive(Clone, Debug)]
pub struct Figures {
    counted: bool,
    figures: Vec<Figure>,
    /// What benches told besides, in the order in which they did.
    rows: Vec<Row>,
    /// Benches that this machine cannot run, and why.
    skipped: Vec<(TestId, String)>,
    /// Boots so far.
    runs: u32,
    /// What the kernel says that it is.
    build: String,
}

impl Figures {
    /// None yet.
    #[must_use]
    pub fn new(counted: bool, benches: &[KernelBench]) -> Figures {
        let figures = benches.iter().map(|bench| {
            let goal = if counted { bench.counted } else { bench.timed };
            let goal = (goal != 0).then_some(goal);
            Figure { id: bench.test.id.clone(), unit: Unit::Nanoseconds, goal, samples: Vec::new() }
        });
        Figures {
            counted,
            figures: figures.collect(),
            rows: Vec::new(),
            skipped: Vec::new(),
            runs: 0,
            build: String::new(),
        }
    }

    /// Takes in what a boot said, which was a pass.
    ///
    /// # Errors
    /// `Incomplete` when a bench passed and gave no figure, or one that cannot be read.
    pub fn take(&mut self, stream: &Stream, verdict: &Verdict) -> anyhow::Result<()> {
        let objects = |kind| stream.frames.iter().filter(move |frame| frame.kind == kind);
        if let Some(start) = objects(Kind::Start).next() {
            let start: Value = serde_json::from_str(&start.payload).unwrap_or_default();
            self.build = start["build"].as_str().unwrap_or_default().to_owned();
        }
        let said: Vec<Value> =
            objects(Kind::Json).filter_map(|frame| serde_json::from_str(&frame.payload).ok()).collect();
        self.rows.extend(said.iter().filter_map(Row::read));
        for test in &verdict.tests {
            let id = id_of(test);
            if test.outcome == Outcome::Skipped {
                self.figures.retain(|figure| figure.id != id);
                if self.skipped.iter().all(|(skipped, _)| *skipped != id) {
                    let why = test.detail.join(" ");
                    self.skipped.push((id, why.strip_prefix("SKIP ").unwrap_or(&why).to_owned()));
                }
                continue;
            }
            let object = said.iter().find(|object| object["bench"] == id.to_string());
            let figure = self.figures.iter_mut().find(|figure| figure.id == id);
            let (Some(figure), Some((kind, sample))) = (figure, object.and_then(sample)) else {
                return Err(stop(Exit::Incomplete, format!("{id} passed and gave no figure")));
            };
            figure.unit = match kind {
                BenchKind::Counts => Unit::Count,
                BenchKind::Runs if self.counted => Unit::Instructions,
                BenchKind::Runs | BenchKind::Waits => Unit::Nanoseconds,
            };
            figure.samples.push(sample);
        }
        self.runs += 1;
        Ok(())
    }

    /// The figures.
    pub fn iter(&self) -> impl Iterator<Item = &Figure> {
        self.figures.iter()
    }

    /// What benches told besides.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Those that do not reach their goal.
    pub fn missed(&self) -> impl Iterator<Item = &Figure> {
        self.iter().filter(|figure| figure.meets_goal() == Some(false))
    }

    /// Benches that this machine cannot run, and why.
    #[must_use]
    pub fn skipped(&self) -> &[(TestId, String)] {
        &self.skipped
    }

    /// How many boots they come from.
    #[must_use]
    pub fn runs(&self) -> u32 {
        self.runs
    }

    /// What the kernel says that it is.
    #[must_use]
    pub fn build(&self) -> &str {
        &self.build
    }

    /// Whether instructions were counted.
    #[must_use]
    pub fn counted(&self) -> bool {
        self.counted
    }
}

/// What the numbers are.
enum BenchKind {
    /// What an operation costs that runs.
    Runs,
    /// The time of one that waits.
    Waits,
    /// A count that the bench made.
    Counts,
}

/// What the numbers are, and the numbers.
fn sample(object: &Value) -> Option<(BenchKind, Sample)> {
    let number = |key: &str| object[key].as_f64();
    let sample = Sample {
        operations: object["operations"].as_u64()?,
        min: number("min")?,
        p50: number("p50")?,
        p99: number("p99")?,
    };
    let kind = match (object["waits"].as_bool()?, object["counts"].as_bool()?) {
        (_, true) => BenchKind::Counts,
        (true, _) => BenchKind::Waits,
        _ => BenchKind::Runs,
    };
    Some((kind, sample))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::frames::Frame;
    use crate::kernel_tests::KernelTest;
    use crate::ktap::TestLine;
    use crate::verdict::Witnesses;

    fn id(name: &str) -> TestId {
        TestId { suite: "sched".into(), name: name.into() }
    }

    fn benches() -> Vec<KernelBench> {
        let bench = |name: &str, counted, timed| {
            let test = KernelTest { id: id(name), file: String::new(), line: 1, tags: 0, budget_ms: 0, entry: 0 };
            KernelBench { test, counted, timed }
        };
        vec![bench("switch", 150, 0), bench("wait", 4_000, 40_000), bench("call", 0, 0)]
    }

    fn boot(switch: f64) -> (Stream, Verdict) {
        let payloads = [
            (Kind::Start, r#"{"v":1,"build":"grange 0.1.0, assertions off"}"#.to_owned()),
            (
                Kind::Json,
                format!(
                    r#"{{"bench":"sched.switch","operations":1000,"min":100.5,"p50":{switch},"p99":200,"waits":false,"counts":false}}"#
                ),
            ),
            (
                Kind::Json,
                r#"{"bench":"sched.wait","operations":9,"min":1,"p50":3000,"p99":5000,"waits":true,"counts":false}"#
                    .into(),
            ),
        ];
        let frames = (0..).zip(payloads).map(|(seq, (kind, payload))| Frame { seq, kind, payload }).collect();
        let line = |name: &str, outcome, detail: &[&str]| TestLine {
            suite: "sched".into(),
            name: name.into(),
            outcome,
            detail: detail.iter().map(|&line| line.to_owned()).collect(),
        };
        let verdict = Verdict {
            exit: Exit::Passed,
            witnesses: Witnesses::default(),
            tests: vec![
                line("call", Outcome::Skipped, &["SKIP needs two CPUs"]),
                line("switch", Outcome::Passed, &[]),
                line("wait", Outcome::Passed, &[]),
            ],
            unfinished: None,
            any_began: true,
        };
        (Stream { frames, errors: Vec::new() }, verdict)
    }

    /// Figures of boots in which the switch took so much.
    pub(in crate::bench) fn of_boots(counted: bool, switches: &[f64]) -> Figures {
        let mut figures = Figures::new(counted, &benches());
        for &switch in switches {
            let (stream, verdict) = boot(switch);
            figures.take(&stream, &verdict).unwrap();
        }
        figures
    }

    #[test]
    fn several_boots_give_least_median_and_greatest() {
        let figures = of_boots(true, &[150.0, 170.0, 140.0]);
        let switch = figures.iter().next().unwrap();
        assert_eq!((switch.operations(), switch.min(), switch.p50(), switch.p99()), (3000, 100.5, 150.0, 200.0));
        assert_eq!(switch.medians(), [150.0, 170.0, 140.0]);
        assert_eq!((figures.runs(), figures.build()), (3, "grange 0.1.0, assertions off"));
        assert_eq!(figures.skipped(), [(id("call"), "needs two CPUs".to_owned())]);
    }

    #[test]
    fn what_waits_is_time_in_every_run_and_each_run_has_its_goals() {
        let units = |counted| of_boots(counted, &[100.0]).iter().map(|f| (f.unit, f.goal)).collect::<Vec<_>>();
        assert_eq!(units(true), [(Unit::Instructions, Some(150)), (Unit::Nanoseconds, Some(4_000))]);
        assert_eq!(units(false), [(Unit::Nanoseconds, None), (Unit::Nanoseconds, Some(40_000))]);
    }

    #[test]
    fn a_goal_is_missed_from_a_tenth_above_it() {
        let missed = |switch| of_boots(true, &[switch]).missed().count();
        assert_eq!((missed(150.0), missed(150.04), missed(150.1)), (0, 0, 1));
    }

    #[test]
    fn rows_of_all_boots_are_kept() {
        let mut figures = of_boots(true, &[]);
        for ns in [7, 9] {
            let (mut stream, verdict) = boot(1.0);
            let payload = format!(r#"{{"row":"sched.switch","of":"near","values":{{"ns":{ns}}}}}"#);
            stream.frames.push(Frame { seq: 3, kind: Kind::Json, payload });
            figures.take(&stream, &verdict).unwrap();
        }
        let seen: Vec<_> = figures.rows().iter().map(|row| (row.bench.as_str(), row.of.as_str(), row["ns"])).collect();
        assert_eq!(seen, [("sched.switch", "near", 7.0), ("sched.switch", "near", 9.0)]);
    }

    #[test]
    fn a_bench_that_passed_without_a_figure_is_an_error() {
        let (mut stream, verdict) = boot(1.0);
        stream.frames.remove(1);
        let error = Figures::new(true, &benches()).take(&stream, &verdict).unwrap_err();
        assert_eq!(crate::exit::of(&error), Exit::Incomplete);
        assert!(error.to_string().contains("sched.switch"), "{error}");
    }
}
