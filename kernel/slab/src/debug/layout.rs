//! Where the parts of an object of a debug cache lie. Pure arithmetic.
//!
//! ```text
//!      left     0        object_size  red_end                                               end      size
//!        +------+--------------+---------+------+----------+----------+-------+------+-------+---------+
//!        | red  |    object    |   red   | link | deferral | callback | alloc | free | asked | padding |
//!        +------+--------------+---------+------+----------+----------+-------+------+-------+---------+
//! with     Z                       Z        *        *          R         U      U       U        P
//! ```
//!
//! Everything but the left red zone is given by its offset from the object. The freelist link and the word of the
//! deferral (`*`) are always there, outside what the user may write, so that a write after free does not become the
//! head of a freelist. The callback (`R`) is there in type-safe caches. Bytes that no letter claims are padding, 0x5a with `P`, and left alone without.
//!
//! Answers to `calculate_sizes` and the comment above `check_bytes_and_report` in Linux `mm/slub.c` (7.x); the deferral
//! word has no counterpart there.

use sync::CallbackHead;

use super::DebugFlags;
use super::track::Track;

const WORD: usize = size_of::<usize>();

/// Offsets of a debug cache's objects; see the [module](self).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Parts {
    /// Bytes of the left red zone: where the object begins in its place.
    pub(crate) left: usize,
    /// Where the right red zone ends; it begins where the object ends.
    pub(crate) red_end: usize,
    /// The freelist link.
    pub(crate) link: usize,
    /// The word that says whether the object is on a deferred list.
    pub(crate) deferral: usize,
    /// The callback that ends the free of an object of a type-safe cache.
    pub(crate) callback: Option<usize>,
    /// The track of the allocation; that of the free follows.
    pub(crate) tracks: Option<usize>,
    /// The size that was asked for.
    pub(crate) asked: Option<usize>,
    /// Where padding begins.
    pub(crate) end: usize,
    /// Bytes from one object to the next.
    pub(crate) size: usize,
}

/// What a cache is, as far as the layout of its objects goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Kind {
    /// Its users ask for less than an object, as those of `kmalloc` do.
    pub(crate) sized: bool,
    /// Its objects wait for a grace period when they are freed.
    pub(crate) typesafe: bool,
}

/// The parts of objects of `object_size` bytes.
pub(crate) fn parts(object_size: usize, align: usize, kind: Kind, flags: DebugFlags) -> Parts {
    let red = flags.contains(DebugFlags::RED_ZONE);
    let left = if red { WORD.next_multiple_of(align) } else { 0 };
    let red_end = (object_size + usize::from(red)).next_multiple_of(WORD);
    let mut end = red_end;
    let mut take = |bytes: usize| {
        end += bytes;
        end - bytes
    };
    let (link, deferral) = (take(WORD), take(WORD));
    let callback = kind.typesafe.then(|| take(size_of::<CallbackHead>()));
    let user = flags.contains(DebugFlags::STORE_USER);
    let tracks = user.then(|| take(2 * size_of::<Track>()));
    let asked = (user && kind.sized).then(|| take(WORD));
    Parts { left, red_end, link, deferral, callback, tracks, asked, end, size: (left + end).next_multiple_of(align) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: DebugFlags = DebugFlags::all();

    #[test]
    fn parts_do_not_overlap_and_keep_the_alignment() {
        for object_size in 1..300 {
            for align in [8, 16, 64, 4096] {
                for bits in 0..2 * (ALL.bits() + 1) {
                    let flags = DebugFlags::from_bits_truncate(bits);
                    let kind = Kind { sized: true, typesafe: bits > ALL.bits() };
                    let parts = parts(object_size, align, kind, flags);
                    let mut ends = std::vec![parts.red_end, parts.link + WORD, parts.deferral + WORD];
                    let mut starts = std::vec![parts.link, parts.deferral];
                    if let Some(callback) = parts.callback {
                        starts.push(callback);
                        ends.push(callback + size_of::<CallbackHead>());
                    }
                    if let Some(tracks) = parts.tracks {
                        starts.push(tracks);
                        ends.push(tracks + 2 * size_of::<Track>());
                    }
                    if let Some(asked) = parts.asked {
                        starts.push(asked);
                        ends.push(asked + WORD);
                    }
                    starts.push(parts.end);
                    assert_eq!(starts, ends, "each part begins where the one before ends");
                    assert!(starts.iter().all(|start| start.is_multiple_of(WORD)));
                    assert!(parts.left.is_multiple_of(align) && parts.size.is_multiple_of(align));
                    assert!(parts.left + parts.end <= parts.size);
                }
            }
        }
    }

    #[test]
    fn with_red_zones_every_object_has_one_on_both_sides() {
        for object_size in 1..100 {
            let kind = Kind { sized: false, typesafe: false };
            let red = parts(object_size, 8, kind, DebugFlags::RED_ZONE);
            assert!(red.left >= 8 && red.red_end > object_size);
            let none = parts(object_size, 8, kind, DebugFlags::CONSISTENCY);
            assert!(none.left == 0 && none.red_end - object_size < 8);
        }
    }
}
