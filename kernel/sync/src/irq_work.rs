//! `irq_work`: "call this function in a hard interrupt", from any context, NMI included.
//!
//! | | runs | costs |
//! |---|---|---|
//! | [`queue`](IrqWork::queue) | at once, on this CPU, as soon as interrupts are on | a self-IPI for the first of a batch |
//! | [`queue_lazy`](IrqWork::queue_lazy) | at the next interrupt exit, so at the next tick at the latest | nothing; a self-IPI only where the tick is stopped |
//! | [`queue_on`](IrqWork::queue_on) | at once, on another CPU | an IPI for the first of a batch |
//!
//! It answers to Linux's irq_work (6.12, kernel/irq_work.c).
//!
//! # Invariants
//!
//! - `IW-1` A work item is on at most one list. Enforced by the `PENDING` bit: only who sets it
//!   may push, and it is cleared after the item has left the list.
//! - `IW-2` `PENDING` is cleared before the function runs, so an event after that queues it again:
//!   no event is lost; several before it are one call.
//! - `IW-3` What was written before a `queue` that returned true, or that returned false because
//!   the item was pending, is seen by the call that follows.
//! - `IW-4` Nothing waits on a CPU that is offline: what was on its lists runs on it before it parks, and what is
//!   queued there from then on goes to a CPU that is online. Enforced by [`host`]; and [`queue_on`](IrqWork::queue_on) is
//!   not for NMI handlers: the CPU could leave between their look and their push, as a stop does not wait for an NMI.
//!
//! Context: any for queueing on this CPU; the function runs in hardirq context with interrupts off.

use core::sync::atomic::{AtomicU32, Ordering};

use arch::{
    cpu::{self, CpuId},
    ipi, vector,
};

use crate::{
    bug,
    context::{self, PreemptGuard},
    cx::{ATOMIC, MaySleep},
    explore,
    hooks::HOOKS,
    llist::{LlistHead, LlistNode},
};

/// On a list, not called yet.
const PENDING: u32 = 1 << 0;
/// Its function is running.
const BUSY: u32 = 1 << 1;

/// A function to be called in a hard interrupt soon.
#[repr(C)]
#[derive(Debug)]
pub struct IrqWork {
    /// First, so that a node is its item.
    node: LlistNode,
    /// `PENDING` and `BUSY`. Set and cleared by read-modify-writes from any CPU.
    flags: AtomicU32,
    func: fn(&IrqWork),
}

arch::per_cpu! {
    /// Waits for the IPI on its way to this CPU; pushed to by any CPU.
    static RAISED: LlistHead = LlistHead::new();
    /// Waits for the next interrupt exit; pushed to by this CPU only.
    static LAZY: LlistHead = LlistHead::new();
}

impl IrqWork {
    /// An item that calls `func` with itself.
    #[must_use]
    pub const fn new(func: fn(&IrqWork)) -> Self {
        Self { node: LlistNode::new(), flags: AtomicU32::new(0), func }
    }

    /// Has it called on this CPU as soon as interrupts are on; false if it was pending already.
    ///
    /// Context: any. Lock-free.
    pub fn queue(&'static self) -> bool {
        let pin = PreemptGuard::new(ATOMIC);
        self.queue_here(&pin)
    }

    fn queue_here(&'static self, _pinned: &PreemptGuard<'_>) -> bool {
        if !self.claim() {
            return false;
        }
        self.raise_on(host());
        true
    }

    /// Puts the item, which the caller has claimed, on the list of `cpu`, and tells it.
    fn raise_on(&'static self, cpu: CpuId) {
        // SAFETY: the list is lock-less and made for pushes from other CPUs; it is never freed.
        let list = unsafe { &*RAISED.ptr_on(cpu) };
        if !self.push_to(list) {
            return;
        }
        if cpu == cpu::current() {
            ipi::send_self(vector::IRQ_WORK);
        } else if !bug!("sync.irq_work_unsent", "work for another CPU sends it no interrupt", "sync.irq_work_runs_on*")
        {
            ipi::send(cpu, vector::IRQ_WORK);
        }
    }

