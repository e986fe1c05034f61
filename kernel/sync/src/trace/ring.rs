//! Where records go: a block of memory for each CPU, which says itself what it is.
//!
//! A block begins with its description, two lines of cache, followed by its slots:
//!
//! | byte | what |
//! |---|---|
//! | 0 | [`MAGIC`] |
//! | 8 | the block's own physical address |
//! | 16 | number of the CPU |
//! | 24 | address of the slots |
//! | 32 | their number |
//! | 40 | the tail: the next position |
//! | 48 | the first position that counts: what was there before has been cleared |
//! | 56 | positions since then without a record, because the ring had come round inside of a producer |
//! | 64 | records since then that were not written because the ring was full |
//! | 128 | slots of 64 bytes: state, time in nanoseconds, what, four fields, nothing (see [`trace_ring`]) |
//!
//! So a block is found in the memory of a machine, or in a core of a dead one, by its magic number at the beginning of a page
//! whose address it knows; and read without the machine's help (`xtask/src/trace/memory.rs`).
//!
//! Producers of one block are nested: the CPU with interrupts off, and NMI handlers in it.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::trace::{MAX_FIELDS, POINTS, Point};
use crate::trace_ring::{self, Slot};

/// Bytes of a record in the ring.
pub const SLOT_BYTES: usize = size_of::<Slot>();
/// First word of a block.
pub const MAGIC: u64 = u64::from_le_bytes(*b"GRTRACE1");

const _: () = assert!(SLOT_BYTES == 64 && size_of::<Block>() == 2 * SLOT_BYTES, "the layout above");

/// The memory of one CPU's ring, seen at its beginning. The fields are those of the module's table.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Block {
    /// [`MAGIC`], once the rest is written.
    magic: AtomicU64,
    phys: u64,
    cpu: u64,
    slots: &'static [Slot],
    tail: AtomicU64,
    /// Written by [`Block::clear`].
    from: AtomicU64,
    /// Counted by producers.
    empty: AtomicU64,
    /// Counted by producers.
    refused: AtomicU64,
}

/// What became of the records of one CPU since they were last cleared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// That can be read.
    pub kept: u64,
    /// That later ones have overwritten.
    pub overwritten: u64,
    /// That were not written: the ring was full and should stop, or NMIs filled it inside of a producer.
    pub lost: u64,
    /// That there is room for.
    pub room: u64,
}

/// A record.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// When, in nanoseconds.
    pub at_ns: u64,
    /// What.
    pub point: &'static Point,
    /// The thread.
    pub tid: u32,
    /// See `context_bits` in [`trace`](mod@crate::trace).
    pub context: u16,
    /// Its fields; of those that the point has not, 0.
    pub fields: [u64; MAX_FIELDS],
}

impl Block {
    /// Makes a block out of memory: `bytes` at `memory`, which lie in one piece at `phys`.
    ///
    /// Context: any.
    ///
    /// # Panics
    /// If there is no room for two records.
    ///
    /// # Safety
    /// The memory is zeroed, aligned to its first page, and the block's for good.
    pub unsafe fn make(memory: NonNull<u8>, bytes: usize, phys: u64, cpu: usize) -> &'static Block {
        assert!(bytes >= size_of::<Block>() + 2 * SLOT_BYTES, "a trace ring of {bytes} bytes");
        let count = (bytes - size_of::<Block>()) / SLOT_BYTES;
        // SAFETY: inside the memory, which is as large as that; zeroes are empty slots.
        let slots = unsafe {
            let first = memory.add(size_of::<Block>()).cast::<Slot>();
            core::slice::from_raw_parts(first.as_ptr(), count)
        };
        let block = memory.cast::<Block>();
        let [magic, tail, from, empty, refused] = [const { AtomicU64::new(0) }; 5];
        // SAFETY: the caller's memory, large and aligned enough.
        unsafe { block.write(Block { magic, phys, cpu: cpu as u64, slots, tail, from, empty, refused }) };
        // SAFETY: just written, and shared from here on.
        let block = unsafe { block.as_ref() };
        // Release: pairs with nobody here; who looks at a machine's memory from outside finds the rest with it.
        block.magic.store(MAGIC, Ordering::Release);
        block
    }

    /// Appends a record, or counts it as lost: if nothing may be overwritten, when the ring is full.
    ///
    /// Context: any.
    pub(super) fn push(&self, at_ns: u64, what: u64, fields: [u64; MAX_FIELDS], stop_when_full: bool) {
        let [a, b, c, d] = fields;
        if stop_when_full && self.written() >= self.room() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        } else if !trace_ring::push(&self.tail, self.slots, &[at_ns, what, a, b, c, d, 0]) {
            self.empty.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Forgets what is in it.
    pub(super) fn clear(&self) {
        self.from.store(self.tail.load(Ordering::Relaxed), Ordering::Relaxed);
        self.empty.store(0, Ordering::Relaxed);
        self.refused.store(0, Ordering::Relaxed);
    }

    /// The counts of now; while records are being written they are a little off.
    pub(super) fn counts(&'static self) -> Counts {
        let (written, empty) = (self.written(), self.empty.load(Ordering::Relaxed));
        let kept = Reader::new(self).count() as u64;
        let lost = empty + self.refused.load(Ordering::Relaxed);
        Counts { kept, overwritten: written.saturating_sub(kept + empty), lost, room: self.room() }
    }

    /// Positions taken since it was cleared.
    fn written(&self) -> u64 {
        self.tail.load(Ordering::Relaxed).saturating_sub(self.from.load(Ordering::Relaxed))
    }

    fn room(&self) -> u64 {
        self.slots.len() as u64
    }
}

