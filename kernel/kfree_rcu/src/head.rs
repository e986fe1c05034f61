//! [`RcuPtr`]: the eight bytes that an object spends on being freed after a grace period.
//!
//! One link and no function (S1-1): what is to be done is always "free the object", and the object's start is found from
//! the head's address alone (S1-2): by index in a slab, as the first byte of a large block or of a vmalloc area.

use core::ptr::NonNull;

use sync::LlistNode;

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

/// An object that carries an [`RcuPtr`].
///
/// Implement it with [`has_rcu_ptr!`](crate::has_rcu_ptr).
///
/// # Safety
/// `OFFSET` is where in `Self` an `RcuPtr` lies, and is below [`MAX_OFFSET`].
pub unsafe trait HasRcuPtr {
    /// Bytes from the start of the object to its head.
    const OFFSET: usize;
}

/// Says which field of a type is its [`RcuPtr`]: `has_rcu_ptr!(Node, rcu);`
#[macro_export]
macro_rules! has_rcu_ptr {
    ($type:ty, $field:ident) => {
        // SAFETY: the offset is that of the field, whose type is checked below, and is checked against the limit.
        unsafe impl $crate::HasRcuPtr for $type {
            const OFFSET: usize = {
                let offset = ::core::mem::offset_of!($type, $field);
                assert!(offset < $crate::MAX_OFFSET, "the head must lie in the first 4096 bytes of the object");
                offset
            };
        }
        const _: fn(&$type) -> &$crate::RcuPtr = |object| &object.$field;
    };
}

/// The start of the object whose head is `head`; nothing if it is no object of ours.
pub(crate) fn object_of(head: NonNull<RcuPtr>) -> Option<NonNull<u8>> {
    let address = head.cast::<u8>();
    if mm::is_vmalloc(address.as_ptr()) {
        // An area begins with a page, and the head lies in the first one.
        return NonNull::new(address.as_ptr().map_addr(|at| at & !(arch::PAGE_SIZE - 1)));
    }
    slab::object_of(address)
}
