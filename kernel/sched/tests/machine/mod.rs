//! A hosted machine with a scheduler, for the tests of this storey, and of `rcu` and `slab`, which include this file by its
//! path.
#![allow(dead_code, reason = "nobody who includes this uses all of it")]

use arch::hosted::{self, HostAlloc, Stopped};
use arch::{CpuId, PhysAddr, smp};
use sync::MaySleep;

use super::sched;

#[global_allocator]
static ALLOCATOR: HostAlloc = HostAlloc;

const MEM: usize = 64 << 20;

/// Boots a machine, brings its CPUs into the scheduler and runs `body` as its boot thread; `before_others` runs while the
/// boot CPU is alone.
pub(crate) fn machine_with(
    cpus: usize,
    before_others: impl FnOnce(&mut MaySleep) + Send,
    body: impl FnOnce(&mut MaySleep) + Send,
) {
    if let Err(stopped) = try_machine_with(cpus, before_others, body) {
        panic!("{stopped:?}");
    }
}

/// [`machine_with`], for bodies that may end in a panic.
///
/// # Errors
/// How the machine stopped.
pub(crate) fn try_machine_with(
    cpus: usize,
    before_others: impl FnOnce(&mut MaySleep) + Send,
    body: impl FnOnce(&mut MaySleep) + Send,
) -> Result<(), Stopped> {
    try_machine_on(cpus, 1, before_others, body)
}

/// [`try_machine_with`], with the CPUs on so many nodes.
///
/// # Errors
/// How the machine stopped.
pub(crate) fn try_machine_on(
    cpus: usize,
    nodes: usize,
    before_others: impl FnOnce(&mut MaySleep) + Send,
    body: impl FnOnce(&mut MaySleep) + Send,
) -> Result<(), Stopped> {
    hosted::boot_cold(cpus, nodes, MEM, || {
        sync::init();
        let regions: std::vec::Vec<_> = arch::topology::memory_ranges()
            .iter()
            .map(|m| mm::Region { start: PhysAddr::new(m.start), end: PhysAddr::new(m.start + m.len), node: m.node })
            .collect();
        // SAFETY: the machine's memory is nobody's yet.
        unsafe { mm::init(&regions) };
        mm::init_percpu();
        // SAFETY: no token was made in this machine before.
        let mut cx = unsafe { sched::init() }.expect("memory for the first threads");
        before_others(&mut cx);
        let mut stack = |_: CpuId| {
            let stack = std::vec![0_u128; arch::task::STACK_SIZE / 16].leak();
            stack.as_mut_ptr_range().end.cast::<u8>()
        };
        let missing = smp::start_all(|cpu| sched::start_secondary(cpu), &mut stack);
        assert!(missing.is_empty(), "CPUs {missing} did not come up");
        body(&mut cx);
    })
}

/// A thread of normal priority, perhaps bound to a CPU.
pub(crate) fn spawn<T: Send + 'static>(
    cx: &mut MaySleep,
    on: Option<usize>,
    f: impl FnOnce(&mut MaySleep) -> T + Send + 'static,
) -> sched::JoinHandle<T> {
    sched::spawn(cx, "test", sched::Prio::NORMAL, on.map(CpuId::new), f).expect("memory for a thread")
}
