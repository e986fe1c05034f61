//! vmalloc: memory that is contiguous in addresses, page by page from anywhere.
//!
//! An area is one unmapped *guard page* and above it the pages that its owner asked for; so each area is fenced off on both
//! sides, and a stack that grows down out of its area faults.
//!
//! Freeing has three steps, because other CPUs may still hold translations:
//! 1. *retire*: the area is taken from its owner and unmapped in the page tables;
//! 2. it waits, with its frames, on the *lazy* list;
//! 3. *purge*: one shoot-down for all that waits there; only then do frames and addresses go back for reuse.
//!
//! Step 1 needs a spin lock only and so may happen in an interrupt ([`vfree_deferred`]); step 3 waits for all CPUs and needs a
//! thread that may sleep. It is due when the lazy list holds 1/64 of the memory (at least 64 pages, at most 32 MiB), when no
//! range is free, and when memory is short.
//!
//! Invariants:
//! - **VM-1** Entries of the page tables for an area are changed by the one owner of the area only, who is whoever took it
//!   or retired it. The tables need no lock ([`arch::paging`]).
//! - **VM-2** Frames and addresses of an area are reused only after every CPU has dropped its translations of it.
//! - **VM-3** What is freed here was allocated here and not freed before (checked: the area must be found as taken).
//!
//! Lock order: [`VM_LOCK`] > the zone lock, for a page of areas is allocated inside. Nothing is mapped, unmapped or flushed
//! under it.
//!
//! Linux: `mm/vmalloc.c` (6.18). Rows: S2-9, S3-11.

mod range;

use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use arch::paging::{self, MapError, VMALLOC_END, VMALLOC_START};
use arch::{NodeId, PAGE_SIZE, PhysAddr, VirtAddr};
use sync::{ATOMIC, IrqWork, LlistHead, LlistNode, LockClass, MaySleep, SpinIrqGuard, SpinLock, tlb};

use self::range::{Area, Ranges};
use crate::alloc::{alloc_pages, alloc_pages_sleep, free_pages};
use crate::flags::{AllocError, AllocFlags};
use crate::page::{Page, PageKind};
use crate::shrinker::{self, Effort};
use crate::stats;

/// Frames that one page may cost in page tables.
const TABLE_FRAMES: usize = 3;

/// Protects [`VM`]: which addresses are taken, and what waits for a flush. Outside the zone lock. Taken with interrupts off;
/// only tried in NMI.
static VM_LOCK: LockClass = LockClass::new("mm.vmalloc").rank(800);

/// The window and what waits for a flush.
struct Vm {
    ranges: Ranges,
    /// Retired areas, linked by `next`.
    lazy: Option<&'static Area>,
    open: bool,
}

static VM: SpinLock<Vm> = SpinLock::new(Vm { ranges: Ranges::new(), lazy: None, open: false }, &VM_LOCK);

/// Frames of the areas on the lazy list. Written under the lock, read without.
static LAZY_PAGES: AtomicUsize = AtomicUsize::new(0);

/// Areas to be retired: the link lies in the area's own first bytes.
static DEFERRED: LlistHead = LlistHead::new();
/// Retires them.
static RETIRE_WORK: IrqWork = IrqWork::new(|_| retire_deferred());

/// `size` bytes, rounded up to pages, not cleared.
///
/// Context: thread that may sleep. Reclaims before it fails.
///
/// # Errors
/// No memory, or no range of addresses that long; also if `size` is 0.
pub fn vmalloc(size: usize, cx: &mut MaySleep) -> Result<NonNull<u8>, AllocError> {
    vmalloc_with(size, None, AllocFlags::MAY_SLEEP, cx)
}

/// The same, cleared.
///
/// # Errors
/// As [`vmalloc`].
pub fn vzalloc(size: usize, cx: &mut MaySleep) -> Result<NonNull<u8>, AllocError> {
    vmalloc_with(size, None, AllocFlags::MAY_SLEEP | AllocFlags::ZERO, cx)
}

