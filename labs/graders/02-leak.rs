//! Grades lab 2: every object of the cache is back after whatever was done, and the registry still knows who is who.

use slab::CacheFlags;
use slab::typed::{Cache, TypedLayout};
use sync::MaySleep;
use tests::{Failure, ensure, ensure_eq, ktest};

use super::answer::{MOST, Refused, Registry, Session};

/// Enough to fill a registry.
const ALL: core::ops::Range<u64> = 0..MOST as u64;

/// Does something with a registry, drops it, and says how many objects never came back.
fn leaked(
    cx: &mut MaySleep,
    doing: impl FnOnce(&mut Registry<'_>, &Cache<Session>) -> Result<(), Failure>,
) -> Result<u64, Failure> {
    let layout = TypedLayout::new("lab_leak").flags(CacheFlags::NO_MERGE);
    let Ok(sessions) = Cache::create(layout) else { tests::skip!("no memory for a cache") };
    let mut registry = Registry::new(&sessions);
    let done = doing(&mut registry, &sessions);
    drop(registry);
    let leaked = sessions.destroy(cx).err().map_or(0, |(_, leaked)| leaked.0);
    done.map(|()| leaked)
}

/// Logs everybody in.
fn fill(registry: &mut Registry<'_>) -> Result<(), Failure> {
    for id in ALL {
        ensure_eq!(registry.log_in(id, id + 100), Ok(()), "{id}");
    }
    Ok(())
}

/// Logs everybody out, one by one.
fn empty(registry: &mut Registry<'_>) -> Result<(), Failure> {
    for id in ALL {
        ensure!(registry.log_out(id), "{id} is logged in");
        ensure_eq!(registry.name_of(id), None, "{id} is logged out");
    }
    Ok(())
}

ktest! {
    /// The registry does what it is for.
    #[budget_ms(2_000)]
    fn who_is_logged_in_is_found_by_its_name(t: &mut Test) {
        leaked(t.cx, |registry, _| {
            fill(registry)?;
            for id in ALL {
                ensure_eq!(registry.name_of(id), Some(id + 100), "{id}");
            }
            empty(registry)?;
            ensure!(!registry.log_out(3), "3 has gone");
            Ok(())
        })
        .map(drop)
    }

    /// A new name takes the old one's place, and its memory.
    #[budget_ms(2_000)]
    fn logging_in_again_changes_the_name_and_leaks_nothing(t: &mut Test) {
        let leaked = leaked(t.cx, |registry, _| {
            fill(registry)?;
            for id in [0, MOST as u64 - 1, 5, 5] {
                ensure_eq!(registry.log_in(id, id + 200), Ok(()), "{id} again, in a registry that is full");
                ensure_eq!(registry.name_of(id), Some(id + 200), "the new name of {id}");
            }
            empty(registry)?;
            for id in ALL {
                ensure_eq!(registry.log_in(id, id), Ok(()), "{id}, all having gone");
            }
            empty(registry)
        })?;
        ensure_eq!(leaked, 0, "objects of lab_leak that nobody will free, after 4 logins of who was there");
        Ok(())
    }

    /// One too many is refused, and nothing else happens.
    #[budget_ms(2_000)]
    fn a_login_that_is_refused_leaks_nothing(t: &mut Test) {
        let leaked = leaked(t.cx, |registry, _| {
            fill(registry)?;
            for id in [1_000, 1_001, 1_002] {
                ensure_eq!(registry.log_in(id, 1), Err(Refused::Full), "{id}");
                ensure_eq!(registry.name_of(id), None, "{id} was refused");
            }
            empty(registry)
        })?;
        ensure_eq!(leaked, 0, "objects of lab_leak that nobody will free, after 3 refused logins");
        Ok(())
    }

    /// All at once, with none, one and many there.
    #[budget_ms(2_000)]
    fn logging_everybody_out_leaks_nothing(t: &mut Test) {
        for count in [0, 1, 2, MOST as u64] {
            let leaked = leaked(t.cx, |registry, _| {
                for id in 0..count {
                    ensure_eq!(registry.log_in(id, id), Ok(()), "{id}");
                }
                registry.log_out_all();
                ensure_eq!(registry.name_of(0), None, "0 is logged out");
                fill(registry)?;
                empty(registry)
            })?;
            ensure_eq!(leaked, 0, "objects of lab_leak that nobody will free, after all {count} were logged out");
        }
        Ok(())
    }

    /// What is freed is freed at once, not kept until the end.
    #[budget_ms(5_000)]
    fn memory_does_not_grow_with_the_logins(t: &mut Test) {
        leaked(t.cx, |registry, cache| {
            let Some(cache) = cache.raw() else { return Ok(()) };
            for round in 0..2_000 {
                ensure_eq!(registry.log_in(round % 7, round), Ok(()), "round {round}");
            }
            // Seven sessions, and what lies in sheaves.
            let used = cache.info().active_objs;
            ensure!(used < 500, "{used} objects for 7 sessions, after 2,000 logins");
            registry.log_out_all();
            Ok(())
        })
        .map(drop)
    }

    /// A registry that goes takes its sessions with it.
    #[budget_ms(2_000)]
    fn a_registry_that_is_dropped_leaks_nothing(t: &mut Test) {
        let leaked = leaked(t.cx, |registry, _| fill(registry))?;
        ensure_eq!(leaked, 0, "objects of lab_leak that nobody will free, of {MOST} that were logged in");
        Ok(())
    }
}
