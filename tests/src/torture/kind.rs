//! The registry of kinds and disturbers.

use alloc::boxed::Box;
use alloc::vec::Vec;

use sync::glob;

use super::run::{Ongoing, Run};
use crate::Failure;

/// [`Kind::role`] of what is tortured.
pub const ROLE_LOAD: u32 = 0;
/// [`Kind::role`] of what disturbs all others; it takes part in every run.
pub const ROLE_DISTURBER: u32 = 1;

/// How a kind or disturber begins. One that does not apply is `Skipped`.
pub type Start = fn(&mut Run<'_>) -> Result<Box<dyn Ongoing>, Failure>;

/// A kind of torture, or a disturber. The layout is read from the ELF file by `xtask`: change both together.
#[repr(C)]
#[derive(Debug)]
pub struct Kind {
    /// Its name, in `torture.kinds=` and in the report.
    pub name: &'static str,
    /// What it does, for people: the documentation of its function.
    pub about: &'static str,
    /// Source file.
    pub file: &'static str,
    /// Line of its `torture!`.
    pub line: u32,
    /// [`ROLE_LOAD`] or [`ROLE_DISTURBER`].
    pub role: u32,
    /// Begins it.
    pub start: Start,
}

/// All that are linked in, in the linker's order.
#[linkme::distributed_slice]
pub static TORTURES: [Kind];

/// Declares a kind of torture, or with `#[disturber]` a disturber. The function starts threads by [`Run::spawn`] and returns
/// what is asked for figures while they run.
///
/// ```ignore
/// torture! {
///     /// Timers that are armed, moved and cancelled.
///     fn timers(run: &mut Run) {
///         let state = Arc::new(State::default());
///         let mine = state.clone();
///         run.spawn("timers", Prio::NORMAL, None, move |cx| mine.torture(cx))?;
///         Ok(state)
///     }
/// }
/// ```
#[macro_export]
macro_rules! torture {
    ($(#[doc = $doc:literal])+ fn $name:ident($run:ident: &mut Run) $body:block) => {
        $crate::torture!(@declare $crate::torture::kind::ROLE_LOAD, [$($doc),+] $name, $run, $body);
    };
    ($(#[doc = $doc:literal])+ #[disturber] fn $name:ident($run:ident: &mut Run) $body:block) => {
        $crate::torture!(@declare $crate::torture::kind::ROLE_DISTURBER, [$($doc),+] $name, $run, $body);
    };
    (@declare $role:expr, [$($doc:literal),+] $name:ident, $run:ident, $body:block) => {
        $(#[doc = $doc])+
        fn $name(
            $run: &mut $crate::torture::Run<'_>,
        ) -> ::core::result::Result<$crate::private::Box<dyn $crate::torture::Ongoing>, $crate::Failure> {
            let started: ::core::result::Result<_, $crate::Failure> = $body;
            started.map(|ongoing| $crate::private::Box::new(ongoing) as _)
        }

        const _: () = {
            #[$crate::private::linkme::distributed_slice($crate::torture::TORTURES)]
            #[linkme(crate = $crate::private::linkme)]
            static KIND: $crate::torture::Kind = $crate::torture::Kind {
                name: ::core::stringify!($name),
                about: ::core::concat!($($doc),+),
                file: ::core::file!(),
                line: ::core::line!(),
                role: $role,
                start: $name,
            };
        };
    };
}

/// Those that take part: all disturbers, then the kinds that one of `globs` names, or all; each in the order of their names.
pub fn select(all: &'static [Kind], globs: &str) -> Vec<&'static Kind> {
    let wanted = |kind: &&Kind| kind.role == ROLE_DISTURBER || is_named(kind.name, globs);
    let mut chosen: Vec<&Kind> = all.iter().filter(wanted).collect();
    chosen.sort_unstable_by_key(|kind| (kind.role != ROLE_DISTURBER, kind.name));
    chosen
}

/// Whether each of `globs` names a kind.
pub fn are_known(globs: &str) -> bool {
    let known = |pattern| TORTURES.iter().any(|kind| kind.role == ROLE_LOAD && glob(pattern, kind.name));
    patterns(globs).all(known)
}

fn is_named(name: &str, globs: &str) -> bool {
    patterns(globs).next().is_none() || patterns(globs).any(|pattern| glob(pattern, name))
}

fn patterns(globs: &str) -> impl Iterator<Item = &str> {
    globs.split(',').map(str::trim).filter(|pattern| !pattern.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn kind(name: &'static str, role: u32) -> Kind {
        Kind { name, about: "", file: "f.rs", line: 1, role, start: |_| Err(Failure::Skipped(String::new())) }
    }
    static KINDS: [Kind; 4] = [
        kind("slab", ROLE_LOAD),
        kind("stutter", ROLE_DISTURBER),
        kind("rcu", ROLE_LOAD),
        kind("onoff", ROLE_DISTURBER),
    ];

    fn names(globs: &str) -> Vec<&'static str> {
        select(&KINDS, globs).iter().map(|kind| kind.name).collect()
    }

    #[test]
    fn disturbers_always_take_part_and_kinds_where_they_are_named() {
        assert_eq!(names(""), ["onoff", "stutter", "rcu", "slab"]);
        assert_eq!(names("r*, tasks"), ["onoff", "stutter", "rcu"]);
        assert_eq!(names("none"), ["onoff", "stutter"]);
    }

    #[test]
    fn a_kind_registers_itself_with_its_documentation() {
        let timers = TORTURES.iter().find(|kind| kind.name == "timers").expect("registered by torture!");
        assert!(timers.about.contains("armed") && timers.file.ends_with("timers.rs") && timers.role == ROLE_LOAD);
        assert!(are_known("timers,ti*") && !are_known("timers,nothing") && !are_known("stutter"));
    }
}
