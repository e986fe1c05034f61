//! What checking builds remember about guards, so that a count that does not balance is reported with both places.
//!
//! Each CPU knows, for each kind of guard, where its count last left zero and which guard's end brought it back; each
//! guard knows where and on which CPU it was made. In builds without assertions all of it is empty.
//!
//! Context: any. The places are one word each, written by their own CPU under the guard that they tell of.

use core::fmt;
use core::panic::Location;
use core::sync::atomic::{AtomicPtr, Ordering};

/// What a guard holds off.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Preempt,
    Softirq,
    Irq,
}

impl Kind {
    const COUNT: usize = 3;

    fn guard(self) -> &'static str {
        match self {
            Self::Preempt => "PreemptGuard",
            Self::Softirq => "SoftirqGuard",
            Self::Irq => "IrqGuard",
        }
    }
}

/// Places of one kind each; null where there is none yet.
type Places = [AtomicPtr<Location<'static>>; Kind::COUNT];

arch::per_cpu! {
    /// Where the count last left zero, or interrupts were switched off.
    static LEFT_ZERO: Places = [const { AtomicPtr::new(core::ptr::null_mut()) }; Kind::COUNT];
    /// Where the guard was made whose end last brought the count back to zero, or switched interrupts on.
    static BACK_AT_ZERO: Places = [const { AtomicPtr::new(core::ptr::null_mut()) }; Kind::COUNT];
}

/// A place that may be unknown.
pub(crate) struct Place(Option<&'static Location<'static>>);

impl Place {
    fn of(places: *const Places, kind: Kind) -> Self {
        // SAFETY: a CPU's own copy lives as long as the machine and is made of atomics. On another CPU than the one it
        // belongs to, a report is less exact.
        let place = unsafe { &(*places)[kind as usize] }.load(Ordering::Relaxed);
        // SAFETY: what is not null was a `&'static Location` (see `set`).
        Self(unsafe { place.as_ref() })
    }

    fn set(places: *const Places, kind: Kind, place: &'static Location<'static>) {
        // SAFETY: as in `of`.
        let slot = unsafe { &(*places)[kind as usize] };
        slot.store(core::ptr::from_ref(place).cast_mut(), Ordering::Relaxed);
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(place) => place.fmt(f),
            None => f.write_str("an unknown place"),
        }
    }
}

/// Where this CPU's count of `kind` last left zero.
pub(crate) fn left_zero(kind: Kind) -> Place {
    Place::of(LEFT_ZERO.this_ptr(), kind)
}

/// What a guard remembers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made {
    #[cfg(debug_assertions)]
    cpu: arch::CpuId,
    #[cfg(debug_assertions)]
    at: &'static Location<'static>,
}

impl Made {
    /// Of a guard that its caller makes now.
    #[inline(always)]
    #[track_caller]
    pub(crate) fn here() -> Self {
        Self {
            #[cfg(debug_assertions)]
            cpu: arch::cpu::current(),
            #[cfg(debug_assertions)]
            at: Location::caller(),
        }
    }

    /// The guard has just been made; `outermost`: it has taken its count away from zero.
    #[inline(always)]
    pub(crate) fn begins(self, kind: Kind, outermost: impl FnOnce() -> bool) {
        let _ = (kind, &outermost);
        #[cfg(debug_assertions)]
        if outermost() {
            Place::set(LEFT_ZERO.this_ptr(), kind, self.at);
        }
    }

    /// The guard ends: checks that it is where it was made (`PC-2`), and by `holds` that what it stands for is still so
    /// (`PC-3`). `outermost`: its end takes the count back to zero.
    #[inline(always)]
    pub(crate) fn ends(self, kind: Kind, holds: impl FnOnce() -> bool, outermost: impl FnOnce() -> bool) {
        let _ = (kind, &holds, &outermost);
        #[cfg(debug_assertions)]
        {
            let here = arch::cpu::current();
            if self.cpu != here {
                moved(kind, self, here);
            }
            if !holds() {
                unbalanced(kind, self);
            }
            if outermost() {
                Place::set(BACK_AT_ZERO.this_ptr(), kind, self.at);
            }
        }
    }
}

#[cfg(debug_assertions)]
#[cold]
#[inline(never)]
fn moved(kind: Kind, made: Made, here: arch::CpuId) -> ! {
    panic!("PC-2: a {} made at {} on CPU {} ends on CPU {here}", kind.guard(), made.at, made.cpu);
}

#[cfg(debug_assertions)]
#[cold]
#[inline(never)]
fn unbalanced(kind: Kind, made: Made) -> ! {
    let (guard, at) = (kind.guard(), made.at);
    let (left, back) = (left_zero(kind), Place::of(BACK_AT_ZERO.this_ptr(), kind));
    match kind {
        Kind::Irq => panic!(
            "PC-3: interrupts are on at the end of an {guard} made at {at}; they were last switched off at {left}, and \
             last switched on by hand or by the end of the guard made at {back}"
        ),
        _ => panic!(
            "PC-3: unbalanced preempt count: a {guard} made at {at} ends and none is counted; the count left zero at \
             {left}, and came back by hand or by the end of the guard made at {back}"
        ),
    }
}
