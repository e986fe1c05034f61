//! The one atomic that `core` lacks on stable: 16 bytes at once.

/// Two words that are compared and exchanged together.
#[repr(C, align(16))]
#[derive(Debug, Default)]
pub struct Pair {
    /// The word at the lower address.
    pub low: core::sync::atomic::AtomicU64,
    /// The word at the higher address.
    pub high: core::sync::atomic::AtomicU64,
}

impl Pair {
    /// The pair of these two words.
    pub const fn new(low: u64, high: u64) -> Self {
        use core::sync::atomic::AtomicU64;
        Self { low: AtomicU64::new(low), high: AtomicU64::new(high) }
    }
}

/// Stores `new` in `pair` if it is `old`, as one locked instruction and a full barrier.
///
/// The two words of a pair may also be read one by one; what was read together with a successful exchange was true at
/// that instant. Context: any, NMI included; lock-free.
///
/// # Errors
///
/// The pair that was found instead of `old`.
#[inline(always)]
pub fn cmpxchg16b(pair: &Pair, old: (u64, u64), new: (u64, u64)) -> Result<(), (u64, u64)> {
    let found = exchange(pair, old, new);
    if found == old { Ok(()) } else { Err(found) }
}

#[cfg(not(miri))]
#[inline(always)]
fn exchange(pair: &Pair, old: (u64, u64), new: (u64, u64)) -> (u64, u64) {
    let (low, high);
    // SAFETY: `pair` is 16 writable bytes, aligned to 16. rbx belongs to the compiler, so the new low word is swapped into
    // it and the old rbx back; every x86_64 CPU that the kernel runs on has the instruction (boot checks).
    unsafe {
        core::arch::asm!(
            "xchg rsi, rbx",
            "lock cmpxchg16b [rdi]",
            "mov rbx, rsi",
            in("rdi") core::ptr::from_ref(pair),
            inout("rsi") new.0 => _,
            in("rcx") new.1,
            inout("rax") old.0 => low,
            inout("rdx") old.1 => high,
            options(nostack),
        );
    }
    (low, high)
}

/// Miri has no `asm!`: two atomics under a lock that all exchanges share.
#[cfg(miri)]
fn exchange(pair: &Pair, old: (u64, u64), new: (u64, u64)) -> (u64, u64) {
    use core::sync::atomic::Ordering::SeqCst;
    static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one_at_a_time = LOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let found = (pair.low.load(SeqCst), pair.high.load(SeqCst));
    if found == old {
        pair.low.store(new.0, SeqCst);
        pair.high.store(new.1, SeqCst);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::Ordering;

    #[test]
    fn a_pair_changes_only_if_both_words_are_as_expected() {
        let pair = Pair::new(1, 2);
        assert_eq!(cmpxchg16b(&pair, (1, 3), (9, 9)), Err((1, 2)));
        assert_eq!(cmpxchg16b(&pair, (0, 2), (9, 9)), Err((1, 2)));
        assert_eq!(cmpxchg16b(&pair, (1, 2), (3, 4)), Ok(()));
        assert_eq!((pair.low.load(Ordering::Relaxed), pair.high.load(Ordering::Relaxed)), (3, 4));
    }

    #[test]
    fn no_exchange_is_lost_when_two_threads_count_in_a_pair() {
        let pair = Pair::new(0, 0);
        let turns = if cfg!(miri) { 50 } else { 20_000 };
        let count = || {
            for _ in 0..turns {
                let mut seen = (pair.low.load(Ordering::Relaxed), pair.high.load(Ordering::Relaxed));
                while let Err(now) = cmpxchg16b(&pair, seen, (seen.0 + 1, seen.1 + 2)) {
                    seen = now;
                }
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(count);
            count();
        });
        assert_eq!((pair.low.into_inner(), pair.high.into_inner()), (2 * turns, 4 * turns));
    }
}
