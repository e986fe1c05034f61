//! Ways to die on purpose, so that the way out is tried and not hoped for.
//!
//! The shell's `panic KIND [CPU]` strikes in a thread; `grange.crash=KIND` as soon as the command line is known, when there
//! is neither an allocator nor a thread nor another CPU. Names are those of Linux's LKDTM, in lower case, where it has the
//! kind. What each must end in is checked by `xtask/tests/crash_kinds.rs`, which has a row for each.
//!
//! | file | what ends the kernel |
//! |---|---|
//! | `panics.rs` | the kernel itself, in one context or another |
//! | `faults.rs` | the processor |
//! | `hangs.rs` | nobody: it has to be noticed from outside |
//!
//! Linux: `drivers/misc/lkdtm/`, `Documentation/fault-injection/provoke-crashes.rst`.

mod faults;
mod hangs;
mod panics;

use sync::MaySleep;

use faults::*;
use hangs::*;
use panics::*;

/// A way to die.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// What it is, in a line.
    pub(crate) what: &'static str,
    pub(crate) end: End,
    strike: Strike,
}

/// How the machine ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself, as a panic: status 3.
    Panic,
    /// When somebody loses patience: status 4.
    Hang,
}

/// What it needs of the kernel.
enum Strike {
    /// Nothing: it works from the first line of the boot on.
    Anywhere(fn()),
    /// A thread and all that there is.
    InThread(fn(&mut MaySleep)),
}

use End::{Hang, Panic};
use Strike::{Anywhere, InThread};

const fn kind(name: &'static str, end: End, strike: Strike, what: &'static str) -> Kind {
    Kind { name, what, end, strike }
}

/// All of them.
pub(crate) const KINDS: &[Kind] = &[
    kind("panic", Panic, Anywhere(panic), "panic!"),
    kind("bug", Panic, Anywhere(bug), "an assertion that fails"),
    kind("array_bounds", Panic, Anywhere(array_bounds), "an index behind the end of an array"),
    kind("panic_irq", Panic, InThread(panic_irq), "panic in a hard interrupt"),
    kind("panic_softirq", Panic, InThread(panic_softirq), "panic in a soft interrupt"),
    kind("panic_nmi", Panic, InThread(panic_nmi), "panic in an NMI"),
    kind("panic_lock", Panic, InThread(panic_lock), "panic with a spin lock held and interrupts off"),
    kind("panic_console", Panic, InThread(panic_console), "panic with the console's lock held"),
    kind("panic_log", Panic, Anywhere(panic_log), "panic in the arguments of a line of the log"),
    kind("panic_print", Panic, InThread(panic_print), "panic in an NMI that hits a CPU while it prints the log"),
    kind("panic_panic", Panic, Anywhere(panic_panic), "panic in the message of a panic"),
    kind("panic_panics", Panic, Anywhere(panic_panics), "panic in the message of a panic, again and again"),
    kind("panic_all", Panic, InThread(panic_all), "panic on all CPUs at once, in interrupts"),
    kind("panic_all_nmi", Panic, InThread(panic_all_nmi), "panic on all CPUs at once, in NMIs, which nobody can stop"),
    kind("oom", Panic, InThread(oom), "no memory where it must not fail"),
    kind("access_null", Panic, Anywhere(access_null), "a read through a null pointer"),
    kind("access_wild", Panic, Anywhere(access_wild), "a read from what is not an address"),
    kind("write_ro", Panic, Anywhere(write_ro), "a write to a constant"),
    kind("write_kern", Panic, Anywhere(write_kern), "a write to the kernel's text"),
    kind("exec_data", Panic, Anywhere(exec_data), "a call of data"),
    kind("exec_null", Panic, Anywhere(exec_null), "a call through a null pointer"),
    kind("exhaust_stack", Panic, Anywhere(exhaust_stack), "a recursion without an end"),
    kind("invalid_opcode", Panic, Anywhere(invalid_opcode), "an instruction that the processor does not know"),
    kind("double_fault", Panic, Anywhere(double_fault), "an exception whose handler is gone"),
    kind("triple_fault", Panic, Anywhere(triple_fault), "an exception when all handlers are gone: the machine resets"),
    kind("loop", Hang, Anywhere(endless_loop), "an endless loop"),
    kind("softlockup", Hang, InThread(softlockup), "an endless loop with preemption off"),
    kind("hardlockup", Hang, Anywhere(hardlockup), "an endless loop with interrupts off"),
    kind("spinlockup", Hang, InThread(spinlockup), "a wait for a spin lock that is never released"),
    kind("deadlock", DEADLOCK_ENDS, InThread(deadlock), "a spin lock taken twice; where locks are checked, a panic"),
    kind("smp_call_lockup", Hang, InThread(smp_call_lockup), "a call to a CPU that has its interrupts off"),
    kind(
        "rcu_stall",
        Panic,
        InThread(rcu_stall),
        "a grace period without an end; a panic with grange.panic_on_rcu_stall",
    ),
    kind("hung_task", Hang, InThread(hung_task), "a thread that is never woken"),
    kind("halt", Hang, InThread(halt), "all CPUs halted with interrupts off"),
];

/// Builds with assertions check locks.
const DEADLOCK_ENDS: End = if cfg!(debug_assertions) { Panic } else { Hang };

const fn is_early(kind: &Kind) -> bool {
    matches!(kind.strike, Anywhere(_))
}

const fn count_early() -> usize {
    let (mut at, mut count) = (0, 0);
    while at < KINDS.len() {
        count += is_early(&KINDS[at]) as usize;
        at += 1;
    }
    count
}

/// What `grange.crash=` may be: `none`, and the kinds that need nothing of the kernel.
pub(crate) const EARLY: [&str; count_early() + 1] = {
    let mut names = ["none"; count_early() + 1];
    let (mut at, mut count) = (0, 0);
    while at < KINDS.len() {
        if is_early(&KINDS[at]) {
            count += 1;
            names[count] = KINDS[at].name;
        }
        at += 1;
    }
    names
};

/// The kind of this name.
pub(crate) fn find(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}

/// Strikes before the machine is set up, if `name` is a kind.
///
/// Context: boot CPU, when the command line is known.
pub(crate) fn strike_early(name: &str) {
    if let Some(Kind { strike: Anywhere(strike), .. }) = find(name) {
        say_so(name);
        strike();
    }
}

/// So that nobody who reads the log takes it for a real one.
fn say_so(name: &str) {
    log::warn!("dying on purpose: {name}");
}

impl Kind {
    /// Strikes in this thread. If it returns the kernel has survived.
    pub(crate) fn strike(&self, cx: &mut MaySleep) {
        say_so(self.name);
        match self.strike {
            Anywhere(strike) => strike(),
            InThread(strike) => strike(cx),
        }
    }
}
