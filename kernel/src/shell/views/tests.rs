//! The in-kernel tests: `test`.

use core::fmt;

use ::tests::report::PlainLines;
use ::tests::{Filter, Plan};
use grange_kernel::table::{Table, Value};

use crate::cmdline;
use crate::shell::{Complaint, Session, command};

command!(
    test,
    "[GLOB,GLOB…] [--slow] [--list] [--json]",
    "runs the tests whose suite.name matches, or all; lists them",
    test
);

fn test(session: &mut Session<'_>, arguments: &[&str]) -> Result<(), Complaint> {
    let list = arguments.contains(&"--list");
    let globs = arguments.iter().find(|argument| !argument.starts_with("--"));
    let filter = Filter::new(globs.copied().unwrap_or_default());
    let plan = Plan { filter, slow: list || arguments.contains(&"--slow"), start_at: None, seed: cmdline::SEED.get() };
    if list || session.json {
        // Not the line: tests know that of their block only. `cargo xtask test --list` looks it up in the source.
        let mut table = Table::new("tests", &["suite", "name", "file", "budget ms"]);
        for case in ::tests::run::select(::tests::TESTS.iter(), &plan) {
            table.row([Value::from(case.suite), case.name.into(), case.file.into(), case.budget_ms.into()]);
        }
        return session.show(&table);
    }
    let mut line = |text: fmt::Arguments<'_>| {
        crate::console::print(&alloc::format!("{text}\n"));
    };
    let summary = ::tests::run(::tests::TESTS.iter(), &plan, session.cx, &mut PlainLines(&mut line));
    if summary.is_pass() {
        Ok(())
    } else if summary.planned == 0 {
        let glob = globs.copied().unwrap_or("*");
        Err(Complaint::new(format_args!("`{glob}` matches no test; `test --list` names them")))
    } else {
        Err(Complaint::new(format_args!("{} of {} failed", summary.failed, summary.planned)))
    }
}
