//! The same act in every context but a thread: in an interrupt from another CPU, a timer, a callback of RCU (a soft interrupt, or a
//! thread where callbacks are offloaded) and an NMI.
//!
//! A kind has one static [`Contexts`], whose [`send`](Contexts::send) a thread of the kind calls again and again.

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::SeqCst};

use arch::trap::TrapFrame;
use arch::{cpu, ipi};
use rcu::{CallbackHead, call_rcu_hurry, rcu_barrier};
use sched::Timer;
use sync::nmi::NmiHandler;
use sync::{IrqWork, MaySleep, Once, PreemptGuard, Rng};

use super::Stat;

/// Where an act takes place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Context {
    /// In an interrupt that a CPU was sent.
    Hardirq,
    /// In a timer's function.
    Timer,
    /// In a callback of RCU.
    Callback,
    /// In an NMI: no lock may be waited for.
    Nmi,
}

impl Context {
    const ALL: [Context; 4] = [Context::Hardirq, Context::Timer, Context::Callback, Context::Nmi];
    const NAMES: [&'static str; 4] = ["hardirq", "timer", "callback", "nmi"];
}

/// What is done in every context.
pub(super) trait Acts: Sized + 'static {
    /// Does it.
    fn act(context: Context, rng: &mut Rng);
    /// Where it is sent from.
    fn contexts() -> &'static Contexts<Self>;
}

/// Ways into every context, for a static.
pub(super) struct Contexts<A> {
    /// Acts may begin. Written by the thread of the run.
    on: AtomicBool,
    /// Acts that have begun and not ended.
    inside: AtomicUsize,
    /// Where random numbers come from, with the number of the act.
    seed: AtomicU64,
    acts: AtomicU64,
    by_context: [AtomicU64; 4],
    irq: IrqWork,
    timer: Timer,
    nmi: NmiHandler,
    registered: Once<()>,
    /// Its callback has been called, or it was never queued.
    is_free: AtomicBool,
    head: UnsafeCell<CallbackHead>,
    acting: PhantomData<fn(A)>,
}

// SAFETY: the head belongs to who took `is_free`, and then to RCU; all else is shared by its own rules.
unsafe impl<A> Sync for Contexts<A> {}

impl<A: Acts> Contexts<A> {
    /// Ways that nobody uses; the name is for NMIs.
    pub(super) const fn new(name: &'static str) -> Self {
        Self {
            on: AtomicBool::new(false),
            inside: AtomicUsize::new(0),
            seed: AtomicU64::new(0),
            acts: AtomicU64::new(0),
            by_context: [const { AtomicU64::new(0) }; 4],
            irq: IrqWork::new(|_| A::contexts().enter(Context::Hardirq)),
            timer: Timer::new(|_| A::contexts().enter(Context::Timer)),
            nmi: NmiHandler::new(name, on_nmi::<A>),
            registered: Once::new(),
            is_free: AtomicBool::new(true),
            head: UnsafeCell::new(CallbackHead::new()),
            acting: PhantomData,
        }
    }

    /// Acts may be sent from now on.
    pub(super) fn begin(&'static self, seed: u64) {
        self.seed.store(seed, Relaxed);
        self.acts.store(0, Relaxed);
        self.by_context.iter().for_each(|count| count.store(0, Relaxed));
        self.registered.call_once(|| sync::nmi::register(&self.nmi));
        self.on.store(true, SeqCst);
    }

    /// Sends one act to a CPU that is online, in any of the contexts.
    ///
    /// Context: thread.
    pub(super) fn send(&'static self, rng: &mut Rng, cx: &MaySleep) {
        // A CPU stays online while preemption is off here.
        let _pin = PreemptGuard::new(cx);
        let online = cpu::online();
        let to = online.iter().nth(rng.index(online.count())).expect("one is online");
        match Context::ALL[rng.index(Context::ALL.len())] {
            Context::Hardirq => _ = self.irq.queue_on(to),
            Context::Timer => _ = self.timer.arm_in(rng.below(200_000)),
            // Acquire: pairs with the release in `called`: RCU is done with the head.
            Context::Callback if self.is_free.swap(false, Acquire) => {
                // SAFETY: the head is ours, and RCU's from here on; it is part of a static.
                unsafe { call_rcu_hurry(self.head.get(), called::<A>) }
            }
            Context::Callback => {}
            Context::Nmi => ipi::send_nmi(to),
        }
    }

    /// Waits until no act is under way any more; none begins after it.
    ///
    /// Context: thread that may sleep, when nobody sends any more.
    pub(super) fn end(&'static self, cx: &mut MaySleep) {
        // SeqCst, with `enter`: an act that is not seen inside here sees that it may not begin.
        self.on.store(false, SeqCst);
        self.irq.sync(cx);
        self.timer.cancel_sync();
        rcu_barrier(cx);
        while self.inside.load(SeqCst) != 0 {
            arch::irq::relax();
        }
    }

    /// Adds how many acts there were in each context.
    pub(super) fn stat(&self, out: &mut Stat) {
        for (name, count) in Context::NAMES.into_iter().zip(&self.by_context) {
            out.work(name, count.load(Relaxed));
        }
    }

    fn enter(&'static self, context: Context) {
        self.inside.fetch_add(1, SeqCst);
        if self.on.load(SeqCst) {
            let mut rng = Rng::stream(self.seed.load(Relaxed), self.acts.fetch_add(1, Relaxed));
            A::act(context, &mut rng);
            self.by_context[context as usize].fetch_add(1, Relaxed);
        }
        self.inside.fetch_sub(1, SeqCst);
    }
}

fn on_nmi<A: Acts>(_: &mut TrapFrame) -> bool {
    let contexts = A::contexts();
    let ours = contexts.on.load(SeqCst);
    // What a parked CPU deferred, nobody would see to.
    if ours && cpu::is_online(cpu::current()) {
        contexts.enter(Context::Nmi);
    }
    ours
}

/// # Safety
/// Called by RCU with the head of `A`'s contexts.
unsafe fn called<A: Acts>(_: *mut CallbackHead) {
    let contexts = A::contexts();
    // Release: pairs with the acquire in `send`.
    contexts.is_free.store(true, core::sync::atomic::Ordering::Release);
    contexts.enter(Context::Callback);
}
