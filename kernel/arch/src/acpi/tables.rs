//! Finding ACPI tables: from the root pointer to the raw bytes of a table.
//!
//! The `acpi` crate walks the root table; what it trusts (addresses, lengths, checksums) is checked
//! here first, so that a damaged root leads to an error and not to a page fault.
//!
//! - ACPI-1: no byte is read through a [`PhysWindow`] that the window has not found mapped.
//!
//! Context: boot CPU, before others run. Answers to `drivers/acpi/tables.c` of Linux.

use core::mem::size_of;
use core::ptr::NonNull;

use acpi::rsdp::Rsdp;
use acpi::{AcpiQuirks, AcpiTables, Handler, PciAddress, RawPhysicalMapping};

use super::walk::{self, Damage, HEADER_LEN, checksum_is_right, le_u32};

/// Longest table that is believed, in bytes. A MADT of 256 CPUs has about 4 KiB.
const MAX_TABLE_LEN: u32 = 1 << 20;

/// Physical memory as the kernel can read it: at a fixed distance, as far as it is mapped.
#[derive(Copy, Clone)]
pub struct PhysWindow {
    base: *const u8,
    is_mapped: fn(u64) -> bool,
}

impl PhysWindow {
    /// A window that shows physical address 0 at `base`.
    ///
    /// # Safety
    /// Each physical page for which `is_mapped` returns true is readable at `base` + its address,
    /// for as long as the program runs, and nobody writes to the ACPI tables in it.
    pub const unsafe fn new(base: *const u8, is_mapped: fn(u64) -> bool) -> Self {
        Self { base, is_mapped }
    }

    /// The bytes at `phys`.
    ///
    /// # Errors
    /// [`Damage::Unreachable`] if a page of them is not mapped.
    pub fn bytes(&self, phys: u64, len: usize) -> Result<&'static [u8], Damage> {
        let end = phys.checked_add(len as u64).ok_or(Damage::Unreachable { at: phys })?;
        let mut page = phys;
        while page < end {
            if !(self.is_mapped)(page) {
                return Err(Damage::Unreachable { at: page });
            }
            page = (page & !0xfff).saturating_add(0x1000);
        }
        let start = self.base.wrapping_add(phys as usize);
        // SAFETY: each page of the range was found mapped, so by the promise given to `new` the
        // bytes are readable at this address for good and are not written.
        Ok(unsafe { core::slice::from_raw_parts(start, len) })
    }
}

/// The root table, checked and ready for look-ups.
pub struct Tables {
    window: PhysWindow,
    root: AcpiTables<Mapper>,
}

impl Tables {
    /// Follows the root pointer at physical address `rsdp`.
    ///
    /// Takes the XSDT where there is a good one, else the RSDT.
    ///
    /// # Errors
    /// What is wrong with the root pointer or with the root table that it names.
    pub fn open(window: PhysWindow, rsdp: u64) -> Result<Self, Damage> {
        let bytes = window.bytes(rsdp, size_of::<Rsdp>())?;
        // SAFETY: `Rsdp` is packed, made of plain numbers, and the slice has exactly its size.
        let pointer = unsafe { &*bytes.as_ptr().cast::<Rsdp>() };
        pointer.validate().map_err(|_| Damage::RootPointer)?;

        let xsdt = (pointer.revision() > 1).then(|| pointer.xsdt_address()).filter(|&at| at != 0);
        let rsdt = u64::from(pointer.rsdt_address());
        let ignore_xsdt = match xsdt.map(|at| check(window, at, b"XSDT")) {
            Some(Ok(_)) => false,
            Some(Err(damage)) if rsdt == 0 => return Err(damage),
            Some(Err(_)) | None => {
                check(window, rsdt, b"RSDT")?;
                true
            }
        };
        let quirks = AcpiQuirks { ignore_xsdt };
        // SAFETY: the root pointer is readable and valid, and so is the whole root table that the
        // crate will choose with this quirk: both were checked above.
        let root = unsafe { AcpiTables::from_rsdp_with_quirks(Mapper(window), rsdp as usize, quirks) };
        Ok(Self { window, root: root.map_err(|_| Damage::RootPointer)? })
    }

