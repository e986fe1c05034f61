//! Hardening: what makes a slab harder to abuse, and mistakes with it harder to miss (M-21). All of it is off unless the
//! command line or [`Layout::harden`](crate::Layout::harden) asks for it.
//!
//! | | switch | what |
//! |---|---|---|
//! | [`HIDE_LINKS`](Harden::HIDE_LINKS) | `slab_harden=ptr` | freelist links are kept xor'ed with a number of the cache and their own address, bytes reversed; an object that is freed twice in a row is noticed |
//! | [`SHUFFLE`](Harden::SHUFFLE) | `slab_harden=random` | a new slab's objects are handed out in random order |
//! | [`ZERO_ON_ALLOC`](Harden::ZERO_ON_ALLOC) | `init_on_alloc=1` | objects come zeroed |
//! | [`ZERO_ON_FREE`](Harden::ZERO_ON_FREE) | `init_on_free=1` | objects are wiped when they are freed |
//!
//! The first two cost where slabs are touched, which sheaves make rare. The other two must see each object each time, so
//! such caches have no sheaves, and the fast paths of others know nothing of it. Objects with a constructor, of
//! TYPESAFE_BY_RCU, and poisoned ones keep their content, and their caches the sheaves.
//!
//! The order of a new slab is a random cycle through all of its objects (Sattolo's algorithm), made in the links themselves and
//! then cut at a random place: each order is equally likely, and nothing needs memory. The numbers come from the clock's
//! cycles; in a deterministic run they are the same each time.
//!
//! Linux: `CONFIG_SLAB_FREELIST_HARDENED`, `CONFIG_SLAB_FREELIST_RANDOM`, `init_on_alloc=`, `init_on_free=` (`mm/slub.c`, 7.x).

use core::ptr::{self, NonNull};

use bitflags::bitflags;
use sync::Rng;

use crate::cache::{CacheFlags, Layout, RawCache};
use crate::debug::DebugFlags;
use crate::slab_ref::SlabRef;

bitflags! {
    /// What is done for a cache; see the [module](self).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Harden: u8 {
        /// Links cannot be read or forged, and the naive double free is noticed.
        const HIDE_LINKS = 1 << 0;
        /// New slabs are handed out in random order.
        const SHUFFLE = 1 << 1;
        /// Objects come zeroed.
        const ZERO_ON_ALLOC = 1 << 2;
        /// Objects are wiped when freed.
        const ZERO_ON_FREE = 1 << 3;
    }
}

sync::param! {
    /// How freelists are hardened: "ptr" hides their links, "random" shuffles new slabs; alone it means both.
    static SLAB_HARDEN: str = "slab_harden", default "-", if |text| parse(text).is_some(), form "ptr, random, ptr,random or -";
}
sync::param! {
    /// Has every object zeroed when it is allocated; takes the sheaves away.
    static INIT_ON_ALLOC: bool = "init_on_alloc", default false;
}
sync::param! {
    /// Has every object wiped when it is freed; takes the sheaves away.
    static INIT_ON_FREE: bool = "init_on_free", default false;
}

impl Harden {
    /// Those that touch content.
    const ZERO: Self = Self::ZERO_ON_ALLOC.union(Self::ZERO_ON_FREE);
}

fn parse(text: &str) -> Option<Harden> {
    let links = Harden::HIDE_LINKS | Harden::SHUFFLE;
    match text {
        "" => Some(links),
        "-" => Some(Harden::empty()),
        _ => text.split(',').try_fold(Harden::empty(), |all, word| match word {
            "ptr" => Some(all | Harden::HIDE_LINKS),
            "random" => Some(all | Harden::SHUFFLE),
            _ => None,
        }),
    }
}

/// How a cache is hardened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hardening {
    flags: Harden,
    /// What links are hidden with; 0 for plain ones.
    key: usize,
}

impl Hardening {
    /// What the layout and the command line say, as far as the objects' content may be touched.
    pub(crate) fn choose(layout: &Layout, debug: DebugFlags) -> Self {
        let mut flags = layout.harden | parse(SLAB_HARDEN.get()).unwrap_or(Harden::empty());
        flags.set(Harden::ZERO_ON_ALLOC, flags.contains(Harden::ZERO_ON_ALLOC) || INIT_ON_ALLOC.get());
        flags.set(Harden::ZERO_ON_FREE, flags.contains(Harden::ZERO_ON_FREE) || INIT_ON_FREE.get());
        if layout.ctor.is_some()
            || layout.flags.contains(CacheFlags::TYPESAFE_BY_RCU)
            || debug.contains(DebugFlags::POISON)
        {
            flags -= Harden::ZERO;
        }
        let key = if flags.contains(Harden::HIDE_LINKS) { random(layout.name.as_ptr().addr()) as usize | 1 } else { 0 };
        Self { flags, key }
    }

