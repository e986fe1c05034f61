//! [`Radix`]: a tree of arrays of pointers, in nodes of 512 bytes.
//!
//! ```text
//! root: next, len, depth, 61 slots ──► 64 slots ──► 64 addresses
//!   │                             └──► 64 slots ──► ...            depth 2
//!   ▼
//! root: next, len, depth, 61 addresses                             depth 0
//! ```
//!
//! An index is an address' place in the order of coming, six bits of it for each level. Whether a node is there follows from
//! the length alone, so slots need not be cleared. When a root is full its slots move to a fresh node, which becomes its
//! first child, and it is one level deeper.
//!
//! Trees cannot be joined (S3-21), but their roots can be chained: so what has expired is one store whatever it was before, and
//! there is no vector of trees that would have to grow (S3-2).
//!
//! # Invariants
//! - **RDX-1** Every root in the chain has an address in it. At depth `d` a root holds up to 61·64^d.
//! - **RDX-2** Below a root with `len` addresses there are exactly the nodes that hold one of these: one of level `l` for
//!   each begun 64^l.
//! - **RDX-3** The cursor is null or the place of the next address of the last root, with `end` behind its node. It is null at a
//!   node's end and after every pop (S3-4).

use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::slice;

use mm::AllocFlags;

use super::store::{Stash, Store};

const NODE: usize = 512;
/// Slots of a node.
const SLOTS: usize = NODE / size_of::<usize>();
const BITS: u32 = SLOTS.trailing_zeros();
/// Slots of a root: what its header leaves.
const ROOT_SLOTS: usize = SLOTS - 3;

/// An address, or a node one level below.
type Slot = MaybeUninit<NonNull<u8>>;

#[repr(C)]
struct Root {
    next: Option<NonNull<Root>>,
    len: usize,
    depth: u32,
    slots: [Slot; ROOT_SLOTS],
}

const _: () = assert!(size_of::<Root>() == NODE);

/// See the [module](self).
#[derive(Debug)]
pub struct Radix {
    first: Option<NonNull<Root>>,
    last: Option<NonNull<Root>>,
    /// RDX-3.
    cursor: *mut Slot,
    end: *mut Slot,
    len: usize,
    nodes: usize,
}

// SAFETY: the nodes belong to the store, and it names objects that were given up; neither belongs to a CPU.
unsafe impl Send for Radix {}

impl Default for Radix {
    fn default() -> Self {
        Self { first: None, last: None, cursor: ptr::null_mut(), end: ptr::null_mut(), len: 0, nodes: 0 }
    }
}

/// Addresses below a slot of a node at `level`; a leaf is at level 0.
const fn per_slot(level: u32) -> usize {
    1 << (level * BITS)
}

/// Which slot of a node at `level` leads to `index`.
const fn slot_of(index: usize, level: u32) -> usize {
    (index >> (level * BITS)) & (SLOTS - 1)
}

/// Levels at which a node begins with `index`, below a root of `depth`.
fn begins(index: usize, depth: u32) -> u32 {
    (index.trailing_zeros() / BITS).min(depth)
}

impl Root {
    fn is_full(&self) -> bool {
        self.len == ROOT_SLOTS * per_slot(self.depth)
    }

    /// Its slots, as those of a node.
    fn slots(this: NonNull<Root>) -> *mut Slot {
        // SAFETY: a root of the caller's.
        unsafe { (&raw mut (*this.as_ptr()).slots).cast() }
    }
}

/// The node in a slot.
///
/// # Safety
/// The slot leads to a node (RDX-2).
unsafe fn below(slot: *mut Slot) -> *mut Slot {
    // SAFETY: by the caller.
    unsafe { (*slot).assume_init() }.as_ptr().cast()
}

impl Radix {
    /// A place for the next address, in nodes from `stash`, and where its node ends.
    #[cold]
    fn next_place(&mut self, stash: &mut Stash<Self>) -> (*mut Slot, *mut Slot) {
        let mut fresh = || {
            self.nodes += 1;
            stash.take().expect("as many nodes as it needs")
        };
        let Some(root) = self.last else {
            let root = fresh().cast::<Root>();
            let raw = root.as_ptr();
            // SAFETY: a node, uninitialised and ours, of a root's size; kmalloc aligns to words at least. Slots may be anything.
            unsafe {
                (&raw mut (*raw).next).write(None);
                (&raw mut (*raw).len).write(0);
                (&raw mut (*raw).depth).write(0);
            }
            (self.first, self.last) = (Some(root), Some(root));
            let slots = Root::slots(root);
            return (slots, slots.wrapping_add(ROOT_SLOTS));
        };
        // SAFETY: a root of ours, as are all nodes below it.
        unsafe {
            let slots = Root::slots(root);
            if (*root.as_ptr()).is_full() {
                let child = fresh();
                child.cast::<Slot>().as_ptr().copy_from_nonoverlapping(slots, ROOT_SLOTS);
                slots.write(Slot::new(child));
                (*root.as_ptr()).depth += 1;
            }
            let (index, depth) = ((*root.as_ptr()).len, (*root.as_ptr()).depth);
            let (mut at, mut end) = (slots.add(index >> (depth * BITS)), slots.add(ROOT_SLOTS));
            for level in (0..depth).rev() {
                if level < begins(index, depth) {
                    at.write(Slot::new(fresh()));
                }
                let node = below(at);
                (at, end) = (node.add(slot_of(index, level)), node.add(SLOTS));
            }
            (at, end)
        }
    }

