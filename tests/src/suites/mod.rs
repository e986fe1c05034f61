//! The suites, one module a subject; the module's name is the suite's.

mod boot;
mod calls;
mod nmi;
mod percpu;
mod threads;
