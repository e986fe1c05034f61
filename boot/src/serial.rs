//! COM1, for the lines the loader may have to say. A machine without COM1 is no error: the verdict
//! still leaves by debug-exit.

use core::cell::UnsafeCell;
use core::fmt::{self, Write};

use uart_16550::backend::PioBackend;
use uart_16550::{Config, Uart16550, Uart16550Tty};

const COM1: u16 = 0x3f8;

struct Console(UnsafeCell<Option<Uart16550Tty<PioBackend>>>);

// SAFETY: the loader runs on one CPU with interrupts off; a fault handler that prints never returns,
// so it does not matter what it interrupted.
unsafe impl Sync for Console {}

static CONSOLE: Console = Console(UnsafeCell::new(None));

/// Sets COM1 up, once. Not before there is something to say: setting it up drops what somebody may
/// have typed for the kernel.
fn init() {
    // SAFETY: COM1 is ours alone until the kernel runs.
    let uart = unsafe { Uart16550::new_port(COM1) };
    if let Ok(mut uart) = uart
        && uart.init(Config::default()).is_ok()
    {
        // SAFETY: one CPU, called once, no reference is out yet.
        unsafe { *CONSOLE.0.get() = Some(Uart16550Tty::from_inner(uart)) };
    }
}

/// Writes `grange-boot: ` and the message as one line.
pub(crate) fn line(message: fmt::Arguments<'_>) {
    // SAFETY: one CPU; no reference is out (see `Console`).
    if unsafe { (*CONSOLE.0.get()).is_none() } {
        init();
    }
    // SAFETY: one CPU; the reference does not outlive this call (see `Console`).
    if let Some(console) = unsafe { &mut *CONSOLE.0.get() } {
        // Writing to the port cannot fail; the message's own formatting has no errors either.
        let _ = console.write_fmt(format_args!("grange-boot: {message}\n"));
    }
}
