//! CPUs that go and come: `cpu`.

use arch::{CpuId, CpuMask, MAX_CPUS, cpu};

use crate::shell::{Complaint, Session, command};

command!(cpu, "CPU on|off", "takes a CPU offline or brings it back", on_or_off);

fn on_or_off(session: &mut Session<'_>, arguments: &[&str]) -> Result<(), Complaint> {
    let [number, state] = arguments else { unreachable!("checked against the declaration") };
    let id = number.parse().ok().filter(|&index: &usize| index < MAX_CPUS).map(CpuId::new);
    let id = id.filter(|&id| cpu::present().contains(id));
    let id =
        id.ok_or_else(|| Complaint::new(format_args!("{number} is no CPU of this machine ({})", cpu::present())))?;
    let result = match *state {
        "on" => ::sched::cpu_on(id, session.cx),
        "off" => ::sched::cpu_off(id, session.cx),
        other => return Err(Complaint::new(format_args!("`{other}` is not allowed here; allowed: on, off"))),
    };
    result.map_err(|error| {
        let present = cpu::present() - CpuMask::of(CpuId::BOOT);
        Complaint::new(format_args!("CPU {id}: {error}; online are {}, {present} can go and come", cpu::online()))
    })
}
