//! The kernel as a whole: `help`, `test`, `panic`, `reboot`, `poweroff`.

use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use ::sync::irq_work::IrqWork;
use ::sync::nmi::NmiHandler;
use ::sync::{ATOMIC, SpinLock, lock_class, smp};
use arch::{cpu, ipi};
use grange_kernel::table::{Table, Value};
use grange_kernel::words;

use crate::console;
use crate::shell::{COMMANDS, Complaint, Session, command};

command!(help, "[COMMAND] [--json]", "this list, or one line of it", help);
command!(
    panic,
    "[KIND]",
    "ends the kernel: message, null, call-data, write-text, stack, lock (hangs where locks are not checked), irq, nmi, log, all",
    panic
);
command!(reboot, "", "resets the machine", reboot);
command!(poweroff, "", "switches the machine off", poweroff);

fn help(session: &mut Session<'_>, arguments: &[&str]) -> Result<(), Complaint> {
    let mut table = Table::new("help", &["command", "arguments", "what it does"]);
    let mut commands: Vec<_> = COMMANDS.iter().filter(|c| arguments.iter().all(|&name| c.name == name)).collect();
    if commands.is_empty() {
        return Err(Complaint::new(format_args!("no such command")));
    }
    commands.sort_unstable_by_key(|command| command.name);
    for command in commands {
        table.row([Value::from(command.name), command.arguments.into(), command.help.into()]);
    }
    session.show(&table)
}

fn reboot(_: &mut Session<'_>, _: &[&str]) -> Result<(), Complaint> {
    console::print("rebooting\n");
    arch::exit::reboot()
}

fn poweroff(_: &mut Session<'_>, _: &[&str]) -> Result<(), Complaint> {
    console::print("switching off\n");
    arch::exit::power_off()
}

/// The ways to die, by name.
const KINDS: [(&str, fn()); 10] = [
    ("message", || panic!("asked for by the shell")),
    ("call-data", call_data),
    ("null", read_null),
    ("write-text", write_text),
    ("stack", overflow_the_stack),
    ("lock", lock_twice),
    ("irq", panic_in_an_interrupt),
    ("nmi", panic_in_an_nmi),
    ("log", panic_in_the_log),
    ("all", panic_everywhere),
];

fn panic(_: &mut Session<'_>, arguments: &[&str]) -> Result<(), Complaint> {
    let names = || KINDS.iter().map(|(name, _)| *name);
    let kind = arguments.first().copied().unwrap_or("message");
    match KINDS.iter().find(|(name, _)| *name == kind) {
        Some((_, die)) => {
            die();
            Err(Complaint::new(format_args!("the kernel survived it")))
        }
        None => Err(match words::nearest(kind, names()) {
            Some(near) => Complaint::new(format_args!("no such kind; did you mean `{near}`?")),
            None => Complaint::new(format_args!("no such kind; `help panic` lists them")),
        }),
    }
}

fn call_data() {
    static DATA: [u8; 16] = [0xc3; 16];
    let data = core::hint::black_box(DATA.as_ptr());
    // SAFETY: none: the fault is what was asked for; constants are not executable.
    let function = unsafe { core::mem::transmute::<*const u8, fn()>(data) };
    function();
}

fn read_null() {
    let null = core::hint::black_box(core::ptr::null::<u64>());
    // SAFETY: none: the fault is what was asked for.
    let value = unsafe { null.wrapping_add(1).read_volatile() };
    core::hint::black_box(value);
}

fn write_text() {
    let text = read_null as fn() as usize as *mut u8;
    // SAFETY: none: the fault is what was asked for; text is not writable.
    unsafe { text.write_volatile(0) };
}

fn overflow_the_stack() {
    fn deeper(depth: u64) -> u64 {
        let frame = core::hint::black_box([depth; 32]);
        if depth == u64::MAX { 0 } else { deeper(depth + 1) + frame[7] }
    }
    core::hint::black_box(deeper(0));
}

fn lock_twice() {
    static LOCK: SpinLock<()> = SpinLock::new((), lock_class!("kernel.panic_lock"));
    let _first = LOCK.lock(ATOMIC);
    let _second = LOCK.lock(ATOMIC);
}

fn panic_in_an_interrupt() {
    static WORK: IrqWork = IrqWork::new(|_| panic!("asked for by the shell, in an interrupt"));
    WORK.queue();
}

fn panic_in_an_nmi() {
    static DUE: AtomicBool = AtomicBool::new(true);
    static HANDLER: NmiHandler = NmiHandler::new("panic", |_| {
        let due = DUE.swap(false, Ordering::Relaxed);
        assert!(!due, "asked for by the shell, in an NMI");
        due
    });
    ::sync::nmi::register(&HANDLER);
    ipi::send_nmi(cpu::current());
}

/// A panic in the middle of a line, on a CPU that holds the console.
fn panic_in_the_log() {
    struct Bomb;
    impl fmt::Display for Bomb {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("asked for by the shell, in a line of the log")
        }
    }
    let _console = console::hold();
    log::info!("a line that does not come to its end: {Bomb}");
}

fn panic_everywhere() {
    smp::call_all(|_| panic!("asked for by the shell, everywhere"), 0, true);
}
