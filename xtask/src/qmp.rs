//! QEMU's machine protocol, as much as is needed: send an NMI to every CPU, hear why the machine stopped, save its memory.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::POLL;

/// A connection that has left negotiation mode.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    /// Bytes of a line that has not ended yet.
    partial: Vec<u8>,
    /// Why the machine stopped, in QEMU's words, once it did.
    shutdown: Option<String>,
    /// QEMU cannot run the machine on.
    internal_error: bool,
    /// The kernel has announced its death, and QEMU holds the machine.
    held: bool,
}

impl Qmp {
    /// Connects to the socket that QEMU makes when it starts; `None` when it does not within `patience`.
    #[must_use]
    pub fn connect(socket: &Path, patience: Duration) -> Option<Qmp> {
        let end = Instant::now() + patience;
        loop {
            if let Ok(stream) = UnixStream::connect(socket) {
                stream.set_nonblocking(true).ok()?;
                let mut qmp = Qmp { stream, partial: Vec::new(), shutdown: None, internal_error: false, held: false };
                qmp.send("qmp_capabilities")?;
                // What happened before anybody listened was told to nobody.
                qmp.ask_for_the_state();
                return Some(qmp);
            }
            if Instant::now() >= end {
                return None;
            }
            std::thread::sleep(POLL);
        }
    }

    /// Sends a command without arguments; its answer is dropped when it comes. `None` when the other side is gone.
    pub fn send(&mut self, command: &str) -> Option<()> {
        let line = format!("{}\n", json!({ "execute": command }));
        self.stream.write_all(line.as_bytes()).ok()
    }

    /// Stops every CPU by an NMI, so that the kernel says where it is.
    pub fn inject_nmi(&mut self) -> Option<()> {
        self.send("inject-nmi")
    }

    /// What a command of the human monitor prints; `None` when no answer comes within `patience`.
    #[must_use]
    pub fn monitor(&mut self, line: &str, patience: Duration) -> Option<String> {
        let answer = self.ask("human-monitor-command", &json!({ "command-line": line }), patience)?;
        answer.ok()?.as_str().map(str::to_owned)
    }

    /// Writes the machine's memory and registers into `file` as an ELF core, with the addresses that the kernel uses.
    ///
    /// # Errors
    /// What QEMU says, or that it does not answer within `patience`.
    pub fn dump(&mut self, file: &Path, patience: Duration) -> Result<(), String> {
        let how = json!({ "paging": true, "protocol": format!("file:{}", file.display()) });
        match self.ask("dump-guest-memory", &how, patience) {
            Some(answer) => answer.map(drop),
            None => Err(format!("QEMU does not answer within {} s", patience.as_secs())),
        }
    }

    /// What a command answers: its value, or the description of an error. `None` when nothing comes within `patience`.
    fn ask(&mut self, command: &str, arguments: &Value, patience: Duration) -> Option<Result<Value, String>> {
        let ask = json!({ "execute": command, "arguments": arguments, "id": command });
        self.stream.write_all(format!("{ask}\n").as_bytes()).ok()?;
        let end = Instant::now() + patience;
        while Instant::now() < end {
            for mut message in self.messages() {
                if message["id"] == command {
                    let error = message["error"]["desc"].as_str().map(str::to_owned);
                    return Some(error.map_or_else(|| Ok(message["return"].take()), Err));
                }
            }
            std::thread::sleep(POLL);
        }
        None
    }

    /// The answer comes as a message with the id `status`. A QEMU that cannot be asked is gone.
    fn ask_for_the_state(&mut self) {
        let ask = json!({ "execute": "query-status", "id": "status" });
        let _ = self.stream.write_all(format!("{ask}\n").as_bytes());
    }

    /// Whether QEMU holds the machine because the kernel has announced that it dies. [`Qmp::let_go`] ends that.
    pub fn is_held(&mut self) -> bool {
        self.messages();
        self.held
    }

    /// Lets a machine that is held go on.
    pub fn let_go(&mut self) {
        self.held = false;
        self.send("cont");
    }

    /// Why the machine stopped: `guest-shutdown`, `guest-reset`, `host-signal`, … `None` while it runs.
    pub fn shutdown_reason(&mut self) -> Option<&str> {
        self.messages();
        self.shutdown.as_deref()
    }

