//! The hosted backend, and through it what the facade promises (ARCH-1 to ARCH-8).

mod fixture;
mod interrupts;
mod life;
mod memory;
mod per_cpu;
mod threads;

/// Tests allocate inside machines (HOST-2).
#[global_allocator]
static ALLOCATOR: super::HostAlloc = super::HostAlloc;
