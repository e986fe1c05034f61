//! The segmented callback list: callbacks sorted by the grace period they wait for.
//!
//! ```text
//!   done ───────► wait ──────────► next_ready ─────► next
//!   may run now   tag A            tag B, B ≥ A      no tag yet: just queued
//! ```
//!
//! A [`Tag`] names the ends of a normal *and* of an expedited grace period; a segment is done when either is over
//! (R-9, S3-24), so an expedited grace period that somebody asked for releases ordinary callbacks too. Flavours without
//! expedited grace periods tag with [`Tag::without_exp`].
//!
//! Pure: no locks, no per-CPU access, no idea of time; the owner calls it with interrupts off on its own CPU. It holds
//! no pointer into itself, so a list may be moved (the boot CPU's is copied when per-CPU areas are set up).
//!
//! Invariants
//! - CBL-1: callbacks leave in the order they came; none is lost or run twice.
//! - CBL-2: `wait` is empty only if `next_ready` is; tags do not decrease from `wait` to `next_ready`, in both parts.
//! - CBL-3: a tag is never earlier than the one its callbacks were snapped for; merging takes the later part of each.
//! - CBL-4: `len` counts queued callbacks *and* those taken out by [`CbList::take_done`] but not yet accounted by
//!   [`CbList::ran`], so zero means that nothing is left for a barrier to wait for.
//!
//! The order of use is snap → [`CbList::advance`] → [`CbList::accelerate`], with the tag snapped *before* advancing:
//! the other way round the counter may move on in between, the tag is then later than two segments can hold, and the
//! callbacks are left behind untagged until somebody asks again (S5-11). `accelerate` says so by its return value.
//!
//! Contexts: interrupts off on the owning CPU. Answers to Linux kernel/rcu/rcu_segcblist.c; rows R-5, R-9, S3-37, S5-11.

use core::ptr;
use core::sync::atomic::Ordering;

use sync::callback::CallbackHead;

use crate::seq::Seq;

/// The grace periods a segment waits for: it is done when either is over.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Tag {
    /// End of a normal grace period.
    pub norm: Seq,
    /// End of an expedited one; [`Seq::NOT_TRACKED`] in flavours that have none.
    pub exp: Seq,
}

impl Tag {
    /// The tag of a flavour that has no expedited grace periods of its own kind.
    pub const fn without_exp(norm: Seq) -> Tag {
        Tag { norm, exp: Seq::NOT_TRACKED }
    }

    /// Whether either grace period is over, as the flavour's counters say. One that is not tracked never is.
    pub fn is_over(self, norm_done: impl FnOnce(Seq) -> bool, exp_done: impl FnOnce(Seq) -> bool) -> bool {
        norm_done(self.norm) || (self.exp != Seq::NOT_TRACKED && exp_done(self.exp))
    }

    /// The earlier of both parts, each for itself: over as soon as either tag is.
    #[must_use]
    pub fn earlier(self, other: Tag) -> Tag {
        let first = |a: Seq, b: Seq| if a.before(b) { a } else { b };
        Tag { norm: first(self.norm, other.norm), exp: first(self.exp, other.exp) }
    }

    /// The later of both parts, each for itself. What one of them does not track, both together do not.
    fn merged(self, other: Tag) -> Tag {
        let tracked = self.exp != Seq::NOT_TRACKED && other.exp != Seq::NOT_TRACKED;
        let exp = if tracked { self.exp.later(other.exp) } else { Seq::NOT_TRACKED };
        Tag { norm: self.norm.later(other.norm), exp }
    }
}

/// A singly linked chain of callbacks in order, with its length.
pub struct Chain {
    head: *mut CallbackHead,
    tail: *mut CallbackHead,
    len: usize,
}

// SAFETY: a chain is the exclusive right to its heads, whose functions may be called on any CPU (`call_rcu`).
unsafe impl Send for Chain {}

impl Chain {
    /// The empty chain.
    pub const fn new() -> Self {
        Chain { head: ptr::null_mut(), tail: ptr::null_mut(), len: 0 }
    }

    /// Callbacks in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts `head` at the end.
    ///
    /// # Safety
    /// `head` is valid until it is popped, and on no other list.
    pub unsafe fn push(&mut self, head: *mut CallbackHead) {
        // SAFETY: `head` is valid and ours until popped, by the caller.
        unsafe { set_next(head, ptr::null_mut()) };
        if self.tail.is_null() {
            self.head = head;
        } else {
            // SAFETY: `tail` was pushed and not popped, so it is still valid and ours.
            unsafe { set_next(self.tail, head) };
        }
        self.tail = head;
        self.len += 1;
    }

    /// Takes the oldest; it now belongs to the caller.
    pub fn pop(&mut self) -> Option<*mut CallbackHead> {
        let head = self.head;
        if head.is_null() {
            return None;
        }
        // SAFETY: `head` was pushed and not popped, so it is still valid and ours.
        self.head = unsafe { next_of(head) };
        if SCRAMBLE != 0 {
            // SAFETY: as above.
            unsafe { (*head).next.store(ptr::null_mut(), Ordering::Relaxed) };
        }
        if self.head.is_null() {
            self.tail = ptr::null_mut();
        }
        self.len -= 1;
        Some(head)
    }

