//! What is said, kept and counted of the damage that was found.
//!
//! A report is one call of the log, made with [`RECENT`] held: reports of two CPUs are never mixed, and each of its lines
//! begins with the report's number, so that lines of others between them do no harm. An NMI or exception that
//! interrupted a reporter says its first line only.

use core::fmt::{self, Write};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sync::{ATOMIC, IrqGuard, LocalTryLock, LockClass, SpinIrqGuard, SpinLock};

use super::cell::Cell;
use super::track::Track;
use super::waits::{Given, place_of};
use crate::cache::RawCache;

/// Reports that are kept.
const KEPT: usize = 16;

/// What was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// An object was freed that is free, or was never allocated.
    DoubleFree,
    /// An object was given to `kfree_rcu` that waits for its grace period already.
    WaitsTwice,
    /// An object was freed that waits for its grace period.
    FreedWaiting,
    /// An object was about to be used again before the grace period that it waits for was over.
    TooEarly,
    /// An object was about to be handed out that is in use.
    HandedOutTwice,
    /// An object was freed to another cache than its own.
    WrongCache,
    /// An address was freed that is not the beginning of an object.
    InsideObject,
    /// An address was freed that lies in no slab.
    NoObject,
    /// Something was written before an object.
    LeftRedZone,
    /// Something was written behind an object.
    RightRedZone,
    /// Something was written into a free object.
    Poison,
    /// Something was written between objects.
    Padding,
    /// The freelist of a slab leads out of it, or nowhere.
    Freelist,
    /// The counters of a slab do not fit its freelist.
    Counters,
}

impl Kind {
    /// In the words of Linux where it has any.
    pub const fn words(self) -> &'static str {
        match self {
            Self::DoubleFree => "Object already free",
            Self::WaitsTwice => "Object already given to kfree_rcu",
            Self::FreedWaiting => "Object freed that waits for a grace period",
            Self::TooEarly => "Object back before its grace period is over",
            Self::HandedOutTwice => "Object in use handed out",
            Self::WrongCache => "Object freed to another cache",
            Self::InsideObject => "Invalid object pointer",
            Self::NoObject => "Freed address is no object",
            Self::LeftRedZone => "Left Redzone overwritten",
            Self::RightRedZone => "Right Redzone overwritten",
            Self::Poison => "Poison overwritten",
            Self::Padding => "Padding overwritten",
            Self::Freelist => "Freelist corrupt",
            Self::Counters => "Wrong object count",
        }
    }
}

/// What was done about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cure {
    /// The free was not carried out; damaged bytes around the object were put right.
    NotFreed,
    /// The allocation failed.
    Withheld,
    /// The slab was taken out of use.
    Quarantined,
    /// Nothing: somebody only looked.
    None,
}

impl Cure {
    const fn words(self) -> &'static str {
        match self {
            Self::NotFreed => "the object is not freed",
            Self::Withheld => "the allocation fails",
            Self::Quarantined => "the slab is taken out of use",
            Self::None => "nothing is done about it",
        }
    }
}

/// Damage, before it is reported.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    /// The object, or whatever address it is about.
    pub(crate) object: *mut u8,
    /// From the object to the first wrong byte.
    pub(crate) offset: isize,
    /// Bytes from there to the last wrong one.
    pub(crate) len: usize,
    pub(crate) found: u64,
    pub(crate) expected: u64,
}

/// One report.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Counted from 1 since the boot.
    pub number: u64,
    /// The cache that found it; "kmalloc" if it is about no slab at all.
    pub cache: &'static str,
    /// What was found.
    pub kind: Kind,
    /// Address of the object, or what was taken for one.
    pub object: usize,
    /// From the object to the first wrong byte, or to the address that was freed.
    pub offset: isize,
    /// Bytes from there to the last wrong one.
    pub len: usize,
    /// What is there: a byte of red zones, poison and padding, else a word or a number.
    pub found: u64,
    /// What should be there.
    pub expected: u64,
    /// Who allocated the object last, of a cache with `U`.
    pub allocated: Track,
    /// Who freed it last.
    pub freed: Track,
    /// Who gave it to `kfree_rcu` last, if that is remembered: in builds with assertions, if it waits or is freed twice.
    pub given: Option<Given>,
    /// The call that was wrong, of the same.
    pub call: Track,
    /// What was done about it.
    pub cure: Cure,
}

/// The last reports; report `n` at `n % KEPT`.
struct Recent([Option<Report>; KEPT]);

/// Inside of all other locks of this storey.
static CLASS: LockClass = LockClass::new("slab.report");
static RECENT: SpinLock<Recent> = SpinLock::new(Recent([None; KEPT]), &CLASS);

