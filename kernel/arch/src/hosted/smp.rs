//! Starting the other CPUs of a hosted machine: their threads exist and wait.

use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::Instant;
use std::vec::Vec;

use super::{host_call, irq, machine};
use crate::cpu::{self, CpuId, CpuMask, MAX_CPUS};
use crate::{PAGE_SIZE, task};

/// How long a CPU may take to start.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// First code of a CPU.
pub(super) type Entry = fn(CpuId);

/// What a waiting CPU is to run: an entry function (0: wait on) and the top of a stack, written before it.
struct Order {
    entry: AtomicUsize,
    stack_top: AtomicUsize,
}

/// Written by [`start_all`], read by the CPU's thread.
static ORDERS: [Order; MAX_CPUS] =
    [const { Order { entry: AtomicUsize::new(0), stack_top: AtomicUsize::new(0) } }; MAX_CPUS];
/// Threads of CPUs 1 and up, for waking them. A leaf lock, taken by the booting thread and in a `host_call`.
static THREADS: Mutex<Vec<Thread>> = Mutex::new(Vec::new());

/// Starts all CPUs that are present and not online, at once: each is marked online and runs `entry` with interrupts
/// off on the stack whose top `stack_top` gives. Returns those that did not come up.
///
/// A CPU whose `entry` returns idles with interrupts on. Context: boot CPU, task.
pub fn start_all(entry: fn(CpuId), stack_top: &mut dyn FnMut(CpuId) -> *mut u8) -> CpuMask {
    let wanted = cpu::present() - cpu::online();
    for cpu in wanted {
        let order = &ORDERS[cpu.index()];
        order.stack_top.store(stack_top(cpu).expose_provenance(), Ordering::Relaxed);
        // Release: pairs with the load in `wait_for_start`: the CPU sees its stack, and all that was set up.
        order.entry.store(entry as usize, Ordering::Release);
    }
    host_call(|| {
        for thread in THREADS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            thread.unpark();
        }
    });
    let since = Instant::now();
    loop {
        let missing = wanted - cpu::online();
        if missing.is_empty() || since.elapsed() > START_DEADLINE {
            return missing;
        }
        irq::relax();
    }
}

/// Waits, on the thread of `cpu`, for [`start_all`]; `None` if the machine ends first.
pub(super) fn wait_for_start(cpu: CpuId) -> Option<(Entry, *mut u8)> {
    let order = &ORDERS[cpu.index()];
    loop {
        // Acquire: pairs with the store in `start_all`.
        let entry = order.entry.load(Ordering::Acquire);
        if entry != 0 {
            // SAFETY: `start_all` stored a function of this type.
            let entry: Entry = unsafe { core::mem::transmute(entry) };
            return Some((entry, ptr::with_exposed_provenance_mut(order.stack_top.load(Ordering::Relaxed))));
        }
        if machine::is_ending() {
            return None;
        }
        thread::park_timeout(Duration::from_millis(50));
    }
}

/// The threads that wait in [`wait_for_start`].
pub(super) fn set_threads(threads: Vec<Thread>) {
    *THREADS.lock().unwrap_or_else(PoisonError::into_inner) = threads;
}

/// No orders, no threads: a new machine.
pub(super) fn forget() {
    for order in &ORDERS {
        order.entry.store(0, Ordering::Relaxed);
    }
    set_threads(Vec::new());
}

/// A stack for one CPU, with a page below it that faults.
pub(super) struct Stack {
    map: *mut u8,
}

const MAP_BYTES: usize = task::STACK_SIZE + PAGE_SIZE;

impl Stack {
    pub(super) fn new() -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
        // SAFETY: a new mapping, and its lowest page made inaccessible.
        let map = unsafe {
            let map = libc::mmap(ptr::null_mut(), MAP_BYTES, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert_ne!(map, libc::MAP_FAILED, "mmap of a stack: {}", std::io::Error::last_os_error());
            libc::mprotect(map, PAGE_SIZE, libc::PROT_NONE);
            map
        };
        map.expose_provenance();
        Self { map: map.cast() }
    }

    pub(super) fn top(&self) -> *mut u8 {
        self.map.wrapping_add(MAP_BYTES)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: made by `new`; its CPU has left the machine.
        unsafe { libc::munmap(self.map.cast(), MAP_BYTES) };
    }
}
