//! The checks of builds with debug assertions; see the parent module.

use core::{
    cell::Cell,
    panic::Location,
    ptr,
    sync::atomic::{AtomicPtr, AtomicU16, AtomicU64, Ordering},
};

use arch::cpu;

use super::{LockClass, MAX_CLASSES, STUCK_AFTER_NS, Usage, checks_off, switch_off};
use crate::context;

/// Locks one CPU can hold at once, over all contexts.
const MAX_HELD: usize = 32;

type Place = &'static Location<'static>;

/// A lock's class and, for reports, its last holder.
#[derive(Debug)]
pub(crate) struct Tracked {
    class: &'static LockClass,
    /// Where it was last taken; written by the holder, read by whoever reports.
    holder_place: AtomicPtr<Location<'static>>,
    /// The CPU that last took it; as above.
    holder_cpu: AtomicU16,
}

/// One slot of a CPU's stack of held locks.
#[derive(Clone, Copy)]
enum Held {
    /// At or above the depth, or pushed but not filled in yet (`LO-1`).
    Reserved,
    /// Released while a later one is still held.
    Hole,
    Lock {
        address: usize,
        class: &'static LockClass,
        place: Place,
    },
}

/// A CPU's stack of held locks.
struct HeldStack {
    slots: [Cell<Held>; MAX_HELD],
}

arch::per_cpu! {
    static HELD: HeldStack = HeldStack { slots: [const { Cell::new(Held::Reserved) }; MAX_HELD] };
    static DEPTH: u32 = 0;
}

impl Tracked {
    pub(crate) const fn new(class: &'static LockClass) -> Self {
        Self { class, holder_place: AtomicPtr::new(ptr::null_mut()), holder_cpu: AtomicU16::new(0) }
    }

    fn address(&self) -> usize {
        ptr::from_ref(self).addr()
    }

    /// All checks, then the push (`LO-2`). The caller is pinned.
    #[track_caller]
    pub(crate) fn before_lock(&self) {
        if checks_off() {
            return;
        }
        let place = Location::caller();
        if context::in_nmi() {
            fail(format_args!(
                "spinning in NMI for lock \"{}\" at {place}; last taken at {}",
                self.class.name,
                Shown(self.holder_place.load(Ordering::Relaxed))
            ));
        }
        self.check_usage(place);
        for held in held() {
            self.check_against(held, place);
        }
        self.push(place);
    }

    /// A successful try cannot deadlock, but what is taken inside it can.
    #[track_caller]
    pub(crate) fn after_try_lock(&self) {
        if !checks_off() {
            self.push(Location::caller());
        }
    }

    pub(crate) fn before_unlock(&self) {
        if checks_off() {
            return;
        }
        let slots = slots();
        let depth = DEPTH.get() as usize;
        let of_this = |held: Held| matches!(held, Held::Lock { address, .. } if address == self.address());
        let Some(at) = slots[..depth].iter().rposition(|slot| of_this(slot.get())) else {
            fail(format_args!(
                "lock \"{}\" is released on CPU {}, which does not hold it; last taken at {} on CPU {}",
                self.class.name,
                cpu::current(),
                Shown(self.holder_place.load(Ordering::Relaxed)),
                self.holder_cpu.load(Ordering::Relaxed)
            ));
        };
        slots[at].set(Held::Hole);
        // Trim: the slot reads `Reserved` before the depth falls below it (`LO-1`).
        loop {
            let depth = DEPTH.get();
            if depth == 0 || !matches!(slots[depth as usize - 1].get(), Held::Hole) {
                return;
            }
            slots[depth as usize - 1].set(Held::Reserved);
            // An interrupt since the look at the slot may have trimmed this hole already: then the depth has changed,
            // and it must not fall twice.
            let _ = DEPTH.cmpxchg(depth, depth - 1);
        }
    }

