//! Lists and maps with readers on every CPU while others change them.
//!
//! Entries with even keys are there all the time, though they are replaced; those with odd keys come and go. A reader must
//! see each even key once, on a list in order, and nothing that was dropped: each value knows whether it was.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arch::cpu;
use rcu::{HashNode, ListNode, RcuBox, RcuHashMap, RcuList, rcu_barrier, read_lock};
use sched::Prio;
use sync::{ATOMIC, LockClass, MaySleep, PreemptGuard, Rng};

use crate::{Failure, Test, ensure, ensure_eq, ktest};

static CLASS: LockClass = LockClass::new("test.rcu_list");

/// Keys are below.
const KEYS: u32 = 64;
/// What each of the updaters does.
const ROUNDS: u32 = 1_500;
const UPDATERS: u64 = 2;
/// A map changes its size once in so many rounds.
const RESIZE_EVERY: u64 = 100;

/// In the values that have not been dropped.
const ALIVE: u32 = 0xa11e;

/// A value that knows whether it has been dropped, and counts in the test's number of live ones.
struct Life {
    key: u32,
    alive: AtomicU32,
    lives: Arc<AtomicUsize>,
}

impl Life {
    fn new(key: u32, lives: &Arc<AtomicUsize>) -> Life {
        lives.fetch_add(1, Ordering::Relaxed);
        Life { key, alive: AtomicU32::new(ALIVE), lives: lives.clone() }
    }
    fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed) == ALIVE
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.alive.store(0xdead, Ordering::Relaxed);
        self.lives.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What readers and updaters use.
trait Collection: Send + Sync + 'static {
    /// Looks at everything once; what is wrong, if anything.
    fn look(&self) -> Option<&'static str>;
    /// One round of an updater.
    fn change(&self, rng: &mut Rng, lives: &Arc<AtomicUsize>, cx: &mut MaySleep);
}

/// Whether these are all even keys, each once, and alive; the odd ones are alive, too.
fn judge(seen: &[&Life]) -> Option<&'static str> {
    let even = seen.iter().filter(|life| life.key % 2 == 0).count();
    match () {
        () if even < KEYS as usize / 2 => Some("an entry that is always there was not seen"),
        () if even > KEYS as usize / 2 => Some("an entry was seen twice"),
        () if !seen.iter().all(|life| life.is_alive()) => Some("an entry was freed under its reader"),
        () => None,
    }
}

impl Collection for RcuList<Life> {
    fn look(&self) -> Option<&'static str> {
        let mut seen = Vec::with_capacity(2 * KEYS as usize);
        let guard = read_lock(ATOMIC);
        seen.extend(self.iter(&guard));
        let sorted = seen.is_sorted_by(|a: &&Life, b| a.key < b.key);
        judge(&seen).or((!sorted).then_some("entries were seen out of order"))
    }

    fn change(&self, rng: &mut Rng, lives: &Arc<AtomicUsize>, _cx: &mut MaySleep) {
        let key = rng.next_u64() as u32 % KEYS;
        let new = RcuBox::new(ListNode::new(Life::new(key, lives)));
        let mut updater = self.lock(ATOMIC);
        let mut cursor = updater.cursor();
        cursor.find(|life| life.key >= key);
        match cursor.current().is_some_and(|life| life.key == key) {
            false => cursor.insert(new),
            true if key.is_multiple_of(2) => drop(cursor.replace(new)),
            true => drop(cursor.remove()),
        }
    }
}

impl Collection for RcuHashMap<u32, Life> {
    fn look(&self) -> Option<&'static str> {
        let mut seen = Vec::with_capacity(2 * KEYS as usize);
        let guard = read_lock(ATOMIC);
        seen.extend(self.iter(&guard).map(|(_, life)| life));
        let wrong = judge(&seen);
        seen.clear();
        seen.extend((0..KEYS).step_by(2).filter_map(|key| self.get(&key, &guard)));
        wrong.or_else(|| judge(&seen))
    }

    fn change(&self, rng: &mut Rng, lives: &Arc<AtomicUsize>, cx: &mut MaySleep) {
        let dice = rng.next_u64();
        if dice.is_multiple_of(RESIZE_EVERY) {
            self.resize(16 << (dice >> 32 & 3), cx).expect("memory for a few buckets");
            return;
        }
        let key = (dice >> 32) as u32 % KEYS;
        let new = RcuBox::new(HashNode::new(key, Life::new(key, lives)));
        if key.is_multiple_of(2) {
            drop(self.replace(new));
        } else if self.insert(new).is_err() {
            drop(self.remove(&key));
        }
    }
}

