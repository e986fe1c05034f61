//! Heads: what an object spends on being freed after a grace period.
//!
//! | head | bytes | the object may be given to |
//! |---|---|---|
//! | none | 0 | [`kfree_rcu_mightsleep`](crate::kfree_rcu_mightsleep) |
//! | [`RcuPtr`] | 8 | that and all of [`kfree_rcu`](crate::kfree_rcu), [`kfree_rcu_nolock`](crate::kfree_rcu_nolock), [`kfree_srcu`](crate::kfree_srcu) |
//! | [`CallbackHead`] | 16 | these and `call_rcu`, which needs the room for a function |
//!
//! The small one is a link and no function (S1-1): what is to be done is always "free the object", and the object's start is
//! found from the head's address alone (S1-2): by index in a slab, as the first byte of a large block or of a vmalloc area.
//!
//! A type whose objects go to `call_rcu` as well keeps the large one (S1-3); its first word serves as the small one. In Linux a
//! type for both `kfree_rcu` and `kfree_rcu_nolock` has a union of the two heads, because their lists differ. Here every list
//! that an object may wait on is linked by the same word, so either head does. A union is of use where an owner's field, that no
//! reader looks at, lends its place to the head:
//!
//! ```no_run
//! use core::mem::ManuallyDrop;
//! use grange_kfree_rcu::{RcuPtr, has_rcu_ptr};
//!
//! union Tail {
//!     /// While the owner has the entry.
//!     last_used: u64,
//!     /// From when it is given up.
//!     rcu: ManuallyDrop<RcuPtr>,
//! }
//!
//! struct Entry { key: u64, tail: Tail }
//! has_rcu_ptr!(Entry, tail.rcu);
//! const _: () = assert!(size_of::<Entry>() == 16);
//! ```
//!
//! An object with the small head is nothing for `call_rcu`:
//!
//! ```compile_fail,E0308
//! # use grange_kfree_rcu::RcuPtr;
//! fn f(head: *mut RcuPtr) {
//!     unsafe { rcu::call_rcu(head, |_| {}) };
//! }
//! ```

use core::mem::ManuallyDrop;
use core::ptr::NonNull;

use sync::{CallbackHead, LlistNode, bug};

use crate::backend::Head;

/// Head of an object that is given to [`kfree_rcu`](crate::kfree_rcu), embedded anywhere in its first 4096 bytes.
///
/// Holds nothing while the object lives. Of the 16 bytes of a `CallbackHead` it saves 8 in every object (D-13).
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct RcuPtr(LlistNode);

const _: () = assert!(size_of::<RcuPtr>() == 8);

/// A head may lie at most this far into its object: the start of a large block is found by its first page (S1-2).
pub const MAX_OFFSET: usize = arch::PAGE_SIZE;

impl RcuPtr {
    /// A head at rest.
    #[must_use]
    pub const fn new() -> Self {
        Self(LlistNode::new())
    }

    /// The first word of a 16-byte head, as which it is taken wherever this one is.
    #[must_use]
    pub const fn in_callback(head: NonNull<CallbackHead>) -> NonNull<RcuPtr> {
        const { assert!(core::mem::offset_of!(CallbackHead, next) == 0) };
        head.cast()
    }

    pub(crate) fn node(head: NonNull<RcuPtr>) -> NonNull<LlistNode> {
        head.cast()
    }

    pub(crate) fn from_node(node: NonNull<LlistNode>) -> NonNull<RcuPtr> {
        node.cast()
    }

    /// The link word as a plain pointer, for lists that one owner walks.
    ///
    /// # Safety
    /// The object was given up, and the caller owns its head.
    pub(crate) unsafe fn next(head: NonNull<RcuPtr>) -> Option<NonNull<RcuPtr>> {
        // SAFETY: the caller owns the head; a link is one pointer.
        NonNull::new(unsafe { head.cast::<*mut RcuPtr>().read() })
    }

