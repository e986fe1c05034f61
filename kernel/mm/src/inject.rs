//! Fault injection: page allocations that fail on purpose.
//!
//! [`arm`] a [`Plan`], run the code under test, drop the returned [`Armed`]; the arithmetic is [`sync::fault`]'s.
//!
//! `fail_page_alloc=<interval>,<probability>,<space>,<times>` on the command line arms a [`Rule`] from the end of the boot
//! on, for good; `grange.seed` decides what the probability leaves open. The four numbers mean what they mean in Linux;
//! unlike there, allocations of one page and those that may sleep are not spared.
//!
//! Linux: `fail_page_alloc` (`mm/fail_page_alloc.c`, 6.18). Rows: S5-16.

pub use sync::fault::{Armed, Plan, Rule};

use sync::fault::Injector;

static PAGES: Injector = Injector::new();

sync::param! {
    /// Page allocations that fail on purpose once the boot is over; which ones also depends on grange.seed.
    static FAIL_PAGE_ALLOC: str = "fail_page_alloc", default "",
        if |text| Rule::parse(text).is_some(), form Rule::FORM;
}

/// Arms what the command line says, for good; nothing if it says nothing.
///
/// Context: task, once, at the end of the boot.
pub fn init(seed: u64) {
    let Some(rule) = Rule::parse(FAIL_PAGE_ALLOC.get()) else { return };
    let Some(armed) = arm(Plan::Rule { rule, seed }) else { return };
    core::mem::forget(armed);
    log::warn!("page allocations fail on purpose: fail_page_alloc={}, seed {seed}", FAIL_PAGE_ALLOC.get());
}

/// Whether a plan is armed.
///
/// Context: any.
pub fn is_armed() -> bool {
    PAGES.is_armed()
}

/// Arms a plan.
///
/// Context: task. `None` if another plan is armed.
pub fn arm(plan: Plan) -> Option<Armed> {
    PAGES.arm(plan)
}

/// Whether this allocation, of `1 << order` pages, is to fail.
///
/// Context: any.
#[inline]
pub(crate) fn should_fail(order: usize) -> bool {
    PAGES.should_fail(1 << order)
}
