//! The serial ports of a hosted machine. COM1 is standard output, COM2 goes nowhere; either can be given to a callback.
//!
//! Context: any, NMI included, as far as the callback allows: `write(2)` does.

use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// Where each port goes: a `fn(&[u8])`, or null. Written by [`set_com1`] and [`set_com2`] and at the end of a machine.
static SINKS: [AtomicPtr<()>; 2] = [const { AtomicPtr::new(ptr::null_mut()) }; 2];

/// Bytes written to COM1 so far. Relaxed: a count, which orders nothing.
static COM1_WRITTEN: AtomicU64 = AtomicU64::new(0);

/// Lets `sink` have what is written to COM1, until the machine ends.
pub fn set_com1(sink: fn(&[u8])) {
    // Release: pairs with the load in `sink`: what the callback uses is set up.
    SINKS[0].store(sink as *mut (), Ordering::Release);
}

/// Lets `sink` have what is written to COM2, until the machine ends.
pub fn set_com2(sink: fn(&[u8])) {
    // Release: as in `set_com1`.
    SINKS[1].store(sink as *mut (), Ordering::Release);
}

fn sink(port: usize) -> Option<fn(&[u8])> {
    // Acquire: pairs with the stores above.
    let sink = SINKS[port].load(Ordering::Acquire);
    // SAFETY: null or made from a function pointer of this type; Option of one has null as its None.
    unsafe { core::mem::transmute::<*mut (), Option<fn(&[u8])>>(sink) }
}

/// Writes to COM1.
pub fn write_com1(bytes: &[u8]) {
    COM1_WRITTEN.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    if let Some(sink) = sink(0) {
        return sink(bytes);
    }
    let mut rest = bytes;
    while !rest.is_empty() {
        // SAFETY: a valid buffer.
        let written = unsafe { libc::write(libc::STDOUT_FILENO, rest.as_ptr().cast(), rest.len()) };
        if written <= 0 {
            break; // Nobody reads; a serial port does not tell either.
        }
        rest = &rest[written as usize..];
    }
}

/// Bytes that have been written to COM1 since the machine began.
pub fn com1_written() -> u64 {
    COM1_WRITTEN.load(Ordering::Relaxed)
}

/// Writes to COM2.
pub fn write_com2(bytes: &[u8]) {
    if let Some(sink) = sink(1) {
        sink(bytes);
    }
}

/// A byte that was typed, if there is one: of standard input, if that is a terminal.
pub fn read_com1() -> Option<u8> {
    let mut poll = libc::pollfd { fd: libc::STDIN_FILENO, events: libc::POLLIN, revents: 0 };
    let mut byte = 0u8;
    // SAFETY: one descriptor; and a buffer of one byte.
    let got = unsafe {
        libc::isatty(libc::STDIN_FILENO) == 1
            && libc::poll(&mut poll, 1, 0) == 1
            && libc::read(libc::STDIN_FILENO, (&raw mut byte).cast(), 1) == 1
    };
    got.then_some(byte)
}

/// Both ports as at the start: a new machine.
pub(super) fn forget() {
    for sink in &SINKS {
        sink.store(ptr::null_mut(), Ordering::Relaxed);
    }
    COM1_WRITTEN.store(0, Ordering::Relaxed);
}