    /// Moves all of `younger` behind what is here.
    pub fn append(&mut self, younger: &mut Chain) {
        let moved = core::mem::take(younger);
        if moved.is_empty() {
            return;
        }
        if self.tail.is_null() {
            self.head = moved.head;
        } else {
            // SAFETY: `tail` was pushed and not popped, so it is still valid and ours.
            unsafe { set_next(self.tail, moved.head) };
        }
        self.tail = moved.tail;
        self.len += moved.len;
    }
}

impl Default for Chain {
    fn default() -> Self {
        Self::new()
    }
}

/// The four segments of one CPU. See the module documentation.
pub struct CbList {
    done: Chain,
    wait: Chain,
    next_ready: Chain,
    next: Chain,
    wait_tag: Tag,
    next_ready_tag: Tag,
    /// Queued plus taken-but-not-accounted (CBL-4).
    len: usize,
}

impl CbList {
    /// The empty list.
    pub const fn new() -> Self {
        let tag = Tag { norm: Seq::INITIAL, exp: Seq::INITIAL };
        CbList {
            done: Chain::new(),
            wait: Chain::new(),
            next_ready: Chain::new(),
            next: Chain::new(),
            wait_tag: tag,
            next_ready_tag: tag,
            len: 0,
        }
    }

    /// Callbacks not yet accounted as run (CBL-4).
    pub fn len(&self) -> usize {
        self.len
    }

    /// Callbacks that are queued, without those that were taken out.
    pub fn queued(&self) -> usize {
        self.lengths().iter().sum()
    }

    /// Whether nothing is queued and nothing is on its way (CBL-4).
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether callbacks may run now.
    pub fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    /// Whether callbacks wait for a tag, that is for somebody to name (and request) their grace period.
    pub fn has_untagged(&self) -> bool {
        !self.next.is_empty()
    }

    /// Whether callbacks wait at all, tagged or not.
    pub fn has_pending(&self) -> bool {
        !self.wait.is_empty() || !self.next.is_empty()
    }

    /// The tag of the oldest waiting segment, if any waits with a tag.
    pub fn first_tag(&self) -> Option<Tag> {
        (!self.wait.is_empty()).then_some(self.wait_tag)
    }

    /// Callbacks that may run now.
    pub fn done_len(&self) -> usize {
        self.done.len()
    }

    /// Lengths of done, wait, next_ready and next, for the shell and stall reports.
    pub fn lengths(&self) -> [usize; 4] {
        [self.done.len(), self.wait.len(), self.next_ready.len(), self.next.len()]
    }

    /// Queues `head` as the youngest, untagged.
    ///
    /// # Safety
    /// `head` is valid until its function has been called, and on no other list.
    pub unsafe fn enqueue(&mut self, head: *mut CallbackHead) {
        // SAFETY: passed on from the caller.
        unsafe { self.next.push(head) };
        self.len += 1;
    }

    /// Queues all of `younger`, untagged.
    pub fn enqueue_all(&mut self, younger: &mut Chain) {
        self.len += younger.len();
        self.next.append(younger);
    }

    /// Queues `head` behind the youngest callback so that it waits for no more than that one does; for a barrier.
    ///
    /// False if there is no callback to wait for, not even one that was taken out and still runs.
    ///
    /// # Safety
    /// As for [`CbList::enqueue`]; on false `head` stays the caller's.
    pub unsafe fn entrain(&mut self, head: *mut CallbackHead) -> bool {
        if self.len == 0 {
            return false;
        }
        let youngest = [&mut self.next, &mut self.next_ready, &mut self.wait].into_iter().find(|s| !s.is_empty());
        // SAFETY: passed on from the caller.
        unsafe { youngest.unwrap_or(&mut self.done).push(head) };
        self.len += 1;
        true
    }

    /// Moves what is over, by `is_over`, to `done`, and closes up. True if anything moved to `done`.
    pub fn advance(&mut self, is_over: impl Fn(Tag) -> bool) -> bool {
        let before = self.done.len();
        if !self.wait.is_empty() && is_over(self.wait_tag) {
            self.done.append(&mut self.wait);
            if !self.next_ready.is_empty() && is_over(self.next_ready_tag) {
                self.done.append(&mut self.next_ready);
            }
            // CBL-2: whatever waits with a tag waits in `wait` first.
            self.wait.append(&mut self.next_ready);
            self.wait_tag = self.next_ready_tag;
        }
        self.done.len() != before
    }

