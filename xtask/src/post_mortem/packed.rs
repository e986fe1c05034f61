//! The core file as it is kept: what QEMU wrote, with headers that lead to all memory, compressed by zstd.
//!
//! `zstd -d` gives the same file as [`unpack`] does, which leaves holes where it is all zeros.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::Context as _;

/// What is compressed, and left out as a hole when it is all zeros, in one piece.
const PIECE: usize = 1 << 16;
/// Bytes of an ELF header and of a program header.
const EHDR: usize = 64;
const PHDR: usize = 56;
/// Type of a program header that describes memory.
const LOAD: usize = 1;

/// Compresses the core of a machine with so many bytes of memory.
pub(super) fn compress(mut from: impl Read, memory: u64, to: impl Write) -> io::Result<()> {
    let mut to = zstd::Encoder::new(to, 1)?;
    to.write_all(&head(&mut from, memory)?)?;
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece)? {
            0 => break,
            length => to.write_all(&piece[..length])?,
        }
    }
    to.finish().map(drop)
}

/// The part of an ELF core up to the end of its program headers, mended.
fn head(from: &mut impl Read, memory: u64) -> io::Result<Vec<u8>> {
    let mut head = vec![0; EHDR];
    from.read_exact(&mut head)?;
    let (at, size, count) = (word(&head, 32) as usize, half(&head, 54), half(&head, 56));
    if !head.starts_with(b"\x7fELF") || size != PHDR || !(EHDR..=PIECE).contains(&at) {
        return Err(io::Error::other("QEMU wrote no ELF core"));
    }
    head.resize(at + size * count, 0);
    from.read_exact(&mut head[EHDR..])?;
    head[at..].chunks_exact_mut(PHDR).for_each(|header| mend(header, memory));
    Ok(head)
}

/// Mends a program header. QEMU ends a mapping in the file where one of its blocks of memory ends, one a node, and so the
/// kernel's map of all memory would have node 0 alone in it. The blocks lie in the file as they lie in memory, without a
/// gap up to [`MAX_MEMORY`](super::MAX_MEMORY).
fn mend(header: &mut [u8], memory: u64) {
    let (paddr, in_file, in_memory) = (word(header, 24), word(header, 32), word(header, 40));
    if half(header, 0) == LOAD && in_file < in_memory && paddr < memory {
        header[32..40].copy_from_slice(&in_memory.min(memory - paddr).to_le_bytes());
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
}

fn half(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at]) | usize::from(bytes[at + 1]) << 8
}

/// Writes the core of a boot's folder, decompressed, into `to`, with holes where it is all zeros.
///
/// # Errors
/// `Host` when there is none, or it is damaged, or the disk is full.
pub fn unpack(core: &Path, to: &mut File) -> anyhow::Result<()> {
    let from = File::open(core).with_context(|| core.display().to_string())?;
    decompress(from, to).with_context(|| core.display().to_string())
}

fn decompress(from: impl Read, to: &mut File) -> io::Result<()> {
    let mut from = zstd::Decoder::new(from)?;
    let mut piece = Vec::with_capacity(PIECE);
    loop {
        piece.clear();
        if from.by_ref().take(PIECE as u64).read_to_end(&mut piece)? == 0 {
            let length = to.stream_position()?;
            return to.set_len(length);
        }
        if piece.iter().all(|&byte| byte == 0) {
            to.seek(SeekFrom::Current(piece.len() as i64))?;
        } else {
            to.write_all(&piece)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The head of a core with these segments: physical address, bytes in the file and in memory.
    fn elf(segments: &[(u64, u64, u64)]) -> Vec<u8> {
        let mut elf = vec![0; EHDR];
        elf[..4].copy_from_slice(b"\x7fELF");
        (elf[32], elf[54], elf[56]) = (EHDR as u8, PHDR as u8, segments.len() as u8);
        for (paddr, in_file, in_memory) in segments {
            let fields = [LOAD as u64, 0x1000, 0xffff_8880_0000_0000 + paddr, *paddr, *in_file, *in_memory, 0];
            elf.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
        }
        elf
    }

    #[test]
    fn the_map_of_all_memory_does_not_end_with_the_first_node() {
        const M: u64 = 1 << 20;
        let broken = [(0, 256 * M, 1024 * M), (300 * M, M, M), (512 * M, 0, M)];
        let mended = [(0, 512 * M, 1024 * M), (300 * M, M, M), (512 * M, 0, M)];
        assert_eq!(head(&mut &*elf(&broken), 512 * M).unwrap(), elf(&mended));
        assert!(
            head(&mut &b"no ELF, though it is long enough to hold a header of one, which is 64 bytes"[..], M).is_err()
        );
    }

    #[test]
    fn a_core_comes_back_as_it_was_and_zeros_take_no_room() {
        let mut memory = elf(&[(0, 1, 1)]);
        memory.resize(40 << 20, 0);
        for (at, byte) in memory[20 << 20..(20 << 20) + 70_000].iter_mut().enumerate() {
            *byte = (at * at) as u8;
        }
        // It does not end on the border of a piece, and it ends with zeros.
        memory.truncate((40 << 20) - 17);
        let mut packed = Vec::new();
        compress(&*memory, 1, &mut packed).unwrap();
        assert!(packed.len() < 200_000, "{} bytes", packed.len());
        let mut file = tempfile::tempfile().unwrap();
        decompress(&*packed, &mut file).unwrap();
        use std::os::unix::fs::MetadataExt as _;
        assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20, "zeros are holes");
        let mut back = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut back).unwrap();
        assert!(back == memory, "{} bytes of {}", back.len(), memory.len());
    }

    #[test]
    fn a_core_that_was_cut_short_is_an_error_and_not_a_shorter_core() {
        let (mut packed, mut memory) = (Vec::new(), elf(&[]));
        memory.resize(1 << 20, 7);
        compress(&*memory, 1, &mut packed).unwrap();
        packed.truncate(packed.len() - 5);
        assert!(decompress(&*packed, &mut tempfile::tempfile().unwrap()).is_err());
    }
}
