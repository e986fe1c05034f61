//! A hosted machine with this storey and all below it, for unit tests that need CPUs.
//!
//! Statics outlive a machine (HOST-1), so each test that boots one wraps its body in
//! [`in_own_process`](arch::hosted::in_own_process).

#[expect(clippy::single_component_path_imports, reason = "the file below takes it from the module above it")]
use sched;
use sync::MaySleep;

#[path = "../../sched/tests/machine/mod.rs"]
mod shared;

pub(crate) use shared::spawn;

/// Boots a machine, brings this storey up and runs `body` as its boot thread.
///
/// # Panics
/// If the machine stops before `body` returns: a panic in it, above all.
pub(crate) fn machine(cpus: usize, nodes: usize, body: impl FnOnce(&mut MaySleep) + Send) {
    let before_others = |cx: &mut MaySleep| {
        crate::init();
        rcu::init(cx);
    };
    if let Err(stopped) = shared::try_machine_on(cpus, nodes, before_others, body) {
        panic!("{stopped}");
    }
}

mod tests {
    use arch::hosted::in_own_process;
    use mm::AllocFlags;

    use super::*;

    #[test]
    fn what_one_cpu_allocates_another_frees() {
        in_own_process(|| {
            machine(2, 2, |cx| {
                let object = crate::kmalloc(64, AllocFlags::NOWAIT).expect("memory");
                let address = object.as_ptr().expose_provenance();
                let other = spawn(cx, Some(1), move |_| {
                    let object = core::ptr::with_exposed_provenance_mut(address);
                    // SAFETY: allocated by the other thread, which gave it away.
                    unsafe { crate::kfree(core::ptr::NonNull::new(object).expect("not null")) };
                });
                other.join(cx);
            });
        });
    }
}
