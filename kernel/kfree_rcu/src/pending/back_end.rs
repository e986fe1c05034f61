//! The back end `pending`: what `kfree_rcu` is given waits in a tracker.
//!
//! There are two, one with each [`Store`], so that they can be measured against each other in one boot; `grange.pending_store`
//! and [`set_store`] say into which new objects go. Both are drained by every barrier.
//!
//! Context: as for every [`Engine`]. Rows: S3-19 to S3-21.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use arch::{CpuId, PAGE_SIZE};
use sync::{MaySleep, Once};

use super::registry::Tracked;
use super::{Deferred, GivenUp, Pages, Pending, Radix, Store, TreeRcu};
use crate::backend::{self, BackEnd, Engine, Event, Head, Waiting};
use crate::head::RcuPtr;

sync::param! {
    /// What the back end pending keeps addresses in: trees of nodes of 512 bytes, or lists of pages.
    static STORE: choice = "grange.pending_store", default "radix", one of ["radix", "pages"];
}

/// A store of the back end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// [`Radix`].
    Trees,
    /// [`Pages`].
    Lists,
}

impl Keep {
    /// Both.
    pub const ALL: [Keep; 2] = [Keep::Trees, Keep::Lists];

    /// As `grange.pending_store=` has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Keep::Trees => Radix::NAME,
            Keep::Lists => Pages::NAME,
        }
    }
}

/// Set at boot and by [`set_store`].
static LISTS: AtomicBool = AtomicBool::new(false);

/// Where new objects go.
///
/// Context: any.
#[must_use]
pub fn store() -> Keep {
    if LISTS.load(Relaxed) { Keep::Lists } else { Keep::Trees }
}

/// Has new objects go there; what waits stays where it is.
///
/// Context: any.
pub fn set_store(keep: Keep) {
    LISTS.store(keep == Keep::Lists, Relaxed);
}

/// What `kfree_rcu` was given.
struct Given(GivenUp);

// SAFETY: as `GivenUp`, whose answers these are.
unsafe impl Deferred for Given {
    const COUNTED_AS: Option<BackEnd> = Some(BackEnd::Pending);

    fn into_parts(self) -> (NonNull<u8>, Option<NonNull<RcuPtr>>) {
        self.0.into_parts()
    }

    unsafe fn from_object(object: NonNull<u8>) -> Self {
        // SAFETY: passed on from the caller.
        Self(unsafe { GivenUp::from_object(object) })
    }

    unsafe fn object_of(link: NonNull<RcuPtr>) -> NonNull<u8> {
        // SAFETY: passed on from the caller.
        unsafe { GivenUp::object_of(link) }
    }

    unsafe fn bytes(object: NonNull<u8>) -> usize {
        // SAFETY: passed on from the caller.
        unsafe { GivenUp::bytes(object) }
    }

    fn is_apart(object: NonNull<u8>) -> bool {
        GivenUp::is_apart(object)
    }

    unsafe fn finish(objects: &mut [NonNull<u8>]) {
        // SAFETY: passed on from the caller.
        unsafe { GivenUp::finish(objects) };
        backend::count(BackEnd::Pending, Event::Freed, objects.len());
    }
}

/// The trackers; made at boot, for good.
struct Trackers {
    trees: Pending<Given, TreeRcu, Radix>,
    lists: Pending<Given, TreeRcu, Pages>,
}

static TRACKERS: Once<Trackers> = Once::new();

impl Trackers {
    fn get() -> &'static Trackers {
        TRACKERS.get().expect("the back end is up before it is chosen")
    }

    fn both() -> [&'static dyn Tracked; 2] {
        let this = Self::get();
        [this.trees.tracked(), this.lists.tracked()]
    }
}

/// Before the back end can be chosen.
pub(crate) fn init() {
    let full = "room for the trackers";
    TRACKERS.call_once(|| Trackers {
        trees: Pending::new("kfree_rcu.radix", TreeRcu).expect(full),
        lists: Pending::new("kfree_rcu.pages", TreeRcu).expect(full),
    });
    set_store(if STORE.get() == Pages::NAME { Keep::Lists } else { Keep::Trees });
}

/// The engine.
pub(crate) enum ByCookie {}

impl Engine for ByCookie {
    fn enqueue(object: NonNull<u8>, head: Option<Head>) -> bool {
        // SAFETY: the caller of `kfree_rcu` gave the object up, in which the head lies.
        let given = Given(unsafe { GivenUp::new(object, head.map(Head::link)) });
        let trackers = Trackers::get();
        let taken = match store() {
            Keep::Trees => trackers.trees.enqueue(given).is_ok(),
            Keep::Lists => trackers.lists.enqueue(given).is_ok(),
        };
        // The caller is pinned, so it is not free yet.
        backend::count(BackEnd::Pending, Event::Enqueued, usize::from(taken));
        taken
    }

    fn drain(cx: &mut MaySleep) {
        let trackers = Trackers::get();
        trackers.trees.flush(cx);
        trackers.lists.flush(cx);
    }

    /// Nothing: callback and work of a CPU that goes come back elsewhere.
    fn dead(_: CpuId, _: &mut MaySleep) {}

    fn reclaim(cx: &mut MaySleep) -> usize {
        let nodes =
            || Trackers::both().map(|tracker| tracker.waiting().nodes * tracker.node_bytes()).iter().sum::<usize>();
        let (trackers, before) = (Trackers::get(), nodes());
        // Freeing takes no lock inside which somebody waits for memory.
        trackers.trees.finish(cx);
        trackers.lists.finish(cx);
        Trackers::both().into_iter().for_each(|tracker| _ = tracker.reclaim(false, cx));
        before.saturating_sub(nodes()) / PAGE_SIZE
    }

    fn waiting() -> Waiting {
        Trackers::both().into_iter().map(|tracker| tracker.waiting()).fold(Waiting::default(), |sum, waiting| {
            sum.and(Waiting { objects: waiting.objects, oldest_ns: waiting.oldest_ns })
        })
    }
}
