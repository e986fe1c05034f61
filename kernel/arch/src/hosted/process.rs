//! A process of its own for a test whose statics cannot be set up twice (HOST-1).

use std::env;
use std::process::Command;
use std::string::String;

/// Names the test that the child is to run.
const VARIABLE: &str = "GRANGE_OWN_PROCESS";

/// Runs `f`, the whole body of a `#[test]` function, in a process that runs nothing else.
///
/// The test is named by the path of the closure, so `f` is a closure written in the test function itself. The test program
/// is started again for that one test, which then runs `f`.
///
/// # Panics
///
/// If the process fails, with what it printed.
pub fn in_own_process<F: FnOnce()>(f: F) {
    let path = core::any::type_name::<F>();
    let path = path.strip_suffix("::{{closure}}").expect("in_own_process() takes a closure written in the test");
    let test = path.split_once("::").map_or(path, |(_crate, test)| test);
    if env::var(VARIABLE).is_ok_and(|name| name == test) {
        return f();
    }
    let output = env::current_exe().and_then(|program| {
        Command::new(program)
            .args([test, "--exact", "--include-ignored", "--nocapture", "--test-threads=1"])
            .env(VARIABLE, test)
            .output()
    });
    let output = output.expect("the test program cannot start itself");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let passed = output.status.success() && text.contains("1 passed");
    assert!(passed, "{test} in its own process: {}\n{text}{errors}", output.status);
}
