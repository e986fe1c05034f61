//! Trace rings, found and read in the memory of a machine, alive or dead, without its help.
//!
//! A traced machine keeps its memory in files that this process can read while it runs and after it is gone; a core has
//! the memory of a machine that died. In both the rings are found by the magic number at the beginning of a page that
//! knows its own physical address; the layout is in `kernel/sync/src/trace/ring.rs`.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::Context as _;
use object::read::elf::ProgramHeader as _;

use crate::post_mortem::packed;

use super::points::MAX_FIELDS;

/// First word of a ring's block.
const MAGIC: u64 = u64::from_le_bytes(*b"GRTRACE1");
const PAGE: u64 = 4096;
/// Bytes of a block before its slots, and of a slot.
const HEAD: usize = 128;
const SLOT: usize = 64;
/// More slots than any ring has: then it is none.
const MAX_SLOTS: u64 = 1 << 20;
/// Where files of memory lie, if there is such a folder: not on a disk.
const SHARED_MEMORY: &str = "/dev/shm";

/// A record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// When, in nanoseconds of the guest.
    pub at_ns: u64,
    /// The CPU.
    pub cpu: u64,
    /// Index of its point.
    pub point: usize,
    /// The thread.
    pub tid: u32,
    /// What the CPU was in: see [`Event::context`] and its neighbours.
    pub bits: u16,
    /// The fields.
    pub fields: [u64; MAX_FIELDS],
}

impl Event {
    /// 0 task, 1 softirq, 2 hardirq, 3 NMI.
    #[must_use]
    pub fn context(&self) -> usize {
        usize::from(self.bits & 3)
    }
}

/// What a CPU recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    /// The records that are left, in the order in which they were begun.
    pub events: Vec<Event>,
    /// Records that later ones have overwritten.
    pub overwritten: u64,
    /// Records that were not written.
    pub lost: u64,
}

/// A folder for the memory of a machine, which goes with what is returned.
///
/// # Errors
/// `Host` when it cannot be made.
pub fn folder() -> anyhow::Result<tempfile::TempDir> {
    let named = tempfile::Builder::new().prefix("grange-memory-").to_owned();
    let folder = if Path::new(SHARED_MEMORY).is_dir() { named.tempdir_in(SHARED_MEMORY) } else { named.tempdir() };
    folder.context("a folder for the machine's memory")
}

/// Name of the file that holds the memory of a node.
#[must_use]
pub fn file_name(node: usize) -> String {
    format!("node{node}")
}

/// Physical memory.
#[derive(Debug)]
pub struct Memory {
    /// Address, length, and where it lies in which file.
    pieces: Vec<(u64, u64, u64, usize)>,
    files: Vec<File>,
}

impl Memory {
    /// The memory of a machine whose files are in `folder`; the nodes lie one behind the other.
    ///
    /// # Errors
    /// `Host` when a file cannot be read.
    pub fn of_files(folder: &Path) -> anyhow::Result<Memory> {
        let mut memory = Memory { pieces: Vec::new(), files: Vec::new() };
        let mut address = 0;
        while let Ok(file) = File::open(folder.join(file_name(memory.files.len()))) {
            let length = file.metadata()?.len();
            memory.pieces.push((address, length, 0, memory.files.len()));
            memory.files.push(file);
            address += length;
        }
        Ok(memory)
    }

    /// The memory in a core.
    ///
    /// # Errors
    /// `Host` when it cannot be read.
    pub fn of_core(core: &Path) -> anyhow::Result<Memory> {
        let mut file = tempfile::tempfile().context("a file for the core")?;
        packed::unpack(core, &mut file)?;
        let mut head = vec![0; 1 << 16];
        let length = file.read_at(&mut head, 0)?;
        let elf = object::read::elf::ElfFile64::<object::Endianness>::parse(&head[..length])
            .with_context(|| core.display().to_string())?;
        let endian = elf.endian();
        let pieces = elf.elf_program_headers().iter().filter(|header| header.p_type(endian) == object::elf::PT_LOAD);
        let pieces = pieces.map(|h| (h.p_paddr(endian), h.p_filesz(endian), h.p_offset(endian), 0)).collect();
        Ok(Memory { pieces, files: vec![file] })
    }

