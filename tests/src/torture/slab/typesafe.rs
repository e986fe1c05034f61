//! Type-safe caches: an object may be another one at any time, but what it lies in stays an object of its type for as long as a
//! reader looks. One cache has readers of RCU, one readers of a domain of SRCU, who sleep while they look.

use alloc::boxed::Box;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed};

use mm::AllocFlags;
use rcu::srcu::{Normal, srcu_read_lock};
use slab::constructed::Construct;
use slab::typed::TypedLayout;
use slab::typesafe::{BySrcu, TypesafeCache, TypesafeSlot};
use sync::{ATOMIC, MaySleep, Rng};

use super::Slab;
use crate::Failure;
use crate::torture::{Stat, control};

rcu::srcu_domain! {
    /// Those who sleep.
    static SLEEPERS: Normal;
}

/// What every object is, whoever has it.
const TAG: u64 = 0x7a67_5e55;
const SLOTS: usize = 8;

/// A page holds few of them, so that pages come and go.
struct Session {
    tags: [u64; 60],
    id: AtomicU64,
}

impl Construct for Session {
    fn construct() -> Self {
        Session { tags: [TAG; 60], id: AtomicU64::new(0) }
    }
}

impl Session {
    fn is_one(&self) -> bool {
        self.tags.iter().all(|&tag| tag == TAG)
    }
}

type Plain = TypesafeCache<Session>;
type Slept = TypesafeCache<Session, BySrcu<Normal>>;

static PLAIN: AtomicPtr<Plain> = AtomicPtr::new(ptr::null_mut());
static SLEPT: AtomicPtr<Slept> = AtomicPtr::new(ptr::null_mut());
static PLAIN_SLOTS: [TypesafeSlot<'static, Session>; SLOTS] = [const { TypesafeSlot::new() }; SLOTS];
static SLEPT_SLOTS: [TypesafeSlot<'static, Session, BySrcu<Normal>>; SLOTS] =
    [const { TypesafeSlot::new_in(&SLEEPERS) }; SLOTS];

/// What readers count.
#[derive(Default)]
pub(super) struct Readers {
    looks: AtomicU64,
    naps: AtomicU64,
    sessions: AtomicU64,
}

impl Readers {
    pub(super) fn stat(&self, out: &mut Stat) {
        out.work("looks", self.looks.load(Relaxed));
        out.work("naps", self.naps.load(Relaxed));
        out.work("sessions", self.sessions.load(Relaxed));
    }
}

pub(super) fn begin() -> Result<(), Failure> {
    let failed = |error| crate::__failed!("{error}");
    let plain = Plain::create(TypedLayout::new("torture-typesafe")).map_err(failed)?;
    let slept = Slept::create_in(TypedLayout::new("torture-typesafe-srcu"), &SLEEPERS).map_err(failed)?;
    PLAIN.store(Box::into_raw(Box::new(plain)), Relaxed);
    SLEPT.store(Box::into_raw(Box::new(slept)), Relaxed);
    Ok(())
}

/// Looks at sessions that others exchange meanwhile.
pub(super) fn read(slab: &Slab, mut rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
    while !control::stutter(cx) {
        let reader = rcu::read_lock(ATOMIC);
        if let Some(session) = PLAIN_SLOTS[rng.index(SLOTS)].read(&reader) {
            for _ in 0..rng.index(20) {
                slab.damaged.fetch_add(u64::from(!session.is_one()), Relaxed);
            }
            slab.readers.looks.fetch_add(1, Relaxed);
        }
        drop(reader);
        sched::cond_resched(cx);
    }
    Ok(())
}

/// The same, and sleeps in between.
pub(super) fn read_and_sleep(slab: &Slab, mut rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
    while !control::stutter(cx) {
        let section = srcu_read_lock(&SLEEPERS);
        if let Some(session) = SLEPT_SLOTS[rng.index(SLOTS)].read(&section) {
            let before = session.is_one();
            sched::sleep_ns(cx, rng.below(2_000_000));
            slab.damaged.fetch_add(u64::from(!before || !session.is_one()), Relaxed);
            slab.readers.naps.fetch_add(1, Relaxed);
        }
        drop(section);
    }
    Ok(())
}

/// Exchanges sessions for others; at times all go, and their pages, too.
pub(super) fn update(slab: &Slab, mut rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
    // SAFETY: set by `begin`; `end` comes when the threads have ended.
    let (plain, slept) = unsafe { (&*PLAIN.load(Relaxed), &*SLEPT.load(Relaxed)) };
    while !control::stutter(cx) {
        let at = rng.index(SLOTS);
        let (new, other) = (plain.alloc(AllocFlags::NOWARN), slept.alloc(AllocFlags::NOWARN));
        new.iter().for_each(|new| new.id.store(rng.next_u64(), Relaxed));
        slab.readers.sessions.fetch_add(u64::from(new.is_some()) + u64::from(other.is_some()), Relaxed);
        drop(PLAIN_SLOTS[at].swap(new));
        drop(SLEPT_SLOTS[at].swap(other));
        if rng.chance(1, 64) {
            clear();
            plain.raw().shrink();
            slept.raw().shrink();
        }
        sched::sleep_ns(cx, rng.below(200_000));
    }
    clear();
    Ok(())
}

fn clear() {
    PLAIN_SLOTS.iter().for_each(|slot| drop(slot.swap(None)));
    SLEPT_SLOTS.iter().for_each(|slot| drop(slot.swap(None)));
}

/// Destroys the caches, which says whether all objects are back. Threads have ended.
pub(super) fn end(cx: &mut MaySleep) -> Result<(), Failure> {
    // SAFETY: from `begin`, once, and nobody borrows them any more; as below.
    let plain = *unsafe { Box::from_raw(PLAIN.swap(ptr::null_mut(), Relaxed)) };
    // SAFETY: as above.
    let slept = *unsafe { Box::from_raw(SLEPT.swap(ptr::null_mut(), Relaxed)) };
    plain.destroy(cx).map_err(|(_, leaked)| crate::__failed!("type-safe: {leaked:?}"))?;
    slept.destroy(cx).map_err(|(_, leaked)| crate::__failed!("type-safe by SRCU: {leaked:?}"))
}
