//! Things that wait for grace periods, by cookie: any number of things, four segments.
//!
//! For users who batch by themselves and ask instead of queueing callbacks. Of the cookies that have been handed out, only so many
//! can be different and not over at any moment ([`LiveCookie::MAX_LIVE`]). So that many segments hold everything, and nothing
//! waits for a later grace period than its own cookie names: what is over leaves its segment for `done`, and what comes either
//! finds the segment of its cookie or a free one.
//!
//! ```text
//!            ┌ segment: cookie A, batch ┐
//!   add ───► ├ segment: cookie B, batch ┤ ── over ──► done ── take_done ──► the caller
//!            ├ segment: free            ┤
//!            └ segment: free            ┘
//! ```
//!
//! A grace period must be asked for once for each different cookie (S3-28): [`Pending::add`] says when.
//!
//! Invariants
//! - PND-1: no two segments have equal cookies; a segment has a batch that is not empty.
//! - PND-2: there is always a free segment for a cookie that has none. The cookie was taken before [`Pending::add`] looked at the
//!   segments, and is not over afterwards, so at the moment before the look it and all that the look leaves behind were
//!   different and not over: at most `MAX_LIVE`. For this the cookies must be handed from CPU to CPU by something that
//!   orders, as the lock does that guards the structure.
//! - PND-3: nothing is in `done` before its cookie was over, and nothing is lost.
//!
//! Pure: the owner excludes others. Contexts: any. The segmented list of [`crate::cblist`] needs one segment less and knows which
//! is the oldest, because it asks for normal grace periods only and lets tags be rounded up. Answers to `NUM_ACTIVE_RCU_POLL_FULL_OLDSTATE`
//! in Linux include/linux/rcutree.h and its use; rows S3-28, S3-37.

use crate::cblist::Chain;
use crate::poll::{Cookie, FullCookie, Pollable};

/// A cookie of which few can be different and not over at a time.
pub trait LiveCookie: Pollable + Copy + Eq {
    /// How many.
    const MAX_LIVE: usize;
}

impl LiveCookie for Cookie {
    const MAX_LIVE: usize = Cookie::MAX_LIVE;
}

impl LiveCookie for FullCookie {
    const MAX_LIVE: usize = FullCookie::MAX_LIVE;
}

/// Things that are moved together, such as a list.
pub trait Batch: Default {
    /// Whether there is nothing in it.
    fn is_empty(&self) -> bool;
    /// Moves all of `younger` behind what is here.
    fn append(&mut self, younger: &mut Self);
}

impl Batch for Chain {
    fn is_empty(&self) -> bool {
        Chain::is_empty(self)
    }
    fn append(&mut self, younger: &mut Self) {
        Chain::append(self, younger);
    }
}

/// Segments; enough for the exact cookie.
const SEGMENTS: usize = FullCookie::MAX_LIVE;

/// See the module documentation.
///
/// ```no_run
/// # fn free(_: grange_rcu::cblist::Chain) {}
/// use grange_rcu::{self as rcu, FullCookie, cblist::Chain, pending::Pending};
///
/// fn retire(pending: &mut Pending<FullCookie, Chain>, garbage: Chain) {
///     // Out of reach already: the cookie is taken after that.
///     if pending.add(rcu::get_state_full(), garbage) {
///         let _ = rcu::start_poll_full();
///     }
///     free(pending.take_done());
/// }
/// ```
#[derive(Debug)]
pub struct Pending<C, B> {
    /// Newest first, with gaps.
    segments: [Option<(C, B)>; SEGMENTS],
    done: B,
    /// The cookie of the call before.
    last: Option<C>,
}

impl<C: LiveCookie, B: Batch> Pending<C, B> {
    /// With nothing in it.
    #[must_use]
    pub fn new() -> Self {
        const { assert!(C::MAX_LIVE <= SEGMENTS, "PND-2: a segment for each live cookie") }
        Pending { segments: [const { None }; SEGMENTS], done: B::default(), last: None }
    }

    /// Keeps `batch` until `cookie` is over; the cookie was taken when the batch was out of reach.
    ///
    /// True if the cookie is not over and differs from that of the call before: then it may name a grace period that nobody has
    /// asked for, and the caller asks for one now.
    #[must_use = "if true, a grace period is to be asked for"]
    pub fn add(&mut self, cookie: C, mut batch: B) -> bool {
        self.advance();
        if batch.is_empty() {
            return false;
        }
        if cookie.is_over() {
            self.done.append(&mut batch);
            return false;
        }
        match self.segments.iter_mut().flatten().find(|(of, _)| *of == cookie) {
            Some((_, there)) => there.append(&mut batch),
            None => {
                let free = self.segments.iter().position(Option::is_none);
                let free = free.expect("PND-2: more live cookies than there can be");
                self.segments[..=free].rotate_right(1);
                self.segments[0] = Some((cookie, batch));
            }
        }
        self.last.replace(cookie) != Some(cookie)
    }

