//! Properties of the segmented callback list.

extern crate std;

use std::boxed::Box;
use std::collections::VecDeque;
use std::vec::Vec;

use proptest::prelude::*;
use sync::callback::CallbackHead;

use super::*;
use crate::seq::{Seq, SeqCounter};

/// Heads with stable addresses; freed at the end of the test.
#[expect(clippy::vec_box, reason = "the heads must not move when the vector grows")]
struct Heads(Vec<Box<CallbackHead>>);

impl Heads {
    fn fresh(&mut self) -> *mut CallbackHead {
        self.0.push(Box::new(CallbackHead::new()));
        let last = self.0.last_mut().expect("just pushed");
        core::ptr::from_mut(&mut **last)
    }
}

fn tag(norm: i64, exp: i64) -> Tag {
    Tag { norm: Seq::from_raw((norm << 2) as u64), exp: Seq::from_raw((exp << 2) as u64) }
}

fn enqueue(l: &mut CbList, h: &mut Heads) -> *mut CallbackHead {
    let p = h.fresh();
    // SAFETY: `Heads` keeps the box until the end of the test and each is queued once.
    unsafe { l.enqueue(p) };
    p
}

fn drain(l: &mut CbList) -> Vec<*mut CallbackHead> {
    let mut taken = l.take_done();
    let mut out = Vec::new();
    while let Some(p) = taken.pop() {
        out.push(p);
    }
    l.ran(out.len());
    out
}

#[test]
fn callbacks_of_one_grace_period_become_done_together_and_in_order() {
    let (mut l, mut h) = (CbList::new(), Heads(Vec::new()));
    let queued: Vec<_> = (0..5).map(|_| enqueue(&mut l, &mut h)).collect();
    assert!(l.accelerate(tag(1, 1)));
    assert!(!l.advance(|_| false));
    assert!(l.advance(|t| t.norm == tag(1, 1).norm));
    assert_eq!(drain(&mut l), queued);
    assert!(l.is_empty());
}

#[test]
fn either_kind_of_grace_period_releases_a_segment() {
    let (mut l, mut h) = (CbList::new(), Heads(Vec::new()));
    enqueue(&mut l, &mut h);
    l.accelerate(tag(7, 3));
    assert!(l.advance(|t| t.exp == tag(0, 3).exp));
}

/// also after lists were merged, and although the number would pass for one that is long over.
#[test]
fn a_segment_that_tracks_no_expedited_grace_period_is_released_by_normal_ones_only() {
    let (mut a, mut b, mut h) = (CbList::new(), CbList::new(), Heads(Vec::new()));
    let exp = SeqCounter::new();
    for (list, gp) in [(&mut a, 7), (&mut b, 8)] {
        enqueue(list, &mut h);
        list.accelerate(Tag::without_exp(tag(gp, 0).norm));
    }
    a.adopt(&mut b);
    assert!(exp.done(Seq::NOT_TRACKED), "what is_over must not ask");
    let over = |now: i64| {
        let exp = &exp;
        move |t: Tag| t.is_over(|norm| tag(now, 0).norm.done(norm), |number| exp.done(number))
    };
    assert!(!a.advance(over(7)));
    assert!(a.advance(over(8)));
    assert_eq!(drain(&mut a).len(), 2);
}

#[test]
fn taken_callbacks_count_until_they_are_accounted() {
    let (mut l, mut h) = (CbList::new(), Heads(Vec::new()));
    enqueue(&mut l, &mut h);
    l.accelerate(tag(1, 1));
    l.advance(|_| true);
    let taken = l.take_done();
    assert_eq!(l.len(), 1);
    let barrier = h.fresh();
    // SAFETY: kept by `Heads`.
    assert!(unsafe { l.entrain(barrier) }, "the taken one still runs, a barrier must wait");
    l.put_back(taken);
    assert_eq!(drain(&mut l).last(), Some(&barrier));
    // SAFETY: kept by `Heads`.
    assert!(!unsafe { l.entrain(h.fresh()) }, "nothing left to wait for");
}

#[test]
fn a_barrier_waits_for_no_more_than_the_youngest_callback() {
    let (mut l, mut h) = (CbList::new(), Heads(Vec::new()));
    enqueue(&mut l, &mut h);
    l.accelerate(tag(1, 1));
    let barrier = h.fresh();
    // SAFETY: kept by `Heads`.
    assert!(unsafe { l.entrain(barrier) });
    assert_eq!(l.lengths(), [0, 2, 0, 0]);
}

/// S5-11: both segments are taken by grace periods that the list still thinks are not over, because the counter moved
/// between `advance` and the snapshot.
#[test]
fn a_tag_snapped_after_advancing_strands_callbacks_and_says_so() {
    let (mut l, mut h, gp) = (CbList::new(), Heads(Vec::new()), SeqCounter::new());
    let snap = |gp: &SeqCounter| Tag { norm: gp.snap(), exp: Seq::INITIAL.snap() };
    let over = |gp: &SeqCounter| {
        let now = gp.current();
        move |t: Tag| now.done(t.norm)
    };
    enqueue(&mut l, &mut h);
    l.accelerate(snap(&gp)); // end of the first grace period
    gp.start();
    enqueue(&mut l, &mut h);
    l.accelerate(snap(&gp)); // end of the second
    enqueue(&mut l, &mut h);
    // Wrong order: advance with the old view, the counter moves on by one whole grace period, then snap.
    l.advance(over(&gp));
    gp.end();
    gp.start();
    assert!(!l.accelerate(snap(&gp)), "the third grace period fits into neither segment");
    assert!(l.has_untagged());
    // Right order: snap, then advance, then accelerate.
    let t = snap(&gp);
    l.advance(over(&gp));
    assert!(l.accelerate(t));
    assert!(!l.has_untagged());
}

