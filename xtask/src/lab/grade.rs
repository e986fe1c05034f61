//! Runs a lab's grader over an answer. A point is a test, in the kernel or on the host; the ways to run them are those of
//! `cargo xtask test`, so an answer that takes the kernel with it costs its point, and the next point gets a boot of its own.

use std::cell::OnceCell;
use std::path::Path;
use std::time::Duration;

use crate::artifact::{self, Artifacts, LABS};
use crate::cli::{KernelArgs, LabArgs, MachineArgs, Profile, TestArgs, Thread};
use crate::exit::{Exit, stop};
use crate::kernel_tests::{self, KernelTest};
use crate::ktap::Outcome;
use crate::qemu::Machine;
use crate::rundir::RunDir;
use crate::shape::Defaults;
use crate::symbols::Symbols;
use crate::test::campaign::Campaign;
use crate::test::host::{add_logs, watch};
use crate::test::matrix::{Leg, Part};
use crate::test::progress::Progress;
use crate::test::{Record, Session};
use crate::workspace::Workspace;

use super::answer::Answer;
use super::page::{Lab, Point};

/// Host tests that print nothing for so long hang; building them may take a while, too.
const SILENCE: Duration = Duration::from_secs(300);

/// What became of a point.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The point.
    pub point: Point,
    /// [`Exit::Passed`] if its marks are earned.
    pub exit: Exit,
    /// What the test said.
    pub detail: Vec<String>,
    /// The log around it.
    pub log: String,
}

/// The marks of an answer.
#[derive(Clone, Debug)]
pub struct Marks {
    /// Point by point, as on the lab's page.
    pub points: Vec<Judged>,
}

impl Marks {
    /// How many were earned.
    #[must_use]
    pub fn earned(&self) -> u32 {
        self.points.iter().filter(|point| point.exit == Exit::Passed).map(|point| point.point.marks).sum()
    }

    /// The worst that came of a point.
    #[must_use]
    pub fn exit(&self) -> Exit {
        self.points.iter().fold(Exit::Passed, |worst, point| worst.worst(point.exit))
    }

    /// The tests that did not pass, of those that ran.
    #[must_use]
    pub fn missed(&self) -> Vec<&str> {
        let ran_and_missed = |point: &&Judged| !matches!(point.exit, Exit::Passed | Exit::Incomplete);
        self.points.iter().filter(ran_and_missed).map(|point| point.point.test.as_str()).collect()
    }
}

/// What all answers of one command share: one kernel, and one run of the host's tests.
pub struct Grader<'a> {
    workspace: &'a Workspace,
    dir: &'a RunDir,
    /// The labs that may be asked for.
    labs: Vec<&'a Lab>,
    /// Which answers are built, in the words of labs/build.rs.
    which: String,
    args: TestArgs,
    seed: u64,
    /// Boot again after an answer took the kernel with it, for the points that are left.
    to_the_end: bool,
    kernel: OnceCell<Kernel>,
    host: OnceCell<Vec<Record>>,
}

/// A kernel with answers in it.
struct Kernel {
    artifacts: Artifacts,
    tests: Vec<KernelTest>,
    symbols: Option<Symbols>,
}

impl<'a> Grader<'a> {
    /// One for the student's answer to a lab.
    #[must_use]
    pub fn of_work(workspace: &'a Workspace, dir: &'a RunDir, lab: &'a Lab, args: &LabArgs) -> Self {
        let mut grader = Grader::new(workspace, dir, vec![lab], lab.name.clone(), &args.qemu);
        grader.seed = args.seed;
        grader.args.machine.append.clone_from(&args.append);
        grader
    }