/// Readers on all CPUs, two for each, while updaters go through their rounds.
fn contend(t: &mut Test<'_>, collection: impl Collection, lives: Arc<AtomicUsize>) -> Result<(), Failure> {
    let failed = |error| crate::__failed!("{error}");
    let collection = Arc::new(collection);
    let (stop, passes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut readers = Vec::new();
    for on in cpu::online().iter().flat_map(|on| [Some(on), None]) {
        let (collection, stop, passes) = (collection.clone(), stop.clone(), passes.clone());
        let reader = move |cx: &mut MaySleep| {
            let mut wrong = None;
            while !stop.load(Ordering::Relaxed) && wrong.is_none() {
                let pin = passes.fetch_add(1, Ordering::Relaxed).is_multiple_of(4).then(|| PreemptGuard::new(&*cx));
                wrong = collection.look();
                drop(pin);
                sched::yield_now(cx);
            }
            wrong
        };
        readers.push(sched::spawn(t.cx, "list reader", Prio::NORMAL, on, reader).map_err(failed)?);
    }
    let mut updaters = Vec::new();
    for i in 0..UPDATERS {
        let (collection, lives, mut rng) = (collection.clone(), lives.clone(), Rng::new(t.seed ^ i));
        let updater = move |cx: &mut MaySleep| {
            for _ in 0..ROUNDS {
                collection.change(&mut rng, &lives, cx);
                sched::yield_now(cx);
            }
        };
        updaters.push(sched::spawn(t.cx, "list updater", Prio::NORMAL, None, updater).map_err(failed)?);
    }
    updaters.into_iter().for_each(|updater| updater.join(t.cx));
    stop.store(true, Ordering::Relaxed);
    let wrong = readers.into_iter().filter_map(|reader| reader.join(t.cx)).next();
    t.note(format_args!("{} passes of readers", passes.load(Ordering::Relaxed)));
    ensure_eq!(wrong, None);
    drop(collection);
    rcu_barrier(t.cx);
    ensure_eq!(lives.load(Ordering::Relaxed), 0);
    Ok(())
}

ktest! {
    /// A list.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn readers_of_a_list_see_what_stays_once_and_in_order(t: &mut Test) {
        let lives = Arc::new(AtomicUsize::new(0));
        let mut list = RcuList::new(&CLASS);
        for key in (0..KEYS).rev().filter(|key| key % 2 == 0) {
            list.get_mut().push_front(RcuBox::new(ListNode::new(Life::new(key, &lives))));
        }
        contend(t, list, lives)
    }

    /// A map, whose size changes all the while.
    #[tags(race)]
    #[budget_ms(60_000)]
    fn readers_of_a_map_find_what_stays_while_its_size_changes(t: &mut Test) {
        let lives = Arc::new(AtomicUsize::new(0));
        let map = RcuHashMap::try_new(16, &CLASS).map_err(|error| crate::__failed!("{error}"))?;
        for key in (0..KEYS).step_by(2) {
            ensure!(map.insert(RcuBox::new(HashNode::new(key, Life::new(key, &lives)))).is_ok());
        }
        contend(t, map, lives)
    }

    /// Reading takes no lock, so it works where the updater on the same CPU has been interrupted.
    fn an_nmi_reads_a_list_whose_lock_its_cpu_holds(t: &mut Test) {
        let list = RcuList::new(&CLASS);
        let mut updater = list.lock(&*t.cx);
        updater.push_front(RcuBox::new(ListNode::new(1_u32)));
        let seen = sync::nmi::as_nmi(|| list.iter(&read_lock(ATOMIC)).copied().next());
        drop(updater);
        ensure_eq!(seen, Some(1));
        Ok(())
    }
}
