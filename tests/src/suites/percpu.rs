//! Per-CPU variables: one copy for each CPU, in its own node, changed by one instruction.

use arch::{CpuId, cpu, percpu};
use sync::smp;

use crate::{ensure, ensure_eq, ktest, skip};

/// Increments by the running CPU and by calls that interrupt it, each.
const ROUNDS: u64 = 20_000;

arch::per_cpu! {
    /// What the tests count with.
    static COUNT: u64 = 0;
    /// What the storm counts with.
    static STORM: u64 = 0;
}

/// The copy of a CPU that is not writing it now.
fn count_of(id: CpuId) -> u64 {
    // SAFETY: an aligned word that lives as long as the machine; the calls that wrote it are over.
    unsafe { COUNT.ptr_on(id).read_volatile() }
}

ktest! {
    /// What a CPU adds to its copy is in its copy, and in no other.
    #[tags(race)]
    fn a_cpu_changes_its_own_copy_and_no_other(_t: &mut Test) {
        let online = cpu::online();
        smp::run_on_mask(&online, |id| {
            COUNT.set(0);
            for _ in 0..=id.index() {
                COUNT.inc();
            }
        });
        for id in online.iter() {
            ensure_eq!(count_of(id), id.index() as u64 + 1, "CPU {id}");
        }
        Ok(())
    }

    /// Each CPU knows its number, and reaches by its own pointer what others reach by number.
    fn a_cpu_is_who_it_says(_t: &mut Test) {
        let online = cpu::online();
        smp::run_on_mask(&online, |id| {
            let same = COUNT.this_ptr() == COUNT.ptr_on(id) && cpu::current() == id;
            COUNT.set(u64::from(same));
        });
        for id in online.iter() {
            ensure_eq!(count_of(id), 1, "CPU {id}");
        }
        Ok(())
    }

    /// Areas do not overlap.
    fn areas_lie_apart(_t: &mut Test) {
        let at = |id: CpuId| COUNT.ptr_on(id).addr();
        for (a, b) in cpu::present().iter().flat_map(|a| cpu::present().iter().map(move |b| (a, b))) {
            ensure!(a == b || at(a).abs_diff(at(b)) >= percpu::area_size(), "CPUs {a} and {b}");
        }
        Ok(())
    }

    /// The area of a CPU is in memory of its own node, where the node has memory.
    fn an_area_is_in_memory_of_its_cpus_node(_t: &mut Test) {
        for id in cpu::present().iter() {
            let node = cpu::node_of(id);
            if mm::stats::node(node).managed == 0 {
                continue;
            }
            let page = mm::page_of(COUNT.ptr_on(id).cast());
            ensure_eq!(page.map(mm::Page::node), Some(node), "CPU {id}");
        }
        Ok(())
    }

    /// An increment is one instruction: an interrupt that increments too is never in the middle.
    #[tags(race)]
    fn an_increment_is_not_lost_to_an_interrupt_in_its_middle(t: &mut Test) {
        let here = cpu::current();
        let Some(other) = cpu::online().iter().find(|&id| id != here) else {
            skip!("needs 2 CPUs");
        };
        // The other CPU counts, and this one interrupts it.
        smp::call_on(other, |_| STORM.set(0), 0, true);
        let Ok(thread) = sched::spawn(t.cx, "storm", sched::Prio::NORMAL, Some(other), |_| {
            for _ in 0..ROUNDS {
                STORM.inc();
            }
        }) else {
            return Err(crate::__failed!("no thread"));
        };
        let mut calls = 0;
        while !thread.is_finished() {
            smp::call_on(other, |_| STORM.inc(), 0, true);
            calls += 1;
        }
        thread.join(t.cx);
        let total = smp::run_on(other, || STORM.get());
        ensure_eq!(total, Some(ROUNDS + calls), "{calls} calls");
        Ok(())
    }
}
