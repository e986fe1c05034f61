//! The pure parts of the bare backend, built on the host for their tests alone.

#![allow(dead_code, unreachable_pub, reason = "their callers exist on the bare machine only")]

#[path = "apic_regs.rs"]
mod apic_regs;
#[path = "frames.rs"]
mod frames;
#[path = "reason.rs"]
mod reason;
#[path = "stacks.rs"]
mod stacks;
#[path = "start_state.rs"]
mod start_state;
#[path = "timescale.rs"]
mod timescale;
