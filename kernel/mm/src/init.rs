//! Boot: from memory regions to descriptors, memory map and free lists.
//!
//! 1. The regions are cut to whole pages and sorted.
//! 2. For the tables of sections and of homes, and for the descriptors of each section, memory is set aside: at the start of the region
//!    that the section begins with, so in its own node; where that is too small, in another region of the node, then in
//!    any. Only the cursors of the regions move.
//! 3. The descriptors are written, each once, with the right node and kind, and entered in the table.
//! 4. What is left of each region goes to the free lists of its node, in blocks as large as alignment allows.
//! 5. Each node is told whom to ask when it has nothing left: itself, then the others by distance.
//!
//! Invariants:
//! - **INIT-1** Each page of a region is set aside or given to one zone, never both: cursors only move forward, and regions
//!   do not overlap (checked).
//!
//! Linux: `mm/mm_init.c`, `mm/sparse.c` (6.18).

use core::sync::atomic::AtomicU8;

use arch::{MAX_NODES, NodeId, PAGE_SHIFT, PAGE_SIZE, PhysAddr};
use arrayvec::ArrayVec;

use crate::buddy::MAX_ORDER;
use crate::home::NO_HOME;
use crate::memmap::{MAP, MemMap, SECTION_PAGES, Section};
use crate::page::{Page, PageKind};
use crate::zone::{self, Spin, Zone};

/// Regions that boot can handle.
pub const MAX_REGIONS: usize = 128;

/// Memory that nobody uses yet, all of it on one node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// First byte.
    pub start: PhysAddr,
    /// Behind the last byte.
    pub end: PhysAddr,
    /// Whose memory it is.
    pub node: NodeId,
}

/// A region in page frame numbers; `next` moves as memory is set aside.
#[derive(Clone, Copy)]
struct Span {
    start: usize,
    next: usize,
    end: usize,
    node: NodeId,
}

/// Takes the machine's free memory: all of `regions` belongs to this storey from now on.
///
/// The kernel image, the loader's data, the page tables and the low 1 MiB are not part of any region. Nodes may have several
/// regions, or none, and any number of CPUs. Regions smaller than a page vanish; of a region that does not even hold its own
/// descriptors, and for which no other has room, nothing is used, and the log says so.
///
/// Context: boot CPU, once, nothing else running; the direct map covers the regions, and the CPUs' nodes and the distances
/// are known to [`arch::cpu`].
///
/// # Panics
/// If called twice, if regions overlap, or if there are more than [`MAX_REGIONS`].
///
/// # Safety
/// Nobody uses the memory of the regions.
pub unsafe fn init(regions: &[Region]) {
    assert!(!MAP.is_installed(), "mm::init called twice");
    let Some(first) = regions.first().map(|region| region.start) else { return };
    // Physical address 0 itself may be no memory, and not in the direct map.
    let base = arch::paging::phys_to_virt(first).as_u64().wrapping_sub(first.as_u64()) as usize;
    // SAFETY: the caller's contract; the direct map is where `arch` says.
    unsafe { build(&MAP, base, regions, zone::of) };
    for node in (0..MAX_NODES).map(NodeId::new) {
        zone::of(node).set_fallback(nearest_first(node, arch::cpu::distance).into_iter());
    }
}

/// Tells the CPUs their [homes](crate::home), and begins to use per-CPU page lists.
///
/// Context: boot CPU, once, after the per-CPU area of every present CPU is in place and this CPU uses its own.
pub fn init_percpu() {
    crate::home::init_percpu();
    crate::pcp::enable();
}

/// Steps 1 to 4, for any memory map, direct map and zones.
///
/// # Safety
/// As [`init`]; `base` is the address of physical address 0 in a mapping of all regions.
pub(crate) unsafe fn build<'z>(map: &MemMap, base: usize, regions: &[Region], zone_of: impl Fn(NodeId) -> &'z Zone) {
    let mut spans = to_spans(regions);
    let Some(last) = spans.last() else { return };
    let sections = last.end.div_ceil(SECTION_PAGES);

    let table = set_aside(&mut spans, 0, (sections * size_of::<Section>()).div_ceil(PAGE_SIZE))
        .expect("no region has room for the table of sections");
    let table = at::<Section>(base, table);
    for section in 0..sections {
        // SAFETY: `table` has room for `sections` entries, was set aside above, and is nobody else's (INIT-1).
        unsafe { table.add(section).write(Section::default()) };
    }
    // SAFETY: all entries were written above, and the memory is never given back.
    map.install(unsafe { core::slice::from_raw_parts(table, sections) }, base);

    let homes = set_aside(&mut spans, 0, (sections * SECTION_PAGES).div_ceil(PAGE_SIZE))
        .expect("no region has room for the table of homes");
    let homes = at::<AtomicU8>(base, homes);
    // SAFETY: as for `table`; all are written here.
    map.install_homes(unsafe {
        homes.write_bytes(NO_HOME, sections * SECTION_PAGES);
        core::slice::from_raw_parts(homes, sections * SECTION_PAGES)
    });

    // Set aside everything first: where memory was set aside decides what kind a descriptor has.
    let mut descriptors: ArrayVec<(usize, usize, usize), MAX_REGIONS> = ArrayVec::new();
    let mut done = 0;
    for index in 0..spans.len() {
        let first = (spans[index].start / SECTION_PAGES).max(done);
        done = done.max(spans[index].end.div_ceil(SECTION_PAGES));
        if first >= done {
            continue;
        }
        let pages = (done - first) * SECTION_PAGES * size_of::<Page>() / PAGE_SIZE;
        match set_aside(&mut spans, index, pages) {
            Some(pfn) => descriptors.push((first, done, pfn)),
            None => log::warn!("mm: no room for the descriptors of sections {first} to {done}: memory is left out"),
        }
    }
    for (first, end, pfn) in descriptors {
        for section in first..end {
            let pages = at::<Page>(base, pfn).wrapping_add((section - first) * SECTION_PAGES);
            // SAFETY: set aside above for these sections, so ours (INIT-1).
            map.set_section(section, unsafe { write_descriptors(pages, section * SECTION_PAGES, &spans) });
        }
    }
    for node in (0..MAX_NODES).map(NodeId::new) {
        let zone = zone_of(node);
        let mut managed = 0;
        for span in spans.iter().filter(|span| span.node == node) {
            let blocks = Blocks { next: span.next, end: span.end }
                .filter_map(|(pfn, order)| Some((map.page(pfn)?, order)))
                .inspect(|(_, order)| managed += 1 << order);
            zone.put(map, Spin::May, blocks);
        }
        zone.set_up(managed);
    }
}

