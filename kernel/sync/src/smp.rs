//! Calling a function on other CPUs: one, some, all; with and without waiting; nothing allocated.
//!
//! Each CPU has an *outbox* (one function, its argument, and who has not run it yet) and an
//! *inbox* (whose outboxes to look into). A call fills the outbox, sets its bit in the inboxes of
//! the others and sends one IPI to all of them.
//!
//! # Invariants
//!
//! - `CF-1` An outbox is filled by its own CPU, in a thread with preemption off, after the last
//!   call has been answered by all. Enforced by the checks of [`call_mask`].
//! - `CF-2` A CPU takes its bit out of `pending` after it has run the function, so an outbox with
//!   an empty `pending` is free, and a caller that sees it empty sees what the functions wrote.
//! - `CF-3` Who waits has interrupts on and so answers the others' calls meanwhile: two CPUs that
//!   call each other do not deadlock. Enforced by the check in [`call_mask`].
//! - `CF-4` A CPU that is offline is not called: it is left out, and who calls it alone finds that nobody was called
//!   ([`run_on`] says so). A call that has begun is answered: the caller is pinned, and a CPU leaves `cpu::online()`
//!   only while no thread runs on any; what has not been waited for is answered before the CPU parks
//!   ([`crate::irq::close`]).
//!
//! From interrupts, or with interrupts off, use [`IrqWork::queue_on`](crate::IrqWork::queue_on).
//!
//! Linux 6.12: kernel/smp.c, which keeps one descriptor for each pair of CPUs instead.

use core::{
    ptr,
    sync::atomic::{AtomicPtr, AtomicUsize, Ordering},
};

use arch::{
    cpu::{self, AtomicCpuMask, CpuId, CpuMask},
    ipi, vector,
};

use crate::{
    bug,
    context::{self, IrqGuard, PreemptGuard},
    cx::ATOMIC,
    explore,
};

/// A function for another CPU. Context there: hardirq, interrupts off.
pub type CallFn = fn(usize);

/// What one CPU asks of others; see `CF-1` and `CF-2`.
struct Outbox {
    /// A [`CallFn`]. Written by the owner while `pending` is empty, read by those in `pending`.
    func: AtomicPtr<()>,
    /// Its argument; as above.
    arg: AtomicUsize,
    /// Who has not answered yet. Set by the owner; each CPU clears its own bit.
    pending: AtomicCpuMask,
}

arch::per_cpu! {
    static OUTBOX: Outbox = Outbox {
        func: AtomicPtr::new(ptr::null_mut()),
        arg: AtomicUsize::new(0),
        pending: AtomicCpuMask::new(),
    };
    /// The CPUs whose outbox has something for this one. Set by them, cleared by this CPU.
    static INBOX: AtomicCpuMask = AtomicCpuMask::new();
}

/// Calls `func(arg)` on `cpu`, which may be this one; with `wait`, returns after it has run. Nothing is called if `cpu` is
/// offline (`CF-4`).
///
/// Context and panics: as [`call_mask`].
#[track_caller]
pub fn call_on(cpu: CpuId, func: CallFn, arg: usize, wait: bool) {
    let mut mask = CpuMask::EMPTY;
    mask.insert(cpu);
    call_mask(&mask, func, arg, wait);
}

/// Calls `func(arg)` on all CPUs online, this one included.
///
/// Context and panics: as [`call_mask`].
#[track_caller]
pub fn call_all(func: CallFn, arg: usize, wait: bool) {
    call_mask(&cpu::online(), func, arg, wait);
}

/// Calls `func(arg)` on those CPUs of `mask` that are online. Where this CPU is among them it
/// runs `func` itself, with interrupts off.
///
/// Without `wait` the call returns at once, except that it waits for the answers to this CPU's
/// last call before it begins.
///
/// Context: task, interrupts on, not under a [`SoftirqGuard`](crate::SoftirqGuard). May be called
/// under spin locks that no called function takes.
///
/// # Panics
/// In the wrong context (`CF-1`, `CF-3`), unless no other CPU is called.
#[track_caller]
pub fn call_mask(mask: &CpuMask, func: CallFn, arg: usize, wait: bool) {
    call_with_vector(mask, func, arg, wait, vector::CALL_FUNCTION);
}

/// Calls `f` on `cpu` and returns what it returned.
///
/// Context and panics: as [`call_mask`]; `f` runs in hardirq context.
///
/// `None` if `cpu` is not online.
#[track_caller]
pub fn run_on<R: Send>(cpu: CpuId, f: impl FnOnce() -> R + Send) -> Option<R> {
    struct Job<F, R> {
        f: Option<F>,
        result: Option<R>,
    }
    fn run<F: FnOnce() -> R, R>(job: usize) {
        // SAFETY: the caller waits for the answer, so the job lives, and it went to one CPU only.
        let job = unsafe { &mut *ptr::with_exposed_provenance_mut::<Job<F, R>>(job) };
        job.result = job.f.take().map(|f| f());
    }
    fn runner<F: FnOnce() -> R, R>(_: &Job<F, R>) -> CallFn {
        run::<F, R>
    }
    let mut job = Job { f: Some(f), result: None };
    let func = runner(&job);
    call_on(cpu, func, (&raw mut job).expose_provenance(), true);
    job.result
}