    /// The whole first table with this signature, or `None` if the machine has none.
    ///
    /// # Errors
    /// What is wrong with the table.
    pub fn find(&self, signature: &[u8; 4]) -> Result<Option<&'static [u8]>, Damage> {
        self.places(signature).next().map(|at| check(self.window, at, signature)).transpose()
    }

    /// How many tables with this signature the machine has.
    pub fn count(&self, signature: &[u8; 4]) -> usize {
        self.places(signature).count()
    }

    /// Where the tables with this signature are.
    fn places(&self, signature: &[u8; 4]) -> impl Iterator<Item = u64> {
        self.root.table_entries().map(|at| at as u64).filter(move |&at| {
            // A root entry that points nowhere hides its own table only.
            self.window.bytes(at, HEADER_LEN).is_ok_and(|header| header.starts_with(signature))
        })
    }
}

/// Checks the table at `at` and returns all of it.
fn check(window: PhysWindow, at: u64, signature: &[u8; 4]) -> Result<&'static [u8], Damage> {
    let header = window.bytes(at, HEADER_LEN)?;
    if !header.starts_with(signature) {
        return Err(Damage::RootPointer);
    }
    let claimed = le_u32(header, 4);
    if claimed < HEADER_LEN as u32 || claimed > MAX_TABLE_LEN {
        return Err(Damage::Length { claimed });
    }
    let table = window.bytes(at, claimed as usize)?;
    if checksum_is_right(table) { Ok(table) } else { Err(Damage::Checksum) }
}

/// What the `acpi` crate asks of its host. Looking tables up only maps memory; the accessors below
/// belong to its AML interpreter, which this kernel does not build.
#[derive(Clone)]
struct Mapper(PhysWindow);

macro_rules! only_for_aml {
    ($($name:ident($($argument:ident: $kind:ty),*) $(-> $result:ty)?;)*) => {
        $(fn $name(&self, $($argument: $kind),*) $(-> $result)? {
            let _ = ($($argument,)*);
            unreachable!(concat!("table look-up never calls ", stringify!($name)))
        })*
    };
}

impl Handler for Mapper {
    unsafe fn map_physical_region<T>(&self, at: usize, size: usize) -> RawPhysicalMapping<T> {
        let start = self.0.base.wrapping_add(at).cast::<T>().cast_mut();
        let start = NonNull::new(start).expect("the physical window does not begin at address 0");
        // SAFETY: the window shows this address for good, so nothing is ever unmapped, and the
        // crate only reads through it.
        unsafe { RawPhysicalMapping::new(at, start, size, size) }
    }

    unsafe fn unmap_physical_region<T>(&self, _region: RawPhysicalMapping<T>) {}

    only_for_aml! {
        read_u8(address: usize) -> u8;
        read_u16(address: usize) -> u16;
        read_u32(address: usize) -> u32;
        read_u64(address: usize) -> u64;
        write_u8(address: usize, value: u8);
        write_u16(address: usize, value: u16);
        write_u32(address: usize, value: u32);
        write_u64(address: usize, value: u64);
        read_io_u8(port: u16) -> u8;
        read_io_u16(port: u16) -> u16;
        read_io_u32(port: u16) -> u32;
        write_io_u8(port: u16, value: u8);
        write_io_u16(port: u16, value: u16);
        write_io_u32(port: u16, value: u32);
        read_pci_u8(address: PciAddress, offset: u16) -> u8;
        read_pci_u16(address: PciAddress, offset: u16) -> u16;
        read_pci_u32(address: PciAddress, offset: u16) -> u32;
        write_pci_u8(address: PciAddress, offset: u16, value: u8);
        write_pci_u16(address: PciAddress, offset: u16, value: u16);
        write_pci_u32(address: PciAddress, offset: u16, value: u32);
        nanos_since_boot() -> u64;
        stall(microseconds: u64);
        sleep(milliseconds: u64);
    }
}

/// I/O port of the power-management timer that a FADT names, if it has one.
pub fn pm_timer_port(fadt: &[u8]) -> Option<u16> {
    /// Byte offsets of `PM_TMR_BLK` and `PM_TMR_LEN` in the table.
    const BLOCK: usize = 76;
    const LENGTH: usize = 91;
    if fadt.len() <= LENGTH || fadt[LENGTH] != 4 {
        return None;
    }
    u16::try_from(le_u32(fadt, BLOCK)).ok().filter(|&port| port != 0)
}

/// I/O port of the PM1a control register that a FADT names; writing it switches the machine off.
pub fn pm1a_control_port(fadt: &[u8]) -> Option<u16> {
    /// Byte offset of `PM1a_CNT_BLK` in the table.
    const BLOCK: usize = 64;
    if fadt.len() < BLOCK + 4 {
        return None;
    }
    u16::try_from(walk::le_u32(fadt, BLOCK)).ok().filter(|&port| port != 0)
}

#[cfg(test)]
#[path = "tables_tests.rs"]
mod tests;
