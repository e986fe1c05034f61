//! Values on the heap that readers may be using, by what may be done with them.
//!
//! | type | the value is | ways out |
//! |---|---|---|
//! | [`RcuBox`] | not published: the owner's alone | published, by [`Rcu`](crate::Rcu), [`RcuList`](crate::RcuList), [`RcuHashMap`](crate::RcuHashMap) |
//! | [`Retired`] | out of reach; readers from before may be using it | a grace period by callback, by waiting, or polled |
//! | [`Polled`] | the same, and a grace period was asked for | the box again once that is over |
//!
//! Each is moved into the next, so a value cannot be freed, changed or published again while a reader may look at it.
//! None of the steps allocates: the head lies in front of the value. There are two kinds:
//!
//! | made by | in front of the value | retired |
//! |---|---|---|
//! | [`RcuBox::new`] | 16 bytes, a [`CallbackHead`] | by a callback, which drops the value |
//! | [`RcuBox::try_new_in`] a [`Memory`] | 8 bytes, a link | in a batch with others, as memory: for values without destructor |
//!
//! What holds boxes does not care. The last word in front of the value tells the kinds apart while the value lives, when neither a
//! callback nor a link is needed: it is null, or names the memory.
//!
//! Invariants
//! - BOX-1: a published box is reachable through [`Link`](crate::link::Link)s alone, and `value` is not written.
//! - BOX-2: whoever makes a [`Retired`] has put the box out of reach of new readers, and gives it away.
//!   [`Retired::give_back`] is called after a grace period that began later.
//! - BOX-3: readers hold references to the value, which its head, written meanwhile by `call_rcu`, is no part of.
//! - BOX-4: from when a box is made until it is retired, the word in front of its value is null or a `&'static Memory`.

use alloc::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use core::marker::PhantomData;
use core::mem::{ManuallyDrop, needs_drop};
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use sync::MaySleep;
use sync::callback::CallbackHead;

use crate::call::call_rcu;
use crate::poll::{Cookie, Pollable, cond_synchronize, start_poll};
use crate::sync_gp::synchronize_rcu;

/// A value with a head in front of it.
#[repr(transparent)]
pub(crate) struct Inner<T> {
    pub(crate) value: T,
}

/// Where boxes without callbacks come from and go to. Each is a static of whoever can free many at once.
#[derive(Debug)]
pub struct Memory {
    alloc: fn(Layout) -> Option<NonNull<u8>>,
    free: unsafe fn(NonNull<u8>),
    free_after_grace_period: unsafe fn(NonNull<u8>),
}

impl Memory {
    /// Memory from `alloc`, to which `free` gives back what nobody uses any more. `free_after_grace_period` does so when all readers
    /// from before have ended, and is given the address of 8 bytes in the block that nobody else uses, at its start or behind
    /// what its alignment leaves there; it is called in any context but NMI, and neither allocates nor waits.
    ///
    /// # Safety
    /// `alloc` gives memory of the layout that nobody else uses, and the other two may be called with what it gave, once.
    pub const unsafe fn new(
        alloc: fn(Layout) -> Option<NonNull<u8>>,
        free: unsafe fn(NonNull<u8>),
        free_after_grace_period: unsafe fn(NonNull<u8>),
    ) -> Self {
        Self { alloc, free, free_after_grace_period }
    }
}

/// The layout of a box with a head, and where in it the value is.
const fn layout_of<Head, T>() -> (Layout, usize) {
    match Layout::new::<Head>().extend(Layout::new::<T>()) {
        Ok((layout, at)) => (layout.pad_to_align(), at),
        Err(_) => panic!("a value as large as the address space"),
    }
}

/// A value with a head in front of it, so that retiring it allocates nothing.
pub struct RcuBox<T>(NonNull<Inner<T>>, PhantomData<T>);

// SAFETY: a box is its value: it may go where that may go. Its memory is bound to no thread.
unsafe impl<T: Send> Send for RcuBox<T> {}
// SAFETY: a shared box gives shared references to its value and nothing else.
unsafe impl<T: Sync> Sync for RcuBox<T> {}

impl<T> RcuBox<T> {
    /// Allocates. Context: where the global allocator may be used.
    pub fn new(value: T) -> Self {
        Self::try_new(value).unwrap_or_else(|_| handle_alloc_error(layout_of::<CallbackHead, T>().0))
    }

    /// Allocates, if there is memory. Context: where the global allocator may be used.
    ///
    /// # Errors
    /// The value, when there is no memory.
    pub fn try_new(value: T) -> Result<Self, T> {
        let (layout, at) = const { layout_of::<CallbackHead, T>() };
        // SAFETY: the layout's size is not zero, it has a head in it.
        let Some(block) = NonNull::new(unsafe { alloc(layout) }) else { return Err(value) };
        // SAFETY: fresh memory of that layout. BOX-4: a head at rest ends in no function, which is null.
        unsafe {
            let place = block.byte_add(at).cast::<Inner<T>>();
            place.byte_sub(size_of::<CallbackHead>()).cast().write(CallbackHead::new());
            Ok(Self::fill(place, value))
        }
    }

