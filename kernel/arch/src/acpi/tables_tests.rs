//! Look-ups in a toy physical memory, whole and damaged.

extern crate std;
use super::super::walk::build::{seal, table};
use super::*;
use std::boxed::Box;
use std::sync::Mutex;
use std::vec::Vec;

const RSDP: usize = 0x1000;
const XSDT: usize = 0x1100;
const RSDT: usize = 0x1200;
const FIRST: usize = 0x1300;
const SECOND: usize = 0x1400;
const SIZE: usize = 0x2000;

/// Only the two pages of the toy memory are mapped.
fn in_toy(page: u64) -> bool {
    page < SIZE as u64
}

/// Memory with both kinds of root table that name the two tables.
fn toy() -> Vec<u8> {
    let mut memory = std::vec![0u8; SIZE];
    let mut put = |at: usize, bytes: &[u8]| memory[at..at + bytes.len()].copy_from_slice(bytes);
    let wide: Vec<u8> = [FIRST as u64, SECOND as u64].iter().flat_map(|a| a.to_le_bytes()).collect();
    let narrow: Vec<u8> = [FIRST as u32, SECOND as u32].iter().flat_map(|a| a.to_le_bytes()).collect();
    put(XSDT, &table(b"XSDT", 1, &wide));
    put(RSDT, &table(b"RSDT", 1, &narrow));
    put(FIRST, &table(b"SLIT", 1, &[1, 2, 3]));
    put(SECOND, &table(b"SRAT", 1, &[4, 5, 6, 7]));
    put(RSDP, b"RSD PTR ");
    put(RSDP + 9, b"GRANGE");
    put(RSDP + 15, &[2]);
    put(RSDP + 16, &(RSDT as u32).to_le_bytes());
    put(RSDP + 20, &36u32.to_le_bytes());
    put(RSDP + 24, &(XSDT as u64).to_le_bytes());
    seal_rsdp(&mut memory);
    memory
}

fn seal_rsdp(memory: &mut [u8]) {
    for (checksum, len) in [(8, 20), (32, 36)] {
        memory[RSDP + checksum] = 0;
        let sum = memory[RSDP..RSDP + len].iter().fold(0u8, |s, &b| s.wrapping_add(b));
        memory[RSDP + checksum] = sum.wrapping_neg();
    }
}

/// Toy memories stay for ever, as physical memory does; held here, they do not count as leaks.
static MEMORIES: Mutex<Vec<&'static [u8]>> = Mutex::new(Vec::new());

fn open(memory: Vec<u8>) -> Result<Tables, Damage> {
    let memory: &'static [u8] = Box::leak(memory.into_boxed_slice());
    MEMORIES.lock().expect("no test panics while it holds the list").push(memory);
    // SAFETY: the leaked slice stays readable, is not written, and `in_toy` is true inside it only.
    let window = unsafe { PhysWindow::new(memory.as_ptr(), in_toy) };
    Tables::open(window, RSDP as u64)
}

#[test]
fn tables_are_found_through_the_xsdt() {
    let tables = open(toy()).unwrap();
    assert_eq!(tables.find(b"SRAT").unwrap().unwrap()[HEADER_LEN..], [4, 5, 6, 7]);
    assert_eq!(tables.find(b"SLIT").unwrap().unwrap()[HEADER_LEN..], [1, 2, 3]);
    assert!(tables.find(b"HPET").unwrap().is_none());
}

#[test]
fn of_two_tables_with_one_name_the_first_is_found_and_both_are_counted() {
    let mut memory = toy();
    let second = table(b"SLIT", 1, &[9]);
    memory[SECOND..SECOND + second.len()].copy_from_slice(&second);
    let tables = open(memory).unwrap();
    assert_eq!((tables.count(b"SLIT"), tables.count(b"SRAT")), (2, 0));
    assert_eq!(tables.find(b"SLIT").unwrap().unwrap()[HEADER_LEN..], [1, 2, 3]);
}

#[test]
fn a_damaged_xsdt_falls_back_to_the_rsdt() {
    let mut memory = toy();
    memory[XSDT + 40] ^= 1;
    assert!(open(memory).unwrap().find(b"SRAT").unwrap().is_some());
}

#[test]
fn both_root_tables_damaged_is_an_error() {
    let mut memory = toy();
    memory[XSDT + 40] ^= 1;
    memory[RSDT + 38] ^= 1;
    assert_eq!(open(memory).err(), Some(Damage::Checksum));
}

#[test]
fn a_wrong_root_pointer_is_an_error() {
    let mut memory = toy();
    memory[RSDP + 3] = b'x';
    assert_eq!(open(memory).err(), Some(Damage::RootPointer));
}

#[test]
fn a_root_table_where_nothing_is_mapped_is_an_error() {
    let mut memory = toy();
    memory[RSDP + 15] = 0;
    memory[RSDP + 16..RSDP + 20].copy_from_slice(&0xfff0_0000u32.to_le_bytes());
    seal_rsdp(&mut memory);
    assert_eq!(open(memory).err(), Some(Damage::Unreachable { at: 0xfff0_0000 }));
}

#[test]
fn an_entry_that_points_nowhere_hides_only_its_own_table() {
    let mut memory = toy();
    memory[XSDT + HEADER_LEN..XSDT + HEADER_LEN + 8].copy_from_slice(&u64::MAX.to_le_bytes());
    seal(&mut memory[XSDT..XSDT + HEADER_LEN + 16]);
    let tables = open(memory).unwrap();
    assert!(tables.find(b"SLIT").unwrap().is_none());
    assert!(tables.find(b"SRAT").unwrap().is_some());
}

#[test]
fn a_damaged_table_is_named_with_what_is_wrong() {
    let mut memory = toy();
    memory[SECOND + 37] ^= 0x80;
    assert_eq!(open(memory).unwrap().find(b"SRAT").err(), Some(Damage::Checksum));
    let mut memory = toy();
    memory[SECOND + 4..SECOND + 8].copy_from_slice(&8u32.to_le_bytes());
    assert_eq!(open(memory).unwrap().find(b"SRAT").err(), Some(Damage::Length { claimed: 8 }));
    let mut memory = toy();
    memory[SECOND + 4..SECOND + 8].copy_from_slice(&0x8000u32.to_le_bytes());
    assert_eq!(open(memory).unwrap().find(b"SRAT").err(), Some(Damage::Unreachable { at: 0x2000 }));
}

#[test]
fn a_table_length_of_four_gigabytes_is_not_believed() {
    let mut memory = toy();
    memory[SECOND + 4..SECOND + 8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(open(memory).unwrap().find(b"SRAT").err(), Some(Damage::Length { claimed: u32::MAX }));
}

#[test]
fn the_timer_and_power_ports_come_from_the_fadt() {
    let mut body = std::vec![0u8; 116 - HEADER_LEN];
    body[64 - HEADER_LEN..66 - HEADER_LEN].copy_from_slice(&0x604u16.to_le_bytes());
    body[76 - HEADER_LEN..78 - HEADER_LEN].copy_from_slice(&0x608u16.to_le_bytes());
    body[91 - HEADER_LEN] = 4;
    let fadt = table(b"FACP", 1, &body);
    assert_eq!((pm_timer_port(&fadt), pm1a_control_port(&fadt)), (Some(0x608), Some(0x604)));
    assert_eq!((pm_timer_port(&fadt[..60]), pm1a_control_port(&fadt[..60])), (None, None));
}
