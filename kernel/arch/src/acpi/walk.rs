//! Walking the records of an ACPI table, and what can be wrong with one.
//!
//! MADT and SRAT are a fixed part followed by records that begin with a type byte and a length byte.
//! Firmware gets them wrong, and a record of length 0 hangs a walker that trusts it. Everything here
//! works on a byte slice that ends where the table ends, so damage is a value and never a fault.
//!
//! Context: any (pure functions). Answers to `drivers/acpi/tables.c` and `fw_table.c` of Linux.

use core::fmt;

/// Length of the header that every system description table begins with, in bytes.
pub(super) const HEADER_LEN: usize = 36;

/// What is wrong with a table. The table is then left out, and boot goes on without it.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Damage {
    /// The root pointer does not begin with `RSD PTR `, or its checksum is wrong.
    RootPointer,
    /// The table, or part of it, lies where no memory is mapped.
    Unreachable {
        /// Physical address that could not be read.
        at: u64,
    },
    /// The length field is smaller than the fixed part or larger than any sane table.
    Length {
        /// The length that the header claims.
        claimed: u32,
    },
    /// The bytes do not add up to 0.
    Checksum,
    /// A record's length is too small for its type, or runs past the table's end.
    Record {
        /// Where the record begins, from the table's start.
        offset: usize,
        /// Its type.
        kind: u8,
        /// The length it claims.
        length: u8,
    },
    /// Two memory ranges of different nodes overlap, or one wraps around the address space.
    MemoryRange {
        /// Start of the range that does not fit.
        start: u64,
    },
    /// A distance matrix whose diagonal is not 10 or that has an entry below 10.
    Distance {
        /// Row of the bad entry.
        from: usize,
        /// Column of the bad entry.
        to: usize,
    },
    /// A distance matrix without a row.
    Empty,
    /// More proximity domains, records or localities than this kernel has room for.
    TooMany,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::RootPointer => f.write_str("the root pointer has a wrong signature or checksum"),
            Self::Unreachable { at } => write!(f, "it points to {at:#x}, where no memory is mapped"),
            Self::Length { claimed } => write!(f, "its length of {claimed} bytes cannot be right"),
            Self::Checksum => f.write_str("its checksum is wrong"),
            Self::Record { offset, kind, length } => {
                write!(f, "the record of type {kind} at byte {offset} claims a length of {length}")
            }
            Self::MemoryRange { start } => {
                write!(f, "the memory range at {start:#x} wraps around or overlaps another node's")
            }
            Self::Distance { from, to } => write!(f, "the distance from {from} to {to} cannot be right"),
            Self::Empty => f.write_str("it says that there is no node"),
            Self::TooMany => f.write_str("it describes more than this kernel has room for"),
        }
    }
}

/// One record: its type byte and all its bytes, type and length included.
#[derive(Copy, Clone, Debug)]
pub(super) struct Record<'a> {
    /// The type byte.
    pub kind: u8,
    /// Where the record begins, from the table's start.
    pub offset: usize,
    /// The whole record, at least two bytes.
    pub bytes: &'a [u8],
}

impl Record<'_> {
    /// Checks that the record has at least `needed` bytes.
    pub(super) fn require(&self, needed: usize) -> Result<(), Damage> {
        if self.bytes.len() < needed { Err(self.damage()) } else { Ok(()) }
    }

    fn damage(&self) -> Damage {
        Damage::Record { offset: self.offset, kind: self.kind, length: self.bytes.len() as u8 }
    }
}

/// Iterator over the records of a table. Ends after the first damaged record.
pub(super) struct Records<'a> {
    table: &'a [u8],
    offset: usize,
}

/// The records of `table`, whose fixed part (header included) is `fixed` bytes long.
pub(super) fn records(table: &[u8], fixed: usize) -> Records<'_> {
    Records { table, offset: fixed.min(table.len()) }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Damage>;

    fn next(&mut self) -> Option<Self::Item> {
        let offset = self.offset;
        let rest = self.table.get(offset..).filter(|rest| !rest.is_empty())?;
        let kind = rest[0];
        let length = rest.get(1).copied().unwrap_or(0);
        // Length 0 or 1 would never advance past its own header; a long one would leave the table.
        match rest.get(..usize::from(length)) {
            Some(bytes) if length >= 2 => {
                self.offset += bytes.len();
                Some(Ok(Record { kind, offset, bytes }))
            }
            _ => {
                self.offset = self.table.len();
                Some(Err(Damage::Record { offset, kind, length }))
            }
        }
    }
}

/// Little-endian number at `offset`; the caller has checked that the slice is long enough.
pub(super) fn le_u16(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

/// Little-endian number at `offset`; the caller has checked that the slice is long enough.
pub(super) fn le_u32(bytes: &[u8], offset: usize) -> u32 {
    u32::from(le_u16(bytes, offset)) | u32::from(le_u16(bytes, offset + 2)) << 16
}

/// Little-endian number at `offset`; the caller has checked that the slice is long enough.
pub(super) fn le_u64(bytes: &[u8], offset: usize) -> u64 {
    u64::from(le_u32(bytes, offset)) | u64::from(le_u32(bytes, offset + 4)) << 32
}

/// Whether the bytes add up to 0, as those of every intact table do.
pub(super) fn checksum_is_right(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)) == 0
}

#[cfg(test)]
pub(super) mod build {
    //! Builds tables byte by byte for the tests of this folder.
    extern crate std;
    use std::vec::Vec;

    /// A table with the given signature, revision and body, its length and checksum filled in.
    pub(crate) fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = std::vec![0u8; super::HEADER_LEN];
        bytes[..4].copy_from_slice(signature);
        bytes[8] = revision;
        bytes[10..16].copy_from_slice(b"GRANGE");
        bytes[16..24].copy_from_slice(b"TESTTABL");
        bytes.extend_from_slice(body);
        let length = bytes.len() as u32;
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
        seal(&mut bytes);
        bytes
    }

    /// Sets the checksum byte so that all bytes add up to 0.
    pub(crate) fn seal(bytes: &mut [u8]) {
        bytes[9] = 0;
        let sum = bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
        bytes[9] = sum.wrapping_neg();
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn walk(body: &[u8]) -> Vec<Result<(u8, usize), Damage>> {
        records(body, 0).map(|r| r.map(|r| (r.kind, r.bytes.len()))).collect()
    }

    #[test]
    fn records_are_walked_in_order() {
        assert_eq!(walk(&[1, 3, 9, 7, 2]), [Ok((1, 3)), Ok((7, 2))]);
    }

    #[test]
    fn a_record_of_length_zero_ends_the_walk() {
        let got = walk(&[1, 2, 5, 0, 1, 2]);
        assert_eq!(got, [Ok((1, 2)), Err(Damage::Record { offset: 2, kind: 5, length: 0 })]);
    }

    #[test]
    fn a_record_past_the_end_is_damage() {
        assert_eq!(walk(&[4, 9, 0]), [Err(Damage::Record { offset: 0, kind: 4, length: 9 })]);
    }

    #[test]
    fn a_lone_last_byte_is_damage() {
        assert_eq!(walk(&[8]), [Err(Damage::Record { offset: 0, kind: 8, length: 0 })]);
    }

    #[test]
    fn a_fixed_part_longer_than_the_table_has_no_records() {
        assert_eq!(records(&[1, 2, 3], 40).count(), 0);
    }
}
