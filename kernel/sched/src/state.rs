//! The state word of a thread: the half of the wake-up protocol that needs no lock.
//!
//! The protocol in one picture; `cond` is whatever the sleeper waits for:
//!
//! ```text
//!   sleeper                                waker
//!   state = Sleeping          (a)          cond = true             (1)
//!   fence(SeqCst)             (b)          fence(SeqCst)           (2)
//!   if cond { state = Running; return }    if state != Sleeping { return }
//!   schedule():                            lock the run queue the thread belongs to
//!     lock the run queue                     if Sleeping -> Running succeeds (3)
//!     if state == Sleeping: off the queue        and the thread is off the queue: put it on
//!     unlock, switch                         unlock
//! ```
//!
//! * `SCHED-1` (no lost wake-up): the fences (b) and (2) order store before load on both sides, so either the
//!   sleeper sees `cond` or the waker sees `Sleeping`. In the second case the run-queue lock orders (3) against
//!   the sleeper's own look at the state in `schedule()`: if (3) comes first the sleeper stays on the queue, if it
//!   comes second the waker finds it off the queue and puts it on. The model in this file's tests drops each fence
//!   in turn and finds the lost wake-up.
//! * `SCHED-2`: `Dead` is final. (3) is a compare-exchange from `Sleeping`, so it comes right after the `Sleeping` that it
//!   read and before the thread's later stores: a late waker cannot revive a thread.
//! * Spurious wake-ups are allowed: every sleeper looks at its condition in a loop.
//!
//! Linux: `set_current_state` and `try_to_wake_up` in `kernel/sched/core.c`.

use sync::atomic::{AtomicU8, Ordering, fence};

/// What a thread is doing, as far as its own will goes; whether it has a CPU is the run queue's business.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// Running, or on a run queue, or between being woken and being put on one.
    Running = 0,
    /// Has said that it will sleep unless something happens first.
    Sleeping = 1,
    /// Has run its last line.
    Dead = 2,
}

impl State {
    fn from_raw(raw: u8) -> State {
        match raw {
            0 => State::Running,
            1 => State::Sleeping,
            _ => State::Dead,
        }
    }
}

/// The state word. Written by the thread itself (all values) and by wakers (`Sleeping` to `Running` under the lock
/// of the thread's run queue); read by anyone.
pub struct StateWord(AtomicU8);

impl StateWord {
    /// A word that says `Running`.
    #[cfg(not(loom))]
    pub const fn new() -> StateWord {
        StateWord(AtomicU8::new(State::Running as u8))
    }

    /// A word that says `Running`.
    #[cfg(loom)]
    pub fn new() -> StateWord {
        StateWord(AtomicU8::new(State::Running as u8))
    }

    /// The present state; a hint unless the caller is the thread itself or holds its run queue's lock.
    pub fn get(&self) -> State {
        State::from_raw(self.0.load(Ordering::Relaxed))
    }

    /// The thread announces that it is about to sleep, before it looks at its condition: steps (a) and (b).
    pub fn announce_sleep(&self) {
        self.0.store(State::Sleeping as u8, Ordering::Relaxed);
        sync::atomic::point();
        // SeqCst: pairs with the fence in `seen_sleeping`. The announcement before the look at the condition, else
        // both sides can miss each other and the thread sleeps for ever.
        fence(Ordering::SeqCst);
    }

    /// The thread takes its announcement back, or goes on after a sleep.
    pub fn set_running(&self) {
        self.0.store(State::Running as u8, Ordering::Relaxed);
    }

    /// The thread has run its last line.
    pub fn set_dead(&self) {
        self.0.store(State::Dead as u8, Ordering::Relaxed);
    }

    /// A waker, after it made the condition true: steps (2) and the first look. False means that there is nothing
    /// to do, because the thread has not announced a sleep or will see the condition.
    pub fn seen_sleeping(&self) -> bool {
        // SeqCst: pairs with the fence in `announce_sleep`. The condition before the look at the state.
        fence(Ordering::SeqCst);
        self.get() == State::Sleeping
    }

    /// Step (3), under the lock of the thread's run queue. True: this waker is the one that woke the thread.
    pub fn wake_under_lock(&self) -> bool {
        // Relaxed: the run-queue lock orders it against `schedule()`; what the waker wrote before is carried to
        // the sleeper by the same lock, or by (b)/(2) when the sleeper never got there.
        self.0
            .compare_exchange(State::Sleeping as u8, State::Running as u8, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }
}

impl Default for StateWord {
    fn default() -> Self {
        StateWord::new()
    }
}

#[cfg(all(test, loom))]
mod tests {
    extern crate std;

    use std::sync::Arc;

    use loom::sync::Mutex;
    use loom::sync::atomic::AtomicBool;
    use loom::thread;

    use super::*;

    /// What the two sides share. The mutex stands for the run-queue lock, its value for "on the queue".
    struct Shared {
        state: StateWord,
        cond: AtomicBool,
        queue: Mutex<bool>,
    }

    /// Which of the two fences are there.
    #[derive(Copy, Clone)]
    struct Fences {
        sleeper: bool,
        waker: bool,
    }

    const BOTH: Fences = Fences { sleeper: true, waker: true };

    fn announce(shared: &Shared, fences: Fences) {
        if fences.sleeper {
            shared.state.announce_sleep();
        } else {
            shared.state.0.store(State::Sleeping as u8, Ordering::Relaxed);
        }
    }

    fn wake(shared: &Shared, fences: Fences) {
        let seen = if fences.waker { shared.state.seen_sleeping() } else { shared.state.get() == State::Sleeping };
        if seen {
            let mut queue = shared.queue.lock().unwrap();
            if shared.state.wake_under_lock() && !*queue {
                *queue = true;
            }
        }
    }

    /// One sleeper, `wakers` wakers; asserts that the sleeper runs or is on the queue when all are done.
    fn sleep_and_wake(wakers: usize, fences: Fences) {
        loom::model(move || {
            let shared =
                Arc::new(Shared { state: StateWord::new(), cond: AtomicBool::new(false), queue: Mutex::new(true) });
            let wakers: std::vec::Vec<_> = (0..wakers)
                .map(|_| {
                    let shared = shared.clone();
                    thread::spawn(move || {
                        shared.cond.store(true, Ordering::Relaxed);
                        wake(&shared, fences);
                    })
                })
                .collect();
            announce(&shared, fences);
            let runs = shared.cond.load(Ordering::Relaxed);
            if runs {
                shared.state.set_running();
            } else {
                let mut queue = shared.queue.lock().unwrap();
                if shared.state.get() == State::Sleeping {
                    *queue = false;
                }
            }
            for waker in wakers {
                waker.join().unwrap();
            }
            assert!(runs || *shared.queue.lock().unwrap(), "SCHED-1: the wake-up is lost");
        });
    }

    #[test]
    fn loom_a_wake_up_is_never_lost() {
        sleep_and_wake(1, BOTH);
    }

    #[test]
    fn loom_two_wakers_do_not_lose_it_either() {
        sleep_and_wake(2, BOTH);
    }

    #[test]
    #[should_panic(expected = "SCHED-1")]
    fn loom_without_the_sleepers_fence_it_can_be_lost() {
        sleep_and_wake(1, Fences { sleeper: false, ..BOTH });
    }

    #[test]
    #[should_panic(expected = "SCHED-1")]
    fn loom_without_the_wakers_fence_it_can_be_lost() {
        sleep_and_wake(1, Fences { waker: false, ..BOTH });
    }
}