    /// Has it called on this CPU at the next interrupt exit; false if it was pending already.
    ///
    /// Context: any. Lock-free.
    pub fn queue_lazy(&'static self) -> bool {
        let _pin = PreemptGuard::new(ATOMIC);
        if !self.claim() {
            return false;
        }
        let host = host();
        if host != cpu::current() {
            self.raise_on(host);
            return true;
        }
        // SAFETY: pinned; the list is this CPU's and lives as long as the machine runs.
        let list = unsafe { &*LAZY.this_ptr() };
        let was_empty = self.push_to(list);
        // In a hard interrupt (an NMI counts as one, but may have hit anything) the exit is near.
        let exit_is_near = context::in_hardirq() && !context::in_nmi();
        if was_empty && !exit_is_near && !HOOKS.tick_runs.get().is_some_and(|runs| runs()) {
            ipi::send_self(vector::IRQ_WORK);
        }
        true
    }

    /// Has it called on `cpu`, or on this CPU if `cpu` is offline; false if it was pending already, on whichever CPU.
    ///
    /// Context: any but NMI (`IW-4`). Lock-free.
    pub fn queue_on(&'static self, cpu: CpuId) -> bool {
        debug_assert!(!context::in_nmi(), "IW-4: an NMI handler queues to another CPU");
        let pin = PreemptGuard::new(ATOMIC);
        if cpu == cpu::current() || !cpu::is_online(cpu) {
            return self.queue_here(&pin);
        }
        if !self.claim() {
            return false;
        }
        self.raise_on(cpu);
        true
    }

    /// Whether it is queued and has not been called yet.
    ///
    /// Context: any.
    pub fn is_pending(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & PENDING != 0
    }

    /// Waits until it is neither queued nor running. It spins: the function is short, and runs in
    /// an interrupt. Somebody may queue it again at once.
    ///
    /// Context: task, interrupts on.
    pub fn sync(&self, cx: &mut MaySleep) {
        cx.assert_may_sleep();
        // Acquire: pairs with the release in `call`: what the function wrote is seen.
        while self.flags.load(Ordering::Acquire) & (PENDING | BUSY) != 0 {
            arch::irq::relax();
        }
    }

    /// True if the caller may push it (`IW-1`).
    fn claim(&self) -> bool {
        // Release: pairs with the acquire in `call`, also where the item was pending (`IW-3`).
        // Acquire: a push comes after the end of the item's last time on a list.
        self.flags.fetch_or(PENDING, Ordering::AcqRel) & PENDING == 0
    }

    fn push_to(&'static self, list: &LlistHead) -> bool {
        // SAFETY: the item is static, and ours to push since `claim` (`IW-1`, `LL-1`).
        unsafe { list.add((&raw const self.node).cast_mut()) }
    }

    fn call(&self) {
        // BUSY before PENDING goes, in one step, so that `sync` never sees neither.
        let mut flags = self.flags.load(Ordering::Relaxed);
        loop {
            // Acquire: pairs with the release in `claim` (`IW-3`). Release: the item has left the
            // list before the next `claim`er pushes it (`IW-1`).
            match self.flags.compare_exchange(flags, flags & !PENDING | BUSY, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => flags = now,
            }
        }
        explore::point();
        (self.func)(self);
        // Release: pairs with the acquire in `sync`.
        self.flags.fetch_and(!BUSY, Ordering::Release);
    }
}

/// Where what is queued on this CPU runs: here, or on the first CPU that is online if this one is not (`IW-4`).
///
/// A CPU that is on its way out, or parked and hit by an NMI, looks at its lists no more. The caller is pinned, so no CPU
/// goes offline between the look and the push; nor does one whose NMI handler it is, and the boot CPU stays.
fn host() -> CpuId {
    let here = cpu::current();
    if cpu::is_online(here) { here } else { cpu::online().first().unwrap_or(here) }
}

/// The handler of the IPI: everything that waits on this CPU.
///
/// Context: hardirq, interrupts off.
pub(crate) fn run_raised() {
    // SAFETY: interrupts are off; the list is this CPU's.
    run(unsafe { &*RAISED.this_ptr() });
}

/// What every outermost interrupt exit does.
///
/// Context: interrupts off.
pub(crate) fn run_lazy() {
    // SAFETY: interrupts are off; the list is this CPU's.
    let list = unsafe { &*LAZY.this_ptr() };
    if !list.is_empty() {
        context::count_add(context::HARDIRQ_OFFSET);
        run(list);
        context::count_sub(context::HARDIRQ_OFFSET);
    }
}

fn run(list: &LlistHead) {
    for node in list.take_all().reversed() {
        // SAFETY: only items are pushed to these lists, all static, and the node is their first field.
        let work = unsafe { &*node.cast::<IrqWork>() };
        work.call();
    }
}
