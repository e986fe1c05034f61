//! Grades lab 6: small stories, and random ones beside a model that knows no segments.
#![cfg(test)]

use std::vec::Vec;

use sync::Rng;

use super::answer::Callbacks;

/// All that are ready, in their order.
fn ready(callbacks: &mut Callbacks<u64>) -> Vec<u64> {
    // More than were ever queued would mean that it does not end.
    std::iter::from_fn(|| callbacks.pop_ready()).take(10_000).collect()
}

/// A list with these, of which the first `chosen` wait for grace period `gp`.
fn with(ids: std::ops::Range<u64>, chosen: u64, gp: u64) -> Callbacks<u64> {
    let mut callbacks = Callbacks::new();
    for id in ids {
        if id == chosen {
            callbacks.accelerate(gp);
        }
        callbacks.enqueue(id);
    }
    callbacks
}

#[test]
fn a_callback_is_ready_when_its_grace_period_is_over_and_not_before() {
    let mut callbacks = with(0..3, 3, 0);
    callbacks.accelerate(12);
    for over in [8, 11] {
        callbacks.advance(over);
        assert_eq!(ready(&mut callbacks), [0; 0], "grace period {over} is over, and they wait for 12");
    }
    callbacks.advance(12);
    assert_eq!(ready(&mut callbacks), [0, 1, 2], "grace period 12 is over");
    assert_eq!(callbacks.len(), 0);
}

#[test]
fn a_callback_without_a_grace_period_waits_whatever_is_over() {
    let mut callbacks = with(0..4, 2, 4);
    callbacks.advance(100);
    assert_eq!(ready(&mut callbacks), [0, 1], "2 and 3 came when 4 had been chosen");
    assert_eq!((callbacks.len(), callbacks.waits_for()), (2, None));
    callbacks.accelerate(104);
    callbacks.advance(103);
    assert_eq!(ready(&mut callbacks), [0; 0]);
    callbacks.advance(105);
    assert_eq!(ready(&mut callbacks), [2, 3], "a later one being over will do");
}

#[test]
fn what_has_been_chosen_stays() {
    let mut callbacks = with(0..4, 2, 4);
    callbacks.accelerate(8);
    callbacks.accelerate(12);
    assert_eq!(callbacks.waits_for(), Some(4));
    callbacks.advance(4);
    assert_eq!((ready(&mut callbacks), callbacks.waits_for()), (vec![0, 1], Some(8)), "4 is over");
    callbacks.advance(8);
    assert_eq!((ready(&mut callbacks), callbacks.waits_for()), (vec![2, 3], None), "8 is over");
}

#[test]
fn nobody_overtakes_who_came_before() {
    let mut callbacks = with(0..2, 2, 0);
    callbacks.accelerate(20);
    (2..4).for_each(|id| callbacks.enqueue(id));
    callbacks.accelerate(16);
    callbacks.advance(16);
    assert_eq!(ready(&mut callbacks), [0; 0], "0 waits for 20, and 2 came after it");
    callbacks.advance(20);
    assert_eq!(ready(&mut callbacks), [0, 1, 2, 3]);
}

#[test]
fn choosing_for_nobody_changes_nothing() {
    let mut callbacks: Callbacks<u64> = Callbacks::new();
    callbacks.accelerate(4);
    assert_eq!((callbacks.waits_for(), callbacks.len()), (None, 0), "there is no callback");
    callbacks.enqueue(1);
    assert_eq!(callbacks.waits_for(), None, "1 came after");
    callbacks.accelerate(8);
    callbacks.accelerate(4);
    callbacks.advance(4);
    assert_eq!((ready(&mut callbacks), callbacks.waits_for()), (vec![], Some(8)));
}

#[test]
fn numbers_wrap_around() {
    let gp = u64::MAX - 2;
    let mut callbacks = with(0..4, 2, gp);
    callbacks.accelerate(gp.wrapping_add(8));
    callbacks.advance(gp.wrapping_add(4));
    assert_eq!(ready(&mut callbacks), [0, 1], "{} comes after {gp}", gp.wrapping_add(4));
    callbacks.advance(gp.wrapping_add(8));
    assert_eq!(ready(&mut callbacks), [2, 3]);
}

/// Every callback with what was chosen for it; numbers counted without an end.
#[derive(Default)]
struct Model(std::collections::VecDeque<(u64, Option<u128>)>);

#[test]
fn a_random_story_ends_as_it_does_without_segments() {
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let (mut callbacks, mut model) = (Callbacks::new(), Model::default());
        let mut over = u128::from(u64::MAX) - 200;
        for id in 0..400 {
            match rng.below(5) {
                0 | 1 => {
                    callbacks.enqueue(id);
                    model.0.push_back((id, None));
                }
                2 => {
                    let gp = over + 1 + u128::from(rng.below(12));
                    let latest = model.0.iter().filter_map(|(_, gp)| *gp).max().unwrap_or(0).max(gp);
                    callbacks.accelerate(gp as u64);
                    model.0.iter_mut().filter(|(_, gp)| gp.is_none()).for_each(|(_, gp)| *gp = Some(latest));
                }
                3 => {
                    over += u128::from(rng.below(6));
                    callbacks.advance(over as u64);
                    model.0.iter_mut().filter(|(_, gp)| gp.is_some_and(|gp| gp <= over)).for_each(|(_, gp)| *gp = Some(0));
                }
                _ => {
                    let is_ready = model.0.front().is_some_and(|(_, gp)| *gp == Some(0));
                    let expected = if is_ready { model.0.pop_front().map(|(id, _)| id) } else { None };
                    assert_eq!(callbacks.pop_ready(), expected, "seed {seed}, step {id}");
                }
            }
            let waits = model.0.iter().map(|(_, gp)| *gp).find(|gp| *gp != Some(0)).flatten().map(|gp| gp as u64);
            assert_eq!((callbacks.len(), callbacks.waits_for()), (model.0.len(), waits), "seed {seed}, step {id}");
        }
    }
}
