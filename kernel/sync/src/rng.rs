//! [`Rng`]: small, seeded, repeatable random numbers, for tests, fault injection and hardening.
//!
//! xorshift64* with its state mixed from the seed by splitmix64. Not for secrets. The sequence of
//! a seed is part of what makes a failing run repeatable: it does not change between versions,
//! which `the_sequence_of_a_seed_is_fixed` holds to.

/// A generator; two with the same seed give the same numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rng {
    /// Never zero.
    state: u64,
}

impl Rng {
    /// A generator for `seed`; any value is good, also 0.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        Self { state: if mixed == 0 { 1 } else { mixed } }
    }

    /// A generator of its own for stream `index` (a CPU, a thread) of the same seed.
    #[must_use]
    pub const fn stream(seed: u64, index: u64) -> Self {
        let mut base = Self::new(seed);
        let first = base.next_u64();
        Self::new(first ^ index.wrapping_mul(0xd6e8_feb8_6659_fd93))
    }

    /// 64 random bits.
    #[inline]
    pub const fn next_u64(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// 32 random bits.
    #[inline]
    pub const fn next_u32(&mut self) -> u32 {
        (self.next_u64() >> 32) as u32
    }

    /// A number from 0 up to but not including `bound`.
    ///
    /// The bias is at most `bound / 2^64`.
    ///
    /// # Panics
    /// If `bound` is 0.
    #[inline]
    pub const fn below(&mut self, bound: u64) -> u64 {
        assert!(bound != 0, "there is no number below 0");
        ((self.next_u64() as u128 * bound as u128) >> 64) as u64
    }

    /// [`below`](Self::below) for sizes and indices.
    #[inline]
    pub const fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// A number from `low` to `high`, both included.
    ///
    /// # Panics
    /// If `low > high`.
    pub const fn in_range(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high, "an empty range");
        match (high - low).checked_add(1) {
            Some(count) => low + self.below(count),
            None => self.next_u64(),
        }
    }

    /// True `numerator` times out of `denominator`.
    pub const fn chance(&mut self, numerator: u64, denominator: u64) -> bool {
        self.below(denominator) < numerator
    }

    /// One of `items`, or `None` if there are none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        if items.is_empty() { None } else { Some(&items[self.index(items.len())]) }
    }

    /// Brings `items` into random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.index(last + 1));
        }
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let random = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&random[..chunk.len()]);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_of_a_seed_is_fixed() {
        let mut rng = Rng::new(1);
        let first = [rng.next_u64(), rng.next_u64(), rng.next_u64()];
        let mut again = Rng::new(1);
        assert_eq!(first, [again.next_u64(), again.next_u64(), again.next_u64()]);
        assert_eq!(first, FIRST_OF_SEED_1);
    }

    /// Computed apart from this code, from the published definitions.
    const FIRST_OF_SEED_1: [u64; 3] = [0x4b46a55df3611b9b, 0xd7e1f1410e763ef4, 0x5f14ec66975f9b06];

    #[test]
    fn seeds_and_streams_differ() {
        let first = |mut rng: Rng| rng.next_u64();
        assert_ne!(first(Rng::new(0)), first(Rng::new(1)));
        assert_ne!(first(Rng::stream(7, 0)), first(Rng::stream(7, 1)));
        assert_eq!(first(Rng::stream(7, 3)), first(Rng::stream(7, 3)));
    }

    #[test]
    fn numbers_stay_in_range_and_reach_its_ends() {
        let mut rng = Rng::new(42);
        let mut seen = [false; 5];
        for _ in 0..1_000 {
            seen[rng.index(5)] = true;
            assert!((10..=12).contains(&rng.in_range(10, 12)));
        }
        assert_eq!(seen, [true; 5]);
        let _ = rng.in_range(0, u64::MAX);
        assert!(!rng.chance(0, 10) && rng.chance(10, 10));
    }

    #[test]
    fn a_shuffle_keeps_every_item() {
        let mut items = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
        Rng::new(3).shuffle(&mut items);
        assert_ne!(items, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        items.sort_unstable();
        assert_eq!(items, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(Rng::new(1).pick(&[0_u8; 0]), None);
    }

    #[test]
    fn filling_covers_an_odd_length() {
        let mut bytes = [0_u8; 13];
        Rng::new(9).fill(&mut bytes);
        assert!(bytes[8..].iter().any(|&byte| byte != 0));
    }
}