    /// Ends a node: its addresses go to `each`, and it is freed with all below it.
    ///
    /// # Safety
    /// The slots are those of a node at `level` that holds `len` addresses, and that nobody uses any more.
    unsafe fn end(slots: *mut Slot, level: u32, len: usize, each: &mut dyn FnMut(&mut [NonNull<u8>])) {
        if level == 0 {
            // SAFETY: so many addresses were written here, by the caller.
            return each(unsafe { slice::from_raw_parts_mut(slots.cast(), len) });
        }
        for (slot, from) in (0..len).step_by(per_slot(level)).enumerate() {
            // SAFETY: RDX-2: there is a node for what begins at `from`; it is used here for the last time.
            unsafe {
                let node = below(slots.add(slot));
                Self::end(node, level - 1, (len - from).min(per_slot(level)), each);
                Self::free_node(NonNull::new_unchecked(node.cast()));
            }
        }
    }
}

impl Store for Radix {
    const NAME: &'static str = "radix";
    const NODE: usize = NODE;

    fn alloc_node() -> Option<NonNull<u8>> {
        slab::kmalloc_nolock(NODE, AllocFlags::NOWARN)
    }

    unsafe fn free_node(node: NonNull<u8>) {
        // SAFETY: from `kmalloc_nolock`, and nobody uses it, by the caller.
        unsafe { slab::kfree_nolock(node) };
    }

    #[inline]
    fn needs(&self) -> usize {
        if !self.cursor.is_null() {
            return 0;
        }
        let Some(root) = self.last else { return 1 };
        // SAFETY: a root of ours.
        let root = unsafe { root.as_ref() };
        let grows = u32::from(root.is_full());
        (grows + begins(root.len, root.depth + grows)) as usize
    }

    #[inline]
    fn push(&mut self, object: NonNull<u8>, stash: &mut Stash<Self>) {
        if self.cursor.is_null() {
            (self.cursor, self.end) = self.next_place(stash);
        }
        // SAFETY: the place of the next address in the last root (RDX-3), which is ours.
        unsafe {
            self.cursor.write(Slot::new(object));
            self.cursor = self.cursor.add(1);
            self.last.expect("RDX-3: a cursor is in a root").as_mut().len += 1;
        }
        if self.cursor == self.end {
            self.cursor = ptr::null_mut();
        }
        self.len += 1;
    }

    fn pop(&mut self, stash: &mut Stash<Self>) -> Option<NonNull<u8>> {
        let root = self.first?;
        self.cursor = ptr::null_mut();
        self.len -= 1;
        // SAFETY: a root of ours with an address in it (RDX-1), as are the nodes that RDX-2 says are below it.
        unsafe {
            let contents = &mut *root.as_ptr();
            contents.len -= 1;
            let (index, depth) = (contents.len, contents.depth);
            let empty = begins(index, depth);
            let (mut at, mut top) = (Root::slots(root).add(index >> (depth * BITS)), ptr::null_mut());
            for level in (0..depth).rev() {
                let node = below(at);
                if level + 1 == empty {
                    top = node;
                }
                at = node.add(slot_of(index, level));
            }
            let object = (*at).assume_init();
            // The nodes that began with it hold nothing any more; each is the first child of the one above.
            for level in (0..empty).rev() {
                let node = top;
                if level != 0 {
                    top = below(node);
                }
                stash.put(NonNull::new_unchecked(node.cast()));
            }
            self.nodes -= empty as usize;
            if index == 0 {
                self.first = contents.next;
                if self.first.is_none() {
                    self.last = None;
                }
                self.nodes -= 1;
                stash.put(root.cast());
            }
            Some(object)
        }
    }

    fn append(&mut self, other: &mut Self) {
        let other = core::mem::take(other);
        let Some(theirs) = other.first else { return };
        match self.last {
            // SAFETY: a root of ours.
            Some(mut last) => unsafe { last.as_mut().next = Some(theirs) },
            None => self.first = Some(theirs),
        }
        (self.last, self.cursor, self.end) = (other.last, other.cursor, other.end);
        self.len += other.len;
        self.nodes += other.nodes;
    }

    fn len(&self) -> usize {
        self.len
    }

    fn nodes(&self) -> usize {
        self.nodes
    }

    fn drain(&mut self, each: &mut dyn FnMut(&mut [NonNull<u8>])) {
        let mut next = core::mem::take(self).first;
        while let Some(root) = next {
            // SAFETY: a root of a store that was ours alone, and of none any more; used here for the last time.
            unsafe {
                let contents = root.as_ref();
                next = contents.next;
                let (depth, len) = (contents.depth, contents.len);
                Self::end(Root::slots(root), depth, len, each);
                Self::free_node(root.cast());
            }
        }
    }
}
