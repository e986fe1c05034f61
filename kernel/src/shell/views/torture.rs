//! Torture from the shell: `torture`.

use core::fmt;

use ::tests::report::PlainLines;
use ::tests::torture::{Request, TORTURES, config, kind, torture as run};
use grange_kernel::table::{Table, Value};

use crate::cmdline;
use crate::shell::{Complaint, Session, command};

command!(
    torture,
    "[KIND,KIND…] [--list] [--json]",
    "tortures for as long as torture.duration_ms says, with all kinds or these; lists them",
    torture
);

fn torture(session: &mut Session<'_>, arguments: &[&str]) -> Result<(), Complaint> {
    let kinds = arguments.iter().find(|argument| !argument.starts_with("--")).copied();
    if let Some(globs) = kinds.filter(|globs| !kind::are_known(globs)) {
        return Err(Complaint::new(format_args!(
            "`{globs}` names a kind that there is not; `torture --list` names them"
        )));
    }
    let request = config::request(cmdline::SEED.get());
    let request = Request { kinds: kinds.unwrap_or(request.kinds), ..request };
    if arguments.contains(&"--list") || session.json {
        let mut table = Table::new("torture", &["name", "role", "what"]);
        for kind in kind::select(&TORTURES, request.kinds) {
            let role = if kind.role == kind::ROLE_DISTURBER { "disturber" } else { "kind" };
            table.row([Value::from(kind.name), role.into(), kind.about.trim().into()]);
        }
        return session.show(&table);
    }
    let mut line = |text: fmt::Arguments<'_>| crate::console::print(&alloc::format!("{text}\n"));
    let summary = run(&request, session.cx, &mut PlainLines(&mut line));
    if summary.is_pass() {
        Ok(())
    } else {
        Err(Complaint::new(format_args!("{} of {} failed", summary.failed, summary.planned)))
    }
}
