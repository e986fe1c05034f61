//! Those who ask while the thread is anywhere in its round. One that is forgotten waits for ever, which loom reports.

use super::*;
use crate::model::sync::atomic::AtomicU32;

/// Runs the grace-period thread here until all of `others` are at their end.
fn serve<const N: usize>(others: [fn(&mut MaySleep); N]) {
    let left = Arc::new(AtomicU32::new(N as u32));
    let threads = others.map(|other| {
        let left = left.clone();
        // CPU 2 is in a leaf of its own; no CPU has a report to make.
        on_cpu(2, move |cx| {
            other(cx);
            if left.fetch_sub(1, Ordering::Relaxed) == 1 {
                sched::end_waiting();
                gp::hurry();
            }
        })
    });
    while left.load(Ordering::Relaxed) != 0 {
        gp::serve_a_wish(&mut token());
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn waits(cx: &mut MaySleep) {
    let (before, cookie) = (gp::SEQ.snap(), poll::get_state_full());
    sync_gp::wait(cx);
    assert!(gp::SEQ.done(before), "S5-12: woken before its snapshot was due");
    assert!(poll::poll(cookie));
}

fn asks(_: &mut MaySleep) {
    let cookie = poll::start_poll_full();
    while !poll::poll(cookie) {
        thread::yield_now();
    }
}

fn asks_shortly(_: &mut MaySleep) {
    let cookie = poll::start_poll();
    while !poll::poll(cookie) {
        thread::yield_now();
    }
}

/// Makes the steps of an expedited grace period, which may keep the end of a normal one from the short cookies.
fn expedites(_: &mut MaySleep) {
    let root = nodes::tree().root();
    exp::start(&root.lock(ATOMIC));
    exp::end(&root.lock(ATOMIC));
}

/// While a grace period begins, makes a cookie of each size, and asks for the later one.
fn asks_for_the_later(_: &mut MaySleep) {
    let _ = poll::start_poll_full();
    let earlier = poll::get_state_full();
    let later = poll::start_poll();
    while !poll::poll(later) {
        thread::yield_now();
    }
    assert!(poll::poll(earlier), "TWIN-1");
}

#[test]
fn loom_no_waiter_is_left_behind() {
    model(2, || {
        machine(&[]);
        serve([waits, waits]);
    });
}

#[test]
fn loom_no_wish_is_lost() {
    model(2, || {
        machine(&[]);
        serve([asks, waits]);
    });
}

#[test]
fn loom_no_short_cookie_is_forgotten_over_an_expedited_grace_period() {
    model(2, || {
        machine(&[]);
        serve([asks_shortly, expedites]);
    });
}

#[test]
fn loom_an_earlier_full_cookie_is_over_when_a_later_short_one_is() {
    model(3, || {
        machine(&[]);
        serve([asks_for_the_later]);
    });
    // The same over expedited ones, which nobody asks for here.
    model(3, || {
        machine(&[]);
        let other = on_cpu(2, |_| (poll::get_state_full(), poll::get_state()));
        expedites(&mut token());
        expedites(&mut token());
        let (earlier, later) = other.join().unwrap();
        assert!(!poll::poll(later) || poll::poll(earlier), "TWIN-1");
        expedites(&mut token());
        assert!(poll::poll(later) && poll::poll(earlier));
    });
}
