//! The suites, one module a subject; the module's name is the suite's.

mod boot;
mod calls;
mod explore;
mod hotplug;
mod hotplug_kfree_rcu;
mod hotplug_mm;
mod hotplug_rcu;
mod hotplug_slab;
mod kfree_rcu;
mod mm;
mod nmi;
mod percpu;
mod rcu;
mod rcu_torture;
mod sched;
mod sched_idle;
mod sched_mutex;
mod sched_prio;
mod sched_softirq;
mod slab;
mod sync;
mod threads;
mod timer;
mod trace;
mod watchdog;
mod work;
