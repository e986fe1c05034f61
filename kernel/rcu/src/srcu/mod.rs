//! SRCU: readers that may sleep, in domains that wait for their own readers only.
//!
//! # The calls
//!
//! | call | for | context |
//! |---|---|---|
//! | [`srcu_domain!`](crate::srcu_domain), [`SrcuOwner`] | a domain | static; task |
//! | [`srcu_read_lock`], [`srcu_down_read`] | a section, and one that is handed over | as the [flavour](flavour) says |
//! | [`Srcu`] | a pointer whose reads borrow from a section | reading as the flavour, replacing any |
//! | [`call_srcu`] | a function after a grace period | any but NMI; interrupts off: wakes no thread |
//! | [`synchronize_srcu`], [`synchronize_srcu_expedited`] | waiting for one | task, sleeps |
//! | [`srcu_get_state`], [`srcu_start_poll`], [`SrcuCookie`] | asking later | any; `srcu_start_poll` not NMI |
//! | [`srcu_barrier`] | waiting for all callbacks queued before | task, sleeps |
//!
//! # The modules
//!
//! | module | what it is |
//! |---|---|
//! | `order` | pure: counters, barriers and looks, with models |
//! | [`flavour`] | the kinds of readers |
//! | `domain`, `cpu`, `registry` | a domain's life, its part on each CPU, the list of all |
//! | `reader`, `ptr` | guards, and pointers that are read under them |
//! | `gp`, `funnel` | the grace period's machine, and requests on their way to it |
//! | `wait`, `callbacks`, `flood`, `barrier`, `poll` | the ways to wait for one |
//! | [`config`], `stats` | parameters, figures |
//!
//! # Locks
//!
//! `srcu.domains`, `srcu.list`, `srcu.node`: inside the first one of the others, by who looks at figures; else nothing
//! inside, interrupts off, below whatever the caller holds. `srcu.barrier`: a mutex, `srcu.list` inside.
//!
//! Why a grace period is long enough is argued in docs/rcu-ordering.md. Answers to Linux kernel/rcu/srcutree.c as of 7.x;
//! rows R-21, S3-29, S5-11.

#[cfg(not(loom))]
mod barrier;
#[cfg(not(loom))]
mod callbacks;
#[cfg(not(loom))]
pub mod config;
#[cfg(not(loom))]
mod cpu;
#[cfg(not(loom))]
mod domain;
#[cfg(not(loom))]
pub mod flavour;
#[cfg(not(loom))]
mod flood;
#[cfg(not(loom))]
mod funnel;
#[cfg(not(loom))]
mod gp;
mod order;
#[cfg(not(loom))]
mod poll;
#[cfg(not(loom))]
mod ptr;
#[cfg(not(loom))]
mod reader;
#[cfg(not(loom))]
mod registry;
#[cfg(not(loom))]
mod stats;
#[cfg(not(loom))]
mod wait;

#[cfg(not(loom))]
pub use self::{
    barrier::srcu_barrier,
    callbacks::call_srcu,
    cpu::CpuData,
    domain::{Core, SrcuDomain, SrcuOwner},
    flavour::{Fast, FastUpDown, Flavour, HandsOver, NmiSafe, Normal},
    poll::{SrcuCookie, srcu_get_state, srcu_start_poll, srcu_start_poll_expedited},
    ptr::{Srcu, SrcuRetired},
    reader::{InSection, SrcuDownGuard, SrcuReadGuard, srcu_down_read, srcu_read_lock, srcu_up_read},
    registry::{STATIC_DOMAINS, leaked},
    stats::{DomainStats, domain_stats},
    wait::{synchronize_srcu, synchronize_srcu_expedited},
};

/// From here on grace periods of domains run. Context: task, boot CPU, after `sched::init`.
#[cfg(not(loom))]
pub(crate) fn init(cx: &mut sync::MaySleep) {
    callbacks::init(cx);
    gp::init(cx);
}
