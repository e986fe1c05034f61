//! What a boot said over COM2, put together over the boots of one machine.

use serde_json::Value;

use crate::exit::{Exit, stop};
use crate::frames::Kind;
use crate::kernel_tests::KernelBench;
use crate::ktap::Outcome;
use crate::verdict::{Stream, Verdict, id_of};

use super::record::{Figure, Leg, Row, Unit};

/// Takes in boots of one machine, one after another.
#[derive(Clone, Debug)]
pub struct Figures {
    leg: Leg,
    /// What the kernel says that it is.
    build: String,
}

impl Figures {
    /// None yet, of the benches that are chosen. `leg` says of which machine.
    #[must_use]
    pub fn new(leg: Leg, benches: &[KernelBench]) -> Figures {
        let counted = leg.counted;
        let figures = benches.iter().map(|bench| {
            let goal = if counted { bench.counted } else { bench.timed };
            Figure {
                bench: bench.test.id.to_string(),
                unit: Unit::Ns,
                goal: (goal != 0).then_some(goal),
                operations: 0,
                min: f64::INFINITY,
                p99: 0.0,
                medians: Vec::new(),
            }
        });
        Figures { leg: Leg { figures: figures.collect(), ..leg }, build: String::new() }
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
        self.leg.rows.extend(said.iter().filter_map(Row::read));
        for test in &verdict.tests {
            let id = id_of(test).to_string();
            if test.outcome == Outcome::Skipped {
                self.leg.figures.retain(|figure| figure.bench != id);
                if self.leg.skipped.iter().all(|(skipped, _)| *skipped != id) {
                    let why = test.detail.join(" ");
                    self.leg.skipped.push((id, why.strip_prefix("SKIP ").unwrap_or(&why).to_owned()));
                }
                continue;
            }
            let object = said.iter().find(|object| object["bench"] == id);
            let figure = self.leg.figures.iter_mut().find(|figure| figure.bench == id);
            let taken = figure.zip(object).and_then(|(figure, object)| take_one(figure, object, self.leg.counted));
            taken.ok_or_else(|| stop(Exit::Incomplete, format!("{id} passed and gave no figure")))?;
        }
        self.leg.runs += 1;
        Ok(())
    }

    /// What came of it, and what the kernel says that it is.
    #[must_use]
    pub fn finish(self) -> (Leg, String) {
        (self.leg, self.build)
    }
}

/// Adds what a boot said of a bench. `None` if a number is missing.
fn take_one(figure: &mut Figure, object: &Value, counted: bool) -> Option<()> {
    let number = |key: &str| object[key].as_f64();
    figure.unit = match (object["waits"].as_bool()?, object["counts"].as_bool()?) {
        (_, true) => Unit::Times,
        (false, _) if counted => Unit::Instructions,
        _ => Unit::Ns,
    };
    figure.operations += object["operations"].as_u64()?;
    figure.min = figure.min.min(number("min")?);
    figure.p99 = figure.p99.max(number("p99")?);
    figure.medians.push(number("p50")?);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::Frame;
    use crate::kernel_tests::KernelTest;
    use crate::ktap::TestLine;
    use crate::verdict::{TestId, Witnesses};

    fn benches() -> Vec<KernelBench> {
        let bench = |name: &str, counted, timed| {
            let id = TestId { suite: "sched".into(), name: name.into() };
            let test = KernelTest { id, file: String::new(), line: 1, tags: 0, budget_ms: 0, entry: 0 };
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

    fn of_boots(counted: bool, switches: &[f64]) -> (Leg, String) {
        let mut figures = Figures::new(Leg { counted, ..Leg::default() }, &benches());
        for &switch in switches {
            let (stream, verdict) = boot(switch);
            figures.take(&stream, &verdict).unwrap();
        }
        figures.finish()
    }

    #[test]
    fn several_boots_give_least_median_and_greatest() {
        let (leg, build) = of_boots(true, &[150.0, 170.0, 140.0]);
        let switch = &leg.figures[0];
        assert_eq!((switch.operations, switch.min, switch.p50(), switch.p99), (3000, 100.5, 150.0, 200.0));
        assert_eq!(switch.medians, [150.0, 170.0, 140.0]);
        assert_eq!((leg.runs, build.as_str()), (3, "grange 0.1.0, assertions off"));
        assert_eq!(leg.skipped, [("sched.call".to_owned(), "needs two CPUs".to_owned())]);
    }

    #[test]
    fn what_waits_is_time_in_every_run_and_each_run_has_its_goals() {
        let units =
            |counted| of_boots(counted, &[100.0]).0.figures.iter().map(|f| (f.unit, f.goal)).collect::<Vec<_>>();
        assert_eq!(units(true), [(Unit::Instructions, Some(150)), (Unit::Ns, Some(4_000))]);
        assert_eq!(units(false), [(Unit::Ns, None), (Unit::Ns, Some(40_000))]);
    }

    #[test]
    fn rows_of_all_boots_are_kept() {
        let mut figures = Figures::new(Leg::default(), &benches());
        for ns in [7, 9] {
            let (mut stream, verdict) = boot(1.0);
            let payload = format!(r#"{{"row":"sched.switch","of":"near","values":{{"ns":{ns}}}}}"#);
            stream.frames.push(Frame { seq: 3, kind: Kind::Json, payload });
            figures.take(&stream, &verdict).unwrap();
        }
        let (leg, _) = figures.finish();
        let seen: Vec<_> = leg.rows.iter().map(|row| (row.bench.as_str(), row.of.as_str(), row["ns"])).collect();
        assert_eq!(seen, [("sched.switch", "near", 7.0), ("sched.switch", "near", 9.0)]);
    }

    #[test]
    fn a_bench_that_passed_without_a_figure_is_an_error() {
        let (mut stream, verdict) = boot(1.0);
        stream.frames.remove(1);
        let error = Figures::new(Leg::default(), &benches()).take(&stream, &verdict).unwrap_err();
        assert_eq!(crate::exit::of(&error), Exit::Incomplete);
        assert!(error.to_string().contains("sched.switch"), "{error}");
    }
}
