//! Domains of SRCU: `srcu`.

use alloc::format;
use alloc::vec::Vec;

use ::rcu::srcu::{DomainStats, domain_stats, leaked};
use grange_kernel::table::{Table, Value};

use crate::shell::{Complaint, Session, command};

command!(
    srcu,
    "[--json]",
    "domains of SRCU: grace period, readers at each index and the current one, callbacks, how often expedited and flooded",
    srcu
);

/// In a row's order.
const COLUMNS: [&str; 13] = [
    "domain",
    "flavour",
    "size",
    "gp_seq",
    "state",
    "readers 0",
    "readers 1",
    "index",
    "callbacks",
    "callbacks run",
    "grace periods",
    "expedited",
    "floods",
];

fn srcu(session: &mut Session<'_>, _: &[&str]) -> Result<(), Complaint> {
    // Domains are read with interrupts off: first all, then the table.
    let mut domains: Vec<DomainStats> = Vec::new();
    domain_stats(|domain| domains.push(domain));
    let mut table = Table::new("srcu", &COLUMNS);
    for domain in domains {
        let state = match domain.seq.state() {
            0 => "idle",
            1 => "first look",
            _ => "second look",
        };
        table.row([
            Value::from(domain.name),
            domain.flavour.into(),
            if domain.big { "big" } else { "small" }.into(),
            format!("{}", domain.seq).into(),
            state.into(),
            domain.readers[0].into(),
            domain.readers[1].into(),
            domain.index.into(),
            domain.callbacks_waiting.into(),
            domain.callbacks_run.into(),
            domain.gps.into(),
            domain.expedited.into(),
            domain.floods.into(),
        ]);
    }
    session.show(&table)?;
    let mut table = Table::new("srcu_dropped_in_use", &["domains dropped in use"]);
    table.row([leaked().into()]);
    session.show(&table)
}