/// The same with a preferred node and flags.
///
/// # Errors
/// As [`vmalloc`].
pub fn vmalloc_with(
    size: usize,
    node: Option<NodeId>,
    flags: AllocFlags,
    cx: &mut MaySleep,
) -> Result<NonNull<u8>, AllocError> {
    cx.assert_may_sleep();
    purge_if_due(cx);
    let pages = size.div_ceil(PAGE_SIZE);
    let frames = Frames::collect(pages, || alloc_pages_sleep(0, node, flags, cx))?;
    map_frames(frames).or_else(|frames| {
        // Addresses may be waiting for a flush, and frames for page tables as well: then once more.
        shrinker::reclaim(Effort::Ask, TABLE_FRAMES, cx);
        map_frames(frames).map_err(free_frames)
    })
}

/// For boot, before there are threads: never waits.
///
/// Context: task, interrupts may be off.
pub(crate) fn vmalloc_boot(size: usize) -> Result<NonNull<u8>, AllocError> {
    let frames = Frames::collect(size.div_ceil(PAGE_SIZE), || alloc_pages(0, None, AllocFlags::NOWAIT))?;
    map_frames(frames).map_err(free_frames)
}

/// Gives an area back. Nobody uses it any more, on any CPU. Its frames and addresses come back into use after the next
/// shoot-down, which many frees share.
///
/// Context: thread that may sleep.
///
/// # Panics
/// If `ptr` was not returned by [`vmalloc`], or was freed before (VM-3).
pub fn vfree(ptr: NonNull<u8>, cx: &mut MaySleep) {
    cx.assert_may_sleep();
    retire(ptr);
    purge_if_due(cx);
}

/// The same from anywhere. The area is retired by an interrupt on this CPU as soon as interrupts are on.
///
/// Context: any, NMI included. Lock-free.
///
/// # Panics
/// Later, in that interrupt, as [`vfree`].
pub fn vfree_deferred(ptr: NonNull<u8>) {
    assert!(is_vmalloc(ptr.as_ptr()), "VM-3: vfree_deferred of {ptr:p}, which is not from vmalloc");
    let link = ptr.cast::<LlistNode>().as_ptr();
    // SAFETY: the area is mapped, writable, page-aligned, and the caller gives it up: its first bytes are ours until it is
    // retired, which happens after the list has yielded it.
    unsafe {
        link.write(LlistNode::new());
        DEFERRED.add(link);
    }
    RETIRE_WORK.queue();
}

/// Whether an address lies in the window of vmalloc.
///
/// Context: any.
#[inline]
pub fn is_vmalloc(ptr: *const u8) -> bool {
    let addr = ptr.addr() as u64;
    (VMALLOC_START.as_u64()..VMALLOC_END.as_u64()).contains(&addr)
}

/// Bytes of the area that begins at `ptr`, rounded up to pages.
///
/// Context: any but NMI. Takes the vmalloc lock.
///
/// # Panics
/// If `ptr` is not the start of an area (VM-3).
pub fn vmalloc_size(ptr: NonNull<u8>) -> usize {
    let area = VM.lock_irqsave(ATOMIC).ranges.find(guard_of(ptr));
    let area = area.unwrap_or_else(|| panic!("VM-3: {ptr:p} is not the start of a vmalloc area"));
    (area.pages() - 1) * PAGE_SIZE
}

/// Whether `addr` lies in the guard page below a live area: then a stack overflowed.
///
/// Context: any. The lock is only tried; `false` if somebody has it.
pub fn is_guard(addr: usize) -> bool {
    if !is_vmalloc(ptr::without_provenance(addr)) {
        return false;
    }
    let page = (addr - VMALLOC_START.as_u64() as usize) / PAGE_SIZE;
    VM.try_lock_irqsave(ATOMIC).is_some_and(|vm| vm.ranges.find(page).is_some())
}

/// Areas in use or waiting for a flush, and their pages, guard pages included.
///
/// Context: any but NMI. Takes the vmalloc lock.
pub fn usage() -> (usize, usize) {
    VM.lock_irqsave(ATOMIC).ranges.taken()
}

