//! Polled grace periods: cookies of every kind are over when a grace period has passed, and not earlier.

use rcu::{Cookie, FullCookie, Pollable, poll, read_lock, synchronize_rcu, synchronize_rcu_expedited};
use sched::Prio;
use sync::{ATOMIC, IrqGuard, SoftirqGuard};

use crate::together::{MS, Steps, Urgent, soon, spawn, spin_until, two_cpus};
use crate::{ensure, ensure_eq, ktest, skip};

ktest! {
    /// S3-18 and S3-25: cookies with interrupts off, and several in one question.
    fn cookies_work_with_interrupts_off(t: &mut Test) {
        let off = IrqGuard::new(&*t.cx);
        let cookie = rcu::start_poll();
        let expedited = rcu::start_poll_expedited_full();
        ensure!(!poll(cookie) && !poll(expedited), "over although interrupts were off all the time");
        drop(off);
        let never = rcu::get_state_full();
        ensure!(soon(t.cx, || poll(cookie) && poll(expedited)));
        ensure_eq!(rcu::poll_any(&[rcu::get_state(), cookie]), Some(1));
        rcu::cond_synchronize(never, t.cx);
        ensure!(poll(never));
        Ok(())
    }

    /// S3-25: the first that is over, of several and of both sizes.
    fn one_question_about_several_cookies_finds_the_first_that_is_over(t: &mut Test) {
        // Readers, so that what is live stays so.
        let off = SoftirqGuard::new(&*t.cx);
        let (live, full) = (rcu::get_state(), rcu::get_state_full());
        ensure_eq!(rcu::poll_any(&[live, live]), None);
        ensure_eq!(rcu::poll_any::<Cookie>(&[]), None);
        let (over, full_over) = (Cookie::completed(), FullCookie::completed());
        ensure!(poll(over) && poll(full_over));
        ensure_eq!(rcu::poll_any(&[live, over, live, over]), Some(1));
        ensure_eq!(rcu::poll_any(&[full, full, full_over]), Some(2));
        ensure_eq!(rcu::poll_any::<&dyn Pollable>(&[&live, &full, &full_over, &over]), Some(2));
        drop(off);
        Ok(())
    }

    /// Each way to ask, wait and start; and what is over costs no grace period more.
    fn cookies_of_all_kinds_are_over_after_a_grace_period_of_their_kind(t: &mut Test) {
        for expedited in [false, true] {
            let (short, full) = (rcu::get_state(), rcu::get_state_full());
            if expedited { synchronize_rcu_expedited(t.cx) } else { synchronize_rcu(t.cx) }
            ensure!(poll(full), "expedited {expedited}");
            // The short one may miss one that overlaps with one of the other kind.
            ensure!(soon(t.cx, || poll(short) || poll(rcu::start_poll())));
            let before = rcu::stats();
            rcu::cond_synchronize(full, t.cx);
            rcu::cond_synchronize_expedited(full, t.cx);
            ensure_eq!(rcu::stats().exp_gps, before.exp_gps);
            let (short, full) = (rcu::get_state(), rcu::get_state_full());
            rcu::cond_synchronize_expedited(short, t.cx);
            ensure!(poll(full) && rcu::stats().exp_gps > before.exp_gps);
        }
        let before = rcu::stats().exp_gps;
        let (short, full) = (rcu::start_poll_expedited(), rcu::start_poll_expedited_full());
        ensure!(soon(t.cx, || poll(short) && poll(full)));
        ensure!(rcu::stats().exp_gps > before, "it was not an expedited one");
        let (short, full) = (rcu::start_poll(), rcu::start_poll_full());
        ensure!(soon(t.cx, || poll(short) && poll(full)));
        Ok(())
    }

    /// S3-27: with interrupts off on a CPU the running grace period may end and the next begin; only that one's end
    /// waits for this CPU.
    #[tags(race)]
    fn interrupts_off_does_not_freeze_the_counter(t: &mut Test) {
        let (here, there) = two_cpus()?;
        let steps = Steps::new();
        let theirs = steps.clone();
        // Holds the first grace period.
        let reader = spawn(t.cx, Some(here), move |cx| {
            let guard = read_lock(cx);
            theirs.reach(1);
            let released = spin_until(|| theirs.is_at(3));
            drop(guard);
            released
        })?;
        ensure!(soon(t.cx, || steps.is_at(1)));
        // Asks for the first and, as soon as that is over, for the second.
        let waiter = sched::spawn(t.cx, "waiter", Prio::HIGH, Some(here), |cx| {
            synchronize_rcu(cx);
            synchronize_rcu(cx);
        });
        let waiter = waiter.map_err(|error| crate::__failed!("{error}"))?;
        let theirs = steps.clone();
        let observer = spawn(t.cx, Some(there), move |cx| {
            // Long enough for this CPU to report to the first one.
            sched::sleep_ns(cx, 100 * MS);
            let off = IrqGuard::new(&*cx);
            let first = rcu::stats().gp_seq;
            let cookie = rcu::get_state_full();
            theirs.reach(3);
            let second = first.ended().raw().wrapping_add(1);
            let moved = spin_until(|| rcu::stats().gp_seq.raw() == second);
            arch::clock::udelay(50_000);
            let frozen = rcu::stats().gp_seq.raw() == second && !poll(cookie);
            drop(off);
            (first.is_running(), moved, frozen)
        })?;
        ensure_eq!(observer.join(t.cx), (true, true, true));
        ensure!(reader.join(t.cx));
        waiter.join(t.cx);
        Ok(())
    }

    /// The polled twin is ended by a grace period that began after it did, not by an older one. One reader holds a normal grace
    /// period up that began before an expedited one was over; another holds up the expedited one that the cookie names.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn the_twin_is_not_ended_by_a_grace_period_older_than_it(t: &mut Test) {
        let (_, there) = two_cpus()?;
        let _urgent = Urgent::new();
        let mut met = 0;
        for _ in 0..10 {
            let steps = Steps::new();
            let (first, second) = (steps.clone(), steps.clone());
            // Busy at first, outside of readers, so that the normal grace period waits for its CPU until the next tick.
            let holds_normal = spawn(t.cx, Some(there), move |_| {
                let began = spin_until(|| first.is_at(1));
                let guard = read_lock(ATOMIC);
                first.reach(2);
                let released = spin_until(|| first.is_at(4));
                drop(guard);
                began && released
            })?;
            sched::sleep_ns(t.cx, 10 * MS);
            let normal = rcu::start_poll_full();
            synchronize_rcu_expedited(t.cx);
            steps.reach(1);
            // Both CPUs have reported to the normal one but for that reader, if it came in time.
            sched::sleep_ns(t.cx, 30 * MS);
            let still = rcu::stats().gp_seq;
            let holds_expedited = spawn(t.cx, None, move |_| {
                let guard = read_lock(ATOMIC);
                second.reach(3);
                let released = spin_until(|| second.is_at(5));
                drop(guard);
                released
            })?;
            ensure!(soon(t.cx, || steps.is_at(3)));
            let cookie = rcu::get_state();
            let expedited = rcu::start_poll_expedited_full();
            sched::sleep_ns(t.cx, 10 * MS);
            let runs = rcu::stats().exp_seq.is_running();
            steps.reach(4);
            sched::sleep_ns(t.cx, 30 * MS);
            let ended = rcu::stats().gp_seq != still;
            let (over, over_full) = (poll(cookie), poll(expedited));
            steps.reach(5);
            ensure!(holds_normal.join(t.cx) && holds_expedited.join(t.cx));
            ensure!(!over && !over_full, "over while a reader from before reads");
            ensure!(soon(t.cx, || poll(normal) && poll(expedited)));
            // As it was to be: the normal one outlasted the first expedited one and ended during the second.
            met += u32::from(runs && still.is_running() && ended);
            if met == 2 {
                break;
            }
        }
        t.note(format_args!("met {met} times"));
        if met == 0 {
            skip!("the grace-period thread ran on the reader's CPU each time, or the host was too busy");
        }
        Ok(())
    }
}