    /// Whether QEMU has stopped the machine because it cannot run it on, as KVM does with a guest that it cannot enter. It
    /// would stand still for ever.
    pub fn internal_error(&mut self) -> bool {
        self.messages();
        self.internal_error
    }

    /// The messages that have come since the last call.
    fn messages(&mut self) -> Vec<Value> {
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = self.stream.read(&mut chunk) {
            self.partial.extend_from_slice(&chunk[..length]);
        }
        let mut messages = Vec::new();
        while let Some(end) = self.partial.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            let Ok(message) = serde_json::from_slice::<Value>(&line) else { continue };
            if message["event"] == "SHUTDOWN" {
                // The first one counts: a machine that is held after its end is told to end once more.
                let reason = message["data"]["reason"].as_str().unwrap_or("unknown");
                self.shutdown.get_or_insert_with(|| reason.to_owned());
            }
            if message["event"] == "STOP" {
                // The user may have stopped it; only the state tells.
                self.ask_for_the_state();
            }
            if message["id"] == "status" {
                match message["return"]["status"].as_str() {
                    Some("internal-error") => self.internal_error = true,
                    Some("guest-panicked") => self.held = true,
                    Some("shutdown") => _ = self.shutdown.get_or_insert_with(|| "unknown".to_owned()),
                    _ => {}
                }
            }
            messages.push(message);
        }
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead as _;
    use std::os::unix::net::UnixListener;

    #[test]
    fn commands_go_out_and_the_reason_of_the_shutdown_comes_back_in_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("qmp");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = std::io::BufReader::new(stream.try_clone().unwrap()).lines();
            let heard: Vec<String> = (0..3).map(|_| lines.next().unwrap().unwrap()).collect();
            stream.write_all(b"{\"QMP\":{}}\n{\"return\":{}}\n{\"event\":\"SHUT").unwrap();
            stream.write_all(b"DOWN\",\"data\":{\"guest\":true,\"reason\":\"guest-reset\"}}\n").unwrap();
            heard
        });
        let mut qmp = Qmp::connect(&socket, Duration::from_secs(5)).unwrap();
        qmp.inject_nmi().unwrap();
        let heard = server.join().unwrap();
        assert_eq!(heard[0], r#"{"execute":"qmp_capabilities"}"#);
        assert!(heard[1].contains("query-status"), "what happened before is asked for: {heard:?}");
        assert_eq!(heard[2], r#"{"execute":"inject-nmi"}"#);
        assert_eq!(qmp.shutdown_reason(), Some("guest-reset"));
    }

    #[test]
    fn a_machine_that_stops_is_asked_why() {
        let dir = tempfile::tempdir().unwrap();
        for (state, found) in [
            ("paused", (false, false, false)),
            ("internal-error", (true, false, false)),
            ("guest-panicked", (false, true, false)),
            ("shutdown", (false, false, true)),
        ] {
            let socket = dir.path().join(state);
            let listener = UnixListener::bind(&socket).unwrap();
            let server = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = std::io::BufReader::new(stream.try_clone().unwrap()).lines();
                for _ in 0..2 {
                    lines.next().unwrap().unwrap();
                }
                stream.write_all(b"{\"event\":\"STOP\"}\n").unwrap();
                assert!(lines.next().unwrap().unwrap().contains("query-status"));
                let answer = format!("{{\"id\":\"status\",\"return\":{{\"status\":\"{state}\"}}}}\n");
                stream.write_all(answer.as_bytes()).unwrap();
            });
            let mut qmp = Qmp::connect(&socket, Duration::from_secs(5)).unwrap();
            let end = Instant::now() + Duration::from_secs(5);
            while !server.is_finished() && Instant::now() < end {
                qmp.internal_error();
            }
            server.join().unwrap();
            assert_eq!((qmp.internal_error(), qmp.is_held(), qmp.shutdown_reason().is_some()), found, "{state}");
        }
    }

    #[test]
    fn a_socket_that_never_comes_is_given_up() {
        assert!(Qmp::connect(Path::new("/no/such/socket"), Duration::from_millis(20)).is_none());
    }
}
