//! `synchronize_srcu`: wait for the readers of a domain.
//!
//! A thread waits on one of two queues of the domain, by the parity of the number that it waits for, until the counter has come
//! to it. It queues no callback, and so needs none to be run.
//!
//! The first grace period after a while is expedited by itself, so that whoever waits now and then does not wait long; a
//! stream of them is not, so that it does not spin ([`is_worth_it`]).
//!
//! Row R-21. Answers to Linux kernel/rcu/srcutree.c (`synchronize_srcu`, `srcu_might_be_idle`).

use arch::{clock, cpu};
use sync::atomic::Ordering;
use sync::{ATOMIC, MaySleep, PreemptGuard};

use super::config;
use super::domain::{Core, SrcuDomain};
use super::flavour::Flavour;
use super::gp;
use crate::mode::{self, Kind};
use crate::reader::read_depth;
use crate::seq::Seq;

/// Waits until every reader that was in its section of `domain` at the call has left it.
///
/// On return, what readers of `domain` could not reach any more before the call is used by none of them.
///
/// Context: task, sleeps, as long as readers do; not in a section of `domain`, which would wait for itself.
pub fn synchronize_srcu<F: Flavour>(domain: &SrcuDomain<F>, cx: &mut MaySleep) {
    let core = domain.core();
    let asked = if is_worth_it(core) { Kind::Expedited } else { Kind::Normal };
    wait(core, asked, cx);
}

/// As [`synchronize_srcu`], and looks for the readers to be gone all the time at first, and often later.
///
/// Context: as [`synchronize_srcu`].
pub fn synchronize_srcu_expedited<F: Flavour>(domain: &SrcuDomain<F>, cx: &mut MaySleep) {
    wait(domain.core(), Kind::Expedited, cx);
}

fn wait(core: &Core, asked: Kind, cx: &mut MaySleep) {
    cx.assert_may_sleep();
    debug_assert!(read_depth() == 0, "SRCU: synchronize_srcu inside a reader of RCU");
    let target = core.gp.seq.snap();
    let Some(kind) = mode::decide(asked) else { return at_once(core) };
    gp::request(core, target, kind == Kind::Expedited);
    wait_for(core, target, cx);
}

/// The grace period that an instant before [`crate::init`] is (MODE-1). Callbacks that wait for it are run by
/// [`gp::init`].
///
/// # Panics
/// If somebody is in a section all the same: nobody would wait for that one.
fn at_once(core: &Core) {
    let readers = core.readers(0).wrapping_add(core.readers(1));
    assert!(readers == 0, "MODE-1: the boot thread waits for a grace period of {} inside a section", core.name);
    core.gp.seq.start();
    core.gp.seq.end();
}

/// Waits for the end `target`, which has been asked for.
pub(super) fn wait_for(core: &Core, target: Seq, cx: &mut MaySleep) {
    core.gp.waiting_for(target).wait_until(cx, || core.gp.seq.done(target));
}

/// Whether nothing has been asked of the domain for so long that a quick answer disturbs nobody.
fn is_worth_it(core: &Core) -> bool {
    let here = {
        let _pin = PreemptGuard::new(ATOMIC);
        cpu::current()
    };
    let since = clock::now_ns().saturating_sub(core.gp.ended_ns.load(Ordering::Relaxed));
    core.on(here).len() == 0
        && since >= u64::from(config::EXP_HOLDOFF.get())
        && !core.funnel.wants_more(core.gp.seq.current())
}
