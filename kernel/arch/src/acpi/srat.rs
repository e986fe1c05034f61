//! SRAT: which CPU and which memory belongs to which proximity domain.
//!
//! Parsed from the raw bytes. The `acpi` crate takes a record's length for 16 bits, so every field
//! it returns is off by one byte, and its iterator never ends on a table of several nodes.
//!
//! Context: any (pure). Answers to `arch/x86/mm/srat.c` and `drivers/acpi/numa/srat.c` of Linux.

use arrayvec::ArrayVec;

use super::walk::{self, Damage, Record, le_u32, le_u64};
use crate::MAX_CPUS;

/// Most memory ranges that are kept.
pub(super) const MAX_RANGES: usize = 128;

/// Header and twelve reserved bytes.
const FIXED_LEN: usize = walk::HEADER_LEN + 12;
const LOCAL_APIC: u8 = 0;
const MEMORY: u8 = 1;
const LOCAL_X2APIC: u8 = 2;
const ENABLED: u32 = 1;

/// One range of memory and the proximity domain it belongs to.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Range {
    /// First physical address.
    pub start: u64,
    /// Length in bytes, never 0.
    pub len: u64,
    /// Proximity domain.
    pub domain: u32,
}

/// What an SRAT says, in the table's order. Disabled and empty records are left out.
#[derive(Clone, Debug, Default)]
pub struct Srat {
    /// APIC id and proximity domain of each enabled CPU.
    pub cpus: ArrayVec<(u32, u32), MAX_CPUS>,
    /// Enabled memory ranges; two of different domains never overlap.
    pub memory: ArrayVec<Range, MAX_RANGES>,
}

/// Reads a whole table, header included; the caller has checked signature and checksum.
///
/// # Errors
/// What is wrong with the table; nothing of a damaged table is used.
pub(super) fn parse(table: &[u8]) -> Result<Srat, Damage> {
    if table.len() < FIXED_LEN {
        return Err(Damage::Length { claimed: table.len() as u32 });
    }
    // In revision 1 a domain has eight bits and the rest of the field is reserved.
    let domain_mask = if table[8] < 2 { 0xff } else { u32::MAX };
    let mut srat = Srat::default();
    for record in walk::records(table, FIXED_LEN) {
        let record = record?;
        match record.kind {
            LOCAL_APIC => {
                record.require(16)?;
                let b = record.bytes;
                let domain = u32::from_le_bytes([b[2], b[9], b[10], b[11]]) & domain_mask;
                add_cpu(&mut srat, u32::from(b[3]), domain, le_u32(b, 4))?;
            }
            LOCAL_X2APIC => {
                record.require(24)?;
                let b = record.bytes;
                add_cpu(&mut srat, le_u32(b, 8), le_u32(b, 4), le_u32(b, 12))?;
            }
            MEMORY => add_memory(&mut srat, &record, domain_mask)?,
            _ => {}
        }
    }
    Ok(srat)
}

fn add_cpu(srat: &mut Srat, apic_id: u32, domain: u32, flags: u32) -> Result<(), Damage> {
    if flags & ENABLED == 0 {
        return Ok(());
    }
    srat.cpus.try_push((apic_id, domain)).map_err(|_| Damage::TooMany)
}

fn add_memory(srat: &mut Srat, record: &Record<'_>, domain_mask: u32) -> Result<(), Damage> {
    record.require(40)?;
    let b = record.bytes;
    let range = Range { start: le_u64(b, 8), len: le_u64(b, 16), domain: le_u32(b, 2) & domain_mask };
    if le_u32(b, 28) & ENABLED == 0 || range.len == 0 {
        return Ok(());
    }
    let end = range.start.checked_add(range.len).ok_or(Damage::MemoryRange { start: range.start })?;
    let clashes = srat
        .memory
        .iter()
        .any(|other| other.domain != range.domain && range.start < other.start + other.len && other.start < end);
    if clashes {
        return Err(Damage::MemoryRange { start: range.start });
    }
    srat.memory.try_push(range).map_err(|_| Damage::TooMany)
}

#[cfg(test)]
pub(super) mod build {
    //! Records of an SRAT for the tests of this folder.
    extern crate std;
    use std::vec::Vec;

    pub(crate) fn cpu(apic_id: u8, domain: u32, flags: u32) -> Vec<u8> {
        let d = domain.to_le_bytes();
        let mut r = std::vec![0, 16, d[0], apic_id];
        r.extend_from_slice(&flags.to_le_bytes());
        r.extend_from_slice(&[0, d[1], d[2], d[3], 0, 0, 0, 0]);
        r
    }