/// Flushes what waits: every CPU drops its translations, then frames and addresses are free. How many pages came back.
///
/// Context: thread that may sleep. Waits for all CPUs.
pub fn purge(cx: &mut MaySleep) -> usize {
    cx.assert_may_sleep();
    retire_deferred();
    let mut areas = {
        let mut vm = VM.lock_irqsave(ATOMIC);
        LAZY_PAGES.store(0, Relaxed);
        vm.lazy.take()
    };
    let chain = || core::iter::successors(areas, |area| area.next.get());
    let Some(first) = chain().map(Area::first).min() else { return 0 };
    let end = chain().map(|area| area.first() + area.pages()).max().unwrap_or(first);
    tlb::shoot_down(address_of(first), end - first);

    let mut freed = 0;
    while let Some(area) = areas {
        areas = area.next.get();
        area.next.set(None);
        freed += Frames::of(area).free();
        VM.lock_irqsave(ATOMIC).ranges.release(area);
    }
    freed
}

fn purge_if_due(cx: &mut MaySleep) {
    if LAZY_PAGES.load(Relaxed) > (stats::managed_pages() / 64).clamp(64, 8192) {
        purge(cx);
    }
}

/// Frames of one area, linked through their descriptors.
struct Frames {
    first: Option<&'static Page>,
    count: usize,
}

impl Frames {
    /// `count` frames from `next`; if it fails, the ones it gave before are freed.
    fn collect(count: usize, mut next: impl FnMut() -> Result<&'static Page, AllocError>) -> Result<Self, AllocError> {
        if count == 0 || count >= window_pages() {
            return Err(AllocError);
        }
        let mut frames = Self { first: None, count: 0 };
        while frames.count < count {
            match next() {
                Ok(page) => {
                    page.set_kind(PageKind::Vmalloc);
                    page.set_next(frames.first);
                    frames.first = Some(page);
                    frames.count += 1;
                }
                Err(error) => {
                    frames.free();
                    return Err(error);
                }
            }
        }
        Ok(frames)
    }

    /// Those of a retired area.
    fn of(area: &'static Area) -> Self {
        // SAFETY: null or a descriptor, stored by `map_frames`.
        let first = unsafe { area.frames.swap(ptr::null_mut(), Relaxed).as_ref() };
        Self { first, count: area.pages() - 1 }
    }

    fn iter(&self) -> impl Iterator<Item = &'static Page> + use<> {
        core::iter::successors(self.first, |page| page.next())
    }

    /// Gives them back; how many there were.
    fn free(self) -> usize {
        let mut at = self.first;
        let mut count = 0;
        while let Some(page) = at {
            at = page.next();
            free_pages(page, 0);
            count += 1;
        }
        count
    }
}

fn free_frames(frames: Frames) -> AllocError {
    frames.free();
    AllocError
}

/// Takes a range for the frames and maps them. On failure the frames come back.
fn map_frames(frames: Frames) -> Result<NonNull<u8>, Frames> {
    let Some(area) = lock_with_spare().and_then(|mut vm| vm.ranges.take(frames.count + 1)) else {
        return Err(frames);
    };
    area.frames.store(frames.first.map_or(ptr::null_mut(), |page| ptr::from_ref(page).cast_mut()), Relaxed);
    let start = address_of(area.first() + 1);
    for (index, page) in frames.iter().enumerate() {
        let addr = start + (index * PAGE_SIZE) as u64;
        // SAFETY: the range is ours (VM-1), nothing is mapped there (VM-2), and the frame belongs to the area.
        match unsafe { paging::map(addr, page.phys(), paging::Flags::WRITE, &mut table_frame) } {
            Ok(()) => {}
            Err(MapError::NoMemory) => {
                // The area goes the way of all others (VM-2), but its frames were never reached through it.
                area.frames.store(ptr::null_mut(), Relaxed);
                let left = VM.lock_irqsave(ATOMIC).ranges.leave(area.first());
                debug_assert!(left.is_some(), "RANGE-3: the area was just taken");
                take_down(area, index);
                put_lazy(area);
                return Err(frames);
            }
            Err(error) => panic!("VM-2: {addr:?} cannot be mapped: {error:?}"),
        }
    }
    NonNull::new(ptr::with_exposed_provenance_mut(start.as_u64() as usize)).ok_or(frames)
}

