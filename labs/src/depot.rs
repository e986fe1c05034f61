//! What lab 7 is given: objects, sheaves of them, and a barn with slabs behind it that count who comes.

use alloc::vec::Vec;

use arrayvec::ArrayVec;

/// Objects that a sheaf has room for.
pub const CAPACITY: usize = 8;

/// An object. It cannot be copied, only lost.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object(pub u32);

/// An array of objects.
#[derive(Debug, Default)]
pub struct Sheaf(ArrayVec<Object, CAPACITY>);

impl Sheaf {
    /// Takes an object in, or gives it back if there is no room.
    ///
    /// # Errors
    /// The object, from a full sheaf.
    pub fn push(&mut self, object: Object) -> Result<(), Object> {
        self.0.try_push(object).map_err(|full| full.element())
    }

    /// Hands an object out.
    pub fn pop(&mut self) -> Option<Object> {
        self.0.pop()
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether there is no room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.0.is_full()
    }
}

/// A barn, and the slabs behind it.
#[derive(Debug, Default)]
pub struct Depot {
    full: Vec<Sheaf>,
    slabs: Vec<Object>,
    /// Full sheaves that the barn takes.
    pub limit: usize,
    /// Times that the barn was asked, whatever it answered: each takes its lock.
    pub barn_visits: usize,
    /// Objects that went to slabs or came from there: each is slow.
    pub slab_visits: usize,
}

impl Depot {
    /// A barn with room for `limit` full sheaves, `full` of which are there, and slabs with `objects` more.
    #[must_use]
    pub fn new(limit: usize, full: usize, objects: usize) -> Self {
        let mut numbers = 0..;
        let mut some = |count| numbers.by_ref().take(count).map(Object).collect::<Vec<_>>();
        let full = (0..full).map(|_| Sheaf(some(CAPACITY).into_iter().collect())).collect();
        Self { full, slabs: some(objects), limit, ..Self::default() }
    }

    /// Takes an empty sheaf and gives a full one.
    ///
    /// # Errors
    /// The empty one, if the barn has none that is full.
    ///
    /// # Panics
    /// If the sheaf is not empty.
    pub fn full_for_empty(&mut self, empty: Sheaf) -> Result<Sheaf, Sheaf> {
        assert!(empty.is_empty(), "a sheaf with objects was handed in as an empty one");
        self.barn_visits += 1;
        self.full.pop().ok_or(empty)
    }

    /// Takes a full sheaf and gives an empty one.
    ///
    /// # Errors
    /// The full one, if the barn is at its limit.
    ///
    /// # Panics
    /// If the sheaf is not full.
    pub fn empty_for_full(&mut self, full: Sheaf) -> Result<Sheaf, Sheaf> {
        assert!(full.is_full(), "a sheaf with room was handed in as a full one");
        self.barn_visits += 1;
        if self.full.len() == self.limit {
            return Err(full);
        }
        self.full.push(full);
        Ok(Sheaf::default())
    }

    /// One object from slabs.
    pub fn alloc(&mut self) -> Option<Object> {
        self.slab_visits += 1;
        self.slabs.pop()
    }

    /// One object to slabs.
    pub fn free(&mut self, object: Object) {
        self.slab_visits += 1;
        self.slabs.push(object);
    }

    /// The numbers of all objects in the barn and in slabs.
    #[must_use]
    pub fn objects(&self) -> Vec<u32> {
        self.full.iter().flat_map(|sheaf| &sheaf.0).chain(&self.slabs).map(|object| object.0).collect()
    }
}