#[test]
fn an_adopted_list_keeps_done_callbacks_done() {
    let (mut a, mut b, mut h) = (CbList::new(), CbList::new(), Heads(Vec::new()));
    let first = enqueue(&mut b, &mut h);
    b.accelerate(tag(1, 1));
    b.advance(|_| true);
    enqueue(&mut b, &mut h);
    b.accelerate(tag(2, 2));
    enqueue(&mut b, &mut h);
    a.adopt(&mut b);
    assert!(b.is_empty());
    assert_eq!((a.len(), a.lengths()), (3, [1, 1, 0, 1]));
    assert_eq!(a.first_tag(), Some(tag(2, 2)));
    assert_eq!(drain(&mut a), [first]);
}

/// A list with callbacks that wait for these grace periods, and one without a tag.
fn waiting(tags: &[i64], h: &mut Heads) -> CbList {
    let mut list = CbList::new();
    for &gp in tags {
        enqueue(&mut list, h);
        list.accelerate(tag(gp, gp));
    }
    enqueue(&mut list, h);
    list
}

#[test]
fn adopted_callbacks_wait_for_their_own_grace_period_or_a_later_one_of_their_segment() {
    /// Mine, theirs, tags after, lengths after.
    type Case = (&'static [i64], &'static [i64], [i64; 2], [usize; 4]);
    let cases: [Case; 6] = [
        (&[], &[2, 3], [2, 3], [0, 1, 1, 2]),
        (&[2, 3], &[], [2, 3], [0, 1, 1, 2]),
        (&[1, 2], &[2, 3], [2, 3], [0, 2, 2, 2]),
        (&[3], &[1, 2], [3, 3], [0, 2, 1, 2]),
        (&[1, 2], &[3], [3, 3], [0, 2, 1, 2]),
        (&[1], &[2], [2, 2], [0, 2, 0, 2]),
    ];
    for (mine, theirs, [first, second], lengths) in cases {
        let mut h = Heads(Vec::new());
        let (mut a, mut b) = (waiting(mine, &mut h), waiting(theirs, &mut h));
        let both = a.len() + b.len();
        a.adopt(&mut b);
        assert_eq!((a.lengths(), a.len(), b.len()), (lengths, both, 0), "{mine:?} {theirs:?}");
        assert_eq!(a.first_tag(), Some(tag(first, first)));
        a.advance(|tag| tag == self::tag(first, first));
        if first != second {
            assert_eq!(a.first_tag(), (lengths[2] > 0).then(|| tag(second, second)));
        } else {
            assert!(a.first_tag().is_none(), "done with one grace period");
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Enqueue(u8),
    Tick,
    NormEdge,
    ExpEdge,
    Invoke(u8),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        (1..5_u8).prop_map(Op::Enqueue),
        Just(Op::Tick),
        Just(Op::NormEdge),
        Just(Op::ExpEdge),
        (1..6_u8).prop_map(Op::Invoke),
    ];
    proptest::collection::vec(op, 1..200)
}

fn edge(c: &SeqCounter) {
    if c.current().is_running() {
        c.end();
    } else {
        c.start();
    }
}

proptest! {
    /// The whole life of callbacks against a model that remembers, for each, the counters when it was queued: it runs
    /// in order, never before a full later grace period of either kind, and never stays when asked in the right order.
    #[test]
    fn no_callback_runs_before_a_grace_period_and_none_is_lost(ops in ops()) {
        let (mut l, mut h) = (CbList::new(), Heads(Vec::new()));
        let (norm, exp) = (SeqCounter::new(), SeqCounter::new());
        let mut model: VecDeque<(*mut CallbackHead, Tag)> = VecDeque::new();
        let tick = |l: &mut CbList| {
            let t = Tag { norm: norm.snap(), exp: exp.snap() };
            l.advance(|t| norm.current().done(t.norm) || exp.current().done(t.exp));
            l.accelerate(t)
        };
        for op in ops {
            match op {
                Op::Enqueue(n) => for _ in 0..n {
                    let need = Tag { norm: norm.snap(), exp: exp.snap() };
                    model.push_back((enqueue(&mut l, &mut h), need));
                },
                Op::Tick => prop_assert!(tick(&mut l), "nothing stays untagged"),
                Op::NormEdge => edge(&norm),
                Op::ExpEdge => edge(&exp),
                Op::Invoke(n) => {
                    let mut taken = l.take_done();
                    let mut ran = 0;
                    while ran < n as usize {
                        let Some(p) = taken.pop() else { break };
                        let (want, need) = model.pop_front().expect("something ran twice");
                        prop_assert_eq!(p, want);
                        prop_assert!(norm.current().done(need.norm) || exp.current().done(need.exp));
                        ran += 1;
                    }
                    l.put_back(taken);
                    l.ran(ran);
                }
            }
            prop_assert_eq!(l.len(), model.len());
            prop_assert_eq!(l.lengths().iter().sum::<usize>(), model.len());
            prop_assert!(l.lengths()[1] != 0 || l.lengths()[2] == 0, "CBL-2");
        }
        for _ in 0..6 {
            tick(&mut l);
            edge(&norm);
        }
        tick(&mut l);
        prop_assert_eq!(drain(&mut l).len(), model.len());
    }
}
