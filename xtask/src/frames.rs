//! The frames on COM2: `#G <seq:08x> <kind> <payload> <crc32:08x>`, one a line.
//!
//! A frame is believed only when its CRC is right and its number follows that of the frame before. Everything else
//! becomes a [`FrameError`], and one of those is enough for a run not to be a pass: two CPUs that print at once, a lost
//! byte or a cut line can hide a failure but never make one look like a success.

use std::fmt;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `S`: start of the tester's output, JSON.
    Start,
    /// `K`: one line of KTAP.
    Ktap,
    /// `J`: a figure, JSON.
    Json,
    /// `B`: a test begins, JSON.
    Begin,
    /// `H`: the guest is alive, JSON.
    Heartbeat,
    /// `V`: the rolling hash of events, JSON.
    Events,
    /// `E`: end of the tester's output with its counts, JSON.
    End,
}

impl Kind {
    const ALL: [(&'static str, Kind); 7] = [
        ("S", Kind::Start),
        ("K", Kind::Ktap),
        ("J", Kind::Json),
        ("B", Kind::Begin),
        ("H", Kind::Heartbeat),
        ("V", Kind::Events),
        ("E", Kind::End),
    ];

    fn letter(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("?", |(letter, _)| letter)
    }

    fn from_letter(text: &str) -> Option<Kind> {
        Self::ALL.iter().find(|(letter, _)| *letter == text).map(|(_, kind)| *kind)
    }
}

/// One frame whose CRC and number were right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Position in the stream, from 0.
    pub seq: u32,
    /// What it carries.
    pub kind: Kind,
    /// The payload, unescaped.
    pub payload: String,
}

/// Why a line is not a frame to be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// Not of the form of a frame.
    Form(String),
    /// The CRC in the line is not that of the line.
    Crc(String),
    /// Right in itself, but not the next one.
    Order {
        /// The number that was due.
        due: u32,
        /// The number that came.
        came: u32,
    },
    /// Bytes after the last newline: the stream was cut.
    Cut(String),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::Form(line) => write!(f, "not a frame: {line:?}"),
            FrameError::Crc(line) => write!(f, "wrong CRC: {line:?}"),
            FrameError::Order { due, came } => write!(f, "frame {came} where {due} was due"),
            FrameError::Cut(line) => write!(f, "cut in the middle of {line:?}"),
        }
    }
}

/// Takes bytes as they come and gives frames.
#[derive(Debug, Default)]
pub struct FrameReader {
    partial: Vec<u8>,
    due: u32,
}

impl FrameReader {
    /// Takes the next bytes and returns what has become complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Result<Frame, FrameError>> {
        self.partial.extend_from_slice(bytes);
        let mut out = Vec::new();
        while let Some(end) = self.partial.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            out.push(self.line(&line[..end]));
        }
        out
    }

    /// The stream has ended; what is left over is a cut line.
    #[must_use]
    pub fn finish(self) -> Option<FrameError> {
        (!self.partial.is_empty()).then(|| FrameError::Cut(excerpt(&self.partial)))
    }

    fn line(&mut self, line: &[u8]) -> Result<Frame, FrameError> {
        let frame = parse(line)?;
        let due = self.due;
        // Go on from what came: one lost frame is one error, not one for each that follows.
        self.due = frame.seq.wrapping_add(1);
        if frame.seq == due { Ok(frame) } else { Err(FrameError::Order { due, came: frame.seq }) }
    }
}

fn excerpt(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(80).collect()
}

fn parse(line: &[u8]) -> Result<Frame, FrameError> {
    let form = || FrameError::Form(excerpt(line));
    let text = std::str::from_utf8(line).map_err(|_| form())?;
    let body_and_crc = text.strip_prefix("#G ").ok_or_else(form)?;
    let (body, crc) = body_and_crc.rsplit_once(' ').ok_or_else(form)?;
    let crc = hex8(crc).ok_or_else(form)?;
    if crc32fast::hash(body.as_bytes()) != crc {
        return Err(FrameError::Crc(excerpt(line)));
    }
    let mut parts = body.splitn(3, ' ');
    let (Some(seq), Some(kind), Some(payload)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(form());
    };
    Ok(Frame {
        seq: hex8(seq).ok_or_else(form)?,
        kind: Kind::from_letter(kind).ok_or_else(form)?,
        payload: unescape(payload).ok_or_else(form)?,
    })
}

