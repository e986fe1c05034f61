//! MADT: the CPUs of the machine and the address of the local APIC.
//!
//! The layouts of the records are the `acpi` crate's. Its iterator over them is not used: it does
//! not end on a record of length 0, believes a record's type before its length, and reads beyond
//! what its reference covers (Miri objects).
//!
//! Context: any (pure). Answers to `arch/x86/kernel/acpi/boot.c` of Linux.

use core::mem::size_of;

use acpi::sdt::madt::{LocalApicAddressOverrideEntry, LocalApicEntry, LocalX2ApicEntry, Madt};
use arrayvec::ArrayVec;

use super::walk::{self, Damage, Record};
use crate::MAX_CPUS;

const ENABLED: u32 = 1;
const LOCAL_APIC: u8 = 0;
const ADDRESS_OVERRIDE: u8 = 5;
const LOCAL_X2APIC: u8 = 9;
/// Broadcast destination of an xAPIC; never the id of a CPU.
const XAPIC_BROADCAST: u8 = 0xff;

/// What a MADT says about CPUs.
#[derive(Clone, Debug, Default)]
pub struct Cpus {
    /// Physical address of the local APIC's registers.
    pub local_apic: u64,
    /// APIC ids of the enabled CPUs, in the table's order, each once.
    pub apic_ids: ArrayVec<u32, MAX_CPUS>,
    /// Enabled CPUs that cannot be used: no room, or an id that only x2APIC can reach.
    pub unusable: usize,
    /// CPUs that are described but not enabled (empty sockets).
    pub disabled: usize,
}

/// Reads a whole table, header included; the caller has checked signature and checksum.
///
/// CPUs with an id above `max_apic_id` are counted as unusable.
///
/// # Errors
/// What is wrong with the table; nothing of a damaged table is used.
pub(super) fn parse(table: &[u8], max_apic_id: u32) -> Result<Cpus, Damage> {
    if table.len() < size_of::<Madt>() {
        return Err(Damage::Length { claimed: table.len() as u32 });
    }
    let local_apic = u64::from(walk::le_u32(table, walk::HEADER_LEN));
    let mut cpus = Cpus { local_apic, ..Cpus::default() };
    for record in walk::records(table, size_of::<Madt>()) {
        let record = record?;
        match record.kind {
            LOCAL_APIC => {
                let cpu = read::<LocalApicEntry>(&record)?;
                if cpu.apic_id != XAPIC_BROADCAST {
                    add(&mut cpus, u32::from(cpu.apic_id), cpu.flags, max_apic_id);
                }
            }
            LOCAL_X2APIC => {
                let cpu = read::<LocalX2ApicEntry>(&record)?;
                add(&mut cpus, cpu.x2apic_id, cpu.flags, max_apic_id);
            }
            ADDRESS_OVERRIDE => {
                cpus.local_apic = read::<LocalApicAddressOverrideEntry>(&record)?.local_apic_address;
            }
            _ => {}
        }
    }
    Ok(cpus)
}

/// A record's layout: packed, and made of plain numbers only.
///
/// # Safety
/// Any bytes of its size are a value of the type.
unsafe trait Layout: Copy {}
// SAFETY: these three are `repr(C, packed)` structs of unsigned integers.
unsafe impl Layout for LocalApicEntry {}
// SAFETY: as above.
unsafe impl Layout for LocalX2ApicEntry {}
// SAFETY: as above.
unsafe impl Layout for LocalApicAddressOverrideEntry {}

fn read<T: Layout>(record: &Record<'_>) -> Result<T, Damage> {
    record.require(size_of::<T>())?;
    // SAFETY: the record has at least the bytes of a `T`, and any bytes are one.
    Ok(unsafe { record.bytes.as_ptr().cast::<T>().read_unaligned() })
}

fn add(cpus: &mut Cpus, apic_id: u32, flags: u32, max_apic_id: u32) {
    if flags & ENABLED == 0 {
        cpus.disabled += 1;
        return;
    }
    let reachable = apic_id <= max_apic_id;
    let known = cpus.apic_ids.contains(&apic_id);
    if !reachable || (!known && cpus.apic_ids.try_push(apic_id).is_err()) {
        cpus.unusable += 1;
    }
}

