//! The commands, by the storey they look into.

mod arch;
mod bt;
mod hotplug;
mod kernel;
mod kfree_rcu;
mod kmalloc;
mod misuse;
mod mm;
mod rcu;
mod rcu_try;
mod sched;
mod slab;
mod slab_tune;
mod srcu;
mod sync;
#[cfg(feature = "suites")]
mod tests;
mod timers;
#[cfg(feature = "suites")]
mod torture;
mod trace;
mod work;
