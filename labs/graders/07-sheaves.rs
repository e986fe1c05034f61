//! Grades lab 7: no object is lost, and the barn is asked about once a sheaf whatever the traffic.
#![cfg(test)]

use std::vec::Vec;

use sync::Rng;

use super::answer::Cpu;
use crate::depot::{CAPACITY, Depot, Object};

/// All objects are somewhere: held, or in the depot once the CPU has gone.
fn all_are_there(mut cpu: Cpu, held: Vec<Object>, mut depot: Depot, all: usize) {
    cpu.drain(&mut depot);
    let mut numbers = depot.objects();
    numbers.extend(held.iter().map(|object| object.0));
    numbers.sort_unstable();
    let expected: Vec<u32> = (0..all as u32).collect();
    assert_eq!(numbers, expected, "the objects that are held, in the barn and in slabs at the end");
}

/// Allocates or frees `count`, one after the other.
fn burst(cpu: &mut Cpu, depot: &mut Depot, held: &mut Vec<Object>, count: usize, frees: bool) {
    for at in 0..count {
        match frees {
            true => cpu.free(held.pop().expect("held"), depot),
            false => held.push(cpu.alloc(depot).unwrap_or_else(|| panic!("no object for allocation {at}"))),
        }
    }
}

#[test]
fn no_object_is_lost_or_handed_out_twice() {
    for seed in 0..200 {
        let mut rng = Rng::new(seed);
        let (limit, full, slabs) = (rng.index(4), 2, rng.index(100));
        let all = full * CAPACITY + slabs;
        let (mut cpu, mut depot, mut held) = (Cpu::default(), Depot::new(limit.max(full), full, slabs), Vec::new());
        for _ in 0..300 {
            if rng.chance(1, 2) {
                held.extend(cpu.alloc(&mut depot));
            } else if !held.is_empty() {
                let at = rng.index(held.len());
                cpu.free(held.swap_remove(at), &mut depot);
            }
        }
        all_are_there(cpu, held, depot, all);
    }
}

#[test]
fn at_the_edge_of_a_sheaf_the_barn_is_left_alone() {
    for held_before in 0..4 * CAPACITY {
        for chunk in 1..=CAPACITY {
            let (mut cpu, mut depot, mut held) = (Cpu::default(), Depot::new(10, 10, 0), Vec::new());
            burst(&mut cpu, &mut depot, &mut held, held_before, false);
            let before = depot.barn_visits;
            for _ in 0..100 {
                burst(&mut cpu, &mut depot, &mut held, chunk, false);
                burst(&mut cpu, &mut depot, &mut held, chunk, true);
            }
            let visits = depot.barn_visits - before;
            assert!(visits <= 2, "{visits} visits to the barn, by 100 times {chunk} up and down from {held_before} held");
        }
    }
}

#[test]
fn a_burst_visits_the_barn_once_a_sheaf() {
    let (mut cpu, mut depot, mut held) = (Cpu::default(), Depot::new(20, 20, 0), Vec::new());
    for round in 0..5 {
        for frees in [false, true] {
            let before = depot.barn_visits;
            burst(&mut cpu, &mut depot, &mut held, 10 * CAPACITY, frees);
            let visits = depot.barn_visits - before;
            assert!(visits <= 10, "{visits} visits for 10 sheaves, round {round}, frees: {frees}");
        }
    }
    assert_eq!(depot.slab_visits, 0, "objects from slabs, though the barn had enough");
}

#[test]
fn an_empty_barn_is_asked_once_a_sheaf() {
    let (mut cpu, mut depot, mut held) = (Cpu::default(), Depot::new(10, 0, 100), Vec::new());
    burst(&mut cpu, &mut depot, &mut held, 5 * CAPACITY, false);
    assert!(depot.barn_visits <= 5, "{} visits to a barn with nothing in it, for 5 sheaves", depot.barn_visits);
    assert!(depot.slab_visits <= 6 * CAPACITY, "{} objects from slabs, for 5 sheaves", depot.slab_visits);
    all_are_there(cpu, held, depot, 100);
}

#[test]
fn a_full_barn_is_asked_once_a_sheaf() {
    let (mut cpu, mut depot, mut held) = (Cpu::default(), Depot::new(2, 0, 100), Vec::new());
    burst(&mut cpu, &mut depot, &mut held, 12 * CAPACITY, false);
    let before = depot.barn_visits;
    burst(&mut cpu, &mut depot, &mut held, 12 * CAPACITY, true);
    let visits = depot.barn_visits - before;
    assert!(visits <= 12, "{visits} visits to a barn with room for 2, for 12 sheaves");
    assert!(depot.objects().len() >= 10 * CAPACITY, "what the barn refused is in slabs");
    all_are_there(cpu, held, depot, 100);
}

#[test]
fn the_last_object_is_handed_out_and_comes_back() {
    let (mut cpu, mut depot, mut held) = (Cpu::default(), Depot::new(4, 1, 5), Vec::new());
    for round in 0..3 {
        burst(&mut cpu, &mut depot, &mut held, CAPACITY + 5, false);
        assert_eq!(cpu.alloc(&mut depot), None, "round {round}: all are held");
        burst(&mut cpu, &mut depot, &mut held, CAPACITY + 5, true);
    }
    all_are_there(cpu, held, depot, CAPACITY + 5);
}
