//! The free lists against a model that knows every frame.

use std::boxed::Box;
use std::collections::BTreeMap;
use std::vec::Vec;

use sync::Rng;

use super::*;
use crate::memmap::{SECTION_PAGES, Section};

/// A memory map of `sections` sections, all of them memory of one node.
fn memory(sections: usize) -> MemMap {
    let map = MemMap::new();
    map.install(Box::leak((0..sections).map(|_| Section::default()).collect::<Vec<_>>().into_boxed_slice()), 0);
    for section in 0..sections {
        let pages = (0..SECTION_PAGES)
            .map(|index| Page::new(section * SECTION_PAGES + index, NodeId::new(0), PageKind::Free))
            .collect::<Vec<_>>();
        map.set_section(section, Box::leak(pages.into_boxed_slice()));
    }
    map
}

/// Gives the frames from `start` to `end` to the lists, one by one, and so tests merging as well.
fn filled(map: &MemMap, start: usize, end: usize) -> FreeLists {
    let mut lists = FreeLists::new();
    for pfn in start..end {
        lists.put(map, map.page(pfn).unwrap(), 0);
    }
    lists
}

#[test]
fn single_frames_merge_into_the_largest_aligned_blocks() {
    let map = memory(3);
    let lists = filled(&map, 5, 3 * SECTION_PAGES - 1);
    lists.check(&map);
    let mut expected = [0; MAX_ORDER + 1];
    // 5, 6-7, 8-15, .. 512-1023 | 1024-2047 | 2048-2559, .. 3070
    expected[0] = 2;
    (1..MAX_ORDER).for_each(|order| expected[order] = 2);
    expected[2] = 1;
    expected[MAX_ORDER] = 1;
    assert_eq!(lists.blocks(), expected);
    assert_eq!(lists.pages(), 3 * SECTION_PAGES - 6);
}

#[test]
fn a_block_of_each_order_comes_aligned_and_goes_back_without_trace() {
    let map = memory(2);
    let mut lists = filled(&map, 0, 2 * SECTION_PAGES);
    let before = lists.blocks();
    for order in 0..=MAX_ORDER {
        let page = lists.take(&map, order).unwrap();
        assert!(page.pfn().is_multiple_of(1 << order));
        assert_eq!((page.order(), page.kind()), (order, PageKind::Free));
        lists.check(&map);
        lists.put(&map, page, order);
        assert_eq!(lists.blocks(), before);
    }
    assert!(before[MAX_ORDER] == 2 && before[..MAX_ORDER].iter().all(|&blocks| blocks == 0));
}

#[test]
fn a_buddy_of_another_node_is_left_alone() {
    let map = memory(1);
    let pages: Vec<_> =
        (0..SECTION_PAGES).map(|pfn| Page::new(pfn, NodeId::new(usize::from(pfn >= 512)), PageKind::Free)).collect();
    map.set_section(0, Box::leak(pages.into_boxed_slice()));
    let (low, high) = (filled(&map, 0, 512), filled(&map, 512, 1024));
    assert_eq!((low.blocks()[9], high.blocks()[9]), (1, 1));
    low.check(&map);
    high.check(&map);
}

#[test]
fn random_operations_agree_with_the_model_down_to_empty_and_back() {
    for seed in 0..20 {
        let mut rng = Rng::new(seed);
        let map = memory(4);
        // Ragged ends, so that not everything merges to the top.
        let (start, end) = (rng.below(900) as usize, 4 * SECTION_PAGES - rng.below(900) as usize);
        let mut lists = filled(&map, start, end);
        let before = lists.blocks();
        // The model: blocks that are out, by first frame.
        let mut out: BTreeMap<usize, usize> = BTreeMap::new();
        let mut out_pages = 0;
        for round in 0..6 {
            // Even rounds take until nothing is left, odd ones mostly give back.
            for _ in 0..4000 {
                if rng.below(100) < if round % 2 == 0 { 75 } else { 30 } {
                    let order = rng.below(MAX_ORDER as u64 + 1).min(rng.below(MAX_ORDER as u64 + 1)) as usize;
                    let Some(page) = lists.take(&map, order) else {
                        assert!(lists.blocks()[order..].iter().all(|&blocks| blocks == 0), "nothing fits, seed {seed}");
                        continue;
                    };
                    let (pfn, len) = (page.pfn(), 1 << order);
                    assert!(pfn >= start && pfn + len <= end && pfn.is_multiple_of(len));
                    if let Some((&low, &order)) = out.range(..pfn + len).next_back() {
                        assert!(low + (1 << order) <= pfn, "frame {pfn:#x} is out twice, seed {seed}");
                    }
                    out.insert(pfn, order);
                    out_pages += len;
                } else if let Some((&pfn, &order)) = out.range(rng.below(end as u64) as usize..).next() {
                    out.remove(&pfn);
                    out_pages -= 1 << order;
                    lists.put(&map, map.page(pfn).unwrap(), order);
                }
                assert_eq!(lists.pages() + out_pages, end - start);
            }
            lists.check(&map);
        }
        while let Some(page) = lists.take(&map, 0) {
            out.insert(page.pfn(), 0);
        }
        assert_eq!(lists.pages(), 0, "down to the last frame");
        assert_eq!(out.values().map(|order| 1usize << order).sum::<usize>(), end - start, "each frame is out once");
        for (pfn, order) in out {
            lists.put(&map, map.page(pfn).unwrap(), order);
        }
        lists.check(&map);
        assert_eq!(lists.blocks(), before, "back as it was, seed {seed}");
    }
}
