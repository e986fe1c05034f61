//! What is said of all ways to free after a grace period: `bench kfree-rcu` and docs/back-ends.md.
//!
//! | module | does |
//! |---|---|
//! | `answer` | who wins on which load |
//! | [`tables`] | the figures as tables |
//! | [`page`] | puts tables and plots into docs/back-ends.md |
//!
//! All ways are taken in turn within one boot, so what else the host does hits all of them.

mod answer;
pub mod page;
pub mod tables;