    /// Allocates of `memory`, if there is some: a box that costs 8 bytes, and no callback when it is retired. Context: that of the
    /// memory.
    ///
    /// It cannot wait for a domain of SRCU.
    ///
    /// # Errors
    /// The value, when there is no memory.
    pub fn try_new_in(value: T, memory: &'static Memory) -> Result<Self, T> {
        const { assert!(!needs_drop::<T>(), "memory that is freed in batches runs no destructor: use RcuBox::new") };
        let (layout, at) = const { layout_of::<&Memory, T>() };
        let Some(block) = (memory.alloc)(layout) else { return Err(value) };
        // SAFETY: fresh memory of that layout (BOX-4).
        unsafe {
            let place = block.byte_add(at).cast::<Inner<T>>();
            word(place).write(Some(memory));
            Ok(Self::fill(place, value))
        }
    }

    /// # Safety
    /// `place` is for a value, and its head is written.
    unsafe fn fill(place: NonNull<Inner<T>>, value: T) -> Self {
        // SAFETY: by the caller.
        unsafe { place.write(Inner { value }) };
        RcuBox(place, PhantomData)
    }

    /// The value, without its box.
    pub fn into_inner(this: Self) -> T {
        let place = NonNull::new(this.into_raw()).expect("a box is somewhere");
        // SAFETY: the box owned the value, which is read once, and then its memory is not used any more.
        unsafe {
            let value = place.read().value;
            free_memory(place);
            value
        }
    }

    /// Gives the box away, to be had again by [`RcuBox::from_raw`].
    pub(crate) fn into_raw(self) -> *mut Inner<T> {
        ManuallyDrop::new(self).0.as_ptr()
    }

    /// The box that was given away.
    ///
    /// # Safety
    /// `inner` is from [`RcuBox::into_raw`]; nobody else uses it.
    pub(crate) unsafe fn from_raw(inner: *mut Inner<T>) -> Self {
        // SAFETY: by the caller; a box is somewhere.
        RcuBox(unsafe { NonNull::new_unchecked(inner) }, PhantomData)
    }

    /// Whether it has a callback's head.
    pub(crate) fn has_callback(&self) -> bool {
        // SAFETY: BOX-4: not retired.
        unsafe { word(self.0).read() }.is_none()
    }
}

/// The word of BOX-4.
fn word<T>(place: NonNull<Inner<T>>) -> NonNull<Option<&'static Memory>> {
    const { assert!(align_of::<Option<&Memory>>() == align_of::<CallbackHead>()) };
    // SAFETY: a head lies in front of each place, and is at least a word.
    unsafe { place.byte_sub(size_of::<usize>()) }.cast()
}

/// The head of a box that has a callback's.
pub(crate) fn head_of<T>(place: NonNull<Inner<T>>) -> *mut CallbackHead {
    place.as_ptr().wrapping_byte_sub(size_of::<CallbackHead>()).cast()
}

/// The place whose [`head_of`] is `head`.
fn of_head<T>(head: *mut CallbackHead) -> *mut Inner<T> {
    head.wrapping_add(1).cast()
}

/// Gives the memory of a box back.
///
/// # Safety
/// The value is gone, and so is the box. BOX-4 holds, or the box was retired by callback.
unsafe fn free_memory<T>(place: NonNull<Inner<T>>) {
    // SAFETY: a word in memory that is still there.
    let Some(memory) = (unsafe { word(place).read() }) else {
        let (layout, at) = const { layout_of::<CallbackHead, T>() };
        // SAFETY: allocated by `try_new` with that layout.
        return unsafe { dealloc(place.as_ptr().wrapping_byte_sub(at).cast(), layout) };
    };
    let (_, at) = const { layout_of::<&Memory, T>() };
    // SAFETY: allocated by `try_new_in` of this memory, the value behind as many bytes.
    unsafe { (memory.free)(place.byte_sub(at).cast()) };
}

impl<T> Drop for RcuBox<T> {
    fn drop(&mut self) {
        // SAFETY: the box owns its value and memory, and goes.
        unsafe {
            self.0.drop_in_place();
            free_memory(self.0);
        }
    }
}

impl<T> Deref for RcuBox<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: a valid value, which the box owns.
        unsafe { &self.0.as_ref().value }
    }
}

impl<T> DerefMut for RcuBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { &mut self.0.as_mut().value }
    }
}

/// A value that is out of reach of new readers, while older ones may still be using it; its holder may look at it, too.
///
/// Dropped, it is retired: freed after a grace period.
#[must_use = "say what becomes of the old value: `retire`, `synchronize` or `into_polled`"]
pub struct Retired<T: Send + Sync + 'static>(NonNull<Inner<T>>);

