//! Memory: `mem`.

use alloc::vec::Vec;

use grange_kernel::table::{Table, Value};
use mm::stats;

use crate::shell::{Complaint, Session, command};

command!(mem, "[--json]", "pages by node, and free blocks by order", mem);

fn mem(session: &mut Session<'_>, _: &[&str]) -> Result<(), Complaint> {
    let mut table =
        Table::new("mem", &["node", "pages", "free", "per-cpu", "deferred", "in use", "low", "min", "failed"]);
    for order in 0..=mm::MAX_ORDER {
        table.column(alloc::format!("2^{order}"));
    }
    for node in stats::nodes() {
        let mut row = Vec::from([
            Value::from(node.node.index()),
            node.managed.into(),
            node.free.into(),
            node.per_cpu.into(),
            node.deferred.into(),
            node.in_use().into(),
            node.low.into(),
            node.min.into(),
            node.failed.into(),
        ]);
        row.extend(node.blocks.into_iter().map(Value::from));
        table.row(row);
    }
    session.show(&table)
}
