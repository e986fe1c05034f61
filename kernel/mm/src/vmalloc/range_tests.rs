//! The ranges against a bitmap.

use std::boxed::Box;
use std::vec;
use std::vec::Vec;

use sync::Rng;

use super::*;

fn window(pages: usize, spares: usize) -> Ranges {
    let mut ranges = Ranges::new();
    add_spares(&mut ranges, spares);
    ranges.open(pages);
    ranges
}

fn add_spares(ranges: &mut Ranges, count: usize) {
    for _ in 0..count {
        ranges.add_spare(Box::leak(Box::new(Area::new())));
    }
}

fn free(ranges: &mut Ranges, first: usize) {
    let area = ranges.leave(first).expect("taken");
    ranges.release(area);
}

#[test]
fn ranges_do_not_overlap_and_come_back_whole() {
    let mut ranges = window(100, 10);
    let (a, b, c) = (ranges.take(30).unwrap(), ranges.take(30).unwrap(), ranges.take(40).unwrap());
    let mut firsts = [a.first(), b.first(), c.first()];
    firsts.sort_unstable();
    assert_eq!(firsts, [0, 30, 60]);
    assert!(ranges.take(1).is_none());
    for first in [30, 0, 60] {
        free(&mut ranges, first);
    }
    assert_eq!(ranges.taken(), (0, 0));
    assert_eq!(ranges.take(100).unwrap().first(), 0, "merged on both sides");
}

#[test]
fn a_leaving_range_is_neither_found_nor_reused() {
    let mut ranges = window(10, 10);
    let first = ranges.take(10).unwrap().first();
    let area = ranges.leave(first).unwrap();
    assert!(ranges.find(first).is_none() && ranges.leave(first).is_none());
    assert!(ranges.take(1).is_none());
    ranges.release(area);
    assert!(ranges.take(10).is_some());
}

#[test]
fn without_a_spare_only_an_exact_fit_is_taken() {
    let mut ranges = window(10, 1);
    assert!(!ranges.has_spare());
    assert!(ranges.take(3).is_none());
    assert!(ranges.take(10).is_some());
}

#[test]
fn random_operations_agree_with_a_bitmap() {
    for seed in 0..20 {
        let mut rng = Rng::new(seed);
        let pages = 2000;
        let mut ranges = window(pages, 1);
        let mut used = vec![false; pages];
        let mut areas: Vec<(usize, usize)> = Vec::new();
        for round in 0..20_000 {
            if !ranges.has_spare() {
                add_spares(&mut ranges, 3);
            }
            if rng.below(100) < 55 {
                let most = 1 << rng.below(8);
                let len = 1 + rng.below(most) as usize;
                match ranges.take(len) {
                    Some(area) => {
                        assert_eq!(area.pages(), len);
                        let range = &mut used[area.first()..area.first() + len];
                        assert!(range.iter().all(|&used| !used), "seed {seed}");
                        range.fill(true);
                        areas.push((area.first(), len));
                    }
                    None => assert!(
                        !used.chunk_by(|a, b| a == b).any(|run| !run[0] && run.len() >= len),
                        "a gap of {len} was there, seed {seed}"
                    ),
                }
            } else if !areas.is_empty() {
                let (first, len) = areas.swap_remove(rng.below(areas.len() as u64) as usize);
                assert_eq!(ranges.find(first).unwrap().pages(), len);
                free(&mut ranges, first);
                used[first..first + len].fill(false);
            }
            if round % 100 == 0 {
                assert_eq!(ranges.taken(), (areas.len(), used.iter().filter(|&&used| used).count()));
            }
        }
        for (first, _) in areas {
            free(&mut ranges, first);
        }
        assert_eq!(ranges.take(pages).expect("all one range again").first(), 0);
    }
}