    pub(crate) fn stuck_watch(&self) -> StuckWatch<'_> {
        StuckWatch { lock: self, spins: 0, since_ns: 0 }
    }

    fn push(&self, place: Place) {
        let at = DEPTH.get() as usize;
        if at >= MAX_HELD {
            fail(format_args!("more than {MAX_HELD} locks held at once, at {place}"));
        }
        DEPTH.inc();
        slots()[at].set(Held::Lock { address: self.address(), class: self.class, place });
        self.holder_place.store(ptr::from_ref(place).cast_mut(), Ordering::Relaxed);
        self.holder_cpu.store(cpu::current().index() as u16, Ordering::Relaxed);
    }

    fn check_against(&self, held: Held, place: Place) {
        let Held::Lock { address, class: outer, place: outer_place } = held else {
            return;
        };
        let inner = self.class;
        if address == self.address() {
            fail(format_args!(
                "self-deadlock on lock \"{}\": taken at {place}, held by this CPU since {outer_place}",
                inner.name
            ));
        }
        if ptr::eq(outer, inner) {
            if !(inner.by_address && address < self.address()) {
                fail(format_args!(
                    "lock order: two locks of class \"{}\" nest: inner at {place}, outer at {outer_place}",
                    inner.name
                ));
            }
            return;
        }
        if outer.rank != 0 && inner.rank != 0 && inner.rank <= outer.rank {
            fail(format_args!(
                "lock order: \"{}\" (rank {}) taken at {place} while \"{}\" (rank {}) is held since {outer_place}",
                inner.name, inner.rank, outer.name, outer.rank
            ));
        }
        if let Err(circle) = GRAPH.draw(outer, inner, place) {
            fail(format_args!(
                "lock order: \"{}\" taken at {place} while \"{}\" is held since {outer_place}; \
                 the opposite order was seen: \"{}\" taken at {} inside \"{}\"",
                inner.name,
                outer.name,
                circle.inner,
                Shown(circle.place),
                inner.name
            ));
        }
    }

    /// The rows "hard interrupt against interrupts on", and the same for soft interrupts.
    fn check_usage(&self, place: Place) {
        let irqs_on = arch::irq::enabled();
        if context::in_hardirq() {
            self.check_use(Usage::InHardirq, Usage::IrqsOn, place);
        } else if irqs_on {
            self.check_use(Usage::IrqsOn, Usage::InHardirq, place);
        }
        if context::in_softirq() {
            self.check_use(Usage::InSoftirq, Usage::SoftirqsOn, place);
        } else if irqs_on && context::softirq_count() == 0 && !context::in_hardirq() {
            self.check_use(Usage::SoftirqsOn, Usage::InSoftirq, place);
        }
    }

    fn check_use(&self, this: Usage, excluded: Usage, place: Place) {
        let used = &self.class.used;
        if used[this as usize].load(Ordering::Relaxed).is_null() {
            // SeqCst: this store before the load below, against the same pair for the opposite
            // use on another CPU (`LO-3`); at least one of the two then sees the other.
            used[this as usize].store(ptr::from_ref(place).cast_mut(), Ordering::SeqCst);
        }
        let other = used[excluded as usize].load(Ordering::SeqCst);
        if !other.is_null() {
            fail(format_args!(
                "lock \"{}\" is used {} at {place} and {} at {}: an interrupt could deadlock",
                self.class.name,
                this.in_words(),
                excluded.in_words(),
                Shown(other)
            ));
        }
    }
}

impl Usage {
    fn in_words(self) -> &'static str {
        match self {
            Self::InHardirq => "in a hard interrupt",
            Self::IrqsOn => "with interrupts on",
            Self::InSoftirq => "in a soft interrupt",
            Self::SoftirqsOn => "with soft interrupts on",
        }
    }
}

fn slots() -> &'static [Cell<Held>; MAX_HELD] {
    // SAFETY: the caller is pinned, so this is the CPU's own copy; `Cell` allows the interrupts
    // that use it in between (`LO-1`), and the area is never freed.
    unsafe { &(*HELD.this_ptr()).slots }
}

/// The locks held on this CPU, oldest first.
fn held() -> impl Iterator<Item = Held> {
    slots()[..(DEPTH.get() as usize).min(MAX_HELD)].iter().map(Cell::get)
}

