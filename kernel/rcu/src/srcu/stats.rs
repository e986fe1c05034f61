//! What can be seen of domains, for the shell, benches and tests. Reading it orders nothing.

use core::sync::atomic::Ordering;

use super::domain::{Core, SrcuDomain};
use super::flavour::Flavour;
use super::registry;
use crate::seq::Seq;

/// A domain. Its figures may not belong to one instant.
#[derive(Copy, Clone, Debug)]
pub struct DomainStats {
    /// What it was called.
    pub name: &'static str,
    /// Its readers.
    pub flavour: &'static str,
    /// The grace period's number and state: 0 idle, 1 and 2 the looks.
    pub seq: Seq,
    /// A tree of nodes takes its requests.
    pub big: bool,
    /// Readers in their sections, by index.
    pub readers: [u64; 2],
    /// The index that readers who begin now use.
    pub index: usize,
    /// Callbacks that have not run.
    pub callbacks_waiting: usize,
    /// Callbacks that have.
    pub callbacks_run: u64,
    /// Grace periods.
    pub gps: u64,
    /// Those of them that ended as expedited ones.
    pub expedited: u64,
    /// Times that callbacks were a flood.
    pub floods: u64,
}

impl DomainStats {
    fn of(core: &Core) -> DomainStats {
        let per_cpu = || core.cpus().map(|(_, data)| data);
        DomainStats {
            name: core.name,
            flavour: core.flavour,
            seq: core.gp.seq.current(),
            big: core.funnel.is_big(),
            readers: [core.readers(0), core.readers(1)],
            index: core.current_index(),
            callbacks_waiting: core.callbacks(),
            callbacks_run: per_cpu().map(|data| data.ran.load(Ordering::Relaxed)).sum(),
            gps: core.gp.count.load(Ordering::Relaxed),
            expedited: core.gp.expedited.load(Ordering::Relaxed),
            floods: per_cpu().map(|data| data.floods.load(Ordering::Relaxed)).sum(),
        }
    }
}

impl<F: Flavour> SrcuDomain<F> {
    /// What can be seen of it. Context: any but NMI.
    pub fn stats(&self) -> DomainStats {
        DomainStats::of(self.core())
    }
}

/// Calls `f` for each domain, with interrupts off: static ones first, then the others, oldest first.
///
/// Context: any but NMI.
pub fn domain_stats(mut f: impl FnMut(DomainStats)) {
    registry::for_each(|core| f(DomainStats::of(core)));
}