    /// Sets the link word.
    ///
    /// # Safety
    /// As for [`next`](Self::next).
    pub(crate) unsafe fn set_next(head: NonNull<RcuPtr>, next: Option<NonNull<RcuPtr>>) {
        // SAFETY: the caller owns the head; a link is one pointer.
        unsafe { head.cast::<*mut RcuPtr>().write(next.map_or(core::ptr::null_mut(), NonNull::as_ptr)) };
    }
}

/// What may be named as an object's head: [`RcuPtr`], [`CallbackHead`], or either in a union. Nobody who only looks at an object
/// writes its head.
///
/// # Safety
/// It begins with a word that is a link to whoever has the object.
pub unsafe trait Named {
    /// Whether it has room for a callback.
    const LARGE: bool;
}

// SAFETY: it is that word.
unsafe impl Named for RcuPtr {
    const LARGE: bool = false;
}
// SAFETY: `next` is its first word (CB-2).
unsafe impl Named for CallbackHead {
    const LARGE: bool = true;
}
// SAFETY: of the same layout as what is in it.
unsafe impl<H: Named> Named for ManuallyDrop<H> {
    const LARGE: bool = H::LARGE;
}

/// For the macro: of which kind the field is that this leads to.
#[doc(hidden)]
pub const fn is_large<T, H: Named>(_: fn(*const T) -> *const H) -> bool {
    H::LARGE
}

/// An object that carries a head.
///
/// Implement it with [`has_rcu_ptr!`](crate::has_rcu_ptr).
///
/// # Safety
/// `OFFSET` is where in `Self` a head lies, a [`CallbackHead`] if `LARGE`, and is below [`MAX_OFFSET`].
pub unsafe trait HasRcuPtr {
    /// Bytes from the start of the object to its head.
    const OFFSET: usize;
    /// Whether the head is one of 16 bytes.
    const LARGE: bool;
}

/// The head of `object`.
///
/// # Safety
/// `object` is one of that type.
pub(crate) unsafe fn head_of<T: HasRcuPtr>(object: NonNull<T>) -> Head {
    // SAFETY: the trait says that a head lies at this offset of the caller's object.
    let head = unsafe { object.byte_add(T::OFFSET) };
    if T::LARGE { Head::Callback(head.cast()) } else { Head::Link(head.cast()) }
}

/// Says which field of a type is its head: `has_rcu_ptr!(Node, rcu);`, or, in a union that is a field, `has_rcu_ptr!(Node, tail.rcu);`
///
/// The field may be of either kind. One that is no head is refused, and so is one too far behind the start
/// (tests/ui/a_head_out_of_reach.rs).
#[macro_export]
macro_rules! has_rcu_ptr {
    ($type:ty, $($field:ident).+) => {
        // SAFETY: the offset is that of the field, whose type is checked below, and is checked against the limit.
        unsafe impl $crate::HasRcuPtr for $type {
            const OFFSET: usize = ::core::mem::offset_of!($type, $($field).+);
            // SAFETY: nothing is read; and never called.
            const LARGE: bool = $crate::head::is_large(|object: *const $type| unsafe { &raw const (*object).$($field).+ });
        }
        const _: () = assert!(
            <$type as $crate::HasRcuPtr>::OFFSET < $crate::MAX_OFFSET,
            "the head must lie in the first 4096 bytes of the object"
        );
    };
}

/// The start of the object whose head is `head`; nothing if it is no object of ours.
pub(crate) fn object_of(head: NonNull<RcuPtr>) -> Option<NonNull<u8>> {
    let address = head.cast::<u8>();
    if mm::is_vmalloc(address.as_ptr()) {
        // An area begins with a page, and the head lies in the first one.
        return NonNull::new(address.as_ptr().map_addr(|at| at & !(arch::PAGE_SIZE - 1)));
    }
    if bug!("kfree_rcu.head_is_start", "an object begins where its head lies", "kfree_rcu_front.*anywhere*") {
        return Some(address);
    }
    slab::object_of(address)
}
