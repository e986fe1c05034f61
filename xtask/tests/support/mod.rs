//! A guest's output, written as the kernel writes it, so that it can then be broken.

pub(crate) mod machine;

use xtask::frames::{Kind, encode};
use xtask::verdict::TestId;

/// The tests of the pretended kernel, sorted.
pub(crate) const TESTS: [(&str, &str); 4] = [
    ("ipi", "a_call_runs_once"),
    ("ipi", "a_storm_loses_none"),
    ("nmi", "arrives_with_interrupts_off"),
    ("percpu", "areas_are_isolated"),
];

/// The kinds of torture of the pretended kernel, with their role: 1 for a disturber.
pub(crate) const KINDS: [(&str, u32); 3] = [("stutter", 1), ("sched", 0), ("timers", 0)];

/// [`TESTS`] as the judge wants them.
pub(crate) fn ids() -> Vec<TestId> {
    let id = |&(suite, name): &(&str, &str)| TestId { suite: suite.into(), name: name.into() };
    TESTS.iter().map(id).collect()
}

/// Frames before they are numbered.
#[derive(Clone, Debug)]
pub(crate) struct Transcript {
    /// Kind and payload of each.
    pub(crate) frames: Vec<(Kind, String)>,
}

impl Transcript {
    /// A run over `tests`; those in `failing` fail. It stops in the middle of `dies_in`, without any ending.
    pub(crate) fn run(
        seed: u64,
        (cpus, nodes): (u32, u32),
        tests: &[(&str, &str)],
        failing: &[&str],
        dies_in: Option<&str>,
    ) -> Transcript {
        let mut frames =
            vec![(Kind::Start, format!(r#"{{"v":1,"seed":{seed},"cpus":{cpus},"nodes":{nodes},"build":"fake"}}"#))];
        let ktap = |frames: &mut Vec<(Kind, String)>, line: String| frames.push((Kind::Ktap, line));
        let suites: Vec<_> = tests.chunk_by(|a, b| a.0 == b.0).collect();
        ktap(&mut frames, "KTAP version 1".into());
        ktap(&mut frames, format!("1..{}", suites.len()));
        let mut failed = 0;
        for (number, suite) in suites.iter().enumerate() {
            let name = suite[0].0;
            let before = failed;
            ktap(&mut frames, "  KTAP version 1".into());
            ktap(&mut frames, format!("  # Subtest: {name}"));
            ktap(&mut frames, format!("  1..{}", suite.len()));
            for (at, (suite, test)) in suite.iter().enumerate() {
                frames.push((Kind::Begin, format!(r#"{{"suite":"{suite}","name":"{test}","budget_ms":10000}}"#)));
                frames.push((Kind::Heartbeat, r#"{"ticks":7,"ns":28000000}"#.into()));
                if dies_in == Some(test) {
                    return Transcript { frames };
                }
                if failing.contains(test) {
                    failed += 1;
                    ktap(&mut frames, "  # fake.rs:1: 2 is 2, 3 is 3".into());
                    ktap(&mut frames, format!("  not ok {} {test}", at + 1));
                } else {
                    ktap(&mut frames, format!("  ok {} {test}", at + 1));
                }
            }
            let word = if failed > before { "not ok" } else { "ok" };
            ktap(&mut frames, format!("{word} {} {name}", number + 1));
        }
        let (planned, passed, before) = (tests.len(), tests.len() - failed, frames.len());
        frames.push((
            Kind::End,
            format!(r#"{{"planned":{planned},"passed":{passed},"failed":{failed},"skipped":0,"frames":{before}}}"#),
        ));
        Transcript { frames }
    }

    /// Numbered, with CRCs, as bytes of COM2.
    pub(crate) fn encode(&self) -> String {
        self.frames.iter().enumerate().map(|(seq, (kind, payload))| encode(seq as u32, *kind, payload)).collect()
    }

    /// Position of the first frame whose payload holds `text`.
    pub(crate) fn at(&self, text: &str) -> usize {
        self.frames.iter().position(|(_, payload)| payload.contains(text)).unwrap_or_else(|| panic!("no {text:?}"))
    }

    /// Changes text in the payload of the first frame that holds it.
    pub(crate) fn replace(&mut self, from: &str, to: &str) {
        let at = self.at(from);
        self.frames[at].1 = self.frames[at].1.replace(from, to);
    }
}
