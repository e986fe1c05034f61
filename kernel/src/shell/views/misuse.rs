//! Mistakes with objects, to see what is reported: `misuse`.
//!
//! Each is made with objects of a debug cache of its own (`slab_debug=FZPU`, whatever the command line says), so the report
//! is what a real mistake would give, the kernel goes on, and nobody else's memory is touched. Kinds are named as in
//! Linux's LKDTM (`drivers/misc/lkdtm/heap.c`), in lower case, where it has them.

use alloc::format;
use core::ptr::NonNull;

use ::mm::AllocFlags;
use ::slab::{CacheFlags, DebugFlags, Layout, RawCache, debug};
use ::sync::Once;

use crate::console;
use crate::shell::{Complaint, Session, command};

command!(
    misuse,
    "KIND",
    "makes a mistake with an object of a debug cache: see the report; `misuse list` has the kinds",
    misuse
);

/// Bytes of an object.
const SIZE: usize = 64;

/// A mistake.
struct Kind {
    name: &'static str,
    what: &'static str,
    make: fn(&RawCache, NonNull<u8>),
}

const KINDS: &[Kind] = &[
    Kind { name: "slab_linear_overflow", what: "a write behind the end of an object", make: linear_overflow },
    Kind { name: "slab_underflow", what: "a write before its start", make: underflow },
    Kind { name: "write_after_free", what: "a write to an object that was freed", make: write_after_free },
    Kind { name: "slab_free_double", what: "an object is freed twice", make: free_double },
    Kind { name: "slab_free_cross", what: "an object is freed to another cache", make: free_cross },
    Kind { name: "slab_free_middle", what: "what is freed points into the middle of an object", make: free_middle },
];

/// The cache that is misused. It stays: a slab that was damaged is never given back.
fn victim() -> Option<&'static RawCache> {
    static CACHE: Once<Option<&'static RawCache>> = Once::new();
    *CACHE.call_once(|| {
        let checks = DebugFlags::CONSISTENCY | DebugFlags::RED_ZONE | DebugFlags::POISON | DebugFlags::STORE_USER;
        ::slab::create(Layout::new("misused", SIZE).debug(checks).flags(CacheFlags::NO_MERGE)).ok()
    })
}

fn misuse(_: &mut Session<'_>, arguments: &[&str]) -> Result<(), Complaint> {
    let [typed] = arguments else { unreachable!("checked against the declaration") };
    if *typed == "list" {
        KINDS.iter().for_each(|kind| console::print(&format!("{:<22} {}\n", kind.name, kind.what)));
        return Ok(());
    }
    let kind = KINDS.iter().find(|kind| kind.name == *typed).ok_or_else(|| {
        let names: alloc::vec::Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
        Complaint::new(format_args!("`{typed}` is no KIND; allowed: list, {}", names.join(", ")))
    })?;
    let before = debug::reports();
    let object = victim().and_then(|cache| cache.alloc(AllocFlags::NOWARN).map(|object| (cache, object)));
    let (cache, object) = object.ok_or_else(|| Complaint::new(format_args!("there is no memory for an object")))?;
    (kind.make)(cache, object);
    // Damage to a free object is seen when it is handed out again, or now.
    _ = cache.validate();
    let reports = debug::reports() - before;
    let plural = if reports == 1 { "" } else { "s" };
    console::print(&format!("{reports} report{plural}; the kernel goes on\n"));
    Ok(())
}

fn write(object: NonNull<u8>, offset: isize) {
    // SAFETY: one byte of the metadata around an object of `victim`, or of an object that nobody has: damage, and meant to
    // be. Nothing but the checks of a debug cache reads it.
    unsafe { object.as_ptr().offset(offset).write_volatile(0x41) };
}

fn free(cache: &RawCache, object: NonNull<u8>) {
    // SAFETY: right, or a mistake that a debug cache notices and does nothing about but report it.
    unsafe { cache.free(object) };
}

#[inline(never)]
fn linear_overflow(cache: &RawCache, object: NonNull<u8>) {
    write(object, SIZE as isize);
    free(cache, object);
}

#[inline(never)]
fn underflow(cache: &RawCache, object: NonNull<u8>) {
    write(object, -1);
    free(cache, object);
}

#[inline(never)]
fn write_after_free(cache: &RawCache, object: NonNull<u8>) {
    free(cache, object);
    write(object, 5);
}

#[inline(never)]
fn free_double(cache: &RawCache, object: NonNull<u8>) {
    free(cache, object);
    free(cache, object);
}

#[inline(never)]
fn free_cross(cache: &RawCache, object: NonNull<u8>) {
    if let Some(other) = ::slab::registry::find("kmem_cache") {
        free(other, object);
    }
    free(cache, object);
}

#[inline(never)]
fn free_middle(cache: &RawCache, object: NonNull<u8>) {
    // SAFETY: inside the object.
    free(cache, unsafe { object.add(SIZE / 2) });
    free(cache, object);
}
