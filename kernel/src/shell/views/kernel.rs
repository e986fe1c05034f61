//! The kernel as a whole: `help`, `test`, `panic`, `reboot`, `poweroff`.

use alloc::vec::Vec;

use ::sched::Prio;
use grange_kernel::table::{Table, Value};
use grange_kernel::words;

use super::sync::online_cpu;
use crate::console;
use crate::crash::{self, End};
use crate::shell::{COMMANDS, Complaint, Session, command, leave};

command!(help, "[COMMAND] [--json]", "this list, or one line of it", help);
command!(
    panic,
    "[KIND] [CPU] [--list] [--json]",
    "ends the kernel in one of many ways, here or on a CPU; --list explains them",
    panic
);
command!(exit, "", "ends the machine, with status 0 if all commands did what was asked, else 1", exit);
command!(reboot, "", "resets the machine", reboot);
command!(poweroff, "", "switches the machine off", poweroff);

fn help(session: &mut Session<'_>, arguments: &[&str]) -> Result<(), Complaint> {
    let mut table = Table::new("help", &["command", "arguments", "what it does"]);
    let mut commands: Vec<_> = COMMANDS.iter().filter(|c| arguments.iter().all(|&name| c.name == name)).collect();
    if commands.is_empty() {
        let near = arguments.first().and_then(|typed| words::nearest(typed, COMMANDS.iter().map(|c| c.name)));
        return Err(match near {
            Some(near) => Complaint::new(format_args!("no such command; did you mean `{near}`?")),
            None => Complaint::new(format_args!("no such command; `help` lists all")),
        });
    }
    commands.sort_unstable_by_key(|command| command.name);
    for command in commands {
        table.row([Value::from(command.name), command.arguments.into(), command.help.into()]);
    }
    session.show(&table)
}

fn exit(_: &mut Session<'_>, _: &[&str]) -> Result<(), Complaint> {
    leave()
}

fn reboot(_: &mut Session<'_>, _: &[&str]) -> Result<(), Complaint> {
    console::print("rebooting\n");
    arch::exit::reboot()
}

fn poweroff(_: &mut Session<'_>, _: &[&str]) -> Result<(), Complaint> {
    console::print("switching off\n");
    arch::exit::power_off()
}

fn panic(session: &mut Session<'_>, arguments: &[&str]) -> Result<(), Complaint> {
    if session.json || arguments.contains(&"--list") {
        return list_of_kinds(session);
    }
    let name = arguments.first().copied().unwrap_or("panic");
    let Some(kind) = crash::find(name) else {
        let names: Vec<&str> = crash::KINDS.iter().map(|kind| kind.name).collect();
        return Err(Complaint::new(format_args!("no such kind: {name}; allowed: {}", names.join(", "))));
    };
    match arguments.get(1) {
        None => kind.strike(session.cx),
        Some(number) => {
            let on = Some(online_cpu(number)?);
            let thread = ::sched::spawn(session.cx, "crash", Prio::NORMAL, on, |cx| kind.strike(cx));
            thread.map_err(|error| Complaint::new(format_args!("{error}")))?.join(session.cx);
        }
    }
    Err(Complaint::new(format_args!("the kernel survived it")))
}

fn list_of_kinds(session: &mut Session<'_>) -> Result<(), Complaint> {
    let mut table = Table::new("panic", &["kind", "ends in", "on the command line", "what it is"]);
    for kind in crash::KINDS {
        let end = match kind.end {
            End::Panic => "panic, status 3",
            End::Hang => "hang, status 4",
        };
        let early = crash::EARLY.contains(&kind.name);
        table.row([kind.name.into(), end.into(), early.into(), kind.what.into()]);
    }
    session.show(&table)
}
