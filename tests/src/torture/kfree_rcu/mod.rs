//! Torture of `kfree_rcu`: readers in a [`Field`], whose objects are given up in every way there is and in every context, while back
//! ends, stores, bounds and policies change.
//!
//! | module | what |
//! |---|---|
//! | `mod` | readers and updaters of a field on all CPUs, and acts in it from interrupts, timers, callbacks and NMIs |
//! | [`fronts`] | many in one call, owners, callbacks' heads, objects that wait for SRCU, trackers that give objects back early |
//! | [`changes`] | what changes at run time; barriers, after which nothing of what came before is in use |
//! | [`late`] | at the end, what is given up and nobody waits for |
//!
//! At the end every object, sheaf, slab and byte that waited is back.

mod changes;
mod fronts;
mod late;

use alloc::sync::Arc;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed};

use arch::cpu;
use sched::Prio;
use slab::RawCache;
use sync::{MaySleep, Rng};

use super::contexts::{Acts, Context, Contexts};
use super::{Ongoing, Stat, control};
use crate::field::Field;
use crate::kfree::{cache, ensure_all_back};
use crate::{Failure, ensure_eq, torture};

use self::changes::Settings;
use self::fronts::Fronts;

/// What the threads share and count.
struct KfreeRcu {
    cache: &'static RawCache,
    field: Arc<Field>,
    fronts: Fronts,
    /// Changes, and barriers after which nothing may be in use.
    changes: AtomicU64,
    barriers: AtomicU64,
    settings: Settings,
}

static CONTEXTS: Contexts<InField> = Contexts::new("kfree_rcu-torture");
/// Where contexts act: the field of the run, which [`Contexts::end`] comes before the end of.
static FIELD: AtomicPtr<Field> = AtomicPtr::new(ptr::null_mut());

struct InField;

impl Acts for InField {
    fn act(context: Context, rng: &mut Rng) {
        // SAFETY: set before contexts begin to act, and alive until they have ended.
        let field = unsafe { &*FIELD.load(Relaxed) };
        if context != Context::Nmi || rng.chance(1, 2) {
            field.look(rng);
        }
        field.replace_nolock(rng);
    }

    fn contexts() -> &'static Contexts<Self> {
        &CONTEXTS
    }
}

impl KfreeRcu {
    fn send(&self, mut rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
        while !control::stutter(cx) {
            for _ in 0..8 {
                CONTEXTS.send(&mut rng, cx);
            }
            sched::sleep_ns(cx, rng.below(400_000));
        }
        Ok(())
    }

    fn read(&self, rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
        self.field.read(rng, cx, control::stutter);
        Ok(())
    }

    fn update(&self, rng: Rng, cx: &mut MaySleep) -> Result<(), Failure> {
        self.field.update(rng, cx, control::stutter);
        Ok(())
    }
}

impl Ongoing for Arc<KfreeRcu> {
    fn stat(&self, out: &mut Stat) {
        let field = &self.field;
        out.work("sections", field.sections.load(Relaxed));
        out.work("replaced", field.replaced.load(Relaxed));
        out.count("misses", field.misses.load(Relaxed));
        CONTEXTS.stat(out);
        self.fronts.stat(out);
        out.work("changes", self.changes.load(Relaxed));
        out.work("barriers", self.barriers.load(Relaxed));
        out.error("broken", field.broken.load(Relaxed));
        if field.broken.load(Relaxed) != 0 {
            out.fail(format_args!("from {:#x} to {:#x}", field.was.load(Relaxed), field.became.load(Relaxed)));
        }
    }

    fn stop(&mut self, cx: &mut MaySleep) -> Result<(), Failure> {
        CONTEXTS.end(cx);
        self.settings.put_back(cx);
        self.field.clear(cx);
        self.fronts.end(cx)?;
        ensure_all_back(self.cache, cx)?;
        ensure_eq!(self.cache.waiting().total().bytes, 0, "bytes that wait on RCU");
        // SAFETY: nobody uses the cache any more.
        ensure_eq!(unsafe { slab::flush::destroy(self.cache, cx) }, Ok(()));
        late::come_back(cx)
    }
}

torture! {
    /// Readers of objects that are given to kfree_rcu in every way and context, while back ends, bounds and policies change
    fn kfree_rcu(run: &mut Run) {
        let mut rng = run.rng("threads");
        let cache = cache("torture-kfree-rcu")?;
        let kfree_rcu = Arc::new(KfreeRcu {
            cache,
            field: Field::new(cache),
            fronts: Fronts::new()?,
            changes: AtomicU64::new(0),
            barriers: AtomicU64::new(0),
            settings: Settings::now(),
        });
        FIELD.store(Arc::as_ptr(&kfree_rcu.field).cast_mut(), Relaxed);
        CONTEXTS.begin(rng.next_u64());
        let mut thread = |name: &str, on, f: fn(&KfreeRcu, Rng, &mut MaySleep) -> Result<(), Failure>| {
            let (shared, rng) = (kfree_rcu.clone(), Rng::new(rng.next_u64()));
            run.spawn(name, Prio::NORMAL, on, move |cx| f(&shared, rng, cx))
        };
        for (n, cpu) in cpu::online().iter().enumerate() {
            // Some may move from CPU to CPU.
            thread("kfree_rcu reader", (n % 4 != 3).then_some(cpu), KfreeRcu::read)?;
            thread("kfree_rcu updater", (n % 4 != 2).then_some(cpu), KfreeRcu::update)?;
        }
        thread("kfree_rcu sender", None, KfreeRcu::send)?;
        thread("kfree_rcu fronts", None, fronts::give_up)?;
        thread("kfree_rcu sleeper", None, fronts::read_and_sleep)?;
        thread("kfree_rcu changes", None, changes::change)?;
        for _ in 0..2 {
            thread("kfree_rcu barriers", None, changes::wait)?;
        }
        Ok(kfree_rcu)
    }
}
