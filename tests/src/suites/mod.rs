//! The suites, one module a storey or a subject; the module's name is the suite's.
