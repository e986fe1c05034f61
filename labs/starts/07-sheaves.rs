//! Lab 7: a CPU's two sheaves. The task is told in docs/labs/07-sheaves.md.

use crate::depot::{Depot, Object, Sheaf};

/// What a CPU has at hand.
#[derive(Default)]
pub struct Cpu {
    /// Objects come from here and go here.
    main: Sheaf,
}

impl Cpu {
    /// An object, from wherever one is.
    pub fn alloc(&mut self, depot: &mut Depot) -> Option<Object> {
        self.main.pop().or_else(|| depot.alloc())
    }

    /// Takes an object back.
    pub fn free(&mut self, object: Object, depot: &mut Depot) {
        if let Err(object) = self.main.push(object) {
            depot.free(object);
        }
    }

    /// Gives back all that it has: the CPU goes.
    pub fn drain(&mut self, depot: &mut Depot) {
        while let Some(object) = self.main.pop() {
            depot.free(object);
        }
    }
}
