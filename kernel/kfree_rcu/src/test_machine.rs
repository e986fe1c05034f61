//! A hosted machine with this storey and all below it, for unit tests.
//!
//! Statics outlive a machine (HOST-1), so each test that boots one wraps its body in
//! [`in_own_process`](arch::hosted::in_own_process).

#[expect(clippy::single_component_path_imports, reason = "the file below takes it from the module above it")]
use sched;

use arch::hosted::Stopped;
use sync::MaySleep;

#[path = "../../sched/tests/machine/mod.rs"]
mod shared;

pub(crate) use shared::spawn;

/// Boots a machine, brings this storey up and runs `body` as its boot thread.
///
/// # Panics
/// If the machine stops before `body` returns: a panic in it, above all.
pub(crate) fn machine(cpus: usize, nodes: usize, body: impl FnOnce(&mut MaySleep) + Send) {
    if let Err(stopped) = try_machine(cpus, nodes, || (), body) {
        panic!("{stopped}");
    }
}

/// [`machine`], with `early` done before this storey is up.
///
/// # Errors
/// How the machine stopped, if it did before `body` returned.
pub(crate) fn try_machine(
    cpus: usize,
    nodes: usize,
    early: impl FnOnce() + Send,
    body: impl FnOnce(&mut MaySleep) + Send,
) -> Result<(), Stopped> {
    let before_others = |cx: &mut MaySleep| {
        slab::init();
        rcu::init(cx);
        early();
        crate::init(cx);
        rcu::boot_ended();
    };
    shared::try_machine_on(cpus, nodes, before_others, body)
}
