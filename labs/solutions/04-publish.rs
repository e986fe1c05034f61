//! Lab 4: what another CPU sees, and in which order.

use crate::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// A letter on its way from one CPU to another. It is sent once.
pub struct Mailbox {
    letter: AtomicU64,
    is_full: AtomicBool,
}

impl Mailbox {
    /// An empty one.
    pub fn new() -> Self {
        Self { letter: AtomicU64::new(0), is_full: AtomicBool::new(false) }
    }

    /// Puts the letter in. One CPU does this, once.
    pub fn send(&self, letter: u64) {
        self.letter.store(letter, Ordering::Relaxed);
        // Release: pairs with the Acquire in `receive`: the letter before the flag.
        self.is_full.store(true, Ordering::Release);
    }

    /// The letter, if it has come.
    pub fn receive(&self) -> Option<u64> {
        // Acquire: pairs with the Release in `send`: the flag before the letter.
        self.is_full.load(Ordering::Acquire).then(|| self.letter.load(Ordering::Relaxed))
    }
}

/// Two words that belong together. One CPU at a time writes them; any number reads, and never writes.
pub struct Pair {
    /// Odd while the words are being written.
    count: AtomicU64,
    words: [AtomicU64; 2],
}

impl Pair {
    /// Both 0.
    pub fn new() -> Self {
        Self { count: AtomicU64::new(0), words: [AtomicU64::new(0), AtomicU64::new(0)] }
    }

    /// Changes both.
    pub fn write(&self, words: [u64; 2]) {
        let count = self.count.load(Ordering::Relaxed);
        self.count.store(count + 1, Ordering::Relaxed);
        // Release: pairs with the fence in `read`: whoever sees a new word sees the odd count.
        fence(Ordering::Release);
        self.words[0].store(words[0], Ordering::Relaxed);
        self.words[1].store(words[1], Ordering::Relaxed);
        // Release: pairs with the Acquire in `read`: the words before the even count.
        self.count.store(count + 2, Ordering::Release);
    }

    /// Both as they were at one moment; none if a writer was there meanwhile.
    pub fn read(&self) -> Option<[u64; 2]> {
        // Acquire: pairs with the last store in `write`: the words are at least as new as the count.
        let count = self.count.load(Ordering::Acquire);
        let words = [self.words[0].load(Ordering::Relaxed), self.words[1].load(Ordering::Relaxed)];
        // Acquire: pairs with the fence in `write`.
        fence(Ordering::Acquire);
        let is_whole = count.is_multiple_of(2) && self.count.load(Ordering::Relaxed) == count;
        is_whole.then_some(words)
    }
}
