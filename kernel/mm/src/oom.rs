//! The out-of-memory report: who wanted what, and where all the memory is.
//!
//! Later storeys add sections ([`register_section`]) about the memory they hold. The report goes to the log, at most once
//! in [`INTERVAL_NS`]; how many were left out stands in the next one. The shell prints the same with [`write_report`].
//!
//! Linux: `show_mem` and `warn_alloc` (`mm/show_mem.c`, `mm/page_alloc.c`, 6.18).

use core::fmt::{self, Write};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use arch::NodeId;

use crate::buddy::MAX_ORDER;
use crate::flags::AllocFlags;
use crate::{shrinker, stats};

/// Between two reports, nanoseconds.
const INTERVAL_NS: u64 = 1_000_000_000;

/// A part of the report that a later storey writes.
pub struct Section {
    name: &'static str,
    write: fn(&mut dyn Write) -> fmt::Result,
    registered: AtomicBool,
    next: AtomicPtr<Section>,
}

impl Section {
    /// A section with a heading. `write` runs in any context but NMI, takes no lock that is held around an allocation, and
    /// does not allocate.
    #[must_use]
    pub const fn new(name: &'static str, write: fn(&mut dyn Write) -> fmt::Result) -> Self {
        Self { name, write, registered: AtomicBool::new(false), next: AtomicPtr::new(ptr::null_mut()) }
    }
}

/// The last section registered, or null.
static FIRST: AtomicPtr<Section> = AtomicPtr::new(ptr::null_mut());
/// When the next report may be made.
static NEXT_NS: AtomicU64 = AtomicU64::new(0);
/// Failures not reported since the last report.
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// Adds a section, for good.
///
/// Context: any, at set-up. Lock-free.
///
/// # Panics
/// If it is registered already.
pub fn register_section(section: &'static Section) {
    assert!(!section.registered.swap(true, Ordering::Relaxed), "section {} registered twice", section.name);
    let mut first = FIRST.load(Ordering::Relaxed);
    loop {
        section.next.store(first, Ordering::Relaxed);
        // Release: pairs with the acquire in `write_report`: the link is there before the section is.
        let new = ptr::from_ref(section).cast_mut();
        match FIRST.compare_exchange_weak(first, new, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => first = now,
        }
    }
}

/// Writes where the memory is: nodes, orders, shrinkers, and the sections.
///
/// Context: any but NMI.
///
/// # Errors
/// Those of `out`.
pub fn write_report(out: &mut dyn Write) -> fmt::Result {
    for node in stats::nodes() {
        writeln!(out, "{node}")?;
    }
    for shrinker in shrinker::all() {
        writeln!(out, "shrinker {}: {} pages to free, {} freed", shrinker.name(), shrinker.count(), shrinker.freed())?;
    }
    // Acquire: pairs with the release in `register_section`.
    let mut at = FIRST.load(Ordering::Acquire);
    // SAFETY: null or a `'static` section.
    while let Some(section) = unsafe { at.as_ref() } {
        writeln!(out, "{}:", section.name)?;
        (section.write)(out)?;
        at = section.next.load(Ordering::Relaxed);
    }
    Ok(())
}

/// One line about a request that could not wait.
pub(crate) fn warn_no_wait(order: usize, node: Option<NodeId>, flags: AllocFlags) {
    if let Some(left_out) = may_report(order, flags) {
        log::warn!("mm: no block of order {order} near {}, flags {flags:?}{}", Near(node), LeftOut(left_out));
    }
}

/// The whole report about a request that did all it could.
pub(crate) fn report_failure(order: usize, node: Option<NodeId>, flags: AllocFlags) {
    let Some(left_out) = may_report(order, flags) else { return };
    log::warn!("out of memory: order {order} near {}, flags {flags:?}{}", Near(node), LeftOut(left_out));
    // Errors are those of the log lines, which have none.
    let _ = write_report(&mut LogLines::default());
}

/// Whether this failure is reported; then how many were not since the last.
fn may_report(order: usize, flags: AllocFlags) -> Option<u64> {
    if flags.contains(AllocFlags::NOWARN) || order > MAX_ORDER {
        return None;
    }
    is_due()
}

/// Whether a failure may be reported now; then how many were not since the last.
fn is_due() -> Option<u64> {
    let now_ns = arch::clock::now_ns();
    let next_ns = NEXT_NS.load(Ordering::Relaxed);
    let due = now_ns >= next_ns
        && NEXT_NS.compare_exchange(next_ns, now_ns + INTERVAL_NS, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    if !due {
        LEFT_OUT.fetch_add(1, Ordering::Relaxed);
        return None;
    }
    Some(LEFT_OUT.swap(0, Ordering::Relaxed))
}

/// One line about an object that an allocator above this one has no memory for, as rare as the reports of this storey.
///
/// Context: any but NMI.
pub fn warn_object(cache: &str, bytes: usize, node: Option<NodeId>, flags: AllocFlags) {
    if flags.contains(AllocFlags::NOWARN) {
        return;
    }
    if let Some(left_out) = is_due() {
        log::warn!("{cache}: no {bytes} bytes near {}, flags {flags:?}{}", Near(node), LeftOut(left_out));
    }
}

struct Near(Option<NodeId>);

impl fmt::Display for Near {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(node) => write!(f, "node {node}"),
            None => write!(f, "CPU {}", arch::cpu::current()),
        }
    }
}

struct LeftOut(u64);

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, " ({} failures not reported since the last)", self.0) }
    }
}

/// Cuts what is written into lines and logs each.
struct LogLines {
    line: arrayvec::ArrayString<160>,
}

impl Default for LogLines {
    fn default() -> Self {
        Self { line: arrayvec::ArrayString::new() }
    }
}

impl Write for LogLines {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if c == '\n' {
                log::warn!("{}", self.line);
                self.line.clear();
            } else {
                // A line that is too long loses its end.
                let _ = self.line.try_push(c);
            }
        }
        Ok(())
    }
}
