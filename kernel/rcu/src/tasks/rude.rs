//! Rude: have each CPU pass through the scheduler.

use arch::cpu;
use sync::MaySleep;

/// Waits until each CPU that is online has passed through the scheduler, and so has left whatever it did with preemption
/// off at the call, also where RCU does not watch: on its way into or out of idle.
///
/// A CPU that is offline runs nothing, and one that comes online meanwhile began after the call. There is no form with a
/// callback.
///
/// Context: task, sleeps; not under a [`MigrateGuard`](sched::MigrateGuard). Interrupts and wakes every CPU: rude indeed.
pub fn synchronize_rcu_tasks_rude(cx: &mut MaySleep) {
    for cpu in cpu::online().iter() {
        if sync::bug!("rcu.rude_first_cpu", "Rude waits for no CPU but the first", "rcu_tasks.*rude*")
            && cpu.index() != 0
        {
            continue;
        }
        // Its stopper is a thread above all others: it runs when the CPU has switched to it. False: the CPU has gone.
        let _online = sched::stop_one_cpu(cx, cpu, || ());
    }
}
