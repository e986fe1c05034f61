//! The disturbers: what makes the life of all kinds harder. Each is skipped where its parameter is 0.

mod stutter;
