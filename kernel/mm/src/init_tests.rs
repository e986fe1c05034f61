//! Boot on made-up machines: memory is a buffer, physical address 0 is its start.

use std::alloc::{Layout, alloc_zeroed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use super::*;
use crate::memmap::SECTION_SIZE;

const MIB: u64 = 1 << 20;

/// Outside a hosted machine all threads share one copy of the per-CPU variables, which locks use: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// A machine of its own: map, zones, and the buffer.
struct Machine {
    _alone: MutexGuard<'static, ()>,
    map: MemMap,
    zones: Vec<Zone>,
    regions: Vec<Region>,
}

fn region(start: u64, end: u64, node: usize) -> Region {
    Region { start: PhysAddr::new(start), end: PhysAddr::new(end), node: NodeId::new(node) }
}

fn boot(regions: &[Region]) -> Machine {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let size = regions.iter().map(|region| region.end.as_u64()).max().unwrap_or(0) as usize;
    let layout = Layout::from_size_align(size.max(1), PAGE_SIZE).unwrap();
    // SAFETY: the size is not 0. The buffer is never freed: descriptors live for ever.
    let base = unsafe { alloc_zeroed(layout) }.expose_provenance();
    let machine = Machine {
        _alone: alone,
        map: MemMap::new(),
        zones: (0..MAX_NODES).map(|_| Zone::new()).collect(),
        regions: regions.to_vec(),
    };
    // SAFETY: the buffer holds every region, and nobody else has it.
    unsafe { build(&machine.map, base, regions, |node| &machine.zones[node.index()]) };
    machine
}

/// Each page of memory is managed or set aside, and the descriptors say so.
fn check(machine: &Machine) {
    let mut managed = std::vec![0; MAX_NODES];
    let mut aside = 0;
    for region in &machine.regions {
        let first = region.start.as_u64().div_ceil(PAGE_SIZE as u64) as usize;
        for pfn in first..(region.end.as_u64() >> PAGE_SHIFT) as usize {
            let page = machine.map.page(pfn).expect("memory has descriptors");
            assert_eq!((page.pfn(), page.node()), (pfn, region.node));
            match page.kind() {
                PageKind::Descriptors => aside += 1,
                PageKind::Free | PageKind::Buddy => managed[region.node.index()] += 1,
                kind => panic!("{kind:?} at boot"),
            }
        }
    }
    for (zone, &managed) in machine.zones.iter().zip(&managed) {
        assert_eq!((zone.managed_pages(), zone.free_pages()), (managed, managed));
        zone.check(&machine.map);
    }
    let total = managed.iter().sum::<usize>() + aside;
    assert!(aside <= total / 64 + 16 * machine.regions.len() + 1, "{aside} pages of {total} set aside");
}

#[test]
fn two_nodes_and_a_hole_have_their_descriptors_at_home() {
    let machine = boot(&[region(MIB, 20 * MIB, 0), region(24 * MIB, 64 * MIB, 1)]);
    check(&machine);
    for (section, node) in [(0, 0), (4, 0), (6, 1), (15, 1)] {
        let at = core::ptr::from_ref(machine.map.page(section * SECTION_PAGES).unwrap()).addr();
        let page = machine.map.page_at(at).unwrap();
        assert_eq!((page.kind(), page.node()), (PageKind::Descriptors, NodeId::new(node)), "section {section}");
    }
    assert!(machine.map.page(5 * SECTION_PAGES).is_none(), "a section without memory has no descriptors");
    assert_eq!(machine.map.page(0).unwrap().kind(), PageKind::Hole);
    assert!(machine.map.page_at(0).is_none() && machine.map.page_at(usize::MAX).is_none());
}

#[test]
fn every_frame_has_a_home_byte_and_what_is_no_frame_has_none() {
    let machine = boot(&[region(MIB, 20 * MIB, 0), region(24 * MIB, 64 * MIB, 1)]);
    let base = machine.map.direct_map(0).addr();
    let mut places = Vec::new();
    for pfn in 0..16 * SECTION_PAGES {
        let addr = base + (pfn << PAGE_SHIFT);
        let home = machine.map.home(pfn);
        assert_eq!(home.load(core::sync::atomic::Ordering::Relaxed), NO_HOME);
        for byte in [addr, addr + PAGE_SIZE - 1] {
            assert!(core::ptr::eq(home, machine.map.home_at(byte).unwrap()));
            // SAFETY: below the end of the last section.
            assert!(core::ptr::eq(home, unsafe { machine.map.home_at_unchecked(byte) }));
        }
        places.push(core::ptr::from_ref(home).addr());
    }
    assert!(places.is_sorted() && places.windows(2).all(|pair| pair[0] != pair[1]), "one byte each");
    let table = machine.map.page_at(places[0]).unwrap();
    assert_eq!(table.kind(), PageKind::Descriptors, "in memory that was set aside");
    for outside in [base - 1, base + 16 * SECTION_SIZE, 0, usize::MAX] {
        assert!(machine.map.home_at(outside).is_none(), "{outside:#x}");
    }
}

#[test]
fn a_node_in_two_ranges_is_one_zone() {
    let machine = boot(&[region(32 * MIB, 48 * MIB, 0), region(16 * MIB, 32 * MIB, 1), region(MIB, 16 * MIB, 0)]);
    check(&machine);
    assert!(machine.zones[0].managed_pages() > machine.zones[1].managed_pages());
}

#[test]
fn nodes_that_share_a_section_do_not_share_blocks() {
    // 85 MiB a node: boundaries inside sections, as with three nodes of 256 MiB.
    let machine = boot(&[region(MIB, 85 * MIB, 0), region(85 * MIB, 170 * MIB, 1), region(170 * MIB, 256 * MIB, 2)]);
    check(&machine);
}

#[test]
fn small_ragged_and_empty_regions_are_sorted_out() {
    let machine = boot(&[
        region(0x1000, 0x9_fc00, 0),
        region(MIB, MIB + 1, 0),
        region(2 * MIB + 5, 2 * MIB + 4096, 0),
        // One page in a section of its own: its descriptors lie elsewhere.
        region(12 * MIB, 12 * MIB + 4096, 1),
        region(16 * MIB + 1, 40 * MIB - 1, 0),
    ]);
    check(&machine);
    assert_eq!(machine.zones[1].managed_pages(), 1);
}

#[test]
fn a_machine_without_memory_boots_to_nothing() {
    let machine = boot(&[]);
    assert!(machine.map.page(0).is_none());
    assert!(machine.zones.iter().all(|zone| !zone.has_memory()));
}

#[test]
#[should_panic(expected = "INIT-1")]
fn overlapping_regions_are_refused() {
    boot(&[region(MIB, 8 * MIB, 0), region(7 * MIB, 9 * MIB, 1)]);
}

#[test]
fn the_watermark_is_held_and_dipped_into_only_on_demand() {
    let machine = boot(&[region(0, 32 * MIB, 0)]);
    let zone = &machine.zones[0];
    let take = |mark| {
        let mut count = 0;
        while zone.take(&machine.map, 0, 1, mark, Spin::May, |_| count += 1) != 0 {}
        count
    };
    let normal = take(zone.min());
    assert_eq!(zone.free_pages(), zone.min());
    assert!(zone.min() > 0 && zone.is_low());
    assert_eq!(normal + take(0), zone.managed_pages(), "to the last page");
}

#[test]
fn blocks_that_were_deferred_are_back_after_the_next_operation() {
    let machine = boot(&[region(0, 16 * MIB, 0)]);
    let zone = &machine.zones[0];
    let before = zone.blocks(&machine.map);
    let mut blocks = Vec::new();
    for order in [0, 3, 0, 5, 1] {
        zone.take(&machine.map, order, 1, 0, Spin::May, |page| blocks.push((page, order)));
    }
    for (page, order) in blocks {
        zone.defer(page, order);
    }
    assert_eq!(zone.deferred_pages(), 1 + 8 + 1 + 32 + 2);
    assert_eq!(zone.free_pages() + zone.deferred_pages(), zone.managed_pages());
    zone.drain_deferred(&machine.map);
    assert_eq!((zone.deferred_pages(), zone.free_pages()), (0, zone.managed_pages()));
    assert_eq!(zone.blocks(&machine.map), before);
}

#[test]
fn memory_that_waits_on_the_deferred_list_is_not_out_of_reach() {
    let machine = boot(&[region(0, 8 * MIB, 0)]);
    let zone = &machine.zones[0];
    let mut last = None;
    while zone.take(&machine.map, 0, 1, 0, Spin::May, |page| last = Some(page)) != 0 {}
    zone.defer(last.unwrap(), 0);
    assert_eq!(zone.take(&machine.map, 0, 1, 0, Spin::Never, |_| ()), 1);
}

#[test]
fn the_nearest_node_is_asked_first_and_ties_go_round() {
    let node = NodeId::new;
    // A ring of four, and node 4 far from all.
    let distance = |a: NodeId, b: NodeId| match (a.index(), b.index()) {
        (a, b) if a == b => 10,
        (a, b) if a == 4 || b == 4 => 40,
        (a, b) => [10, 20, 30, 20][a.abs_diff(b)],
    };
    let order = |from: usize| {
        let mut nodes: Vec<_> = (0..5).map(node).collect();
        sort_by_distance(&mut nodes, node(from), distance);
        nodes.into_iter().map(NodeId::index).collect::<Vec<_>>()
    };
    assert_eq!(order(0), [0, 1, 3, 2, 4]);
    assert_eq!(order(2), [2, 3, 1, 0, 4]);
    assert_eq!(order(4), [4, 0, 1, 2, 3]);
    // A node without memory is not in the list and still has an order.
    let mut nodes: Vec<_> = [0, 1, 2].map(node).into();
    sort_by_distance(&mut nodes, node(3), distance);
    assert_eq!(nodes, [node(0), node(2), node(1)]);
}