    pub(crate) fn x2cpu(apic_id: u32, domain: u32, flags: u32) -> Vec<u8> {
        let mut r = std::vec![2, 24, 0, 0];
        r.extend_from_slice(&domain.to_le_bytes());
        r.extend_from_slice(&apic_id.to_le_bytes());
        r.extend_from_slice(&flags.to_le_bytes());
        r.extend_from_slice(&[0; 8]);
        r
    }

    pub(crate) fn memory(start: u64, len: u64, domain: u32, flags: u32) -> Vec<u8> {
        let mut r = std::vec![1, 40];
        r.extend_from_slice(&domain.to_le_bytes());
        r.extend_from_slice(&[0, 0]);
        r.extend_from_slice(&start.to_le_bytes());
        r.extend_from_slice(&len.to_le_bytes());
        r.extend_from_slice(&[0; 4]);
        r.extend_from_slice(&flags.to_le_bytes());
        r.extend_from_slice(&[0; 8]);
        r
    }

    pub(crate) fn srat(revision: u8, records: &[Vec<u8>]) -> Vec<u8> {
        let mut body = std::vec![0u8; 12];
        for record in records {
            body.extend_from_slice(record);
        }
        super::super::walk::build::table(b"SRAT", revision, &body)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::build::{cpu, memory, srat, x2cpu};
    use super::*;

    #[test]
    fn cpus_and_memory_of_two_nodes_are_read() {
        let table = srat(
            3,
            &[
                cpu(0, 0, 1),
                cpu(4, 1, 1),
                memory(0, 0xa_0000, 0, 1),
                memory(0x10_0000, 0xff0_0000, 0, 1),
                memory(0x1000_0000, 0x1000_0000, 1, 1),
            ],
        );
        let got = parse(&table).unwrap();
        assert_eq!(got.cpus.as_slice(), [(0, 0), (4, 1)]);
        assert_eq!(got.memory.len(), 3);
        assert_eq!(got.memory[2], Range { start: 0x1000_0000, len: 0x1000_0000, domain: 1 });
    }

    #[test]
    fn disabled_records_and_the_all_zero_tail_are_left_out() {
        let table = srat(1, &[cpu(0, 0, 0), memory(0x1000, 0x1000, 1, 0), memory(0, 0, 0, 0)]);
        let got = parse(&table).unwrap();
        assert!(got.cpus.is_empty() && got.memory.is_empty());
    }

    #[test]
    fn a_domain_has_eight_bits_in_revision_one_and_thirty_two_after() {
        let records = [cpu(1, 0x1234_5678, 1), memory(0, 0x1000, 0x1234_5678, 1)];
        let old = parse(&srat(1, &records)).unwrap();
        assert_eq!((old.cpus[0].1, old.memory[0].domain), (0x78, 0x78));
        let new = parse(&srat(3, &records)).unwrap();
        assert_eq!((new.cpus[0].1, new.memory[0].domain), (0x1234_5678, 0x1234_5678));
    }

    #[test]
    fn x2apic_ids_above_255_are_read() {
        let got = parse(&srat(3, &[x2cpu(0x1_0001, 7, 1)])).unwrap();
        assert_eq!(got.cpus.as_slice(), [(0x1_0001, 7)]);
    }

    #[test]
    fn a_short_record_is_damage() {
        let mut table = srat(3, &[cpu(0, 0, 1)]);
        table[FIXED_LEN + 1] = 8;
        assert_eq!(parse(&table).unwrap_err(), Damage::Record { offset: 48, kind: 0, length: 8 });
    }

    #[test]
    fn a_record_of_length_zero_is_damage_and_not_a_hang() {
        let mut table = srat(3, &[cpu(0, 0, 1), cpu(1, 0, 1)]);
        table[FIXED_LEN + 17] = 0;
        assert!(matches!(parse(&table), Err(Damage::Record { offset: 64, .. })));
    }

    #[test]
    fn overlapping_and_wrapping_ranges_are_damage() {
        let overlap = srat(3, &[memory(0, 0x2000, 0, 1), memory(0x1000, 0x2000, 1, 1)]);
        assert_eq!(parse(&overlap).unwrap_err(), Damage::MemoryRange { start: 0x1000 });
        let wrap = srat(3, &[memory(u64::MAX - 5, 0x2000, 0, 1)]);
        assert_eq!(parse(&wrap).unwrap_err(), Damage::MemoryRange { start: u64::MAX - 5 });
    }

    #[test]
    fn a_table_cut_off_in_its_fixed_part_is_damage() {
        assert!(matches!(parse(&[0; 40]), Err(Damage::Length { claimed: 40 })));
    }
}
