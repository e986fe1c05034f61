//! What `slabtop` shows: the caches in an order, with what went on between two looks at them.

use alloc::vec::Vec;
use core::cmp::Reverse;

/// One cache at one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Its name.
    pub name: &'static str,
    /// Bytes of an object.
    pub size: u64,
    /// Objects that are not free in a slab.
    pub active: u64,
    /// Objects in all slabs.
    pub objects: u64,
    /// Slabs.
    pub slabs: u64,
    /// Bytes of all slabs.
    pub memory: u64,
    /// Objects allocated so far.
    pub allocs: u64,
    /// Objects freed so far.
    pub frees: u64,
}

/// What to sort by: the most first, names by the alphabet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Bytes of all slabs.
    Memory,
    /// Objects in all slabs.
    Objects,
    /// Objects in use.
    Active,
    /// The part of the objects that is in use, the least first: the worst fragmented in front.
    Use,
    /// Allocations and frees.
    Rate,
    /// The name.
    Name,
}

impl Key {
    /// All, with what is typed for them.
    pub const ALL: [(&'static str, Key); 6] = [
        ("memory", Key::Memory),
        ("objects", Key::Objects),
        ("active", Key::Active),
        ("use", Key::Use),
        ("rate", Key::Rate),
        ("name", Key::Name),
    ];

    /// The key of that name.
    pub fn parse(typed: &str) -> Option<Key> {
        Self::ALL.into_iter().find_map(|(name, key)| (name == typed).then_some(key))
    }

    /// Sorts; of equal ones the first by the alphabet comes first.
    pub fn sort(self, samples: &mut [Sample]) {
        samples.sort_by_key(|sample| {
            let first = match self {
                Key::Memory => Reverse(sample.memory),
                Key::Objects => Reverse(sample.objects),
                Key::Active => Reverse(sample.active),
                Key::Use => Reverse(u64::MAX - percent(sample.active, sample.objects)),
                Key::Rate => Reverse(sample.allocs + sample.frees),
                Key::Name => Reverse(0),
            };
            (first, sample.name)
        });
    }
}

/// `now` with the allocations and frees per second since `before`, `elapsed_ns` ago. A cache that was not there then has
/// done all of its in that time, and so has one whose counters were set back meanwhile.
pub fn per_second(before: &[Sample], now: &[Sample], elapsed_ns: u64) -> Vec<Sample> {
    let rate = |now: u64, before: u64| per_second_of(before, now, elapsed_ns);
    let rates = now.iter().map(|sample| {
        let old = before.iter().find(|old| old.name == sample.name);
        let (allocs, frees) = old.map_or((0, 0), |old| (old.allocs, old.frees));
        Sample { allocs: rate(sample.allocs, allocs), frees: rate(sample.frees, frees), ..*sample }
    });
    rates.collect()
}

/// What a counter has counted a second, if it stood at `before` `elapsed_ns` ago; one that was set back meanwhile has
/// counted all of it since.
pub fn per_second_of(before: u64, now: u64, elapsed_ns: u64) -> u64 {
    let events = now.checked_sub(before).unwrap_or(now);
    (u128::from(events) * 1_000_000_000 / u128::from(elapsed_ns.max(1))) as u64
}

/// How many of a hundred; all of nothing.
pub fn percent(part: u64, whole: u64) -> u64 {
    if whole == 0 { 100 } else { (u128::from(part) * 100 / u128::from(whole)) as u64 }
}

/// Sums over caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Caches, and those of them with an object in use.
    pub caches: (u64, u64),
    /// Slabs.
    pub slabs: u64,
    /// Objects, and those of them in use.
    pub objects: (u64, u64),
    /// Bytes of slabs, and those of them that are objects in use.
    pub memory: (u64, u64),
}

impl Totals {
    /// Of these.
    pub fn of(samples: &[Sample]) -> Self {
        samples.iter().fold(Self::default(), |sum, one| Self {
            caches: (sum.caches.0 + 1, sum.caches.1 + u64::from(one.active > 0)),
            slabs: sum.slabs + one.slabs,
            objects: (sum.objects.0 + one.objects, sum.objects.1 + one.active),
            memory: (sum.memory.0 + one.memory, sum.memory.1 + one.active * one.size),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(name: &'static str, active: u64, objects: u64, allocs: u64) -> Sample {
        let slabs = objects.div_ceil(64);
        Sample { name, size: 64, active, objects, slabs, memory: slabs * 4096, allocs, frees: allocs / 2 }
    }

    fn sorted(key: Key) -> Vec<&'static str> {
        let mut samples =
            [sample("b", 10, 640, 30), sample("a", 64, 64, 10), sample("c", 0, 0, 90), sample("aa", 50, 64, 10)];
        key.sort(&mut samples);
        samples.iter().map(|sample| sample.name).collect()
    }

    #[test]
    fn the_most_comes_first_and_of_equal_ones_the_alphabet_decides() {
        assert_eq!(sorted(Key::Memory), ["b", "a", "aa", "c"]);
        assert_eq!(sorted(Key::Active), ["a", "aa", "b", "c"]);
        assert_eq!(sorted(Key::Use), ["b", "aa", "a", "c"]);
        assert_eq!(sorted(Key::Rate), ["c", "b", "a", "aa"]);
        assert_eq!(sorted(Key::Name), ["a", "aa", "b", "c"]);
    }

    #[test]
    fn every_key_is_found_by_its_name_and_nothing_else_is() {
        for (name, key) in Key::ALL {
            assert_eq!(Key::parse(name), Some(key));
        }
        assert_eq!(Key::parse("mem"), None);
    }

    #[test]
    fn rates_are_events_of_the_interval_by_its_length() {
        let before = [sample("a", 0, 64, 1000), sample("cleared", 0, 64, 1000)];
        let now = [sample("a", 0, 64, 1500), sample("cleared", 0, 64, 40), sample("new", 0, 64, 20)];
        let rates: Vec<_> =
            per_second(&before, &now, 500_000_000).iter().map(|s| (s.name, s.allocs, s.frees)).collect();
        assert_eq!(rates, [("a", 1000, 500), ("cleared", 80, 40), ("new", 40, 20)]);
        assert_eq!(per_second(&before, &before, 0)[0].allocs, 0, "no time has passed");
    }

    #[test]
    fn totals_add_up() {
        let totals = Totals::of(&[sample("a", 3, 64, 0), sample("b", 0, 128, 0)]);
        assert_eq!(totals, Totals { caches: (2, 1), slabs: 3, objects: (192, 3), memory: (3 * 4096, 3 * 64) });
        assert_eq!(Totals::of(&[]), Totals::default());
        assert_eq!((percent(1, 3), percent(0, 0)), (33, 100));
    }
}
