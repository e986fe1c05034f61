//! What one build alone has, the profile `mutants`: hooks inside locked sections, and bugs that are made on purpose.
//!
//! A *hook* ([`hook!`](crate::hook)) stands inside a locked section, or where one has been left for a moment. A test
//! attaches a handler that does there what an NMI would do. A *bug* ([`bug!`](crate::bug)) is a place where the kernel goes
//! wrong if the command line says so, `grange.bug=NAME`; its declaration names the tests that have to fail then. So the
//! tests are tested: a bug that none of them finds is a hole in them.
//!
//! ```ignore
//! let mut lists = self.lists.lock_irqsave(ATOMIC);
//! hook!("slab.barn");
//! …
//! if !bug!("barn.lost", "the full sheaf of an exchange is lost", "slab_nolock.*") {
//!     lists.full.push(full);
//! }
//! ```
//!
//! Both register themselves in link sections, which `xtask` reads, as it does with tests: there is no list to keep. Without
//! the feature `mutants` a hook is no code, a bug is the constant `false`, and both sections are not there; `xtask` refuses
//! a kernel of another profile that has them.
//!
//! Context: any, NMI included.

use core::fmt;

use crate::param;

#[cfg(feature = "mutants")]
#[path = "mutants_planted.rs"]
mod planted;
#[cfg(feature = "mutants")]
pub use planted::{Attached, BUGS, Bug, SITES, Site, attach};

/// Whether this build has hooks and bugs.
pub const ENABLED: bool = cfg!(feature = "mutants");

param! {
    /// The bug to make; none if nothing is said. For kernels with the feature `mutants`.
    pub static BUG: str = "grange.bug", default "";
}

/// `grange.bug=` names none of this kernel's bugs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownBug(&'static str);

impl fmt::Display for UnknownBug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad value \"{}\" for \"grange.bug\": allowed is", self.0)?;
        #[cfg(feature = "mutants")]
        for bug in BUGS {
            write!(f, " {}", bug.name)?;
        }
        Ok(())
    }
}

/// Makes the bug that the command line names, from here on.
///
/// Context: boot CPU, once the command line is known.
///
/// # Errors
/// There is no such bug.
pub fn choose() -> Result<(), UnknownBug> {
    if !BUG.is_set() {
        return Ok(());
    }
    #[cfg(feature = "mutants")]
    if planted::choose(BUG.get()) {
        return Ok(());
    }
    Err(UnknownBug(BUG.get()))
}

/// A place inside a locked section where a test may step in; see [`mutants`](crate::mutants).
#[cfg(feature = "mutants")]
#[macro_export]
macro_rules! hook {
    ($name:literal) => {{
        #[$crate::private::linkme::distributed_slice($crate::mutants::SITES)]
        #[linkme(crate = $crate::private::linkme)]
        static SITE: $crate::mutants::Site = $crate::mutants::Site::new($name, ::core::file!(), ::core::line!());
        SITE.reach();
    }};
}

/// A place inside a locked section where a test may step in; in this build none.
#[cfg(not(feature = "mutants"))]
#[macro_export]
macro_rules! hook {
    ($name:literal) => {};
}

/// Whether the kernel is to go wrong here: name, what goes wrong, and the tests that find it, as globs over `suite.test` with
/// spaces between; see [`mutants`](crate::mutants).
#[cfg(feature = "mutants")]
#[macro_export]
macro_rules! bug {
    ($name:literal, $what:literal, $found_by:literal) => {{
        #[$crate::private::linkme::distributed_slice($crate::mutants::BUGS)]
        #[linkme(crate = $crate::private::linkme)]
        static BUG: $crate::mutants::Bug = $crate::mutants::Bug { name: $name, what: $what, found_by: $found_by };
        BUG.is_on()
    }};
}

/// Whether the kernel is to go wrong here; in this build never.
#[cfg(not(feature = "mutants"))]
#[macro_export]
macro_rules! bug {
    ($name:literal, $what:literal, $found_by:literal) => {
        false
    };
}
