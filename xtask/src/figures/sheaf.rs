//! The life of sheaves: where each one of the test's cache was, from one event to the next.
//!
//! Only what passes the fast paths is traced, so that a sheaf was emptied is known from the next one that became main.

use crate::trace::Trace;

use super::lanes::{Bar, Lanes};
use super::nothing;

/// The cache of the test.
const CACHE: &str = "figure";

/// Where a sheaf is, by the colour of its bar.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// This CPU's main.
    Main = 0,
    /// Empty, and then rcu_free.
    Collects = 1,
    /// Waits for its grace period.
    Waits = 2,
    /// In the barn, full of free objects.
    Barn = 3,
}

const STAGES: [&str; 4] =
    ["main: allocated from", "empty, then rcu_free: collects", "waits for its grace period", "full, in the barn"];

/// A sheaf, with where it is, and since when.
struct Sheaf {
    address: u64,
    now: Option<(f64, Stage)>,
}

/// The figure.
///
/// # Errors
/// `Incomplete` if the trace has no sheaf of the test's cache.
pub fn lanes(trace: &Trace) -> anyhow::Result<Lanes> {
    let start = trace.events.iter().find(|event| of_cache(trace, event)).ok_or_else(|| nothing("sheaf"))?.at_ns;
    let mut figure = Lanes { axis: "ms", colors: STAGES.to_vec(), ..Lanes::default() };
    let mut sheaves: Vec<Sheaf> = Vec::new();
    let (mut grace_period, mut collects_since, mut slabs, mut allocated) = (None, 0.0, 0, 0);
    for event in &trace.events {
        let ms = event.at_ns.saturating_sub(start) as f64 / 1e6;
        match trace.name(event) {
            "rcu.gp_start" => grace_period = Some(ms),
            "rcu.gp_end" if event.at_ns > start => {
                let span = (grace_period.take().unwrap_or(0.0), ms);
                figure.bars.push(Bar { lane: 0, span, color: 2, text: String::new() });
            }
            _ => {}
        }
        if !of_cache(trace, event) {
            continue;
        }
        let name = trace.name(event);
        slabs += u32::from(name == "slab.new_slab");
        let Some(address) = trace.value(event, "sheaf") else { continue };
        let stage = match name {
            "slab.refill" | "slab.barn_get" => Some(Stage::Main),
            "slab.rcu_submit" => Some(Stage::Waits),
            "slab.rcu_done" => Some(Stage::Barn),
            _ => None,
        };
        if stage == Some(Stage::Main) {
            allocated += trace.value(event, "objects").unwrap_or(0);
            // The main before it is empty: that is why there is another one.
            let old = sheaves.iter_mut().enumerate().find(|(_, sheaf)| matches!(sheaf.now, Some((_, Stage::Main))));
            if let Some((lane, old)) = old {
                go_on(&mut figure, lane, old, ms, Some(Stage::Collects));
            }
        }
        let lane = sheaves.iter().position(|sheaf| sheaf.address == address).unwrap_or_else(|| {
            let now = (stage == Some(Stage::Waits)).then_some((collects_since, Stage::Collects));
            sheaves.push(Sheaf { address, now });
            sheaves.len() - 1
        });
        if stage == Some(Stage::Waits) {
            collects_since = ms;
        }
        go_on(&mut figure, lane, &mut sheaves[lane], ms, stage);
    }
    figure.lanes = std::iter::once("grace periods".to_owned())
        .chain((1..=sheaves.len()).map(|number| format!("sheaf {number}")))
        .collect();
    figure.title = format!("{allocated} allocations on one CPU, all given to kfree_rcu: objects of {slabs} slabs");
    Ok(figure)
}

fn of_cache(trace: &Trace, event: &crate::trace::memory::Event) -> bool {
    trace.named_fields(event).any(|(name, value)| name == "cache" && value == CACHE)
}

/// Ends the stage that a sheaf is in, and begins the next.
fn go_on(figure: &mut Lanes, lane: usize, sheaf: &mut Sheaf, ms: f64, stage: Option<Stage>) {
    if let Some((since, stage)) = sheaf.now.take() {
        figure.bars.push(Bar { lane: lane + 1, span: (since, ms), color: stage as usize, text: String::new() });
    }
    sheaf.now = stage.map(|stage| (ms, stage));
}
