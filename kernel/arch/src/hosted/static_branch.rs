//! Static branches of a hosted machine: a load and a branch, since the text of a process is the host's.

use crate::static_branch::StaticKey;

/// Whether the key, a path to a static, is on: one load. See [`crate::static_branch`].
#[macro_export]
macro_rules! static_branch {
    ($key:path) => {
        $crate::static_branch::StaticKey::is_on(&$key)
    };
}

/// There are no sites to be changed.
pub fn sites() -> &'static [()] {
    &[]
}

/// Nothing to change: the flag is all there is.
pub(crate) fn patch(_: &'static StaticKey, _: bool) {}

/// Nothing to do: the flag is seen as any store is.
pub fn serialize() {}