/// A frame for a page table.
fn table_frame() -> Option<PhysAddr> {
    let page = alloc_pages(0, None, AllocFlags::NOWARN).ok()?;
    page.set_kind(PageKind::Table);
    Some(page.phys())
}

/// Takes an area from its owner and unmaps it (step 1).
///
/// Context: any but NMI.
fn retire(ptr: NonNull<u8>) {
    let area = VM.lock_irqsave(ATOMIC).ranges.leave(guard_of(ptr));
    let area = area.unwrap_or_else(|| panic!("VM-3: {ptr:p} is freed, but is not the start of a vmalloc area"));
    take_down(area, area.pages() - 1);
    put_lazy(area);
}

/// Leaves an unmapped area for the next flush (step 2).
fn put_lazy(area: &'static Area) {
    let mut vm = VM.lock_irqsave(ATOMIC);
    area.next.set(vm.lazy);
    vm.lazy = Some(area);
    LAZY_PAGES.fetch_add(area.pages() - 1, Relaxed);
}

/// Unmaps the first `count` pages of an area.
fn take_down(area: &'static Area, count: usize) {
    let start = address_of(area.first() + 1);
    for index in 0..count {
        let addr = start + (index * PAGE_SIZE) as u64;
        // SAFETY: nobody uses the area any more, and we own it (VM-1); its frames wait for the flush (VM-2).
        let unmapped = unsafe { paging::unmap(addr) };
        debug_assert!(unmapped.is_some(), "VM-1: {addr:?} was not mapped");
    }
}

/// Retires what [`vfree_deferred`] left.
///
/// Context: any but NMI.
fn retire_deferred() {
    for link in DEFERRED.take_all() {
        if let Some(ptr) = NonNull::new(link.cast::<u8>()) {
            retire(ptr);
        }
    }
}

/// The lock, with the window open and a spare area at hand; none if there is no memory for areas.
fn lock_with_spare() -> Option<SpinIrqGuard<'static, Vm>> {
    let mut vm = VM.lock_irqsave(ATOMIC);
    while !vm.ranges.has_spare() || !vm.open {
        if !vm.ranges.has_spare() {
            let page = alloc_pages(0, None, AllocFlags::NOWARN).ok()?;
            for area in areas_in(page) {
                vm.ranges.add_spare(area);
            }
        }
        if !vm.open {
            vm.open = true;
            vm.ranges.open(window_pages());
        }
    }
    Some(vm)
}

/// Makes a page a store of areas, for ever.
fn areas_in(page: &'static Page) -> &'static [Area] {
    const COUNT: usize = PAGE_SIZE / size_of::<Area>();
    let areas = page.virt().cast::<MaybeUninit<Area>>();
    // SAFETY: the page is ours and never freed; it is aligned and large enough.
    let areas = unsafe { core::slice::from_raw_parts_mut(areas, COUNT) };
    for area in &mut *areas {
        area.write(Area::new());
    }
    // SAFETY: all were written above.
    unsafe { core::slice::from_raw_parts(areas.as_ptr().cast::<Area>(), COUNT) }
}

fn window_pages() -> usize {
    (VMALLOC_END - VMALLOC_START) as usize / PAGE_SIZE
}

fn address_of(page: usize) -> VirtAddr {
    VMALLOC_START + (page * PAGE_SIZE) as u64
}

/// The number of the guard page of the area whose memory begins at `ptr`.
fn guard_of(ptr: NonNull<u8>) -> usize {
    let addr = ptr.as_ptr().addr();
    assert!(
        is_vmalloc(ptr.as_ptr()) && addr.is_multiple_of(PAGE_SIZE) && addr as u64 != VMALLOC_START.as_u64(),
        "VM-3: {ptr:p} is not the start of a vmalloc area"
    );
    (addr - VMALLOC_START.as_u64() as usize) / PAGE_SIZE - 1
}
