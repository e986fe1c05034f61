//! Types what comes through a pipe into the kernel's shell.
//!
//! A person waits for the prompt; a pipe does not, and what arrives before the kernel has set up its serial port is lost.
//! So the pipe is held until the prompt is there. At its end the session does, as a shell leaves at the end of its script:
//! with status 1 if a command failed.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::process::{POLL, interrupted};

/// What the kernel's shell prints when it waits for a line.
const PROMPT: &[u8] = b"grange> ";

/// What is typed at the end of the pipe.
const LEAVE: &[u8] = b"\nexit\n";

/// Copies `from` to `to`, beginning when the prompt has appeared in the file `console`. The thread ends with the pipe or
/// with this process.
pub fn start(from: impl Read + Send + 'static, to: impl Write + Send + 'static, console: &Path) {
    let console: PathBuf = console.to_path_buf();
    std::thread::spawn(move || copy(from, to, &console));
}

/// An error means that one of the two ends is gone: there is nobody left to tell.
fn copy(mut from: impl Read, mut to: impl Write, console: &Path) {
    while !prompted(console) {
        if interrupted() {
            return;
        }
        std::thread::sleep(POLL);
    }
    let mut bytes = [0; 256];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..length]).and_then(|()| to.flush()).is_err() {
            return;
        }
    }
    let _ = to.write_all(LEAVE).and_then(|()| to.flush());
}

fn prompted(console: &Path) -> bool {
    std::fs::read(console).is_ok_and(|log| log.windows(PROMPT.len()).any(|part| part == PROMPT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_typed_before_the_prompt_and_all_of_it_after() {
        let dir = tempfile::tempdir().unwrap();
        let console = dir.path().join("console.log");
        let typed = dir.path().join("typed");
        start(&b"cpus\nmem"[..], std::fs::File::create(&typed).unwrap(), &console);
        std::fs::write(&console, "booting\n").unwrap();
        std::thread::sleep(POLL * 5);
        assert_eq!(std::fs::read(&typed).unwrap(), b"");
        std::fs::write(&console, "booting\ngrange> ").unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while std::fs::read(&typed).unwrap() != b"cpus\nmem\nexit\n" {
            assert!(std::time::Instant::now() < end, "{:?}", std::fs::read(&typed));
            std::thread::sleep(POLL);
        }
    }
}