    /// One for all answers that come with these labs. Deaths are wanted there: nobody looks at the memory they leave, or wants
    /// to know of another.
    #[must_use]
    pub fn of_all(workspace: &'a Workspace, dir: &'a RunDir, labs: &[&'a Lab], qemu: &Path) -> Self {
        let mut grader = Grader::new(workspace, dir, labs.to_vec(), "all".to_owned(), qemu);
        grader.args.machine.no_core = true;
        grader.to_the_end = false;
        grader
    }

    fn new(workspace: &'a Workspace, dir: &'a RunDir, labs: Vec<&'a Lab>, which: String, qemu: &Path) -> Self {
        // Graders make what two CPUs do at the same time happen step by step. With a host thread for each CPU every step would
        // wait for the host.
        let machine = MachineArgs { qemu: qemu.to_owned(), thread: Thread::Single, ..MachineArgs::default() };
        let args = TestArgs { machine, timeout_scale: 1.0, repeat: 1, kernel_only: true, ..TestArgs::default() };
        Grader {
            workspace,
            dir,
            labs,
            which,
            args,
            seed: 1,
            to_the_end: true,
            kernel: OnceCell::new(),
            host: OnceCell::new(),
        }
    }

    /// Grades an answer.
    ///
    /// # Errors
    /// `Build` when it does not build, or when its grader has other tests than the lab's page has points.
    pub fn grade(&self, lab: &Lab, answer: &Answer) -> anyhow::Result<Marks> {
        let suite = answer.suite(lab);
        let (tests, records) = match lab.machine {
            Some((cpus, nodes)) => self.in_kernel(&suite, Defaults { cpus, nodes })?,
            None => {
                let records: Vec<_> = self.on_host()?.iter().filter(|record| record.suite == suite).cloned().collect();
                (records.iter().map(|record| record.name.clone()).collect(), records)
            }
        };
        agree(lab, &tests)?;
        let nobody = records.iter().find(|record| record.suite.is_empty());
        let judged = |point: &Point| {
            let record = records.iter().find(|record| record.name == point.test).or(nobody);
            self.judged(point, record)
        };
        Ok(Marks { points: lab.points.iter().map(judged).collect() })
    }

    fn judged(&self, point: &Point, record: Option<&Record>) -> Judged {
        let Some(record) = record else {
            return Judged { point: point.clone(), exit: Exit::Incomplete, detail: Vec::new(), log: String::new() };
        };
        // A point that this machine cannot decide is not earned.
        let exit = if record.outcome == Outcome::Skipped { Exit::TestsFailed } else { record.exit };
        // Answers are compiled by their full path; people know them by where they are from here.
        let here = format!("{}/", self.workspace.root.display());
        let short = |text: &String| text.replace(&here, "");
        Judged {
            point: point.clone(),
            exit,
            detail: record.detail.iter().map(short).collect(),
            log: short(&record.log),
        }
    }

    /// The tests of a suite and their results, on a machine of that shape.
    fn in_kernel(&self, suite: &str, shape: Defaults) -> anyhow::Result<(Vec<String>, Vec<Record>)> {
        let kernel = match self.kernel.get() {
            Some(kernel) => kernel,
            None => {
                let kernel = self.build()?;
                self.kernel.get_or_init(|| kernel)
            }
        };
        let tests: Vec<_> = kernel.tests.iter().filter(|test| test.id.suite == suite).cloned().collect();
        let machine = Machine::from_args(self.workspace, &self.args.machine, &[], shape)?;
        let leg = Leg { machine, tests, part: Part::All, bug: None };
        let dir = self.dir.part(suite)?;
        let progress = Progress::silent();
        let session = Session { workspace: self.workspace, args: &self.args, dir: &dir, progress: &progress };
        let campaign = Campaign {
            session: &session,
            artifacts: &kernel.artifacts,
            all: &kernel.tests,
            symbols: kernel.symbols.as_ref(),
            leg: &leg,
            seed: self.seed,
            round: 0,
        };
        let ids = leg.ids();
        let records = if self.to_the_end { campaign.run()?.0 } else { campaign.boot(&ids, 0, 0)?.0 };
        Ok((ids.into_iter().map(|id| id.name).collect(), records))
    }

    fn build(&self) -> anyhow::Result<Kernel> {
        let args = KernelArgs { features: &["labs"], labs: Some(self.which.clone()), ..KernelArgs::default() };
        let artifacts = artifact::make(self.workspace, &args, Profile::Checking)?;
        let tests = kernel_tests::list(&artifacts.kernel)?;
        let symbols = Symbols::load(&artifacts.kernel, &self.workspace.root);
        Ok(Kernel { artifacts, tests, symbols })
    }

    /// The host's tests of all labs, run once; `of_lab05::lab05::name` is `name` of the suite `lab05`.
    fn on_host(&self) -> anyhow::Result<&[Record]> {
        if let Some(records) = self.host.get() {
            return Ok(records);
        }
        let mut cargo = self.workspace.cargo();
        cargo.env(LABS, &self.which).args(["test", "--package", "grange-labs", "--lib", "--no-fail-fast", "--"]);
        cargo.args(self.labs.iter().filter(|lab| lab.machine.is_none()).map(|lab| format!("of_lab{:02}", lab.number)));
        let log = self.dir.path().join("host.log");
        let mut records = Vec::new();
        watch(&mut cargo, &log, SILENCE, &mut |record| records.push(record))?;
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        if text.contains("could not compile") {
            eprint!("{text}");
            return Err(stop(Exit::Build, "the answer did not build on the host"));
        }
        add_logs(&mut records, &text);
        for record in &mut records {
            if let Some((suite, name)) = record.name.rsplit_once("::") {
                record.suite = suite.rsplit("::").next().unwrap_or_default().to_owned();
                record.name = name.to_owned();
            }
        }
        Ok(self.host.get_or_init(|| records))
    }
}

/// Makes sure that there are marks for each test of the grader, and a test for all marks.
fn agree(lab: &Lab, tests: &[String]) -> anyhow::Result<()> {
    let of_page = |test: &&String| lab.points.iter().any(|point| point.test == **test);
    if let Some(other) = tests.iter().find(|test| !of_page(test)) {
        return Err(stop(Exit::Build, format!("docs/labs/{}.md has no marks for {other}", lab.name)));
    }
    match lab.points.iter().find(|point| !tests.contains(&point.test)) {
        Some(point) => Err(stop(Exit::Build, format!("the grader of {} has no test {}", lab.name, point.test))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_and_its_grader_have_to_name_the_same_points() {
        let points = ["first", "second"].map(|test| Point { marks: 1, test: test.to_owned() }).to_vec();
        let lab = Lab { name: "01-x".to_owned(), points, ..Lab::default() };
        let told = |tests: &[&str]| {
            let tests: Vec<String> = tests.iter().map(|&test| test.to_owned()).collect();
            agree(&lab, &tests).map_err(|error| error.to_string())
        };
        assert_eq!(told(&["second", "first"]), Ok(()));
        assert_eq!(told(&["first"]), Err("the grader of 01-x has no test second".to_owned()));
        assert_eq!(told(&["first", "second", "more"]), Err("docs/labs/01-x.md has no marks for more".to_owned()));
    }
}