    /// Fills `into` from an address; whether all of it is there.
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let end = address.saturating_add(into.len() as u64);
        let piece = self.pieces.iter().find(|(start, length, ..)| *start <= address && end <= start + length);
        piece.is_some_and(|(start, _, offset, file)| {
            self.files[*file].read_exact_at(into, offset + (address - start)).is_ok()
        })
    }

    /// The rings in it, by CPU.
    #[must_use]
    pub fn rings(&self) -> BTreeMap<u64, Ring> {
        let pages = self.pieces.iter().flat_map(|(start, length, ..)| (*start..start + length).step_by(PAGE as usize));
        let mut rings = BTreeMap::new();
        for page in pages {
            let mut head = [0; HEAD];
            // Nearly all pages are no ring, and many are holes: two words tell.
            if !self.read(page, &mut head[..16]) || word(&head, 0) != MAGIC || word(&head, 8) != page {
                continue;
            }
            if self.read(page, &mut head)
                && let Some(ring) = self.ring(page, &head)
            {
                rings.insert(word(&head, 16), ring);
            }
        }
        rings
    }

    fn ring(&self, page: u64, head: &[u8]) -> Option<Ring> {
        let (cpu, count) = (word(head, 16), word(head, 32));
        let [tail, from, empty, refused] = [40, 48, 56, 64].map(|at| word(head, at));
        let mut slots = vec![0; usize::try_from(count).ok().filter(|_| (1..=MAX_SLOTS).contains(&count))? * SLOT];
        if !self.read(page + HEAD as u64, &mut slots) {
            return None;
        }
        let read = |position: u64| {
            let slot = &slots[(position % count) as usize * SLOT..][..SLOT];
            // A record that is being written, or was never written, or belongs to another round, is none.
            (word(slot, 0) == 2 * (position / count) + 2).then(|| event(cpu, slot))
        };
        let events: Vec<_> = (from.max(tail.saturating_sub(count))..tail).filter_map(read).collect();
        let written = tail.saturating_sub(from);
        let overwritten = written.saturating_sub(events.len() as u64 + empty);
        Some(Ring { events, overwritten, lost: empty + refused })
    }
}

fn event(cpu: u64, slot: &[u8]) -> Event {
    let what = word(slot, 16);
    Event {
        at_ns: word(slot, 8),
        cpu,
        point: usize::from(what as u16),
        tid: (what >> 32) as u32,
        bits: (what >> 16) as u16,
        fields: [24, 32, 40, 48].map(|at| word(slot, at)),
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory of two nodes, with the words of a ring at a page of the second.
    fn machine(words: &[u64]) -> (tempfile::TempDir, Memory) {
        let folder = tempfile::tempdir().unwrap();
        for node in 0..2 {
            File::create(folder.path().join(file_name(node))).unwrap().set_len(16 * PAGE).unwrap();
        }
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let file = File::options().write(true).open(folder.path().join(file_name(1))).unwrap();
        file.write_all_at(&bytes, 2 * PAGE).unwrap();
        let memory = Memory::of_files(folder.path()).unwrap();
        (folder, memory)
    }

    /// A ring of CPU 3 at page 18, with two slots.
    fn block(tail: u64, from: u64, empty: u64, refused: u64, slots: [[u64; 8]; 2]) -> Vec<u64> {
        let mut words = vec![MAGIC, 18 * PAGE, 3, 0, 2, tail, from, empty, refused];
        words.resize(HEAD / 8, 0);
        words.extend(slots.iter().flatten());
        words
    }

    const WHAT: u64 = 7 << 32 | 2 << 16 | 5;

    #[test]
    fn whole_records_are_read_in_order_and_the_others_are_counted() {
        let slots = [[4, 30, WHAT, 1, 2, 3, 4, 0], [2, 20, WHAT, 0, 0, 0, 0, 0]];
        let (_folder, memory) = machine(&block(3, 0, 0, 4, slots));
        let rings = memory.rings();
        let ring = &rings[&3];
        assert_eq!(ring.events.iter().map(|event| event.at_ns).collect::<Vec<_>>(), [20, 30]);
        let last = Event { at_ns: 30, cpu: 3, point: 5, tid: 7, bits: 2, fields: [1, 2, 3, 4] };
        assert_eq!(ring.events[1], last);
        assert_eq!((rings.len(), ring.overwritten, ring.lost), (1, 1, 4));
    }

    #[test]
    fn a_record_that_is_being_written_or_is_of_another_round_is_no_record() {
        for state in [0, 1, 2, 3, 5, 6] {
            let slots = [[state, 30, WHAT, 1, 2, 3, 4, 0], [2, 20, WHAT, 0, 0, 0, 0, 0]];
            let (_folder, memory) = machine(&block(3, 1, 0, 0, slots));
            let times: Vec<_> = memory.rings()[&3].events.iter().map(|event| event.at_ns).collect();
            assert_eq!(times, [20], "state {state}");
        }
    }

    #[test]
    fn a_copy_of_a_ring_elsewhere_or_one_that_leads_out_of_memory_is_none() {
        let mut copy = block(0, 0, 0, 0, [[0; 8]; 2]);
        copy[1] += PAGE;
        assert!(machine(&copy).1.rings().is_empty());
        let mut long = block(0, 0, 0, 0, [[0; 8]; 2]);
        for slots in [0, 1 << 12, u64::MAX] {
            long[4] = slots;
            assert!(machine(&long).1.rings().is_empty(), "{slots} slots");
        }
    }
}