/// "Taken while holding", between classes.
struct Graph {
    /// Bit `i` of row `o`: class `i` was taken while holding class `o`.
    edges: [[AtomicU64; WORDS]; MAX_CLASSES],
    /// Where that was first seen.
    places: [[AtomicPtr<Location<'static>>; MAX_CLASSES]; MAX_CLASSES],
    /// Names, for reports; null beyond `count`.
    classes: [AtomicPtr<LockClass>; MAX_CLASSES],
    /// Classes known so far.
    count: AtomicU16,
}

const WORDS: usize = MAX_CLASSES / 64;

static GRAPH: Graph = Graph {
    edges: [const { [const { AtomicU64::new(0) }; WORDS] }; MAX_CLASSES],
    places: [const { [const { AtomicPtr::new(ptr::null_mut()) }; MAX_CLASSES] }; MAX_CLASSES],
    classes: [const { AtomicPtr::new(ptr::null_mut()) }; MAX_CLASSES],
    count: AtomicU16::new(0),
};

/// The first edge of the way that leads back, and where it was drawn.
struct Circle {
    inner: &'static str,
    place: *mut Location<'static>,
}

impl Graph {
    /// The index of `class`, given out at its first use.
    fn index(&self, class: &'static LockClass) -> usize {
        let id = class.id.load(Ordering::Relaxed);
        if id != 0 {
            return usize::from(id - 1);
        }
        let fresh = self.count.fetch_add(1, Ordering::Relaxed);
        if usize::from(fresh) >= MAX_CLASSES {
            fail(format_args!("more than {MAX_CLASSES} lock classes: raise MAX_CLASSES"));
        }
        self.classes[usize::from(fresh)].store(ptr::from_ref(class).cast_mut(), Ordering::Relaxed);
        match class.id.compare_exchange(0, fresh + 1, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => usize::from(fresh),
            // Another context was faster; the index taken here stays unused.
            Err(id) => usize::from(id - 1),
        }
    }

    fn has(&self, outer: usize, inner: usize) -> bool {
        // SeqCst: see `draw`.
        self.edges[outer][inner / 64].load(Ordering::SeqCst) >> (inner % 64) & 1 != 0
    }

    /// Adds the edge; an error if there is a way from `inner` back to `outer`.
    fn draw(&self, outer: &'static LockClass, inner: &'static LockClass, place: Place) -> Result<(), Circle> {
        let (outer, inner) = (self.index(outer), self.index(inner));
        if self.has(outer, inner) {
            return Ok(());
        }
        self.places[outer][inner].store(ptr::from_ref(place).cast_mut(), Ordering::Relaxed);
        // SeqCst: this edge before the search, against the same on another CPU (`LO-3`).
        self.edges[outer][inner / 64].fetch_or(1 << (inner % 64), Ordering::SeqCst);
        let mut seen = [0_u64; WORDS];
        let Some(first) = (0..MAX_CLASSES)
            .find(|&next| self.has(inner, next) && (next == outer || self.reaches(next, outer, &mut seen)))
        else {
            return Ok(());
        };
        let class = self.classes[first].load(Ordering::Relaxed);
        // SAFETY: a class with an edge has been given its index, and classes are statics.
        let name = unsafe { class.as_ref() }.map_or("?", |class| class.name);
        Err(Circle { inner: name, place: self.places[inner][first].load(Ordering::Relaxed) })
    }

    fn reaches(&self, from: usize, to: usize, seen: &mut [u64; WORDS]) -> bool {
        if seen[from / 64] >> (from % 64) & 1 != 0 {
            return false;
        }
        seen[from / 64] |= 1 << (from % 64);
        (0..MAX_CLASSES).any(|next| self.has(from, next) && (next == to || self.reaches(next, to, seen)))
    }
}

/// Reports a lock that is spun for too long.
pub(crate) struct StuckWatch<'l> {
    lock: &'l Tracked,
    spins: u32,
    since_ns: u64,
}

impl StuckWatch<'_> {
    pub(crate) fn spun(&mut self) {
        self.spins = self.spins.wrapping_add(1);
        if !self.spins.is_multiple_of(4096) || checks_off() {
            return;
        }
        let now_ns = arch::clock::now_ns();
        if self.since_ns == 0 {
            self.since_ns = now_ns;
        } else if now_ns.saturating_sub(self.since_ns) > STUCK_AFTER_NS {
            fail(format_args!(
                "stuck: CPU {} spins for lock \"{}\", last taken at {} on CPU {}",
                cpu::current(),
                self.lock.class.name,
                Shown(self.lock.holder_place.load(Ordering::Relaxed)),
                self.lock.holder_cpu.load(Ordering::Relaxed)
            ));
        }
    }
}

/// A place that may be unknown.
struct Shown(*mut Location<'static>);

impl core::fmt::Display for Shown {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // SAFETY: a non-null value was a `&'static Location`.
        match unsafe { self.0.as_ref() } {
            Some(place) => place.fmt(f),
            None => f.write_str("(never)"),
        }
    }
}

#[cold]
#[inline(never)]
fn fail(report: core::fmt::Arguments<'_>) -> ! {
    switch_off();
    panic!("{report}");
}
