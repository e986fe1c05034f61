//! The two serial ports: COM1 for people, COM2 for the tester.
//!
//! `uart_16550` sets them up; after that bytes go to the data port directly, for the crate wants
//! `&mut` and these functions may be called by any number of CPUs in any context, a panic in an NMI
//! included. Whoever wants whole lines takes a lock above.
//!
//! Setting a port up empties its receiver. What was typed before the kernel ran is taken out first and read later.
//!
//! - CONSOLE-1: no call waits for ever: a port that is absent, or whose other end does not read,
//!   costs bytes after a bounded number of turns.
//!
//! Answers to `arch/x86/kernel/early_printk.c` of Linux.

use core::hint::spin_loop;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use uart_16550::backend::PioBackend;
use uart_16550::{Config, Uart16550};
use x86_64::instructions::port::Port;

/// Bytes that may follow each other once the transmitter is empty.
const FIFO_SIZE: usize = 16;
/// How often the line status is looked at before bytes are dropped (CONSOLE-1). About half a second
/// in the emulator.
const PATIENCE: u32 = 2_000_000;

const DATA_READY: u8 = 1 << 0;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// The line status of a port that is not there.
const NO_PORT: u8 = 0xff;

/// States of a port.
const UNKNOWN: u8 = 0;
const PRESENT: u8 = 1;
const ABSENT: u8 = 2;

/// Bytes kept that came in before the port was set up. Without its FIFO a port holds one; the next may come while that is
/// being read.
const EARLY: usize = 16;
/// An empty place among them.
const NO_BYTE: u16 = 0x100;

/// One port.
struct Serial {
    base: u16,
    /// What came in before [`Serial::init`], in order. Written there; each taken out once.
    early: [AtomicU16; EARLY],
    /// Whether there is a device: [`UNKNOWN`], [`PRESENT`] or [`ABSENT`]. Found out by [`init`] or by the first who writes,
    /// while the boot CPU is alone; read at every use.
    state: AtomicU8,
    /// Bytes sent so far. Relaxed: a count, which orders nothing.
    written: AtomicU64,
}

static COM1: Serial = Serial::at(0x3f8);
static COM2: Serial = Serial::at(0x2f8);

/// Sets both ports up: 115,200 baud, 8 data bits, no parity, FIFO on, no interrupts.
///
/// Context: boot CPU, once, before others run.
pub(super) fn init() {
    COM1.init();
    COM2.init();
}

/// Sends bytes on COM1, for people. Raw: no lock, no translation.
///
/// Context: any.
pub fn write_com1(bytes: &[u8]) {
    COM1.write(bytes);
}

/// Bytes that have gone out on COM1 since the kernel began: how long its log is on the other side.
///
/// Context: any.
pub fn com1_written() -> u64 {
    COM1.written.load(Ordering::Relaxed)
}

/// Sends bytes on COM2, for the tester. Raw: no lock, no framing.
///
/// Context: any.
pub fn write_com2(bytes: &[u8]) {
    COM2.write(bytes);
}

/// The next byte that came in on COM1, if there is one. Does not wait.
///
/// Context: any.
pub fn read_com1() -> Option<u8> {
    COM1.read()
}

impl Serial {
    const fn at(base: u16) -> Self {
        let early = [const { AtomicU16::new(NO_BYTE) }; EARLY];
        Self { base, early, state: AtomicU8::new(UNKNOWN), written: AtomicU64::new(0) }
    }

    fn init(&self) {
        for place in &self.early {
            let Some(byte) = self.receive() else { break };
            place.store(byte.into(), Ordering::Relaxed);
        }
        // SAFETY: these are the ports of the PC's serial lines; where there is none, they are not
        // connected to anything. This CPU is alone.
        let uart = unsafe { Uart16550::<PioBackend>::new_port(self.base) };
        let present = uart.is_ok_and(|mut uart| uart.init(Config::default()).is_ok());
        self.state.store(if present { PRESENT } else { ABSENT }, Ordering::Relaxed);
    }

    /// Whether there is a device. A kernel that dies before [`init`] says so all the same.
    fn is_present(&self) -> bool {
        if self.state.load(Ordering::Relaxed) == UNKNOWN {
            self.init();
        }
        self.state.load(Ordering::Relaxed) == PRESENT
    }

    fn write(&self, bytes: &[u8]) {
        if !self.is_present() {
            return;
        }
        for chunk in bytes.chunks(FIFO_SIZE) {
            if !self.wait_until_empty() {
                return;
            }
            for &byte in chunk {
                // SAFETY: the data port of a serial line that is present.
                unsafe { Port::new(self.base).write(byte) };
            }
            self.written.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
    }

    fn read(&self) -> Option<u8> {
        if !self.is_present() {
            return None;
        }
        let early = self.early.iter().map(|place| place.swap(NO_BYTE, Ordering::Relaxed));
        early.filter_map(|byte| u8::try_from(byte).ok()).next().or_else(|| self.receive())
    }

    /// Takes a byte out of the receiver. Where there is no port all bits of its registers read as set.
    fn receive(&self) -> Option<u8> {
        let status = self.line_status();
        if status & DATA_READY == 0 || status == NO_PORT {
            return None;
        }
        // SAFETY: the data port of a serial line.
        Some(unsafe { Port::new(self.base).read() })
    }

    fn wait_until_empty(&self) -> bool {
        for _ in 0..PATIENCE {
            if self.line_status() & TRANSMITTER_EMPTY != 0 {
                return true;
            }
            spin_loop();
        }
        false
    }

    fn line_status(&self) -> u8 {
        // SAFETY: the line-status port of a serial line; reading it clears error bits nobody uses.
        unsafe { Port::new(self.base + 5).read() }
    }
}

/// [`core::fmt::Write`] on COM1, for reports that must not depend on anything.
pub(super) struct Com1;

impl core::fmt::Write for Com1 {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        write_com1(s.as_bytes());
        Ok(())
    }
}
