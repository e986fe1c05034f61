//! Whether the pipes flow: elements move on as long as readers get on.
//!
//! A grace period that never ends, a callback that is never called: then an updater waits for ever, or all elements are with
//! callbacks, and the pipe stands. Without this that is a run that hangs, or one that passes on the strength of what it did
//! before. Time counts only while it goes by for readers too, so a host that gives no time is no failure; not in a pause, when
//! nobody updates; and not while a stall is made on purpose, a drill.

use alloc::vec::Vec;

use sync::MaySleep;

use super::Torture;
use crate::torture::{config, control};
use crate::{Failure, ensure};

/// A millisecond in nanoseconds.
const MS: u64 = 1_000_000;
/// From one look to the next.
const LOOK_MS: u64 = 20;
/// The share of the patience that there is with threads that do not end.
const SHARE: u64 = 4;

/// A flavour's pipe as it was seen last.
#[derive(Clone, Default)]
struct Standing {
    steps: u64,
    sections: u64,
    /// Sections since it stands, and for how long it does.
    since: u64,
    ms: u64,
}

impl Torture {
    /// The thread that looks.
    pub(super) fn watch(&self, cx: &mut MaySleep) -> Result<(), Failure> {
        let patience_ms = u64::from(config::PATIENCE.get()) / SHARE;
        let mut seen: Vec<Standing> = self.flavours.iter().map(|_| Standing::default()).collect();
        while !control::rest(cx, LOOK_MS * MS) {
            let on_purpose = control::is_paused() || rcu::stall::limits().drill;
            for (flavour, seen) in self.flavours.iter().zip(&mut seen) {
                let (steps, sections) = (flavour.pipe.steps(), flavour.sections());
                if steps != seen.steps {
                    *seen = Standing { steps, sections, since: sections, ms: 0 };
                    continue;
                }
                if sections != seen.sections && !on_purpose {
                    seen.ms += LOOK_MS;
                }
                seen.sections = sections;
                ensure!(
                    seen.ms < patience_ms,
                    "{}: the pipe stands: no element has moved on for {} ms, in which readers ended {} sections",
                    flavour.ops.name,
                    seen.ms,
                    sections - seen.since
                );
            }
        }
        Ok(())
    }
}
