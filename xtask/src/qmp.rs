//! QEMU's machine protocol, as much as is needed: send an NMI to every CPU, and hear why the machine stopped.

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
}

impl Qmp {
    /// Connects to the socket that QEMU makes when it starts; `None` when it does not within `patience`.
    #[must_use]
    pub fn connect(socket: &Path, patience: Duration) -> Option<Qmp> {
        let end = Instant::now() + patience;
        loop {
            if let Ok(stream) = UnixStream::connect(socket) {
                stream.set_nonblocking(true).ok()?;
                let mut qmp = Qmp { stream, partial: Vec::new(), shutdown: None, internal_error: false };
                qmp.send("qmp_capabilities")?;
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
        let ask = json!({
            "execute": "human-monitor-command", "arguments": { "command-line": line }, "id": "monitor"
        });
        self.stream.write_all(format!("{ask}\n").as_bytes()).ok()?;
        let end = Instant::now() + patience;
        while Instant::now() < end {
            for message in self.messages() {
                if message["id"] == "monitor" {
                    return message["return"].as_str().map(str::to_owned);
                }
            }
            std::thread::sleep(POLL);
        }
        None
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
                self.shutdown = Some(message["data"]["reason"].as_str().unwrap_or("unknown").to_owned());
            }
            if message["event"] == "STOP" {
                // The user may have stopped it; only the state tells. One that cannot be asked is gone.
                let ask = json!({ "execute": "query-status", "id": "status" });
                let _ = self.stream.write_all(format!("{ask}\n").as_bytes());
            }
            self.internal_error |= message["id"] == "status" && message["return"]["status"] == "internal-error";
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
            let heard: Vec<String> = (0..2).map(|_| lines.next().unwrap().unwrap()).collect();
            stream.write_all(b"{\"QMP\":{}}\n{\"return\":{}}\n{\"event\":\"SHUT").unwrap();
            stream.write_all(b"DOWN\",\"data\":{\"guest\":true,\"reason\":\"guest-reset\"}}\n").unwrap();
            heard
        });
        let mut qmp = Qmp::connect(&socket, Duration::from_secs(5)).unwrap();
        qmp.inject_nmi().unwrap();
        assert_eq!(server.join().unwrap(), [r#"{"execute":"qmp_capabilities"}"#, r#"{"execute":"inject-nmi"}"#]);
        assert_eq!(qmp.shutdown_reason(), Some("guest-reset"));
    }

    #[test]
    fn a_machine_that_stops_is_asked_why_and_only_an_internal_error_is_one() {
        let dir = tempfile::tempdir().unwrap();
        for (state, error) in [("paused", false), ("internal-error", true)] {
            let socket = dir.path().join(state);
            let listener = UnixListener::bind(&socket).unwrap();
            let server = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = std::io::BufReader::new(stream.try_clone().unwrap()).lines();
                lines.next().unwrap().unwrap();
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
            assert_eq!(qmp.internal_error(), error, "{state}");
        }
    }

    #[test]
    fn a_socket_that_never_comes_is_given_up() {
        assert!(Qmp::connect(Path::new("/no/such/socket"), Duration::from_millis(20)).is_none());
    }
}