    /// Gives the untagged callbacks the tag `tag`, snapped after they were queued and before the last `advance`.
    ///
    /// True if there is nothing untagged left. False if both tagged segments hold earlier tags: then `tag` was
    /// snapped after `advance` (S5-11), and the callbacks stay untagged until the next call.
    pub fn accelerate(&mut self, tag: Tag) -> bool {
        if self.next.is_empty() {
            return true;
        }
        if self.wait.is_empty() {
            self.wait.append(&mut self.next);
            self.wait_tag = tag;
        } else if !self.wait_tag.norm.before(tag.norm) {
            // Same grace period: everything younger joins (`next_ready` cannot be between two equal tags, but
            // it may hold the same one).
            self.wait.append(&mut self.next_ready);
            self.wait.append(&mut self.next);
            self.wait_tag = self.wait_tag.merged(tag);
        } else if self.next_ready.is_empty() {
            self.next_ready.append(&mut self.next);
            self.next_ready_tag = tag;
        } else if !self.next_ready_tag.norm.before(tag.norm) {
            self.next_ready.append(&mut self.next);
            self.next_ready_tag = self.next_ready_tag.merged(tag);
        } else {
            return false;
        }
        true
    }

    /// Takes all callbacks that may run; they count in `len` until [`CbList::ran`] (CBL-4).
    pub fn take_done(&mut self) -> Chain {
        core::mem::take(&mut self.done)
    }

    /// Puts back, in front, what was taken and not run.
    pub fn put_back(&mut self, mut unrun: Chain) {
        unrun.append(&mut self.done);
        self.done = unrun;
    }

    /// Accounts `n` taken callbacks as run.
    pub fn ran(&mut self, n: usize) {
        self.len -= n;
    }

    /// Takes over everything of a CPU that went offline: what is done there is done here, what waits goes on waiting for
    /// its grace period, or for a later one that callbacks of the same segment wait for here (CBL-3).
    ///
    /// `other` keeps the count of what it had taken out.
    pub fn adopt(&mut self, other: &mut CbList) {
        let moved = other.queued();
        self.done.append(&mut other.done);
        if !other.wait.is_empty() {
            self.wait_tag = merged_if(!self.wait.is_empty(), self.wait_tag, other.wait_tag);
            if !other.next_ready.is_empty() {
                let theirs = other.next_ready_tag;
                self.next_ready_tag = merged_if(!self.next_ready.is_empty(), self.next_ready_tag, theirs);
            }
            // CBL-2: `wait` may have got a tag that is later than what `next_ready` had.
            self.next_ready_tag = self.next_ready_tag.merged(self.wait_tag);
            self.wait.append(&mut other.wait);
            self.next_ready.append(&mut other.next_ready);
        }
        self.next.append(&mut other.next);
        other.len -= moved;
        self.len += moved;
    }
}

/// The tag of a segment that gets callbacks with tag `theirs`.
fn merged_if(has_some: bool, mine: Tag, theirs: Tag) -> Tag {
    if has_some { mine.merged(theirs) } else { theirs }
}

impl Default for CbList {
    fn default() -> Self {
        Self::new()
    }
}

/// What links of queued callbacks are mixed with in checking builds, so that a head tells whether it is queued
/// ([`is_queued`]); 0 in others. The low bits are such that no pointer looks like a mixed one.
const SCRAMBLE: usize = if cfg!(debug_assertions) { 0x5bd1_e995_9d1b_54a5 } else { 0 };

/// Whether `head` is on a list of callbacks, as far as its two words tell; never in builds that do not check.
///
/// What is in memory that was something else before passes for a queued head only if one word, unmixed, is zero or a
/// pointer to `head`'s surroundings, *and* the other points to where the program's code is.
///
/// # Safety
/// `head` points to memory that can be read.
pub(crate) unsafe fn is_queued(head: *mut CallbackHead) -> bool {
    /// Code and statics of one program lie this close together.
    const PROGRAM: usize = 1 << 31;
    /// Objects lie this close together: both halves of the address space, without a few terabytes.
    const MEMORY: usize = 1 << 46;
    if SCRAMBLE == 0 {
        return false;
    }
    // SAFETY: readable by the caller.
    let next = unsafe { next_of(head) };
    let near = |a: usize, b: usize, by: usize| a.abs_diff(b) < by;
    if !next.is_aligned() || !(next.is_null() || near(next.addr(), head.addr(), MEMORY)) {
        return false;
    }
    // SAFETY: as above; any word but zero is a function pointer, and nobody calls it.
    let func = unsafe { (*head).func };
    func.is_some_and(|func| near(func as usize, next_of as *const () as usize, PROGRAM))
}

/// # Safety
/// `head` is valid and belongs to the list.
unsafe fn set_next(head: *mut CallbackHead, next: *mut CallbackHead) {
    // SAFETY: valid by the caller; `next` is atomic only because other owners of the type need it to be.
    unsafe { (*head).next.store(next.map_addr(|addr| addr ^ SCRAMBLE), Ordering::Relaxed) };
}

/// # Safety
/// As for [`set_next`].
unsafe fn next_of(head: *mut CallbackHead) -> *mut CallbackHead {
    // SAFETY: as in `set_next`.
    unsafe { (*head).next.load(Ordering::Relaxed).map_addr(|addr| addr ^ SCRAMBLE) }
}

#[cfg(all(test, not(loom)))]
#[path = "cblist_tests.rs"]
mod tests;
