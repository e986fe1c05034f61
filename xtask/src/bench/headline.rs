//! The figures that the kernel was built to reach, beside Linux's: one table.
//!
//! Linux's instructions and times were measured once, of 6.12 in the same emulator (QEMU 7.2) on two cores. rcuscale's are
//! replaced by those of an image that is measured in the same hour.

use crate::spread::median;

use super::plan::Scale;
use super::record::Record;
use super::rows::medians;
use super::table::{Section, Table, number};

/// What rcuscale's test took Linux 6.12, another day: seconds, grace periods, MB.
#[must_use]
pub fn linux_before(scale: &Scale) -> [f64; 3] {
    if *scale == Scale::ALL[0] { [1.10, 116.0, 20.0] } else { [1.44, 77.0, 35.0] }
}

/// A counted figure that Linux's is known of.
struct Counted {
    what: &'static str,
    leg: &'static str,
    bench: &'static str,
    /// So much of the figure is one of the table, ...
    per: f64,
    /// ... which is called so.
    unit: &'static str,
    linux: &'static str,
}

const COUNTED: [Counted; 6] = [
    counted("a pair of alloc and free, 64 bytes", "slab", "slab.alloc_free_pair", "126"),
    counted("128 allocs, then 128 frees, a pair", "slab", "slab.burst_of_128", "168"),
    counted("rcu_read_lock and unlock", "rcu", "rcu.read_lock_unlock", "19"),
    counted("alloc and kfree_rcu, all counted", "kfree-rcu", "kfree_rcu.alloc_and_kfree_rcu", "214–225"),
    Counted { per: 1e6, unit: "ms", ..counted("synchronize_rcu, idle, p50", "rcu", "rcu.synchronize_idle", "16–20") },
    Counted {
        per: 1e3,
        unit: "µs",
        ..counted("synchronize_rcu_expedited, p50", "rcu", "rcu.synchronize_expedited", "8")
    },
];

const fn counted(what: &'static str, leg: &'static str, bench: &'static str, linux: &'static str) -> Counted {
    Counted { what, leg, bench, per: 1.0, unit: "instructions", linux }
}

/// From QEMU's start to all CPUs online: CPUs, Linux's seconds, ours at most.
const ONLINE: [(u32, f64, f64); 4] = [(2, 1.5, 0.25), (8, 2.4, 0.3), (16, 2.7, 0.35), (64, 7.5, 0.8)];

/// What of Linux's time in rcuscale's test ours may take.
const RCUSCALE: f64 = 0.35;

/// The table, of what was measured.
#[must_use]
pub fn section(record: &Record) -> Option<Section> {
    let mut table = Table::new(["what", "unit", "Linux 6.12", "here", "goal", ""]);
    let verdict = |met: bool| if met { "met" } else { "missed" }.to_owned();
    for Counted { what, leg, bench, per, unit, linux } in COUNTED {
        let Some(figure) = record.leg(leg).and_then(|leg| leg.figure(bench)) else { continue };
        let goal = figure.goal.map_or("-".to_owned(), |goal| format!("≤ {}", number(f64::from(goal) / per)));
        let met = figure.meets_goal().map_or(String::new(), verdict);
        let here = figure.p50() / per;
        let here = if here < 1.0 { format!("{here:.4}") } else { number(here) };
        table.rows.push([what, unit, linux].map(str::to_owned).into_iter().chain([here, goal, met]).collect());
    }
    for scale in Scale::ALL {
        let Some(leg) = record.leg(&scale.leg()) else { continue };
        let ours = medians(&leg.rows, "kfree_rcu_scale.kfree_rcu_test").into_iter().find(|row| row.of == "sheaf");
        let Some(ours) = ours.map(|row| row["ns"] / 1e9) else { continue };
        let measured = record.linux.iter().filter(|line| line.leg == leg.name).map(|line| line.ns / 1e9).collect();
        let linux = median(measured).unwrap_or(linux_before(&scale)[0]);
        let Scale { cpus, loops, objects } = scale;
        table.rows.push(vec![
            format!("rcuscale kfree_rcu, {cpus} CPUs × {loops} × {objects}"),
            "s".to_owned(),
            format!("{linux:.2}"),
            format!("{ours:.2}, {:.2} ×", ours / linux),
            format!("≤ {RCUSCALE} ×"),
            verdict(ours / linux <= RCUSCALE),
        ]);
    }
    for (cpus, linux, goal) in ONLINE {
        let Some(boots) = record.boots.iter().find(|boots| boots.cpus == cpus && boots.nodes == 1) else { continue };
        let here = median(boots.online_ms.clone()).unwrap_or(f64::NAN) / 1e3;
        table.rows.push(vec![
            format!("{cpus} CPUs online after QEMU's start"),
            "s".to_owned(),
            format!("{linux:.1}"),
            format!("{here:.2}"),
            format!("≤ {goal}"),
            verdict(here <= goal),
        ]);
    }
    let title = "The figures that this kernel is built to reach".to_owned();
    (!table.rows.is_empty()).then_some(Section { name: "headline".to_owned(), title, table })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::tests::{figure, leg, record, row};
    use crate::bench::record::{LinuxLine, Unit};

    #[test]
    fn a_goal_is_judged_and_linux_of_the_same_hour_is_preferred() {
        let mut measured =
            record(leg("rcu", 2, vec![figure("rcu.read_lock_unlock", Unit::Instructions, &[3.0])], vec![]));
        measured.legs.push(leg(
            "rcuscale-2",
            2,
            vec![],
            vec![row("kfree_rcu_scale.kfree_rcu_test", "sheaf", "ns", 0.5e9)],
        ));
        let text = section(&measured).unwrap().table.markdown();
        assert!(text.contains("| rcu_read_lock and unlock | instructions | 19 | 3.0 | ≤ 150.0 | met |"), "{text}");
        assert!(text.contains("| 1.10 | 0.50, 0.45 × | ≤ 0.35 × | missed |"), "{text}");
        let (leg, release) = ("rcuscale-2".to_owned(), "6.12.1".to_owned());
        measured.linux.push(LinuxLine { leg, release, ns: 2e9, batches: 1.0, footprint: 1.0 });
        let text = section(&measured).unwrap().table.markdown();
        assert!(text.contains("| 2.00 | 0.50, 0.25 × | ≤ 0.35 × | met |"), "{text}");
        assert_eq!(section(&Record::default()), None);
    }
}
