//! Changes with spare when main is full, and not when it is empty.

use crate::depot::{CAPACITY, Depot, Object, Sheaf};

/// What a CPU has at hand.
#[derive(Default)]
pub struct Cpu {
    /// Objects come from here and go here.
    main: Sheaf,
    /// Full, empty, or something in between; takes main's place before the barn is asked.
    spare: Sheaf,
}

impl Cpu {
    /// An object, from wherever one is.
    pub fn alloc(&mut self, depot: &mut Depot) -> Option<Object> {
        if self.main.is_empty() {
            self.main = depot.full_for_empty(core::mem::take(&mut self.main)).unwrap_or_else(|mut empty| {
                refill(&mut empty, depot);
                empty
            });
        }
        self.main.pop()
    }

    /// Takes an object back.
    pub fn free(&mut self, object: Object, depot: &mut Depot) {
        if self.main.is_full() {
            core::mem::swap(&mut self.main, &mut self.spare);
        }
        if self.main.is_full() {
            self.main = depot.empty_for_full(core::mem::take(&mut self.main)).unwrap_or_else(|mut full| {
                flush(&mut full, depot);
                full
            });
        }
        if let Err(object) = self.main.push(object) {
            depot.free(object);
        }
    }

    /// Gives back all that it has: the CPU goes.
    pub fn drain(&mut self, depot: &mut Depot) {
        flush(&mut self.main, depot);
        flush(&mut self.spare, depot);
    }
}

/// Fills a sheaf from slabs as far as they go.
fn refill(sheaf: &mut Sheaf, depot: &mut Depot) {
    for _ in 0..CAPACITY {
        let Some(object) = depot.alloc() else { return };
        if let Err(object) = sheaf.push(object) {
            depot.free(object);
        }
    }
}

/// Empties a sheaf into slabs.
fn flush(sheaf: &mut Sheaf, depot: &mut Depot) {
    while let Some(object) = sheaf.pop() {
        depot.free(object);
    }
}