/// Exactly eight lower-case hexadecimal digits.
fn hex8(text: &str) -> Option<u32> {
    let all_hex = text.len() == 8 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    all_hex.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

/// Undoes the escapes; `None` for one that the writer never makes, and for a bare control character.
fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c.is_control() {
            return None;
        }
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.push(match chars.next()? {
            '\\' => '\\',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'x' => {
                let digits: String = chars.by_ref().take(2).collect();
                u8::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 2).map(char::from)?
            }
            _ => return None,
        });
    }
    Some(out)
}

/// Writes a frame as the kernel does. The tool itself only reads them; its tests need a guest to read from.
#[must_use]
pub fn encode(seq: u32, kind: Kind, payload: &str) -> String {
    let mut escaped = String::new();
    for c in payload.chars() {
        match c {
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            c if c.is_control() => escaped.push_str(&format!("\\x{:02x}", c as u32)),
            c => escaped.push(c),
        }
    }
    let body = format!("{seq:08x} {} {escaped}", kind.letter());
    format!("#G {body} {:08x}\n", crc32fast::hash(body.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<Result<Frame, FrameError>> {
        FrameReader::default().push(text.as_bytes())
    }

    #[test]
    fn what_is_written_is_read_back_with_spaces_and_control_characters() {
        for (seq, payload) in ["  ok 1 a", "", "a\nb\tc\\n\r\u{1b}[0m", "{\"x\":1}", "ä ö"].iter().enumerate() {
            let mut reader = FrameReader { due: seq as u32, ..FrameReader::default() };
            let frames = reader.push(encode(seq as u32, Kind::Ktap, payload).as_bytes());
            assert_eq!(frames, [Ok(Frame { seq: seq as u32, kind: Kind::Ktap, payload: (*payload).to_owned() })]);
        }
    }

    #[test]
    fn a_frame_may_come_byte_by_byte() {
        let mut reader = FrameReader::default();
        let text = encode(0, Kind::Start, "{}") + &encode(1, Kind::End, "{}");
        let frames: Vec<_> = text.bytes().flat_map(|byte| reader.push(&[byte])).collect();
        assert_eq!(frames.len(), 2);
        assert!(frames.iter().all(Result::is_ok));
        assert_eq!(reader.finish(), None);
    }

    #[test]
    fn a_flipped_bit_anywhere_in_a_frame_is_noticed() {
        let good = encode(0, Kind::Ktap, "  ok 1 percpu");
        for at in 0..good.len() - 1 {
            for bit in 0..8 {
                let mut bad = good.clone().into_bytes();
                bad[at] ^= 1 << bit;
                if bad[at] == b'\n' {
                    continue;
                }
                let frames = FrameReader::default().push(&bad);
                assert!(frames.iter().all(Result::is_err), "byte {at} bit {bit}: {frames:?}");
            }
        }
    }

    #[test]
    fn lost_doubled_and_swapped_frames_are_errors_of_order() {
        let frame = |seq| encode(seq, Kind::Heartbeat, "{}");
        let errors = |text: &str| read(text).into_iter().filter_map(Result::err).collect::<Vec<_>>();
        assert_eq!(errors(&(frame(0) + &frame(2) + &frame(3))), [FrameError::Order { due: 1, came: 2 }]);
        assert_eq!(errors(&(frame(0) + &frame(0))), [FrameError::Order { due: 1, came: 0 }]);
        assert_eq!(errors(&(frame(1) + &frame(0))).len(), 2);
    }

    #[test]
    fn what_is_left_without_a_newline_is_a_cut() {
        let mut reader = FrameReader::default();
        let frame = encode(0, Kind::End, "{}");
        assert!(reader.push(frame.trim_end().as_bytes()).is_empty());
        assert!(matches!(reader.finish(), Some(FrameError::Cut(_))));
    }

    #[test]
    fn unknown_kinds_and_escapes_are_refused_even_with_a_right_crc() {
        for body in
            ["00000000 X {}", "00000000 K a\\qb", "00000000 K a\\x4", "00000000 K a\tb", "0000000 K a", "00000000 K"]
        {
            let line = format!("#G {body} {:08x}\n", crc32fast::hash(body.as_bytes()));
            assert!(matches!(read(&line)[..], [Err(FrameError::Form(_))]), "{body}");
        }
    }
}