/// Calls `f` on every CPU of `mask` that is online, at once, and waits for all.
///
/// Context and panics: as [`call_mask`]; `f` runs in hardirq context.
#[track_caller]
pub fn run_on_mask<F: Fn(CpuId) + Sync>(mask: &CpuMask, f: F) {
    fn run<F: Fn(CpuId)>(f: usize) {
        // SAFETY: the caller waits for all answers, so `f` lives; it is `Sync`.
        let f = unsafe { &*ptr::with_exposed_provenance::<F>(f) };
        f(cpu::current());
    }
    call_mask(mask, run::<F>, (&raw const f).expose_provenance(), true);
}

#[track_caller]
pub(crate) fn call_with_vector(mask: &CpuMask, func: CallFn, arg: usize, wait: bool, vector: u8) {
    let _pin = PreemptGuard::new(ATOMIC);
    let this = cpu::current();
    let called = *mask & cpu::online();
    let mut others = called;
    others.remove(this);
    if others != CpuMask::EMPTY {
        assert!(
            arch::irq::enabled() && !context::in_interrupt(),
            "CF-3: calling other CPUs with interrupts off or in an interrupt: they may be calling this one"
        );
        // SAFETY: pinned; this CPU's outbox, shared with the called through atomics only.
        let outbox = unsafe { &*OUTBOX.this_ptr() };
        wait_for_answers(outbox);
        outbox.func.store(func as *mut (), Ordering::Relaxed);
        outbox.arg.store(arg, Ordering::Relaxed);
        for cpu in others.iter() {
            outbox.pending.set(cpu);
        }
        explore::point();
        for cpu in others.iter() {
            // SAFETY: an inbox is made to be set from other CPUs, and never freed. The setting is a
            // release that pairs with the acquire of the load in `answer`: the outbox is full before.
            unsafe { (*INBOX.ptr_on(cpu)).set(this) };
        }
        if wait
            || !bug!("sync.call_unsent", "a call that nobody waits for sends no interrupt", "calls.*without_waiting*")
        {
            ipi::send_mask(&others, vector);
        }
    }
    if called.contains(this) {
        let _irq = IrqGuard::new(ATOMIC);
        func(arg);
    }
    if wait && others != CpuMask::EMPTY {
        // SAFETY: as above.
        wait_for_answers(unsafe { &*OUTBOX.this_ptr() });
    }
}

/// Spins until all have answered (`CF-2`); the load of the mask is an acquire that pairs with the
/// release of the clearing in [`answer`].
fn wait_for_answers(outbox: &Outbox) {
    let mut spins = 0_u32;
    let mut since_ns = 0;
    while outbox.pending.load() != CpuMask::EMPTY {
        arch::irq::relax();
        spins = spins.wrapping_add(1);
        if cfg!(debug_assertions) && spins.is_multiple_of(4096) {
            let now_ns = arch::clock::now_ns();
            if since_ns == 0 {
                since_ns = now_ns;
            }
            assert!(
                now_ns.saturating_sub(since_ns) < crate::lock_order::STUCK_AFTER_NS || crate::lock_order::checks_off(),
                "stuck: CPU {} waits for CPU {} to answer a call",
                cpu::current(),
                outbox.pending.load().first().map_or(0, CpuId::index),
            );
        }
    }
}

/// The handler of the IPI: runs what others ask of this CPU.
///
/// Context: hardirq, interrupts off.
pub(crate) fn answer() {
    let this = cpu::current();
    // SAFETY: interrupts are off; this CPU's inbox.
    let inbox = unsafe { &*INBOX.this_ptr() };
    loop {
        let callers = inbox.load();
        if callers == CpuMask::EMPTY {
            return;
        }
        for caller in callers.iter() {
            // Before the function runs: the caller fills its outbox again only after the answer.
            inbox.clear(caller);
            explore::point();
            // SAFETY: outboxes are read by those they are addressed to (`CF-1`), and never freed.
            let outbox = unsafe { &*OUTBOX.ptr_on(caller) };
            let func = outbox.func.load(Ordering::Relaxed);
            // SAFETY: the caller stored a `CallFn` before it set our bit.
            let func = unsafe { core::mem::transmute::<*mut (), CallFn>(func) };
            let arg = outbox.arg.load(Ordering::Relaxed);
            if bug!("sync.call_answered_early", "a call counts as answered before its function runs", "calls") {
                outbox.pending.clear(this);
                (0..1_000).for_each(|_| arch::irq::relax());
            }
            func(arg);
            outbox.pending.clear(this);
        }
    }
}