    /// What waits for exactly `cookie`, to have more put into it: by its owner, under the same rules as for [`Pending::add`], which
    /// is for a cookie that has nothing yet.
    pub fn batch_mut(&mut self, cookie: C) -> Option<&mut B> {
        self.segments.iter_mut().flatten().find(|(of, _)| *of == cookie).map(|(_, batch)| batch)
    }

    /// Has `take` take something out of a batch, whether it is over or not: the newest first, what is done last. Gives what the
    /// first one gave that gave anything.
    pub fn take_with<R>(&mut self, mut take: impl FnMut(&mut B) -> Option<R>) -> Option<R> {
        for segment in &mut self.segments {
            let Some((_, batch)) = segment else { continue };
            let taken = take(batch);
            if batch.is_empty() {
                // PND-1.
                *segment = None;
            }
            if taken.is_some() {
                return taken;
            }
        }
        take(&mut self.done)
    }

    /// Takes all whose cookies are over.
    pub fn take_done(&mut self) -> B {
        self.advance();
        core::mem::take(&mut self.done)
    }

    /// Whether something waits for a cookie that was not over at the last call.
    pub fn is_waiting(&self) -> bool {
        self.segments.iter().any(Option::is_some)
    }

    /// Whether there is nothing in it at all.
    pub fn is_empty(&self) -> bool {
        !self.is_waiting() && self.done.is_empty()
    }

    /// The segments, newest first.
    pub fn segments(&self) -> impl Iterator<Item = (C, &B)> {
        self.segments.iter().flatten().map(|(cookie, batch)| (*cookie, batch))
    }

    /// What was done at the last call.
    pub fn done(&self) -> &B {
        &self.done
    }

    /// Looks which cookies are over.
    pub fn advance(&mut self) {
        for segment in &mut self.segments {
            if let Some((_, batch)) = segment.take_if(|(cookie, _)| cookie.is_over()) {
                self.done.append(&mut { batch });
            }
        }
    }
}