// SAFETY: it owns a `T` that may go to any thread, and gives shared references to it.
unsafe impl<T: Send + Sync + 'static> Send for Retired<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync + 'static> Sync for Retired<T> {}

impl<T: Send + Sync + 'static> Retired<T> {
    /// What was just taken out of reach.
    ///
    /// # Safety
    /// BOX-2: `inner` is a box that was published, readers cannot find it any more, and it is given away here.
    pub(crate) unsafe fn new(inner: NonNull<Inner<T>>) -> Self {
        Retired(inner)
    }

    /// Drops the value after a grace period. Context: any but NMI. Does not allocate or wait; a drop by callback runs where
    /// callbacks run, in softirq context.
    pub fn retire(self) {
        drop(self);
    }

    /// Waits until no reader uses the value, and gives it back. Context: task, sleeps.
    pub fn synchronize(self, cx: &mut MaySleep) -> RcuBox<T> {
        synchronize_rcu(cx);
        // SAFETY: BOX-2: a grace period has passed since it was taken out of reach.
        unsafe { self.give_back() }
    }

    /// Asks for a grace period, to take the value back once that is over. Context: any but NMI.
    ///
    /// ```no_run
    /// # use grange_rcu::{Polled, Rcu, RcuBox};
    /// # fn make(_: Option<RcuBox<[u8; 512]>>) -> RcuBox<[u8; 512]> { unimplemented!() }
    /// /// Writes each table into the memory of the one before the last, if its readers have gone by now.
    /// fn update(table: &Rcu<[u8; 512]>, spare: &mut Option<Polled<[u8; 512]>>) {
    ///     let reused = spare.take().and_then(|old| old.try_take().ok());
    ///     *spare = table.replace(Some(make(reused))).map(|old| old.into_polled());
    /// }
    /// ```
    pub fn into_polled(self) -> Polled<T> {
        Polled { cookie: start_poll(), value: self }
    }

    /// The box, to be used as before.
    ///
    /// # Safety
    /// BOX-2: a grace period has passed since `self` was made.
    unsafe fn give_back(self) -> RcuBox<T> {
        let this = ManuallyDrop::new(self);
        // SAFETY: it was given away to this type alone, and who could have found it before has ended, says the caller.
        unsafe { RcuBox::from_raw(this.0.as_ptr()) }
    }
}

impl<T: Send + Sync + 'static> Deref for Retired<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: not freed before `self` is given up; references to the value are shared (BOX-1, BOX-3).
        unsafe { &(*self.0.as_ptr()).value }
    }
}

impl<T: Send + Sync + 'static> Drop for Retired<T> {
    fn drop(&mut self) {
        // SAFETY: BOX-4: it is retired here and now.
        match unsafe { word(self.0).read() } {
            // SAFETY: the box is ours alone until the callback has it (BOX-2), and `T` is `Send`.
            None => unsafe { call_rcu(head_of(self.0), drop_box::<T>) },
            // SAFETY: BOX-2; allocated of this memory, and the value needs no drop. The word is of no more use.
            Some(memory) => unsafe { (memory.free_after_grace_period)(word(self.0).cast()) },
        }
    }
}

/// Drops the box that was retired by callback.
///
/// # Safety
/// `head` is that of an `Inner<T>` that was given away, and nobody else uses it any more.
pub(crate) unsafe fn drop_box<T>(head: *mut CallbackHead) {
    // SAFETY: by the caller.
    let place = unsafe { NonNull::new_unchecked(of_head::<T>(head)) };
    // SAFETY: it is ours. BOX-4: it is a box again.
    unsafe {
        word(place).write(None);
        drop(RcuBox::from_raw(place.as_ptr()));
    }
}

/// A value that waits for a grace period which was asked for; see [`Retired::into_polled`]. Dropped, it is retired.
#[must_use = "dropped, it waits for a second grace period"]
pub struct Polled<T: Send + Sync + 'static> {
    /// Made after the value was taken out of reach.
    cookie: Cookie,
    value: Retired<T>,
}

impl<T: Send + Sync + 'static> Polled<T> {
    /// Whether no reader uses the value any more. Context: any.
    pub fn is_over(&self) -> bool {
        self.cookie.is_over()
    }

    /// The value, if no reader uses it any more. Context: any but NMI.
    ///
    /// # Errors
    /// `self`, to be asked again.
    pub fn try_take(self) -> Result<RcuBox<T>, Self> {
        if !self.is_over() {
            return Err(self);
        }
        // SAFETY: BOX-2: the cookie was made after the value was taken out of reach, and it is over.
        Ok(unsafe { self.value.give_back() })
    }

    /// Waits for what is left of the grace period. Context: task, sleeps.
    pub fn synchronize(self, cx: &mut MaySleep) -> RcuBox<T> {
        cond_synchronize(self.cookie, cx);
        // SAFETY: as in `try_take`.
        unsafe { self.value.give_back() }
    }
}

impl<T: Send + Sync + 'static> Deref for Polled<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}
