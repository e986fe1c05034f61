//! The hosted backend: a machine inside an ordinary Linux process.
//!
//! In the manner of User-Mode Linux: one OS thread is one CPU, and runs kernel threads by the kernel's own context switch.
//! The point is speed and tools: unit tests under plain `cargo test`, native benches, debuggers and sanitizers.
//!
//! | the machine has | here it is | file |
//! |---|---|---|
//! | a CPU | an OS thread whose GS base is its per-CPU area | `machine` |
//! | the interrupt flag | a per-CPU variable; what comes while it is off is marked and replayed | `irq` |
//! | IPI | a bit in the target's pending set, and `SIGUSR1` to its thread | `ipi`, `signal` |
//! | timer | a POSIX timer that sends `SIGALRM` to the thread | `timer` |
//! | NMI | `SIGUSR2`, which does not ask for the flag; the kernel blocks it until its handler returned | `signal` |
//! | exceptions | `SIGSEGV`, `SIGBUS`, `SIGFPE`, `SIGILL`, `SIGTRAP`; `SIGABRT` is a panic | `signal` |
//! | single-step | the trap flag and `SIGTRAP` | `step` |
//! | memory | one memfd, mapped at a fixed address, cut into nodes | `memory` |
//! | page tables | `mmap` of that memfd into a reserved window | `paging` |
//! | COM1, COM2 | standard output, a callback | `console` |
//! | power-off, debug-exit, panic | [`boot`] returns | `exit`, `machine` |
//!
//! # Running one
//!
//! ```
//! # use grange_arch as arch;
//! use arch::{CpuId, cpu, hosted};
//!
//! let cpus = hosted::boot(2, 1, 16 << 20, |_ap: CpuId| (), || cpu::online_count()).unwrap();
//! assert_eq!(cpus, 2);
//! ```
//!
//! # What is different from a real machine
//!
//! - `HOST-1` One machine at a time in a process: [`boot`] queues. What arch keeps (CPU masks, nodes, handlers, per-CPU
//!   areas, memory) is reset for each; **statics of later storeys are not**. A test whose set-up can be made only once
//!   runs in [`in_own_process`].
//! - `HOST-2` Code of the host (the allocator, `println!`, locks of `std`) may be interrupted by our signals like any
//!   other code, and a handler that then enters the same code deadlocks; a kernel thread preempted there may
//!   go on with another OS thread's thread-local storage. So machine code that can be interrupted wraps such calls
//!   in [`host_call`], which holds signals off, and a test program that allocates inside a machine names [`HostAlloc`] as
//!   its `#[global_allocator]`. What `std` caches in thread-local storage must not be held across a switch.
//! - `HOST-3` Per-CPU variables used outside a machine are the template's copy, which all such threads share without any
//!   order. A machine does not see what they did there: its areas are copies of the template as it was before `main`.
//! - `HOST-4` An interrupt runs on the interrupted thread's own stack with a signal frame of up to about 4 KiB, so
//!   stacks are [`task::STACK_SIZE`](crate::task::STACK_SIZE). Exceptions run on a stack of their own, as on an IST.
//! - `HOST-5` A replayed interrupt (one that came while they were off) has a [`TrapFrame`](crate::trap::TrapFrame) that
//!   shows the place where they were enabled; `set_ip` on it has no effect.
//! - `HOST-6` A panic unwinds to the nearest `catch_unwind`; without one, or where it cannot unwind (out of an `extern "C"`
//!   thread entry, or with `panic = "abort"`), `std` aborts, which on a CPU ends the machine and not the process.
//! - `HOST-7` More CPUs than the host has cores: `irq::relax` gives the core away now and then, a bare `PAUSE` does not.
//!
//! Linux: `arch/um/kernel/irq.c`, `arch/um/os-Linux/signal.c`.

mod alloc;
pub(crate) mod backtrace;
pub(crate) mod clock;
pub(crate) mod console;
pub(crate) mod exit;
mod hold;
pub(crate) mod ipi;
pub(crate) mod irq;
mod machine;
mod memory;
pub(crate) mod paging;
pub(crate) mod probe;
mod process;
mod signal;
pub(crate) mod smp;
pub(crate) mod static_branch;
pub(crate) mod step;
mod template;
#[cfg(all(test, not(miri)))]
mod tests;
pub(crate) mod timer;
pub(crate) mod topology;
pub(crate) mod trap;

pub use alloc::HostAlloc;
pub use console::{set_com1, set_com2};
pub use hold::host_call;
pub use machine::{Stopped, boot, boot_cold};
pub use process::in_own_process;
pub(crate) use template::pristine_template;

/// Sets the GS base of the calling OS thread.
///
/// # Safety
///
/// `base` is 0 or `area - template start` of an area that nobody else runs on.
pub(crate) unsafe fn set_gs_base(base: usize) {
    const ARCH_SET_GS: libc::c_int = 0x1001;
    // SAFETY: GS is used by per-CPU accesses only (Linux user space on x86_64 uses FS), and the caller vouches for `base`.
    let result = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) };
    assert_eq!(result, 0, "arch_prctl(ARCH_SET_GS, {base:#x}): {}", std::io::Error::last_os_error());
}
