//! The benches, one module a storey; the module's name is the suite's.

mod kfree_load;
mod kfree_rcu;
mod kfree_rcu_barriers;
mod kfree_rcu_flood;
mod kfree_rcu_fragments;
mod kfree_rcu_lazy;
mod kfree_rcu_nolock;
mod kfree_rcu_scale;
mod rcu;
mod rcu_latency;
mod rcu_list;
mod rcu_scale;
mod ref_scale;
mod sched;
mod slab;
mod slab_harden;
mod slab_memory;
mod slab_peers;
mod slab_remote;
mod slab_tune;
mod srcu;
mod sync;
