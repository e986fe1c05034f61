//! Gives back the new object instead of the old one.

use core::ptr::NonNull;

use mm::AllocFlags;
use slab::typed::{Cache, CacheBox};

/// Sessions at a time.
pub const MOST: usize = 16;

/// Somebody who is logged in.
pub struct Session {
    id: u64,
    name: u64,
    next: Option<NonNull<Session>>,
}

/// Why somebody was not logged in.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// [`MOST`] sessions are there.
    Full,
    /// There is no memory.
    NoMemory,
}

/// Who is logged in: a list of objects that it owns.
pub struct Registry<'c> {
    sessions: &'c Cache<Session>,
    first: Option<NonNull<Session>>,
    count: usize,
}

impl<'c> Registry<'c> {
    /// Nobody; sessions will be objects of this cache.
    pub fn new(sessions: &'c Cache<Session>) -> Self {
        Self { sessions, first: None, count: 0 }
    }

    /// Logs in `id` under that name; who is logged in already changes its name.
    pub fn log_in(&mut self, id: u64, name: u64) -> Result<(), Refused> {
        let session = Session { id, name, next: None };
        let session = self.sessions.alloc(session, AllocFlags::NOWAIT).map_err(|_| Refused::NoMemory)?;
        let mut session = CacheBox::into_raw(session);
        // SAFETY: nobody else knows the object yet.
        let new = unsafe { session.as_mut() };
        let mut link = &mut self.first;
        while let Some(mut at) = *link {
            // SAFETY: on the list, which owns it; nobody else has a reference, for we are borrowed mutably.
            let old = unsafe { at.as_mut() };
            if old.id == id {
                // SAFETY: from `into_raw` of a box of this cache, and on no list.
                drop(unsafe { CacheBox::from_raw(session, self.sessions) });
                return Ok(());
            }
            link = &mut old.next;
        }
        if self.count == MOST {
            // SAFETY: from `into_raw` of a box of this cache, and on no list.
            drop(unsafe { CacheBox::from_raw(session, self.sessions) });
            return Err(Refused::Full);
        }
        new.next = self.first;
        self.first = Some(session);
        self.count += 1;
        Ok(())
    }

    /// The name of `id`, if it is logged in.
    pub fn name_of(&self, id: u64) -> Option<u64> {
        let mut at = self.first;
        while let Some(session) = at {
            // SAFETY: on the list, which owns it.
            let session = unsafe { session.as_ref() };
            if session.id == id {
                return Some(session.name);
            }
            at = session.next;
        }
        None
    }

    /// Logs `id` out; whether it was logged in.
    pub fn log_out(&mut self, id: u64) -> bool {
        let mut link = &mut self.first;
        while let Some(mut at) = *link {
            // SAFETY: on the list, which owns it; nobody else has a reference, for we are borrowed mutably.
            let session = unsafe { at.as_mut() };
            if session.id == id {
                *link = session.next;
                self.count -= 1;
                // SAFETY: from `into_raw` of a box of this cache, and off the list.
                drop(unsafe { CacheBox::from_raw(at, self.sessions) });
                return true;
            }
            link = &mut session.next;
        }
        false
    }

    /// Logs everybody out.
    pub fn log_out_all(&mut self) {
        while let Some(session) = self.first {
            // SAFETY: from `into_raw` of a box of this cache, and off the list in a moment.
            let session = unsafe { CacheBox::from_raw(session, self.sessions) };
            self.first = session.next;
        }
        self.count = 0;
    }
}

impl Drop for Registry<'_> {
    fn drop(&mut self) {
        self.log_out_all();
    }
}
