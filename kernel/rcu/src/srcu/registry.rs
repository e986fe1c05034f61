//! All domains, for those who look at them.
//!
//! Lock: `srcu.domains`, the list of domains that were made at run time. Inside it: nothing but `srcu.node`, by what looks.

use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use sync::{ATOMIC, LockClass, SpinLock};

use super::domain::Core;

/// Static domains, in the linker's order. Filled by [`srcu_domain!`](crate::srcu_domain).
#[doc(hidden)]
#[sync::private::linkme::distributed_slice]
#[linkme(crate = sync::private::linkme)]
pub static STATIC_DOMAINS: [&'static Core];

/// Protects the list of domains that were made at run time. Inside it: `srcu.node`.
static CLASS: LockClass = LockClass::new("srcu.domains");

/// A domain that has not been dropped.
struct Listed(NonNull<Core>);

// SAFETY: the domains are shared by their own locks; they are on the list only as long as they live.
unsafe impl Send for Listed {}

static DYNAMIC: SpinLock<Vec<Listed>> = SpinLock::new(Vec::new(), &CLASS);

/// Domains that were dropped in use.
static LEAKED: AtomicU64 = AtomicU64::new(0);

pub(crate) fn add(core: &Core) {
    DYNAMIC.lock_irqsave(ATOMIC).push(Listed(NonNull::from(core)));
}

pub(crate) fn remove(core: &Core) {
    DYNAMIC.lock_irqsave(ATOMIC).retain(|listed| listed.0 != NonNull::from(core));
}

pub(crate) fn count_leak() {
    LEAKED.fetch_add(1, Ordering::Relaxed);
}

/// Domains that were dropped while they were in use, and stay for ever.
pub fn leaked() -> u64 {
    LEAKED.load(Ordering::Relaxed)
}

/// Calls `f` for each domain. None that was made at run time goes meanwhile.
pub(crate) fn for_each(mut f: impl FnMut(&Core)) {
    STATIC_DOMAINS.iter().for_each(|core| f(core));
    let dynamic = DYNAMIC.lock_irqsave(ATOMIC);
    for listed in dynamic.iter() {
        // SAFETY: on the list, whose lock is held (`remove` comes before the owner's hold goes).
        f(unsafe { listed.0.as_ref() });
    }
}
