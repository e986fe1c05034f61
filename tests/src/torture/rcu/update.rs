//! Updaters: replace an element and wait for a grace period, each time in a way chosen at random; and check every cookie.
//!
//! | check | wrong if |
//! |---|---|
//! | a cookie made before a wait of any kind | it is not over after it |
//! | a polled one that is over | it is not over later |
//! | the different ones that were made meanwhile and are not over | they are more than the flavour says there can be |
//! | one that was made before a callback was queued | it is not over when the callback runs ([`super::pipe::aged`]) |
//!
//! One thread a flavour updates its pipe. Others (`rcutorture.nfakewriters`) replace nothing and wait like it, so that grace
//! periods of all kinds overlap.
//!
//! Linux: `rcu_torture_writer`, `rcu_torture_fakewriter` in kernel/rcu/rcutorture.c; row C-3.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use sched::Completion;
use sync::callback::{CallbackFn, CallbackHead};
use sync::{MaySleep, Rng};

use super::ops::{AnyCookie, GetCookie, Update, Way};
use super::pipe::{Element, STAGES};
use super::{Flavour, Torture};
use crate::torture::control;

/// A millisecond in nanoseconds.
const MS: u64 = 1_000_000;
/// The most different open cookies of any flavour.
const MOST_LIVE: usize = rcu::FullCookie::MAX_LIVE;

/// Checks of updaters that failed.
#[derive(Default)]
pub(crate) struct UpdateErrors {
    /// Cookies that were not over after a wait.
    pub(crate) late_cookies: AtomicU64,
    /// Cookies that were over and then not.
    pub(crate) reopened_cookies: AtomicU64,
    /// Times that more different ones were open than there can be.
    pub(crate) too_many_cookies: AtomicU64,
}

/// Waits by a callback that `queue` queues.
pub(crate) fn wait_by(queue: unsafe fn(*mut CallbackHead, CallbackFn), cx: &mut MaySleep) {
    #[repr(C)]
    struct Wake {
        head: CallbackHead,
        done: Completion,
    }
    /// # Safety
    /// `head` is that of the `Wake` below, whose thread waits.
    unsafe fn wake(head: *mut CallbackHead) {
        // SAFETY: by the caller; the head is the first field, and nobody writes `done` otherwise than by its methods.
        unsafe { &(*head.cast::<Wake>()).done }.complete();
    }
    let mut it = Wake { head: CallbackHead::new(), done: Completion::new() };
    let it = &raw mut it;
    // SAFETY: it stays on this stack until its function has completed it.
    unsafe { queue(it.cast(), wake) };
    // SAFETY: as above; the callback touches `head` before this and `done` only shared.
    unsafe { &(*it).done }.wait(cx);
}

impl Flavour {
    /// One of its ways to wait, at random.
    fn choose(&self, rng: &mut Rng) -> &'static Update {
        let at = rng.index(self.updates.len());
        let (update, times) = &self.updates[at];
        times.fetch_add(1, Ordering::Relaxed);
        update
    }

    /// Waits for a grace period, and checks cookies of before.
    pub(super) fn wait(&self, way: &'static Way, rng: &mut Rng, cx: &mut MaySleep) {
        let before = self.ops.exact.map(|get| get());
        match way {
            Way::Wait(wait) => wait(cx),
            Way::Call(call) => wait_by(call.queue, cx),
            Way::Conditional(get, wait) => {
                let cookie = get();
                sched::sleep_ns(cx, rng.below(2 * MS));
                wait(cookie, cx);
            }
            Way::Poll { start, get, most_live } => self.poll(start(), *get, *most_live, rng, cx),
        }
        if before.is_some_and(|cookie| !cookie.is_over()) {
            self.errors.late_cookies.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn poll(&self, cookie: AnyCookie, get: GetCookie, most_live: usize, rng: &mut Rng, cx: &mut MaySleep) {
        let mut open = ArrayVec::<AnyCookie, MOST_LIVE>::new();
        while !cookie.is_over() {
            let now = get();
            if !open.contains(&now) {
                // Those that are not over after `now` was made were open together with it.
                open.retain(|old| !old.is_over());
                if open.len() == most_live {
                    self.errors.too_many_cookies.fetch_add(1, Ordering::Relaxed);
                    open.clear();
                }
                open.push(now);
            }
            sched::sleep_ns(cx, rng.below(MS));
        }
        sched::sleep_ns(cx, rng.below(MS));
        if !cookie.is_over() {
            self.errors.reopened_cookies.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Torture {
    /// The thread that updates a flavour's pipe.
    pub(super) fn update(&self, flavour: &Flavour, mut rng: Rng, cx: &mut MaySleep) {
        let pipe = &flavour.pipe;
        let mut replaced: Vec<&Element> = Vec::with_capacity(STAGES);
        // Now and then somebody wants all grace periods expedited, or none.
        let mut wish = None;
        while !control::stutter(cx) {
            let Some(old) = pipe.replace() else {
                // The first one, or callbacks have all others.
                sched::sleep_ns(cx, MS / 4);
                continue;
            };
            match &flavour.choose(&mut rng).way {
                Way::Call(call) => pipe.age_by_callbacks(old, call),
                way => {
                    replaced.push(old);
                    flavour.wait(way, &mut rng, cx);
                    replaced.retain(|element| !pipe.age(element));
                }
            }
            if rng.chance(1, 32) {
                wish = match rng.below(8) {
                    0 => Some(rcu::expedite()),
                    1 => Some(rcu::only_normal()),
                    _ => None,
                };
            }
            if rng.chance(1, 4) {
                sched::sleep_ns(cx, rng.below(MS));
            }
        }
        drop(wish);
        // What is left goes the rest of its way at once, when nobody can hold it any more.
        flavour.settle(cx);
        for element in replaced {
            while !pipe.age(element) {}
        }
    }

    /// A thread that waits like an updater and replaces nothing.
    pub(super) fn fake_update(&self, mut rng: Rng, cx: &mut MaySleep) {
        while !control::stutter(cx) {
            let flavour = &self.flavours[rng.index(self.flavours.len())];
            if rng.chance(1, 16) {
                (flavour.ops.barrier)(cx);
            } else {
                let update = flavour.choose(&mut rng);
                flavour.wait(&update.way, &mut rng, cx);
            }
            sched::sleep_ns(cx, rng.below(4 * MS));
        }
    }
}
