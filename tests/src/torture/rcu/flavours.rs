//! The flavours that there are: RCU, the four kinds of SRCU, the three of Tasks RCU, and one that is broken.
//!
//! [`BUSTED`] waits for nobody. It is there to see that the torture catches it.

use rcu::seq::Seq;
use rcu::srcu::{
    Fast, FastUpDown, Flavour, NmiSafe, Normal, SrcuDomain, call_srcu, srcu_barrier, srcu_down_read, srcu_get_state,
    srcu_read_lock, srcu_start_poll, srcu_start_poll_expedited, synchronize_srcu, synchronize_srcu_expedited,
};
use rcu::{Cookie, FullCookie};
use sync::callback::{CallbackFn, CallbackHead};
use sync::{ATOMIC, MaySleep, PreemptGuard};

use super::ops::{AnyCookie, Call, GetCookie, Ops, Readers, Section, Update, Way};
use super::pipe;
use super::updown::Up;

/// A millisecond in nanoseconds.
const MS: u64 = 1_000_000;

const fn update(name: &'static str, way: Way) -> Update {
    Update { name, way }
}

/// Declares a [`Call`].
macro_rules! call {
    ($name:ident, $queue:expr, $exact:expr) => {
        static $name: Call = {
            /// # Safety
            /// As for [`pipe::aged`].
            unsafe fn aged(head: *mut CallbackHead) {
                // SAFETY: passed on.
                unsafe { pipe::aged(head, &$name) }
            }
            Call { queue: $queue, aged, exact: $exact }
        };
    };
}

fn short() -> AnyCookie {
    AnyCookie::Short(rcu::get_state())
}

fn full() -> AnyCookie {
    AnyCookie::Full(rcu::get_state_full())
}

fn cond(cookie: AnyCookie, cx: &mut MaySleep) {
    match cookie {
        AnyCookie::Short(cookie) => rcu::cond_synchronize(cookie, cx),
        AnyCookie::Full(cookie) => rcu::cond_synchronize(cookie, cx),
        AnyCookie::Srcu(cookie) => cookie.cond_synchronize(cx),
    }
}

fn cond_exp(cookie: AnyCookie, cx: &mut MaySleep) {
    match cookie {
        AnyCookie::Short(cookie) => rcu::cond_synchronize_expedited(cookie, cx),
        AnyCookie::Full(cookie) => rcu::cond_synchronize_expedited(cookie, cx),
        AnyCookie::Srcu(cookie) => cookie.cond_synchronize(cx),
    }
}

call!(CALL_RCU, rcu::call_rcu, Some(full));
call!(CALL_RCU_HURRY, rcu::call_rcu_hurry, Some(full));

const RCU_READERS: Readers = Readers {
    begin: || Section::Rcu(rcu::read_lock(ATOMIC)),
    extendable: true,
    sleep: false,
    long: (256, 20 * MS),
    in_interrupts: true,
    in_nmis: true,
    rest: sched::cond_resched,
    cookies: &[short, full],
    batches: || rcu::gp_seqs().into(),
};

/// RCU.
pub(crate) static RCU: Ops = Ops {
    name: "rcu",
    readers: RCU_READERS,
    updates: &[
        update("gp_sync", Way::Wait(rcu::synchronize_rcu)),
        update("gp_exp", Way::Wait(rcu::synchronize_rcu_expedited)),
        update("gp_cond", Way::Conditional(short, cond)),
        update("gp_cond_full", Way::Conditional(full, cond)),
        update("gp_cond_exp", Way::Conditional(short, cond_exp)),
        update("gp_cond_exp_full", Way::Conditional(full, cond_exp)),
        update(
            "gp_poll",
            Way::Poll { start: || AnyCookie::Short(rcu::start_poll()), get: short, most_live: Cookie::MAX_LIVE },
        ),
        update(
            "gp_poll_full",
            Way::Poll { start: || AnyCookie::Full(rcu::start_poll_full()), get: full, most_live: FullCookie::MAX_LIVE },
        ),
        update(
            "gp_poll_exp",
            Way::Poll {
                start: || AnyCookie::Short(rcu::start_poll_expedited()),
                get: short,
                most_live: Cookie::MAX_LIVE,
            },
        ),
        update(
            "gp_poll_exp_full",
            Way::Poll {
                start: || AnyCookie::Full(rcu::start_poll_expedited_full()),
                get: full,
                most_live: FullCookie::MAX_LIVE,
            },
        ),
        update("gp_normal", Way::Call(&CALL_RCU)),
        update("gp_async", Way::Call(&CALL_RCU_HURRY)),
    ],
    exact: Some(full),
    barrier: rcu::rcu_barrier,
    down: None,
};

/// Readers of RCU, and updaters that wait for nobody: Linux's `busted`.
pub(crate) static BUSTED: Ops = Ops {
    name: "busted",
    readers: Readers { cookies: &[], ..RCU_READERS },
    updates: &[update("gp_sync", Way::Wait(|_| ())), update("gp_exp", Way::Wait(|_| ()))],
    exact: None,
    barrier: rcu::rcu_barrier,
    down: None,
};

rcu::srcu_domain! {
    static TORTURE_NORMAL: Normal;
    static TORTURE_NMI_SAFE: NmiSafe;
    static TORTURE_FAST: Fast;
    static TORTURE_FAST_UPDOWN: FastUpDown;
}

fn grace_periods<F: Flavour>(domain: &SrcuDomain<F>) -> [Seq; 2] {
    [domain.stats().seq, Seq::INITIAL]
}