    /// Whether each object must come by its slab.
    pub(crate) fn sees_each_object(self) -> bool {
        self.flags.intersects(Harden::ZERO)
    }

    /// A link as it lies at `place`, or the link that lies there so: each is the other's inverse.
    #[inline]
    pub(crate) fn hide(self, place: *mut *mut u8, link: *mut u8) -> *mut u8 {
        if self.key == 0 {
            return link;
        }
        link.map_addr(|address| address ^ self.key ^ place.addr().swap_bytes())
    }
}

/// A random number; not for secrets.
fn random(salt: usize) -> u64 {
    Rng::stream(arch::clock::cycles(), salt as u64).next_u64()
}

impl RawCache {
    /// How the cache is hardened; constant.
    pub fn harden(&self) -> Harden {
        self.hardening().flags
    }

    /// Links all objects of a new slab. Returns the first.
    pub(crate) fn link_all(&self, slab: SlabRef, total: usize) -> *mut u8 {
        if self.harden().contains(Harden::SHUFFLE) {
            return self.link_shuffled(slab, total);
        }
        let mut next = ptr::null_mut();
        for index in (0..total).rev() {
            let object = slab.object(index);
            self.set_link(object, next);
            next = object.as_ptr();
        }
        next
    }

    fn link_shuffled(&self, slab: SlabRef, total: usize) -> *mut u8 {
        let mut rng = Rng::new(random(slab.base().addr()));
        // Until they are links, each slot holds the index of the object that follows.
        let slot = |index: usize| self.link_place(slab.object(index)).cast::<usize>();
        // SAFETY: the links of objects of a slab that nobody else knows, all of them written before they are read.
        unsafe {
            for index in 0..total {
                slot(index).write(index);
            }
            for index in (1..total).rev() {
                slot(index).swap(slot(rng.index(index)));
            }
            let last = rng.index(total);
            let first = slot(last).read();
            let mut index = first;
            while index != last {
                let next = slot(index).read();
                self.set_link(slab.object(index), slab.object(next).as_ptr());
                index = next;
            }
            self.set_link(slab.object(last), ptr::null_mut());
            slab.object(first).as_ptr()
        }
    }

    /// What is done to an object that leaves its slab.
    #[inline]
    pub(crate) fn prepare(&self, object: NonNull<u8>) {
        if !self.hardening().sees_each_object() {
            return;
        }
        if self.harden().contains(Harden::ZERO_ON_ALLOC) {
            self.wipe(object);
        } else if self.link_offset() < self.object_size() {
            // It was wiped when it was freed, but for the link that it held since.
            // SAFETY: the link lies inside the object, which is the caller's.
            unsafe { self.link_place(object).write(ptr::null_mut()) };
        }
    }

    /// What is done to an object that comes back to its slab.
    #[inline]
    pub(crate) fn wipe_freed(&self, object: NonNull<u8>) {
        if self.harden().contains(Harden::ZERO_ON_FREE) {
            self.wipe(object);
        }
    }

    fn wipe(&self, object: NonNull<u8>) {
        // SAFETY: an object of so many bytes, on its way between slab and user: nobody else knows it.
        unsafe { object.write_bytes(0, self.object_size()) };
    }

    /// Whether `object` is the one that was freed to its slab last, which is looked at where links are hidden.
    #[inline]
    pub(crate) fn is_freed_again(&self, object: NonNull<u8>, freelist: *mut u8) -> bool {
        object.as_ptr() == freelist && self.harden().contains(Harden::HIDE_LINKS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_switch_takes_words_in_any_order_and_refuses_others() {
        let both = Harden::HIDE_LINKS | Harden::SHUFFLE;
        for (text, flags) in [
            ("-", Some(Harden::empty())),
            ("", Some(both)),
            ("ptr", Some(Harden::HIDE_LINKS)),
            ("random,ptr", Some(both)),
            ("ptr,", None),
            ("pointer", None),
            ("-,ptr", None),
        ] {
            assert_eq!(parse(text), flags, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_hidden_link_is_another_at_each_place_and_can_be_read_at_its_own(key: usize, place: usize, link: usize) {
            let hardening = Hardening { flags: Harden::HIDE_LINKS, key: key | 1 };
            let (at, link) = (ptr::without_provenance_mut(place), ptr::without_provenance_mut(link));
            let hidden = hardening.hide(at, link);
            prop_assert_eq!(hardening.hide(at, hidden), link);
            prop_assert_ne!(hardening.hide(at.wrapping_byte_add(8), hidden), link);
        }
    }
}
