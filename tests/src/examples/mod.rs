//! Small programs that use the storeys as a reader of this project would: each fits on a few screens, keeps to safe interfaces
//! on its outside, and is run by the tests at its end.
//!
//! | example | shows |
//! |---|---|
//! | [`hash_table`] | readers without locks; nodes that end in `kfree_rcu` |
//! | [`insert_ahead`] | a tree whose insert cannot fail halfway: its nodes come from a prefilled sheaf |
//! | [`packet_filter`] | a program in NMI handlers that allocates and frees |
//! | [`pending_cache`] | a cache that allocates from what waits for a grace period |

mod hash_table;
mod insert_ahead;
mod packet_filter;
mod pending_cache;
