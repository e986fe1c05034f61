//! Frames: `#G <number> <kind> <payload> <crc>`, one a line, around everything that is said to the
//! tester. A line that another CPU's output ran into, a lost byte or a lost line cannot pass for a
//! good one, and nothing but frames is believed.
//!
//! Number and CRC (IEEE CRC-32 over `<number> <kind> <payload>`) are eight hexadecimal digits.
//! In the payload a backslash and all control characters are escaped, so a frame is one line.

use core::fmt::{self, Write};

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Start of the run, JSON.
    Start,
    /// One line of KTAP.
    Ktap,
    /// A figure, JSON.
    Json,
    /// A test begins, JSON.
    Begin,
    /// Time goes on, JSON.
    Heartbeat,
    /// The rolling hash of events, JSON.
    Events,
    /// End of the run with its counts, JSON.
    End,
}

impl Kind {
    fn letter(self) -> char {
        match self {
            Self::Start => 'S',
            Self::Ktap => 'K',
            Self::Json => 'J',
            Self::Begin => 'B',
            Self::Heartbeat => 'H',
            Self::Events => 'V',
            Self::End => 'E',
        }
    }
}

/// Numbers the frames.
#[derive(Debug, Default)]
pub struct FrameWriter {
    next: u32,
}

impl FrameWriter {
    /// Numbers from 0 on.
    pub const fn new() -> Self {
        Self { next: 0 }
    }

    /// How many frames have been written.
    pub fn count(&self) -> u32 {
        self.next
    }

    /// Writes one frame to `sink`, in pieces.
    pub fn write(&mut self, kind: Kind, payload: fmt::Arguments<'_>, sink: &mut dyn FnMut(&[u8])) {
        sink(b"#G ");
        let mut body = Body { hash: crc32fast::Hasher::new(), sink };
        // A `Body` accepts everything; a payload whose own formatting fails is cut, but still framed.
        let _ = write!(body, "{:08x} {} ", self.next, kind.letter());
        let _ = Escape(&mut body).write_fmt(payload);
        let crc = body.hash.finalize();
        let _ = writeln!(Plain(sink), " {crc:08x}");
        self.next = self.next.wrapping_add(1);
    }
}

/// Passes text on and sums it up.
struct Body<'a> {
    hash: crc32fast::Hasher,
    sink: &'a mut dyn FnMut(&[u8]),
}

impl Write for Body<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.hash.update(text.as_bytes());
        (self.sink)(text.as_bytes());
        Ok(())
    }
}

struct Plain<'a>(&'a mut dyn FnMut(&[u8]));

impl Write for Plain<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        (self.0)(text.as_bytes());
        Ok(())
    }
}

/// Escapes what would end the line or look like an escape.
struct Escape<'a, 'b>(&'a mut Body<'b>);

impl Write for Escape<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(|c: char| c == '\\' || c.is_control()) {
            let (plain, special) = rest.split_at(at);
            self.0.write_str(plain)?;
            let mut chars = special.chars();
            match chars.next() {
                Some('\\') => self.0.write_str("\\\\")?,
                Some('\n') => self.0.write_str("\\n")?,
                Some('\r') => self.0.write_str("\\r")?,
                Some('\t') => self.0.write_str("\\t")?,
                Some(c) => write!(self.0, "\\x{:02x}", c as u32)?,
                None => {}
            }
            rest = chars.as_str();
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(writer: &mut FrameWriter, kind: Kind, payload: &str) -> String {
        let mut out = Vec::new();
        writer.write(kind, format_args!("{payload}"), &mut |bytes| out.extend_from_slice(bytes));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_frame_has_number_kind_payload_and_crc() {
        let mut writer = FrameWriter::new();
        let expected = |body: &str| format!("#G {body} {:08x}\n", crc32fast::hash(body.as_bytes()));
        assert_eq!(frame(&mut writer, Kind::Start, "{\"v\":1}"), expected("00000000 S {\"v\":1}"));
        assert_eq!(frame(&mut writer, Kind::Ktap, "  ok 1 a"), expected("00000001 K   ok 1 a"));
        assert_eq!(writer.count(), 2);
    }

    #[test]
    fn the_crc_is_the_ieee_one() {
        assert_eq!(crc32fast::hash(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_payload_never_breaks_the_line() {
        let line = frame(&mut FrameWriter::new(), Kind::Ktap, "a\nb\\n\r\t\u{1b}[0m\u{85}ä");
        assert!(line.contains(r" a\nb\\n\r\t\x1b[0m\x85ä "), "{line}");
        assert_eq!(line.matches('\n').count(), 1);
    }
}
