//! Whether a boot was a pass. A pure function of what came over COM2, how QEMU ended, and what was asked for.
//!
//! A pass needs three witnesses that do not know of each other:
//! 1. **the plan**: KTAP that is complete and, where the tests are known from the ELF, names each of them;
//! 2. **the end marker**: the `E` frame, last in an unbroken stream, with the counts of the KTAP before it;
//! 3. **the status**: debug-exit value 0x10, which makes QEMU end with 33.
//!
//! QEMU's status 0 is never a pass: a triple fault gives it too.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::exit::Exit;
use crate::frames::{Frame, FrameError, FrameReader, Kind};
use crate::ktap::{Outcome, Parser, TestLine};
use crate::watchdog::Report;

/// A test by its names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct TestId {
    /// The suite.
    pub suite: String,
    /// The test.
    pub name: String,
}

impl fmt::Display for TestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.suite, self.name)
    }
}

/// How QEMU ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this status.
    Status(i32),
    /// By a signal that was not ours.
    Signal(i32),
    /// We ended it because the guest hung; why we think so.
    Hung(String),
    /// QEMU stopped the machine and would not go on.
    Stuck,
    /// The user interrupted.
    Interrupted,
}

/// What was asked of the boot.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The seed.
    pub seed: u64,
    /// CPUs of the machine.
    pub cpus: u32,
    /// Nodes of the machine.
    pub nodes: u32,
    /// The tests that had to run, in their order.
    pub tests: Vec<TestId>,
}

/// What each witness says: empty when it speaks for a pass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Witnesses {
    /// Of the KTAP.
    pub plan: Vec<String>,
    /// Of the frames and the end marker.
    pub end: Vec<String>,
    /// Of QEMU's status.
    pub status: Vec<String>,
}

/// The judgement.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What the boot was.
    pub exit: Exit,
    /// Who says so.
    pub witnesses: Witnesses,
    /// Tests that got a result, in their order.
    pub tests: Vec<TestLine>,
    /// The test that had begun and has no result.
    pub unfinished: Option<TestId>,
    /// Whether any test began.
    pub any_began: bool,
}

impl Verdict {
    /// The judgement in the light of what the kernel's watchdogs reported: a guest that the host did not starve stalled.
    #[must_use]
    pub fn with_reports(mut self, reports: &[Report]) -> Verdict {
        for report in reports.iter().filter(|report| !report.starved) {
            self.exit = self.exit.worst(Exit::Hung);
            self.witnesses.status.push(format!("a watchdog reported: {} ({})", report.line, report.host));
        }
        self
    }

    /// All that speaks against a pass.
    pub fn complaints(&self) -> impl Iterator<Item = &String> {
        let Witnesses { plan, end, status } = &self.witnesses;
        status.iter().chain(end).chain(plan)
    }
}

/// The frames of one boot.
#[derive(Debug, Default)]
pub struct Stream {
    /// Those to be believed.
    pub frames: Vec<Frame>,
    /// What else was there.
    pub errors: Vec<FrameError>,
}

impl Stream {
    /// Reads a whole stream at once.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Stream {
        let mut reader = FrameReader::default();
        let mut stream = Stream::default();
        for frame in reader.push(bytes) {
            stream.take(frame);
        }
        stream.errors.extend(reader.finish());
        stream
    }

    /// Adds what the reader gave.
    pub fn take(&mut self, frame: Result<Frame, FrameError>) {
        match frame {
            Ok(frame) => self.frames.push(frame),
            Err(error) => self.errors.push(error),
        }
    }
}

/// Judges one boot.
#[must_use]
pub fn judge(stream: &Stream, ending: &Ending, asked: &Asked) -> Verdict {
    let mut witnesses = Witnesses::default();
    witnesses.end.extend(stream.errors.iter().take(5).map(ToString::to_string));
    check_start(stream, asked, &mut witnesses.end);
    let reading = Reading::of(stream, &mut witnesses.plan);
    check_names(&reading.tests, asked, &mut witnesses.plan);
    check_end(stream, &reading.tests, &mut witnesses.end);
    let from_status = check_status(ending, &reading.tests, &mut witnesses.status);
    let trusted = witnesses.plan.is_empty() && witnesses.end.is_empty() && witnesses.status.is_empty();
    let exit = match from_status {
        Exit::Passed | Exit::TestsFailed if !trusted => Exit::Incomplete,
        exit => exit,
    };
    Verdict { exit, witnesses, tests: reading.tests, unfinished: reading.unfinished, any_began: reading.any_began }
}

/// What the KTAP and the begin marks say together.
struct Reading {
    tests: Vec<TestLine>,
    unfinished: Option<TestId>,
    any_began: bool,
}

impl Reading {
    fn of(stream: &Stream, complaints: &mut Vec<String>) -> Reading {
        let mut parser = Parser::default();
        let (mut running, mut any_began, mut broken) = (None::<TestId>, false, false);
        for frame in &stream.frames {
            match frame.kind {
                Kind::Begin => {
                    let begun = begun(&frame.payload);
                    if begun.is_none() {
                        complaints.push(format!("a begin mark that names no test: {:?}", frame.payload));
                    }
                    if let (Some(old), Some(new), false) = (&running, &begun, broken) {
                        complaints.push(format!("{new} begins before {old} has a result"));
                    }
                    any_began = true;
                    running = begun;
                }
                Kind::Ktap if !broken => match parser.line(&frame.payload) {
                    Ok(None) => {}
                    Ok(Some(test)) => {
                        let id = id_of(test);
                        if running.as_ref() != Some(&id) && test.outcome != Outcome::Skipped {
                            complaints.push(format!("a result for {id}, which had not begun"));
                        }
                        running = None;
                    }
                    Err(error) => {
                        complaints.push(error.to_string());
                        broken = true;
                    }
                },
                _ => {}
            }
        }
        if !broken && let Err(error) = parser.finish() {
            complaints.push(error.to_string());
        }
        Reading { tests: parser.tests().to_vec(), unfinished: running, any_began }
    }
}

