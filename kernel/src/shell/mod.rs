//! The shell on COM1: commands, one a line or several with semicolons between them.
//!
//! A command is a [`Command`] in the link section of [`COMMANDS`], declared with `command!` in the
//! module of its storey under `views/`; there is no list to keep. A view makes a
//! [`Table`](grange_kernel::table::Table), so that each has `--json`.
//!
//! The shell is a thread. It works with a person at a terminal and with a script at a pipe: the only
//! difference is who reads the echo.

mod views;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use arch::exit::{Verdict, debug_exit};
use grange_kernel::arguments;
use grange_kernel::line::{Editor, Event};
use grange_kernel::table::Table;
use grange_kernel::words;
use sync::MaySleep;

use crate::console;

/// A command of the shell.
#[derive(Debug)]
pub(crate) struct Command {
    /// What is typed.
    pub(crate) name: &'static str,
    /// Its arguments: for the help, and checked before it runs (see [`arguments`]).
    pub(crate) arguments: &'static str,
    /// One line that says what it does.
    pub(crate) help: &'static str,
    /// Does it, with arguments that fit.
    pub(crate) run: fn(&mut Session<'_>, &[&str]) -> Result<(), Complaint>,
}

/// A command of this session has complained. The shell's thread alone uses it.
static COMPLAINED: AtomicBool = AtomicBool::new(false);

/// All commands that are linked in, in the linker's order.
#[linkme::distributed_slice]
pub(crate) static COMMANDS: [Command];

/// Declares a command: `command!(cpus, "[--json]", "CPUs and their nodes", cpus);`
macro_rules! command {
    ($name:ident, $arguments:literal, $help:literal, $run:expr) => {
        const _: () = {
            #[linkme::distributed_slice($crate::shell::COMMANDS)]
            static COMMAND: $crate::shell::Command =
                $crate::shell::Command { name: stringify!($name), arguments: $arguments, help: $help, run: $run };
        };
    };
}
pub(crate) use command;

/// Why a command did not do what was asked.
#[derive(Debug)]
pub(crate) struct Complaint(pub(crate) String);

impl Complaint {
    /// With this text.
    pub(crate) fn new(text: fmt::Arguments<'_>) -> Self {
        Self(alloc::fmt::format(text))
    }
}

impl From<fmt::Error> for Complaint {
    fn from(_: fmt::Error) -> Self {
        Self::new(format_args!("the answer could not be written"))
    }
}

/// What a command works with.
pub(crate) struct Session<'a> {
    /// The token of the shell's thread.
    pub(crate) cx: &'a mut MaySleep,
    /// The answer is for a program.
    pub(crate) json: bool,
}

impl Session<'_> {
    /// Shows a table, in the face that was asked for.
    ///
    /// # Errors
    ///
    /// None; the type suits the commands.
    pub(crate) fn show(&mut self, table: &Table) -> Result<(), Complaint> {
        console::print(&self.text_of(table)?);
        Ok(())
    }

    /// The same below a table of this kind: without the names of its columns.
    ///
    /// # Errors
    ///
    /// As [`Session::show`].
    pub(crate) fn show_rows(&mut self, table: &Table) -> Result<(), Complaint> {
        let text = self.text_of(table)?;
        let rows = if self.json { None } else { text.split_once('\n') };
        console::print(rows.map_or(&*text, |(_, rows)| rows));
        Ok(())
    }

    fn text_of(&self, table: &Table) -> Result<String, Complaint> {
        let mut text = String::new();
        if self.json { table.json(&mut text) } else { table.text(&mut text) }?;
        Ok(text)
    }
}

/// Reads commands and runs them, for ever.
pub(crate) fn interact(cx: &mut MaySleep) -> ! {
    let mut editor = Editor::new("grange> ");
    let mut echo = String::new();
    editor.begin(&mut echo);
    loop {
        console::print(&echo);
        echo.clear();
        match editor.push(console::read(cx), &mut echo) {
            Event::None => {}
            Event::Line(line) => {
                console::print(&core::mem::take(&mut echo));
                if !run_line(cx, &line) {
                    COMPLAINED.store(true, Ordering::Relaxed);
                }
                editor.begin(&mut echo);
            }
            Event::Complete(typed) => complete(&mut editor, &typed, &mut echo),
            Event::Abandoned => editor.begin(&mut echo),
            Event::End => {
                console::print("\nend of input; `exit` ends the machine\n");
                editor.begin(&mut echo);
            }
        }
    }
}

/// Runs the commands of `grange.exec=` and ends the machine: passed if all did what was asked.
pub(crate) fn execute(cx: &mut MaySleep, commands: &str) -> ! {
    end(run_line(cx, commands))
}

/// Ends the session and the machine: passed if all commands so far did what was asked.
fn leave() -> ! {
    end(!COMPLAINED.load(Ordering::Relaxed))
}

fn end(all_well: bool) -> ! {
    sync::log::flush();
    debug_exit(if all_well { Verdict::Pass } else { Verdict::Fail })
}

/// Runs the commands of a line, up to the first that complains.
fn run_line(cx: &mut MaySleep, line: &str) -> bool {
    for command in words::commands(line) {
        if let Err(Complaint(text)) = run_command(cx, command) {
            console::print(&alloc::format!("{}: {text}\n", command.split(' ').next().unwrap_or("")));
            return false;
        }
    }
    true
}

fn run_command(cx: &mut MaySleep, command: &str) -> Result<(), Complaint> {
    let mut parts: Vec<&str> = command.split_whitespace().collect();
    let name = parts.remove(0);
    let Some(found) = COMMANDS.iter().find(|command| command.name == name) else {
        return Err(match words::nearest(name, COMMANDS.iter().map(|command| command.name)) {
            Some(near) => Complaint::new(format_args!("no such command; did you mean `{near}`?")),
            None => Complaint::new(format_args!("no such command; `help` lists all")),
        });
    };
    arguments::check(found.arguments, &parts).map_err(|misfit| Complaint::new(format_args!("{misfit}")))?;
    let json = parts.contains(&"--json");
    parts.retain(|&part| part != "--json");
    (found.run)(&mut Session { cx, json }, &parts)
}

/// Completes the name of a command, or shows the candidates.
fn complete(editor: &mut Editor, typed: &str, echo: &mut String) {
    let names = || COMMANDS.iter().map(|command| command.name);
    let (count, rest) = words::completion(typed, names());
    if !rest.is_empty() {
        editor.insert_str(rest, echo);
    }
    match count {
        1 => editor.insert_str(" ", echo),
        2.. if rest.is_empty() => {
            let mut candidates: Vec<_> = names().filter(|name| name.starts_with(typed)).collect();
            candidates.sort_unstable();
            // Writing to a string cannot fail.
            let _ = writeln!(echo, "\n{}", candidates.join("  "));
            editor.redraw(echo);
        }
        _ => {}
    }
}
