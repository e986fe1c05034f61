//! ACPI: the shape of the machine, read from the firmware's tables.
//!
//! | file | does |
//! |---|---|
//! | `walk` | steps over the records of a table; names damage |
//! | `tables` | from the root pointer to the checked bytes of a table |
//! | `madt` | CPUs |
//! | `srat` | which CPU and memory is on which node |
//! | `slit` | distances between nodes |
//! | `machine` | puts the three together |
//!
//! Everything but `tables` is pure and works on byte slices, so damage of every kind is tested on
//! the host. A damaged table costs one log line and the knowledge in that table, nothing else.

#[cfg(test)]
mod damage_tests;
mod machine;
mod madt;
mod slit;
mod srat;
mod tables;
mod walk;

pub use machine::{CpuEntry, Machine, MemAffinity};
pub use tables::{PhysWindow, Tables, pm_timer_port, pm1a_control_port};
pub use walk::Damage;

/// Reads everything there is to know about CPUs and nodes.
///
/// Never fails: each damaged table costs one line in the log, and the machine is put together from
/// the rest. CPUs with an APIC id above `max_apic_id` cannot be reached and are left out.
///
/// Context: boot CPU, after the log is up.
pub fn read_machine(tables: Option<&Tables>, boot_apic_id: u32, max_apic_id: u32) -> (Machine, u64) {
    let cpus = table(tables, b"APIC", |bytes| madt::parse(bytes, max_apic_id)).unwrap_or_default();
    if cpus.unusable > 0 {
        log::warn!("acpi: {} CPUs cannot be used: no room, or out of the APIC's reach", cpus.unusable);
    }
    let srat = table(tables, b"SRAT", srat::parse);
    let slit = table(tables, b"SLIT", slit::parse);
    let machine = Machine::assemble(boot_apic_id, &cpus, srat.as_ref(), slit.as_ref())
        .or_else(|damage| {
            log::warn!("acpi: SRAT left out: {damage}");
            Machine::assemble(boot_apic_id, &cpus, None, slit.as_ref())
        })
        .expect("without an SRAT there is one node, which always fits");
    (machine, cpus.local_apic)
}

fn table<T>(
    tables: Option<&Tables>,
    signature: &'static [u8; 4],
    parse: impl FnOnce(&'static [u8]) -> Result<T, Damage>,
) -> Option<T> {
    let tables = tables?;
    if tables.count(signature) > 1 {
        log::warn!("acpi: of {} tables {} only the first is used", tables.count(signature), name(signature));
    }
    let bytes = match tables.find(signature) {
        Ok(bytes) => bytes?,
        Err(damage) => return left_out(signature, damage),
    };
    parse(bytes).map_or_else(|damage| left_out(signature, damage), Some)
}

fn left_out<T>(signature: &[u8; 4], damage: Damage) -> Option<T> {
    log::warn!("acpi: {} left out: {damage}", name(signature));
    None
}

fn name(signature: &[u8]) -> &str {
    core::str::from_utf8(signature).unwrap_or("?")
}