/// The identity of a KTAP line.
#[must_use]
pub fn id_of(test: &TestLine) -> TestId {
    TestId { suite: test.suite.clone(), name: test.name.clone() }
}

/// The test a begin mark names.
#[must_use]
pub fn begun(payload: &str) -> Option<TestId> {
    let value: Value = serde_json::from_str(payload).ok()?;
    Some(TestId { suite: value["suite"].as_str()?.to_owned(), name: value["name"].as_str()?.to_owned() })
}

/// How much of the log was out when the guest wrote this begin or end mark.
#[must_use]
pub fn log_length(payload: &str) -> Option<usize> {
    let value: Value = serde_json::from_str(payload).ok()?;
    value["com1"].as_u64().and_then(|length| usize::try_from(length).ok())
}

fn check_start(stream: &Stream, asked: &Asked, complaints: &mut Vec<String>) {
    let starts = stream.frames.iter().filter(|frame| frame.kind == Kind::Start).count();
    let Some(first) = stream.frames.first().filter(|frame| frame.kind == Kind::Start) else {
        complaints.push("no start mark".to_owned());
        return;
    };
    if starts > 1 {
        complaints.push(format!("{starts} start marks"));
    }
    let start: Value = serde_json::from_str(&first.payload).unwrap_or_default();
    let expected = [("v", 1), ("seed", asked.seed), ("cpus", asked.cpus.into()), ("nodes", asked.nodes.into())];
    for (key, value) in expected {
        if start[key].as_u64() != Some(value) {
            complaints.push(format!("the start mark says {key} {}, asked for was {value}", start[key]));
        }
    }
}

fn check_names(tests: &[TestLine], asked: &Asked, complaints: &mut Vec<String>) {
    let ran: Vec<TestId> = tests.iter().map(id_of).collect();
    let missing: Vec<String> = asked.tests.iter().filter(|test| !ran.contains(test)).map(ToString::to_string).collect();
    if !missing.is_empty() {
        complaints.push(format!(
            "no result for {} of {} tests, first {}",
            missing.len(),
            asked.tests.len(),
            missing[0]
        ));
    }
    if let Some(extra) = ran.iter().find(|test| !asked.tests.contains(test)) {
        complaints.push(format!("a result for {extra}, which was not asked for"));
    }
    if asked.tests.is_empty() && ran.is_empty() {
        complaints.push("no test ran".to_owned());
    }
}

fn check_end(stream: &Stream, tests: &[TestLine], complaints: &mut Vec<String>) {
    let Some(at) = stream.frames.iter().position(|frame| frame.kind == Kind::End) else {
        complaints.push("no end mark".to_owned());
        return;
    };
    if at + 1 != stream.frames.len() {
        complaints.push(format!("{} frames after the end mark", stream.frames.len() - at - 1));
    }
    let end: Value = serde_json::from_str(&stream.frames[at].payload).unwrap_or_default();
    let count = |outcome| tests.iter().filter(|test| test.outcome == outcome).count();
    let expected = [
        ("planned", tests.len()),
        ("passed", count(Outcome::Passed)),
        ("failed", count(Outcome::Failed)),
        ("skipped", count(Outcome::Skipped)),
        ("frames", at),
    ];
    for (key, value) in expected {
        if end[key].as_u64() != Some(value as u64) {
            complaints.push(format!("the end mark says {key} {}, seen were {value}", end[key]));
        }
    }
}

fn check_status(ending: &Ending, tests: &[TestLine], complaints: &mut Vec<String>) -> Exit {
    let failed = tests.iter().filter(|test| test.outcome == Outcome::Failed).count();
    let (exit, complaint) = match ending {
        Ending::Status(33) if failed == 0 => return Exit::Passed,
        Ending::Status(35) if failed > 0 => return Exit::TestsFailed,
        Ending::Status(33) => (Exit::Passed, format!("debug-exit says pass, {failed} tests failed")),
        Ending::Status(35) => (Exit::TestsFailed, "debug-exit says fail, no test failed".to_owned()),
        Ending::Status(37) => (Exit::Panicked, "the kernel panicked".to_owned()),
        Ending::Status(39) => (Exit::Hung, "the kernel reported a stall".to_owned()),
        Ending::Status(0) => {
            (Exit::Panicked, "QEMU ended with status 0, without debug-exit: a triple fault or a reset".to_owned())
        }
        Ending::Status(1) => (Exit::Host, "QEMU refused to run (status 1)".to_owned()),
        Ending::Status(other) => (Exit::Incomplete, format!("QEMU ended with status {other}, which nobody gives")),
        Ending::Signal(signal) => (Exit::Host, format!("QEMU was killed by signal {signal}")),
        Ending::Hung(why) => (Exit::Hung, why.clone()),
        Ending::Stuck => {
            (Exit::Host, "QEMU stopped the machine: an internal error of it or of the accelerator".to_owned())
        }
        Ending::Interrupted => (Exit::Interrupted, "interrupted".to_owned()),
    };
    complaints.push(complaint);
    exit
}
