//! Wake-ups that reach a waiter when it needs them no more.
//!
//! A waiter's condition runs between its queueing and its leaving, so what happens elsewhere at that moment is done in it: the
//! tests do not depend on who is quick.

mod machine;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use arch::clock;
use arch::hosted::in_own_process;
use grange_sched as sched;
use machine::{machine_with, spawn};
use sched::{JoinHandle, State, WaitQueue};
use sync::MaySleep;

const MS: u64 = 1_000_000;

/// Things, and those who want one each.
struct Shop {
    queue: WaitQueue,
    things: AtomicU32,
    /// The second waiter is behind the first.
    both_wait: AtomicBool,
}

impl Shop {
    fn new() -> Arc<Shop> {
        Arc::new(Shop { queue: WaitQueue::new(), things: AtomicU32::new(0), both_wait: AtomicBool::new(false) })
    }

    fn take(&self) -> bool {
        self.things.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |things| things.checked_sub(1)).is_ok()
    }

    fn put(&self) {
        self.things.fetch_add(1, Ordering::Relaxed);
        self.queue.wake_one();
    }

    /// With `first` asleep in the queue, has another wait behind it.
    fn second(self: &Arc<Shop>, cx: &mut MaySleep, first: &JoinHandle<bool>) -> JoinHandle<()> {
        until_asleep(cx, first);
        let shop = self.clone();
        let second = spawn(cx, Some(0), move |cx| shop.queue.wait_until(cx, || shop.take()));
        until_asleep(cx, &second);
        self.both_wait.store(true, Ordering::Relaxed);
        second
    }
}

fn until_asleep<T: Send + 'static>(cx: &mut MaySleep, thread: &JoinHandle<T>) {
    while !thread.is_finished() && thread.thread().state() != State::Sleeping {
        sched::sleep_ns(cx, MS / 10);
    }
}

fn until_served(cx: &mut MaySleep, second: &JoinHandle<()>) {
    let until = clock::now_ns() + 10_000 * MS;
    while !second.is_finished() {
        assert!(clock::now_ns() < until, "the second sleeps on although there is something for it");
        sched::sleep_ns(cx, MS);
    }
}

#[test]
fn a_wake_one_that_reaches_a_waiter_whose_time_is_up_goes_to_the_next() {
    in_own_process(|| {
        machine_with(
            2,
            |_| (),
            |cx| {
                let mut rounds = 0;
                while rounds < 20 {
                    let shop = Shop::new();
                    let theirs = shop.clone();
                    let first = spawn(cx, Some(1), move |cx| {
                        let up = clock::now_ns() + 20 * MS;
                        theirs.queue.wait_timeout(cx, 20 * MS, || {
                            let taken = theirs.take();
                            if !taken && clock::now_ns() >= up && theirs.both_wait.swap(false, Ordering::Relaxed) {
                                theirs.put();
                            }
                            taken
                        })
                    });
                    let second = shop.second(cx, &first);
                    if first.join(cx) || shop.both_wait.load(Ordering::Relaxed) {
                        // It looked once more and took it, or its time was up before the second came: no round.
                        shop.put();
                    } else {
                        rounds += 1;
                    }
                    until_served(cx, &second);
                    second.join(cx);
                }
            },
        );
    });
}

#[test]
fn a_wake_one_that_reaches_a_waiter_which_has_got_its_thing_unasked_goes_to_the_next() {
    in_own_process(|| {
        machine_with(
            2,
            |_| (),
            |cx| {
                for _ in 0..20 {
                    let shop = Shop::new();
                    let theirs = shop.clone();
                    let first = spawn(cx, Some(1), move |cx| {
                        theirs.queue.wait_until(cx, || {
                            let taken = theirs.take();
                            if taken {
                                theirs.put();
                            }
                            taken
                        });
                        true
                    });
                    let second = shop.second(cx, &first);
                    // It finds this one by itself, and puts another for the second while it is still first in the queue.
                    shop.things.fetch_add(1, Ordering::Relaxed);
                    sched::wake(first.thread());
                    first.join(cx);
                    until_served(cx, &second);
                    second.join(cx);
                }
            },
        );
    });
}