#[cfg(test)]
pub(super) mod build {
    //! Records of a MADT for the tests of this folder.
    extern crate std;
    use std::vec::Vec;

    pub(crate) fn cpu(apic_id: u8, flags: u32) -> Vec<u8> {
        let mut r = std::vec![0, 8, apic_id, apic_id];
        r.extend_from_slice(&flags.to_le_bytes());
        r
    }

    pub(crate) fn x2cpu(apic_id: u32, flags: u32) -> Vec<u8> {
        let mut r = std::vec![9, 16, 0, 0];
        r.extend_from_slice(&apic_id.to_le_bytes());
        r.extend_from_slice(&flags.to_le_bytes());
        r.extend_from_slice(&apic_id.to_le_bytes());
        r
    }

    pub(crate) fn madt(records: &[Vec<u8>]) -> Vec<u8> {
        let mut body = 0xfee0_0000u32.to_le_bytes().to_vec();
        body.extend_from_slice(&1u32.to_le_bytes());
        for record in records {
            body.extend_from_slice(record);
        }
        super::super::walk::build::table(b"APIC", 3, &body)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::build::{cpu, madt, x2cpu};
    use super::*;
    use std::vec;

    #[test]
    fn sparse_ids_keep_the_tables_order() {
        let table = madt(&[cpu(0, 1), cpu(1, 1), cpu(2, 1), cpu(4, 1), cpu(5, 1), cpu(6, 1)]);
        let got = parse(&table, 254).unwrap();
        assert_eq!(got.apic_ids.as_slice(), [0, 1, 2, 4, 5, 6]);
        assert_eq!(got.local_apic, 0xfee0_0000);
    }

    #[test]
    fn disabled_cpus_are_counted_and_not_started() {
        let got = parse(&madt(&[cpu(0, 1), cpu(1, 0), cpu(2, 2)]), 254).unwrap();
        assert_eq!((got.apic_ids.as_slice(), got.disabled), ([0].as_slice(), 2));
    }

    #[test]
    fn an_id_in_both_forms_counts_once() {
        let got = parse(&madt(&[cpu(3, 1), x2cpu(3, 1), x2cpu(300, 1)]), u32::MAX).unwrap();
        assert_eq!(got.apic_ids.as_slice(), [3, 300]);
    }

    #[test]
    fn an_id_out_of_the_xapics_reach_is_unusable() {
        let got = parse(&madt(&[cpu(0, 1), x2cpu(300, 1)]), 254).unwrap();
        assert_eq!((got.apic_ids.len(), got.unusable), (1, 1));
    }

    #[test]
    fn the_broadcast_id_is_no_cpu() {
        let got = parse(&madt(&[cpu(0xff, 1), cpu(0, 1)]), 254).unwrap();
        assert_eq!((got.apic_ids.as_slice(), got.unusable), ([0].as_slice(), 0));
    }

    #[test]
    fn the_address_override_wins() {
        let mut entry = vec![5, 12, 0, 0];
        entry.extend_from_slice(&0x1_fee0_0000u64.to_le_bytes());
        assert_eq!(parse(&madt(&[entry]), 254).unwrap().local_apic, 0x1_fee0_0000);
    }

    #[test]
    fn unknown_types_are_stepped_over() {
        let got = parse(&madt(&[vec![0x7f, 3, 0], vec![0xf0, 2], cpu(9, 1)]), 254).unwrap();
        assert_eq!(got.apic_ids.as_slice(), [9]);
    }

    #[test]
    fn records_of_length_zero_or_too_short_for_their_type_are_damage() {
        for bad in [vec![0, 0, 0, 0], vec![0x7f, 0], vec![0, 7, 0, 0, 1, 0, 0], vec![9, 8, 0, 0, 1, 0, 0, 0]] {
            let table = madt(&[cpu(0, 1), bad]);
            assert!(matches!(parse(&table, 254), Err(Damage::Record { offset: 52, .. })));
        }
    }

    #[test]
    fn more_cpus_than_there_is_room_for_are_counted() {
        let records: vec::Vec<_> = (0..300).map(|id| x2cpu(id, 1)).collect();
        let got = parse(&madt(&records), u32::MAX).unwrap();
        assert_eq!((got.apic_ids.len(), got.unusable), (MAX_CPUS, 300 - MAX_CPUS));
    }
}