sync::per_cpu! {
    /// Held, with interrupts off, by the context of this CPU that has or waits for [`RECENT`]: an exception that interrupts it
    /// would wait for ever.
    static HERE: LocalTryLock<()> = LocalTryLock::new(());
}

/// Reports since the boot.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// How many reports there were since the boot, over all caches.
///
/// Context: any.
pub fn reports() -> u64 {
    COUNT.load(Relaxed)
}

/// Calls `f` with each of the last reports, oldest first.
///
/// Context: any but NMI; nothing is called in an exception that interrupted a reporter. `f` runs with interrupts off.
pub fn with_reports(f: impl FnMut(&Report)) {
    let _irqs = IrqGuard::new(ATOMIC);
    let Some(_here) = LocalTryLock::this(&HERE, ATOMIC) else { return };
    let recent = RECENT.lock_irqsave(ATOMIC);
    let (older, newer) = recent.0.split_at((reports() + 1) as usize % KEPT);
    newer.iter().chain(older).flatten().for_each(f);
}

/// Reports `fault`, found by `cache` if by any.
///
/// Context: any; in NMI the lock is only tried for, and who interrupted a reporter does not ask for it.
pub(super) fn report(cache: Option<&RawCache>, fault: Fault, cure: Cure) {
    if let Some(cache) = cache {
        cache.count_report();
    }
    let _irqs = IrqGuard::new(ATOMIC);
    let here = LocalTryLock::this(&HERE, ATOMIC);
    let recent = here.as_ref().and_then(|_| lock());
    let number = COUNT.fetch_add(1, Relaxed) + 1;
    let cell = NonNull::new(fault.object).and_then(Cell::of);
    let (allocated, freed) = cell.map_or((Track::NONE, Track::NONE), |cell| cell.tracks());
    let (given, call) = match fault.kind {
        Kind::DoubleFree | Kind::WaitsTwice | Kind::FreedWaiting | Kind::TooEarly if cfg!(debug_assertions) => {
            (NonNull::new(fault.object).and_then(place_of), Track::here())
        }
        _ => (None, Track::NONE),
    };
    let Fault { kind, object: address, offset, len, found, expected } = fault;
    let report = Report {
        number,
        cache: cache.map_or("kmalloc", RawCache::name),
        kind,
        object: address.addr(),
        offset,
        len,
        found,
        expected,
        allocated,
        freed,
        given,
        call,
        cure,
    };
    match recent {
        Some(mut recent) => {
            log::error!("{}", Block { report: &report, cell });
            recent.0[number as usize % KEPT] = Some(report);
        }
        None => log::error!("{report}"),
    }
}

fn lock() -> Option<SpinIrqGuard<'static, Recent>> {
    if sync::context::in_nmi() { RECENT.try_lock_irqsave(ATOMIC) } else { Some(RECENT.lock_irqsave(ATOMIC)) }
}

/// The first line.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, cache, kind, object, offset, len, found, expected, .. } = self;
        write!(f, "BUG {cache}: {} [{number}]: object {object:#x}, offset {offset}", kind.words())?;
        match kind {
            Kind::DoubleFree | Kind::HandedOutTwice | Kind::InsideObject | Kind::NoObject | Kind::WrongCache => Ok(()),
            Kind::WaitsTwice | Kind::FreedWaiting | Kind::TooEarly => Ok(()),
            _ if *len > 1 => write!(f, ", {len} bytes: found {found:#x}, expected {expected:#x}"),
            _ => write!(f, ": found {found:#x}, expected {expected:#x}"),
        }
    }
}

/// All of a report.
struct Block<'a> {
    report: &'a Report,
    /// The object, if it is one.
    cell: Option<Cell>,
}

impl fmt::Display for Block<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { number, allocated, freed, given, call, cure, offset, .. } = self.report;
        self.report.fmt(f)?;
        let mut out = Numbered { out: f, number: *number };
        if let Some(cell) = self.cell {
            write!(out, "\n{cell}")?;
        }
        if let Some(given) = given {
            write!(out, "\n{given}")?;
        }
        for (what, track) in [("allocated", allocated), ("freed", freed), ("this call", call)] {
            if track.is_some() {
                write!(out, "\n{what} {track}")?;
            }
        }
        if let Some(cell) = self.cell {
            cell.dump(*offset, &mut out)?;
        }
        write!(out, "\n{}", cure.words())
    }
}

/// Begins each further line with the report's number.
struct Numbered<'a, 'f> {
    out: &'a mut fmt::Formatter<'f>,
    number: u64,
}

impl Write for Numbered<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (n, part) in text.split('\n').enumerate() {
            if n > 0 {
                write!(self.out, "\n[{}] ", self.number)?;
            }
            self.out.write_str(part)?;
        }
        Ok(())
    }
}