/// Step 1.
fn to_spans(regions: &[Region]) -> ArrayVec<Span, MAX_REGIONS> {
    assert!(regions.len() <= MAX_REGIONS, "{} memory regions, and {MAX_REGIONS} are possible", regions.len());
    let mut spans: ArrayVec<Span, MAX_REGIONS> = regions
        .iter()
        .map(|region| {
            let start = region.start.as_u64().div_ceil(PAGE_SIZE as u64) as usize;
            Span { start, next: start, end: (region.end.as_u64() >> PAGE_SHIFT) as usize, node: region.node }
        })
        .filter(|span| span.start < span.end)
        .collect();
    spans.sort_unstable_by_key(|span| span.start);
    for pair in spans.windows(2) {
        assert!(pair[0].end <= pair[1].start, "INIT-1: memory regions overlap at frame {:#x}", pair[1].start);
    }
    spans
}

/// Step 2: sets aside `pages` pages for region `index`: from itself, else its node, else anywhere. The first frame.
fn set_aside(spans: &mut [Span], index: usize, pages: usize) -> Option<usize> {
    let node = spans[index].node;
    let fits = |span: &Span| span.end - span.next >= pages;
    let found = Some(index)
        .filter(|&i| fits(&spans[i]))
        .or_else(|| spans.iter().position(|span| span.node == node && fits(span)))
        .or_else(|| spans.iter().position(fits))?;
    let pfn = spans[found].next;
    spans[found].next += pages;
    Some(pfn)
}

/// Step 3, for the section that begins with frame `first`.
///
/// # Safety
/// `pages` has room for [`SECTION_PAGES`] descriptors and nobody else uses it, ever.
unsafe fn write_descriptors(pages: *mut Page, first: usize, spans: &[Span]) -> &'static [Page] {
    let end = first + SECTION_PAGES;
    let here = || spans.iter().filter(|span| first < span.end && span.start < end);
    let hole_node = spans.iter().find(|span| span.end > first).map_or(NodeId::new(0), |span| span.node);
    let mut next = first;
    // A run of frames that are alike, up to `until`.
    let mut run = |until: usize, node, kind| {
        for pfn in next..until.min(end) {
            // SAFETY: the caller's contract; `pfn` lies in this section.
            unsafe { pages.add(pfn - first).write(Page::new(pfn, node, kind)) };
        }
        next = next.max(until.min(end));
    };
    for span in here() {
        run(span.start, hole_node, PageKind::Hole);
        run(span.next, span.node, PageKind::Descriptors);
        run(span.end, span.node, PageKind::Free);
    }
    run(end, hole_node, PageKind::Hole);
    // SAFETY: all of them were written above; the caller's contract.
    unsafe { core::slice::from_raw_parts(pages, SECTION_PAGES) }
}

/// A frame in the direct map at `base`.
fn at<T>(base: usize, pfn: usize) -> *mut T {
    core::ptr::with_exposed_provenance_mut(base.wrapping_add(pfn << PAGE_SHIFT))
}

/// A range of frames, cut into the largest aligned blocks.
struct Blocks {
    next: usize,
    end: usize,
}

impl Iterator for Blocks {
    type Item = (usize, usize);

    fn next(&mut self) -> Option<(usize, usize)> {
        let left = self.end.checked_sub(self.next).filter(|&left| left != 0)?;
        let order = (self.next.trailing_zeros() as usize).min(left.ilog2() as usize).min(MAX_ORDER);
        let pfn = self.next;
        self.next += 1 << order;
        Some((pfn, order))
    }
}

/// The node with memory that is nearest to `node`: itself if it has any.
pub(crate) fn nearest_with_memory(node: NodeId) -> Option<NodeId> {
    nearest_first(node, arch::cpu::distance).into_iter().next()
}

/// Step 5: the nodes with memory, nearest to `node` first; of equally near ones the next in number first, so that the
/// nodes of a round do not all turn to the same one.
fn nearest_first(node: NodeId, distance: fn(NodeId, NodeId) -> u8) -> ArrayVec<NodeId, MAX_NODES> {
    let mut nodes: ArrayVec<NodeId, MAX_NODES> = zone::with_memory().map(|(id, _)| id).collect();
    sort_by_distance(&mut nodes, node, distance);
    nodes
}

fn sort_by_distance(nodes: &mut [NodeId], node: NodeId, distance: impl Fn(NodeId, NodeId) -> u8) {
    let around = |other: NodeId| (other.index() + MAX_NODES - node.index()) % MAX_NODES;
    nodes.sort_unstable_by_key(|&other| (other != node, distance(node, other), around(other)));
}

#[cfg(test)]
#[path = "init_tests.rs"]
mod tests;