/// Declares the table of a flavour of SRCU: its readers' section, interrupts and NMIs, the handing over.
macro_rules! srcu {
    ($(#[$doc:meta])* $ops:ident, $name:literal, $domain:ident, $call:ident, $section:ident, nmi: $nmi:literal, $down:expr) => {
        call!(
            $call,
            // SAFETY: of the closure's caller, passed on.
            {
                unsafe fn queue(head: *mut CallbackHead, func: CallbackFn) {
                    // SAFETY: passed on.
                    unsafe { call_srcu(&$domain, head, func) }
                }
                queue
            },
            Some(|| AnyCookie::Srcu(srcu_get_state(&$domain)))
        );

        $(#[$doc])*
        pub(crate) static $ops: Ops = {
            const GET: GetCookie = || AnyCookie::Srcu(srcu_get_state(&$domain));
            Ops {
                name: $name,
                readers: Readers {
                    begin: || Section::$section(srcu_read_lock(&$domain)),
                    extendable: false,
                    sleep: true,
                    long: (256, 20 * MS),
                    in_interrupts: true,
                    in_nmis: $nmi,
                    rest: sched::cond_resched,
                    cookies: &[GET],
                    batches: || grace_periods(&$domain),
                },
                updates: &[
                    update("gp_sync", Way::Wait(|cx| synchronize_srcu(&$domain, cx))),
                    update("gp_exp", Way::Wait(|cx| synchronize_srcu_expedited(&$domain, cx))),
                    update("gp_cond", Way::Conditional(GET, cond)),
                    update(
                        "gp_poll",
                        Way::Poll {
                            start: || AnyCookie::Srcu(srcu_start_poll(&$domain)),
                            get: GET,
                            most_live: Cookie::MAX_LIVE,
                        },
                    ),
                    update(
                        "gp_poll_exp",
                        Way::Poll {
                            start: || AnyCookie::Srcu(srcu_start_poll_expedited(&$domain)),
                            get: GET,
                            most_live: Cookie::MAX_LIVE,
                        },
                    ),
                    update("gp_normal", Way::Call(&$call)),
                ],
                exact: Some(GET),
                barrier: |cx| srcu_barrier(&$domain, cx),
                down: $down,
            }
        };
    };
}

srcu! {
    /// SRCU with full barriers.
    SRCU, "srcu", TORTURE_NORMAL, CALL_SRCU, Normal, nmi: false, Some(|| Up::Normal(srcu_down_read(&TORTURE_NORMAL)))
}
srcu! {
    /// SRCU whose readers are in NMI handlers, too.
    SRCU_NMI_SAFE, "srcu-nmi-safe", TORTURE_NMI_SAFE, CALL_SRCU_NMI_SAFE, NmiSafe, nmi: true, None
}
srcu! {
    /// SRCU that waits for RCU instead of having barriers.
    SRCU_FAST, "srcu-fast", TORTURE_FAST, CALL_SRCU_FAST, Fast, nmi: false, None
}
srcu! {
    /// The same, whose sections are handed over.
    SRCU_FAST_UPDOWN, "srcu-fast-updown", TORTURE_FAST_UPDOWN, CALL_SRCU_FAST_UPDOWN, FastUpDown, nmi: false,
    Some(|| Up::Fast(srcu_down_read(&TORTURE_FAST_UPDOWN)))
}

call!(CALL_TASKS, rcu::call_rcu_tasks, None);
call!(CALL_TASKS_TRACE, rcu::call_rcu_tasks_trace, None);

/// Readers of which nothing is asked but that they are in threads.
const THREADS: Readers = Readers {
    begin: || Section::Unmarked,
    extendable: false,
    sleep: false,
    long: (256, 20 * MS),
    in_interrupts: false,
    in_nmis: false,
    rest: rcu::cond_resched_tasks,
    cookies: &[],
    batches: || [Seq::INITIAL; 2],
};

/// Tasks RCU: whatever a thread does between two voluntary switches.
pub(crate) static TASKS: Ops = Ops {
    name: "tasks",
    // Its grace periods are long: two of RCU and what is between.
    readers: Readers { long: (128, 100 * MS), ..THREADS },
    updates: &[update("gp_sync", Way::Wait(rcu::synchronize_rcu_tasks)), update("gp_normal", Way::Call(&CALL_TASKS))],
    exact: None,
    barrier: rcu::rcu_barrier_tasks,
    down: None,
};

/// Rude: sections without preemption, which need not be marked.
pub(crate) static TASKS_RUDE: Ops = Ops {
    name: "tasks-rude",
    readers: Readers {
        begin: || Section::NoPreemption(PreemptGuard::new(ATOMIC)),
        rest: sched::cond_resched,
        ..THREADS
    },
    updates: &[update("gp_sync", Way::Wait(rcu::synchronize_rcu_tasks_rude))],
    exact: None,
    barrier: |_| (),
    down: None,
};

/// Trace: sections that sleep.
pub(crate) static TASKS_TRACE: Ops = Ops {
    name: "tasks-tracing",
    readers: Readers {
        begin: || Section::Fast(rcu::read_lock_tasks_trace()),
        sleep: true,
        in_interrupts: true,
        rest: sched::cond_resched,
        ..THREADS
    },
    updates: &[
        update("gp_sync", Way::Wait(rcu::synchronize_rcu_tasks_trace)),
        update("gp_normal", Way::Call(&CALL_TASKS_TRACE)),
    ],
    exact: None,
    barrier: rcu::rcu_barrier_tasks_trace,
    down: None,
};
