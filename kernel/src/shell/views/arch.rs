//! The machine: `cpus`, `nodes`, `irq`.

use alloc::vec::Vec;

use ::arch::bare::smp;
use ::arch::{CpuId, NodeId, cpu, vector};
use grange_kernel::table::{Table, Value};

use crate::shell::{Complaint, Session, command};

command!(cpus, "[--json]", "CPUs: node, APIC id, state, counts; when each arrived and was up after reset", cpus);
command!(nodes, "[--json]", "NUMA nodes: CPUs, memory, distances", nodes);
command!(irq, "[--json]", "interrupts handled, by vector and CPU", irq);

fn cpus(session: &mut Session<'_>, _: &[&str]) -> Result<(), Complaint> {
    let columns = ["cpu", "node", "apic id", "state", "ticks", "nmis", "arrived us", "up us"];
    let mut table = Table::new("cpus", &columns);
    for id in cpu::present().iter() {
        let (arrived, up) = smp::start_times(id).unzip();
        let us = |ns: Option<u64>| Value::from(ns.map(|ns| ns / 1_000));
        table.row([
            Value::from(id.index()),
            cpu::node_of(id).index().into(),
            cpu::apic_id(id).into(),
            if cpu::is_online(id) { "online" } else { "offline" }.into(),
            ::sync::irq::count(id, vector::TIMER).into(),
            ::sync::nmi::count(id).into(),
            us(arrived),
            us(up),
        ]);
    }
    session.show(&table)
}

/// The nodes of the machine.
pub(super) fn node_ids() -> impl Iterator<Item = NodeId> {
    let mask = cpu::nodes_online();
    (0..::arch::MAX_NODES).filter(move |&index| mask & (1 << index) != 0).map(NodeId::new)
}

fn nodes(session: &mut Session<'_>, _: &[&str]) -> Result<(), Complaint> {
    let ids: Vec<NodeId> = node_ids().collect();
    let mut table = Table::new("nodes", &["node", "cpus", "memory MiB", "free MiB"]);
    for to in &ids {
        table.column(alloc::format!("to {to}"));
    }
    for &id in &ids {
        let stats = ::mm::stats::node(id);
        let mib = |pages: usize| Value::from((pages * ::arch::PAGE_SIZE) >> 20);
        let mut row = Vec::from([
            Value::from(id.index()),
            alloc::format!("{}", cpu::cpus_of(id)).into(),
            mib(stats.managed),
            mib(stats.free + stats.per_cpu),
        ]);
        row.extend(ids.iter().map(|&to| Value::from(u32::from(cpu::distance(id, to)))));
        table.row(row);
    }
    session.show(&table)
}

/// What the vectors with a fixed meaning are for.
fn name_of(number: u8) -> Option<&'static str> {
    Some(match number {
        vector::TIMER => "timer",
        vector::IRQ_WORK => "irq_work",
        vector::CALL_FUNCTION => "call function",
        vector::RESCHEDULE => "reschedule",
        vector::TLB => "TLB shoot-down",
        vector::SPURIOUS => "spurious",
        _ => return None,
    })
}

fn irq(session: &mut Session<'_>, _: &[&str]) -> Result<(), Complaint> {
    let online: Vec<CpuId> = cpu::online().iter().collect();
    let mut table = Table::new("irq", &["vector", "what"]);
    for id in &online {
        table.column(alloc::format!("cpu {id}"));
    }
    for number in u8::MIN..=u8::MAX {
        let counts: Vec<u64> = online.iter().map(|&id| ::sync::irq::count(id, number)).collect();
        if name_of(number).is_none() && counts.iter().all(|&count| count == 0) {
            continue;
        }
        let head = [alloc::format!("{number:#04x}").into(), name_of(number).unwrap_or("device").into()];
        table.row(head.into_iter().chain(counts.into_iter().map(Value::from)));
    }
    let nmis = online.iter().map(|&id| Value::from(::sync::nmi::count(id)));
    table.row(["nmi".into(), "non-maskable".into()].into_iter().chain(nmis));
    session.show(&table)
}
