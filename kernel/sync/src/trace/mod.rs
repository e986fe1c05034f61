//! Trace points: what happened, when, where, to a ring of each CPU; one instruction where it is off.
//!
//! ```
//! # use grange_sync as sync;
//! fn start(number: u64, cpus: u32) {
//!     sync::trace!("rcu.gp_start", gp = number, cpus = cpus);
//! }
//! start(7, 4);
//! ```
//!
//! A point has a name, whose part before the dot is its category, and up to four fields of 64 bits. It is a
//! [`static_branch!`](arch::static_branch) with a [`Point`] in the link section of [`POINTS`], so there is no list to keep:
//! [`switch`] finds it by its name, `xtask` reads names and fields from the kernel's ELF. Its fields are evaluated only
//! while it is on.
//!
//! | file | what |
//! |---|---|
//! | here | points, switching, recording |
//! | [`ring`] | where records go; what is read back |
//!
//! # Invariants
//!
//! - `TR-1` Recording takes no lock, allocates nothing, and holds interrupts off: on one CPU only NMI handlers come in
//!   between. What they record is whole, and so is what they interrupted (`TRR-2`).
//! - `TR-2` Each record is kept, or overwritten by later ones, or counted as lost (`TRR-3`): see [`Counts`].
//! - `TR-3` A CPU without memory for its ring records nothing, and a point is switched on only by who has brought memory
//!   for all CPUs ([`install`]).
//!
//! Context: a point may stand anywhere, NMI handlers and idle loops included; not before the CPU has its per-CPU area.
//!
//! Linux: `kernel/trace/ring_buffer.c` and `include/linux/tracepoint.h`.

pub mod ring;

use arch::static_branch::{self, StaticKey};
use arch::{CpuId, clock, cpu, irq};

use crate::hooks::HOOKS;
use crate::spinlock::SpinLock;
use crate::{ATOMIC, LockClass, context, glob, smp};

pub use ring::{Block, Counts, Event, Reader, SLOT_BYTES};

/// Most fields of a point.
pub const MAX_FIELDS: usize = 4;

/// All points of the program, in no order.
#[linkme::distributed_slice]
pub static POINTS: [Point];

/// A place that can be traced. The layout is `xtask`'s, too (`xtask/src/trace/points.rs`).
#[derive(Debug)]
#[repr(C)]
pub struct Point {
    /// `category.what`.
    pub name: &'static str,
    /// Names of its fields.
    pub fields: &'static [&'static str],
    /// Its source file.
    pub file: &'static str,
    /// Line in it.
    pub line: u32,
    /// Its branch.
    key: &'static StaticKey,
}

crate::param! {
    /// Trace points that are on from boot, as globs over their names with commas between them: `rcu.*,slab.refill`.
    pub static ON: str = "grange.trace", default "", if |globs| globs.is_empty() || any_matches(globs), form "names or globs of trace points";
}
crate::param! {
    /// Memory of each CPU's trace ring; a record takes 64 bytes.
    pub static KIB: u32 = "grange.trace_kib", default 512, in 4..=4096, unit "KiB";
}
crate::param! {
    /// What a full trace ring does.
    pub static FULL: choice = "grange.trace_full", default "overwrite", one of ["overwrite", "stop"];
}

arch::per_cpu! {
    /// This CPU's ring. Set once by [`install`].
    static RING: *const Block = core::ptr::null();
}

/// Held by who switches points. Inside whatever the caller holds; nothing is taken under it.
static SWITCHING: SpinLock<()> = SpinLock::new((), &CLASS);
static CLASS: LockClass = LockClass::new("sync.trace");

/// Records that something happened: `trace!("category.what", field = value, …)`; see [`trace`](mod@crate::trace).
///
/// Context: any, NMI included.
#[macro_export]
macro_rules! trace {
    ($name:literal $(, $field:ident = $value:expr)* $(,)?) => {{
        static KEY: $crate::private::StaticKey = $crate::private::StaticKey::new();
        #[$crate::private::linkme::distributed_slice($crate::trace::POINTS)]
        #[linkme(crate = $crate::private::linkme)]
        static POINT: $crate::trace::Point =
            $crate::trace::Point::new($name, &[$(stringify!($field)),*], file!(), line!(), &KEY);
        if $crate::private::static_branch!(KEY) {
            $crate::trace::record(&POINT, [$(($value) as u64),*]);
        }
    }};
}

impl Point {
    /// A point; for [`trace!`](crate::trace!).
    #[doc(hidden)]
    #[must_use]
    pub const fn new(
        name: &'static str,
        fields: &'static [&'static str],
        file: &'static str,
        line: u32,
        key: &'static StaticKey,
    ) -> Self {
        assert!(fields.len() <= MAX_FIELDS, "a trace point has four fields at most");
        Self { name, fields, file, line, key }
    }

    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        self.key.is_on()
    }

    /// Its index in [`POINTS`], by which records name it.
    fn id(&'static self) -> u64 {
        // A few hundred points, so the index fits into the record's 16 bits.
        ((core::ptr::from_ref(self).addr() - POINTS.as_ptr().addr()) / size_of::<Point>()) as u64
    }
}