impl<C: LiveCookie, B: Batch> Default for Pending<C, B> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::seq::{Seq, SeqCounter};
    use proptest::prelude::*;
    use std::boxed::Box;
    use std::vec::Vec;

    /// The counters of one test, as the kernel's normal and expedited ones.
    type Clock = &'static [SeqCounter; 2];

    fn clock() -> Clock {
        Box::leak(Box::new([SeqCounter::new(), SeqCounter::new()]))
    }

    /// A grace period of this kind starts or ends.
    fn step(clock: Clock, kind: bool) {
        let counter = &clock[usize::from(kind)];
        if counter.current().is_running() {
            counter.end()
        } else {
            counter.start()
        };
    }

    /// A full cookie of a test.
    #[derive(Copy, Clone)]
    struct Full(Clock, [Seq; 2]);

    impl Full {
        /// Between the looks at the two counters those steps are taken.
        fn take(clock: Clock, meanwhile: &[bool]) -> Full {
            let norm = clock[0].snap();
            meanwhile.iter().for_each(|&kind| step(clock, kind));
            Full(clock, [norm, clock[1].snap()])
        }
    }

    impl PartialEq for Full {
        fn eq(&self, other: &Full) -> bool {
            self.1 == other.1
        }
    }
    impl Eq for Full {}

    impl Pollable for Full {
        fn is_over(&self) -> bool {
            self.0.iter().zip(self.1).any(|(counter, seq)| counter.done(seq))
        }
    }

    impl LiveCookie for Full {
        const MAX_LIVE: usize = FullCookie::MAX_LIVE;
    }

    impl Batch for Vec<Full> {
        fn is_empty(&self) -> bool {
            Vec::is_empty(self)
        }
        fn append(&mut self, younger: &mut Self) {
            Vec::append(self, younger);
        }
    }

    /// How many of `cookies` are different, among those that are not over.
    fn live<C: Copy + PartialEq>(cookies: &[C], is_over: impl Fn(&C) -> bool) -> usize {
        let mut different: Vec<C> = Vec::new();
        for cookie in cookies.iter().filter(|&cookie| !is_over(cookie)) {
            if !different.contains(cookie) {
                different.push(*cookie);
            }
        }
        different.len()
    }

    #[test]
    fn four_full_cookies_and_two_short_ones_can_be_live_at_once() {
        let clock = clock();
        let cookies = [
            Full::take(clock, &[]),
            // Reads the normal counter, then both kinds start, then it reads the expedited one.
            Full::take(clock, &[false, true]),
            Full::take(clock, &[]),
        ];
        // And one that is as late with the normal counter: the other CPU's look at the expedited one came first.
        let cookies = [cookies[0], cookies[1], cookies[2], Full(clock, [cookies[2].1[0], cookies[0].1[1]])];
        assert_eq!(live(&cookies, Pollable::is_over), FullCookie::MAX_LIVE);
        assert_eq!(live(&cookies.map(|c| c.1[0]), |&seq| clock[0].done(seq)), Cookie::MAX_LIVE);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Step(bool),
        Add(Vec<bool>),
        Take,
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            4 => any::<bool>().prop_map(Op::Step),
            6 => proptest::collection::vec(any::<bool>(), 0..4).prop_map(Op::Add),
            1 => Just(Op::Take),
        ];
        proptest::collection::vec(op, 1..200)
    }

    proptest! {
        /// The constants, from any order of steps and looks.
        #[test]
        fn no_more_cookies_are_live_than_the_constants_say(ops in ops()) {
            let (clock, mut cookies) = (clock(), Vec::new());
            for op in ops {
                match op {
                    Op::Step(kind) => step(clock, kind),
                    Op::Add(meanwhile) => cookies.push(Full::take(clock, &meanwhile)),
                    Op::Take => {}
                }
                prop_assert!(live(&cookies, Pollable::is_over) <= FullCookie::MAX_LIVE);
                let short: Vec<Seq> = cookies.iter().map(|cookie| cookie.1[0]).collect();
                prop_assert!(live(&short, |&seq| clock[0].done(seq)) <= Cookie::MAX_LIVE);
            }
        }

        /// PND-1 to PND-3 and S3-28: each item carries its own cookie.
        #[test]
        fn nothing_leaves_before_its_cookie_is_over_and_every_cookie_is_asked_for(ops in ops()) {
            let (clock, mut pending) = (clock(), Pending::<Full, Vec<Full>>::new());
            let (mut inside, mut asked) = (0, Vec::new());
            for op in ops {
                match op {
                    Op::Step(kind) => step(clock, kind),
                    Op::Add(meanwhile) => {
                        let cookie = Full::take(clock, &meanwhile);
                        inside += 1;
                        if pending.add(cookie, std::vec![cookie]) {
                            asked.push(cookie);
                        }
                    }
                    Op::Take => {
                        let done = pending.take_done();
                        prop_assert!(done.iter().all(Pollable::is_over), "freed too early");
                        inside -= done.len();
                    }
                }
                let mut waiting = 0;
                for (cookie, batch) in pending.segments() {
                    prop_assert!(!batch.is_empty() && batch.iter().all(|item| *item == cookie));
                    prop_assert!(asked.contains(&cookie), "nobody asks for a grace period");
                    prop_assert_eq!(pending.segments().filter(|(other, _)| *other == cookie).count(), 1);
                    waiting += batch.len();
                }
                prop_assert_eq!(waiting + pending.done.len(), inside);
            }
        }
    }

    proptest! {
        /// PND-1, and both ways round [`Pending::add`]: a batch is found by exactly its cookie, the newest is the first to be
        /// asked, and one that is emptied is gone.
        #[test]
        fn a_batch_is_found_by_its_cookie_and_the_newest_gives_first(ops in ops(), takes in proptest::collection::vec(0..3_usize, 200)) {
            let (clock, mut pending) = (clock(), Pending::<Full, Vec<Full>>::new());
            // Cookies in the order in which they came first, without those that have nothing.
            let (mut order, mut inside): (Vec<Full>, usize) = (Vec::new(), 0);
            for (op, takes) in ops.into_iter().zip(takes) {
                match op {
                    Op::Step(kind) => step(clock, kind),
                    Op::Add(meanwhile) => {
                        let cookie = Full::take(clock, &meanwhile);
                        match pending.batch_mut(cookie) {
                            Some(batch) => batch.push(cookie),
                            None => {
                                order.push(cookie);
                                let _is_news = pending.add(cookie, std::vec![cookie]);
                            }
                        }
                        inside += 1;
                    }
                    Op::Take => {
                        pending.advance();
                        order.retain(|cookie| !cookie.is_over());
                        for _ in 0..takes {
                            let newest = pending.segments().next().map(|(cookie, _)| cookie);
                            prop_assert_eq!(newest.map(|cookie| cookie.1), order.last().map(|cookie| cookie.1));
                            let Some(taken) = pending.take_with(Vec::pop) else { break };
                            inside -= 1;
                            prop_assert!(newest.is_none_or(|newest| newest == taken), "not of the newest");
                            if newest.is_some_and(|newest| pending.batch_mut(newest).is_none()) {
                                order.pop();
                            }
                        }
                    }
                }
                pending.advance();
                order.retain(|cookie| !cookie.is_over());
                for (cookie, batch) in pending.segments() {
                    prop_assert!(!batch.is_empty() && batch.iter().all(|item| *item == cookie));
                }
                prop_assert_eq!(pending.segments().map(|(_, batch)| batch.len()).sum::<usize>() + pending.done.len(), inside);
                prop_assert_eq!(pending.is_empty(), inside == 0);
            }
        }
    }

    #[test]
    fn what_need_not_wait_is_done_at_once() {
        let mut pending = Pending::<FullCookie, Chain>::new();
        let head = Box::into_raw(Box::new(sync::CallbackHead::new()));
        let mut batch = Chain::new();
        // SAFETY: leaked, on no other list.
        unsafe { batch.push(head) };
        assert!(!pending.add(FullCookie::completed(), batch) && !pending.is_waiting());
        assert_eq!(pending.take_done().len(), 1);
        // SAFETY: leaked above, and off every list.
        drop(unsafe { Box::from_raw(head) });
    }
}