/// Reads one CPU's ring.
#[derive(Debug)]
pub struct Reader {
    block: &'static Block,
    /// The position that is due.
    next: u64,
    /// The first position that is not read.
    end: u64,
}

impl Reader {
    pub(super) fn new(block: &'static Block) -> Self {
        Self { block, next: block.from.load(Ordering::Relaxed), end: block.tail.load(Ordering::Relaxed) }
    }
}

impl Iterator for Reader {
    type Item = Event;

    /// The next record that there still is, of those that there were when reading began. One that is being written, or is
    /// overwritten while it is read, is passed over.
    fn next(&mut self) -> Option<Event> {
        loop {
            let oldest = self.block.tail.load(Ordering::Relaxed).saturating_sub(self.block.room());
            self.next = self.next.max(oldest);
            if self.next >= self.end {
                return None;
            }
            self.next += 1;
            if let Some([at_ns, what, a, b, c, d, _]) = trace_ring::read(self.block.slots, self.next - 1) {
                let point = &POINTS[(what & 0xffff) as usize];
                let (tid, context) = ((what >> 32) as u32, (what >> 16) as u16);
                return Some(Event { at_ns, point, tid, context, fields: [a, b, c, d] });
            }
        }
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use std::{boxed::Box, vec, vec::Vec};

    use super::*;

    fn block(slots: usize) -> &'static Block {
        #[repr(align(128))]
        #[derive(Clone)]
        struct Line(#[allow(dead_code, reason = "zeroes")] [u64; 16]);
        let memory = Box::leak(vec![Line([0; 16]); slots.div_ceil(2) + 1].into_boxed_slice());
        let first = NonNull::from(memory).cast::<u8>();
        // SAFETY: zeroed, aligned as a block, leaked.
        unsafe { Block::make(first, (slots + 2) * SLOT_BYTES, 0x1000, 3) }
    }

    /// The first fields of what can be read. (A record names its point by its index; this one is the tests'.)
    fn read(block: &'static Block) -> Vec<u64> {
        crate::trace!("test_ring.record", value = 0);
        Reader::new(block).map(|event| event.fields[0]).collect()
    }

    fn push(block: &Block, values: core::ops::Range<u64>, stop: bool) {
        values.for_each(|value| block.push(value, 0, [value, !value, 0, 0], stop));
    }

    #[test]
    fn a_full_ring_overwrites_its_oldest_records_or_loses_the_new_ones() {
        let (overwrites, stops) = (block(4), block(4));
        push(overwrites, 0..7, false);
        push(stops, 0..7, true);
        assert_eq!(overwrites.counts(), Counts { kept: 4, overwritten: 3, lost: 0, room: 4 });
        assert_eq!(stops.counts(), Counts { kept: 4, overwritten: 0, lost: 3, room: 4 });
        assert_eq!(read(overwrites), [3, 4, 5, 6]);
        assert_eq!(read(stops), [0, 1, 2, 3]);
    }

    #[test]
    fn what_was_cleared_is_neither_read_nor_counted_and_makes_room() {
        let block = block(4);
        push(block, 0..6, true);
        block.clear();
        assert_eq!(block.counts(), Counts { kept: 0, overwritten: 0, lost: 0, room: 4 });
        assert_eq!(read(block), []);
        push(block, 10..13, true);
        assert_eq!(read(block), [10, 11, 12]);
        push(block, 13..16, true);
        assert_eq!(block.counts(), Counts { kept: 4, overwritten: 0, lost: 2, room: 4 });
    }

    #[test]
    fn a_block_tells_who_reads_memory_where_everything_is() {
        let block = block(4);
        push(block, 0..6, false);
        let words = core::ptr::from_ref(block).cast::<u64>();
        // SAFETY: a block and its four slots; nobody writes any more.
        let word = |byte: usize| unsafe { words.add(byte / 8).read() };
        let slots = words.addr() as u64 + 128;
        assert_eq!([0, 8, 16, 24, 32].map(word), [MAGIC, 0x1000, 3, slots, 4]);
        assert_eq!([40, 48, 56, 64].map(word), [6, 0, 0, 0], "tail, from, empty, refused");
        // Position 5 is in slot 1, of generation 1: state, time, what, fields.
        let slot: Vec<_> = (0..7).map(|at| word(128 + 64 + 8 * at)).collect();
        assert_eq!(slot, [4, 5, 0, 5, !5, 0, 0]);
    }
}