/// Puts a record into the ring of this CPU; for [`trace!`](crate::trace!).
#[doc(hidden)]
#[cold]
#[inline(never)]
pub fn record<const N: usize>(point: &'static Point, values: [u64; N]) {
    // The ring is this CPU's, and its producers are nested (`TR-1`).
    let irqs = irq::save();
    // SAFETY: null, or a block, which stays for good.
    if let Some(ring) = unsafe { RING.get().as_ref() } {
        let mut fields = [0; MAX_FIELDS];
        fields[..N].copy_from_slice(&values);
        let tid = HOOKS.current_tid.get().map_or(0, |tid| tid());
        let what = point.id() | context_bits(irqs.were_enabled()) << 16 | tid << 32;
        ring.push(clock::now_ns(), what, fields, FULL.get() == "stop");
    }
    irq::restore(irqs);
}

/// 16 bits: what the CPU was in (0 task, 1 softirq, 2 hardirq, 3 NMI), then one each for interrupts off and for a wanted
/// reschedule, then eight for how many levels of "no preemption" there were.
fn context_bits(irqs_on: bool) -> u64 {
    let context = match () {
        () if context::in_nmi() => 3,
        () if context::in_hardirq() => 2,
        () if context::in_softirq() => 1,
        () => 0,
    };
    let depth = u64::from(context::preempt_count() & 0xff);
    context | u64::from(!irqs_on) << 2 | u64::from(context::need_resched()) << 3 | depth << 4
}

/// Whether `cpu` has memory for its ring.
///
/// Context: any.
pub fn is_installed(cpu: CpuId) -> bool {
    block_of(cpu).is_some()
}

/// Gives `cpu` the memory of its ring, for good.
///
/// Context: any, before points are switched on; once for each CPU.
pub fn install(cpu: CpuId, block: &'static Block) {
    debug_assert!(!is_installed(cpu), "TR-3: a CPU gets its ring once");
    // SAFETY: one aligned word. The CPU looks here only when a point is on, and what `switch` does comes after this.
    unsafe { RING.ptr_on(cpu).write_volatile(block) };
}

/// The ring of `cpu`.
fn block_of(cpu: CpuId) -> Option<&'static Block> {
    // SAFETY: one aligned word, written once, by `install`; null, or a block, which stays for good.
    unsafe { RING.ptr_on(cpu).read_volatile().as_ref() }
}

/// Switches all points that one of the globs fits on or off, and returns how many that are. On return all CPUs execute
/// them so.
///
/// Context: task, interrupts on. Memory for all CPUs has been brought ([`install`]).
pub fn switch(globs: &str, on: bool) -> usize {
    let guard = SWITCHING.lock(ATOMIC);
    let chosen = || POINTS.iter().filter(|point| fits(globs, point.name));
    // Twice, for an emulator that translates text: a CPU that was translating the old byte at the first store may put its
    // work to use after it, unseen. When it has answered the call it has done so, and the second store discards it.
    for _ in 0..2 {
        chosen().for_each(|point| static_branch::set(point.key, on));
        // `SB-4`.
        smp::call_all(|_| static_branch::serialize(), 0, true);
    }
    drop(guard);
    chosen().count()
}

/// A text of the kernel's image as a field: its address, and in the upper 16 bits its length. Fields called `cache` are read
/// as such; those called `func` are addresses of functions, `name0` and `name1` 16 letters.
#[must_use]
pub fn text(text: &'static str) -> u64 {
    (text.as_ptr().addr() as u64 & 0xffff_ffff_ffff) | (text.len() as u64) << 48
}

/// Whether `name` fits one of the globs, which have commas between them.
#[must_use]
pub fn fits(globs: &str, name: &str) -> bool {
    globs.split(',').any(|one| glob(one.trim(), name))
}

/// Whether each of the globs fits some point.
#[must_use]
pub fn any_matches(globs: &str) -> bool {
    globs.split(',').all(|one| POINTS.iter().any(|point| glob(one.trim(), point.name)))
}

/// Forgets what has been recorded, and the counts.
///
/// Context: any.
pub fn clear() {
    cpu::present().iter().filter_map(block_of).for_each(Block::clear);
}

/// What became of the records of `cpu`; `None` if it has no ring.
///
/// Context: any.
pub fn counts(cpu: CpuId) -> Option<Counts> {
    block_of(cpu).map(Block::counts)
}

/// Reads the ring of `cpu` from the oldest record on; `None` if it has no ring.
///
/// Context: any. Recording may go on meanwhile.
pub fn read(cpu: CpuId) -> Option<Reader> {
    block_of(cpu).map(Reader::new)
}
