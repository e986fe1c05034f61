//! [`CallbackHead`]: two words that make any object a link in a list of functions to be called.
//!
//! It lives in this storey so that every later one can embed it: `call_rcu` queues it, the
//! segmented callback lists link it, and the object around it needs no other memory. It answers
//! to `struct callback_head`, also named `rcu_head` (Linux 6.12, include/linux/types.h; rows ).
//!
//! # Invariants
//!
//! - `CB-1` Whoever owns the head owns `next` and `func`: the submitter before it is queued, the
//!   queue until the call, the function from the call on.
//! - `CB-2` The head is 16 bytes, pointer-aligned, `next` first: a free object of 16 bytes has room.

use core::ptr;

use crate::atomic::AtomicPtr;

/// The function of a callback; it gets back the head it was queued with.
pub type CallbackFn = unsafe fn(*mut CallbackHead);

/// A queued function call without memory of its own; embedded in the object it is about.
#[repr(C)]
#[derive(Debug)]
pub struct CallbackHead {
    /// The next head in whatever list this one is on; written by the list's owner only, atomic so
    /// that a lock-less list may link the same word.
    pub next: AtomicPtr<CallbackHead>,
    /// What to call; `None` until queued. Written by the submitter before it is queued.
    pub func: Option<CallbackFn>,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<CallbackHead>() == 16 && align_of::<CallbackHead>() == 8);

impl CallbackHead {
    crate::const_unless_loom! {
        /// A head that is on no list.
        #[must_use]
        pub fn new() -> Self {
            Self { next: AtomicPtr::new(ptr::null_mut()), func: None }
        }
    }
}

impl Default for CallbackHead {
    fn default() -> Self {
        Self::new()
    }
}
