//! Line editing and history for a terminal at the other end of a serial line.
//!
//! A pure state machine: bytes in, [`Event`]s and text to send back out. It understands what a
//! terminal sends (arrows, Home, End, Delete as escape sequences, and the usual control keys), and
//! what a pipe sends (plain lines): nothing but the echo differs.
//!
//! | key | does |
//! |---|---|
//! | Left, Right, Home, End, Ctrl-B F A E | moves |
//! | Up, Down, Ctrl-P N | history |
//! | Backspace, Delete, Ctrl-H D | deletes a character |
//! | Ctrl-W, Ctrl-U, Ctrl-K | deletes the word before, all before, all behind the cursor |
//! | Ctrl-C | gives the line up |
//! | Ctrl-D on an empty line | end of input |
//! | Tab | asks for completion |

use alloc::collections::VecDeque;
use alloc::string::String;
use core::fmt::Write;

/// The longest line, in bytes; more is refused with a bell.
pub const MAX_LINE: usize = 256;

/// Lines that the history keeps.
pub const HISTORY: usize = 50;

/// What a byte led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing that the shell need know.
    None,
    /// A whole line, without its end.
    Line(String),
    /// Tab: what stands before the cursor.
    Complete(String),
    /// The line was given up.
    Abandoned,
    /// End of input.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    /// Not in a sequence.
    No,
    /// After ESC.
    Started,
    /// After ESC [ (or ESC O), with the digits so far.
    Sequence(u8),
}

/// The editor of one line after the other.
#[derive(Debug)]
pub struct Editor {
    prompt: &'static str,
    line: String,
    /// Byte position in `line`; always ASCII, so it is the column too.
    cursor: usize,
    escape: Escape,
    /// The last byte was a carriage return: a newline now belongs to it.
    after_cr: bool,
    history: VecDeque<String>,
    /// Which entry of the history is shown, counted from the newest; none: the line being written.
    shown: Option<usize>,
    /// The line being written, while an entry of the history is shown.
    draft: String,
}

impl Editor {
    /// An editor that shows `prompt` before each line.
    pub const fn new(prompt: &'static str) -> Self {
        Self {
            prompt,
            line: String::new(),
            cursor: 0,
            escape: Escape::No,
            after_cr: false,
            history: VecDeque::new(),
            shown: None,
            draft: String::new(),
        }
    }

    /// Starts a new line: writes the prompt.
    pub fn begin(&mut self, echo: &mut String) {
        self.line.clear();
        self.cursor = 0;
        self.shown = None;
        echo.push_str(self.prompt);
    }

    /// The lines entered, oldest first.
    pub fn history(&self) -> impl Iterator<Item = &str> {
        self.history.iter().map(String::as_str)
    }

    /// Takes one byte; what the terminal shall show is added to `echo`.
    pub fn push(&mut self, byte: u8, echo: &mut String) -> Event {
        let after_cr = core::mem::replace(&mut self.after_cr, byte == b'\r');
        match self.escape {
            Escape::Started => {
                self.escape = if matches!(byte, b'[' | b'O') { Escape::Sequence(0) } else { Escape::No };
                return Event::None;
            }
            Escape::Sequence(number) => {
                self.sequence(number, byte, echo);
                return Event::None;
            }
            Escape::No => {}
        }
        match byte {
            b'\n' if after_cr => {}
            b'\r' | b'\n' => return self.finish(echo),
            0x1b => self.escape = Escape::Started,
            0x01 => self.move_to(0, echo),
            0x02 => self.move_to(self.cursor.saturating_sub(1), echo),
            0x03 => {
                echo.push_str("^C\n");
                return Event::Abandoned;
            }
            0x04 if self.line.is_empty() => return Event::End,
            0x04 => self.delete(self.cursor, self.cursor + 1, echo),
            0x05 => self.move_to(self.line.len(), echo),
            0x06 => self.move_to(self.cursor + 1, echo),
            0x08 | 0x7f => self.delete(self.cursor.saturating_sub(1), self.cursor, echo),
            b'\t' => return Event::Complete(self.line[..self.cursor].into()),
            0x0b => self.delete(self.cursor, self.line.len(), echo),
            0x0e => self.newer(echo),
            0x10 => self.older(echo),
            0x15 => self.delete(0, self.cursor, echo),
            0x17 => self.delete(self.word_start(), self.cursor, echo),
            b' '..=b'~' => self.insert(byte as char, echo),
            // Everything else, bytes beyond ASCII among them, has no use in a command.
            _ => echo.push('\x07'),
        }
        Event::None
    }

    /// Inserts `text` at the cursor, as if it had been typed.
    pub fn insert_str(&mut self, text: &str, echo: &mut String) {
        text.chars().for_each(|c| self.insert(c, echo));
    }

    /// Shows the prompt and the line again, after something else was printed.
    pub fn redraw(&self, echo: &mut String) {
        echo.push('\r');
        echo.push_str(self.prompt);
        echo.push_str(&self.line);
        echo.push_str("\x1b[K");
        back(self.line.len() - self.cursor, echo);
    }

    fn finish(&mut self, echo: &mut String) -> Event {
        echo.push('\n');
        let line = core::mem::take(&mut self.line);
        self.cursor = 0;
        self.shown = None;
        if !line.trim().is_empty() && self.history.back() != Some(&line) {
            if self.history.len() == HISTORY {
                self.history.pop_front();
            }
            self.history.push_back(line.clone());
        }
        Event::Line(line)
    }

    /// A byte of an escape sequence: digits up to a letter or `~`.
    fn sequence(&mut self, number: u8, byte: u8, echo: &mut String) {
        if byte.is_ascii_digit() || byte == b';' {
            let digit = byte.wrapping_sub(b'0');
            let number = if byte == b';' { 0 } else { number.wrapping_mul(10).wrapping_add(digit) };
            self.escape = Escape::Sequence(number);
            return;
        }
        self.escape = Escape::No;
        match (byte, number) {
            (b'A', _) => self.older(echo),
            (b'B', _) => self.newer(echo),
            (b'C', _) => self.move_to(self.cursor + 1, echo),
            (b'D', _) => self.move_to(self.cursor.saturating_sub(1), echo),
            (b'H', _) | (b'~', 1 | 7) => self.move_to(0, echo),
            (b'F', _) | (b'~', 4 | 8) => self.move_to(self.line.len(), echo),
            (b'~', 3) => self.delete(self.cursor, self.cursor + 1, echo),
            _ => {}
        }
    }

    fn insert(&mut self, c: char, echo: &mut String) {
        if self.line.len() >= MAX_LINE || !matches!(c, ' '..='~') {
            echo.push('\x07');
            return;
        }
        self.line.insert(self.cursor, c);
        self.cursor += 1;
        echo.push(c);
        self.show_rest(echo);
    }

    fn delete(&mut self, from: usize, to: usize, echo: &mut String) {
        let to = to.min(self.line.len());
        if from < to {
            self.move_to(from, echo);
            self.line.drain(from..to);
            echo.push_str("\x1b[K");
            self.show_rest(echo);
        }
    }

    fn move_to(&mut self, at: usize, echo: &mut String) {
        let at = at.min(self.line.len());
        if at < self.cursor {
            back(self.cursor - at, echo);
        } else {
            echo.push_str(&self.line[self.cursor..at]);
        }
        self.cursor = at;
    }

    /// Writes what stands behind the cursor and goes back.
    fn show_rest(&self, echo: &mut String) {
        echo.push_str(&self.line[self.cursor..]);
        back(self.line.len() - self.cursor, echo);
    }

    fn word_start(&self) -> usize {
        let before = self.line[..self.cursor].trim_end();
        before.rfind(' ').map_or(0, |space| space + 1)
    }

    fn older(&mut self, echo: &mut String) {
        let next = self.shown.map_or(0, |shown| shown + 1);
        if next >= self.history.len() {
            return;
        }
        if self.shown.is_none() {
            self.draft = self.line.clone();
        }
        self.show(Some(next), echo);
    }

    fn newer(&mut self, echo: &mut String) {
        if let Some(shown) = self.shown {
            self.show(shown.checked_sub(1), echo);
        }
    }

    fn show(&mut self, which: Option<usize>, echo: &mut String) {
        self.shown = which;
        self.line = match which {
            Some(which) => self.history[self.history.len() - 1 - which].clone(),
            None => core::mem::take(&mut self.draft),
        };
        self.cursor = self.line.len();
        self.redraw(echo);
    }
}

/// Moves the terminal's cursor left.
fn back(columns: usize, echo: &mut String) {
    if columns > 0 {
        // Writing to a string cannot fail.
        let _ = write!(echo, "\x1b[{columns}D");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A terminal of one row, enough to see what the echo shows.
    #[derive(Default)]
    struct Screen {
        row: Vec<char>,
        column: usize,
    }

    impl Screen {
        fn show(&mut self, echo: &str) {
            let mut chars = echo.chars().peekable();
            while let Some(c) = chars.next() {
                match c {
                    '\n' => *self = Self::default(),
                    '\r' => self.column = 0,
                    '\x07' => {}
                    '\x1b' => {
                        assert_eq!(chars.next(), Some('['));
                        let mut digits = String::new();
                        while chars.peek().is_some_and(char::is_ascii_digit) {
                            digits.extend(chars.next());
                        }
                        match chars.next() {
                            Some('D') => self.column -= digits.parse::<usize>().unwrap(),
                            Some('K') => self.row.truncate(self.column),
                            other => panic!("unknown sequence {other:?}"),
                        }
                    }
                    c => {
                        self.row.truncate(self.row.len().max(self.column));
                        if self.column == self.row.len() {
                            self.row.push(c);
                        } else {
                            self.row[self.column] = c;
                        }
                        self.column += 1;
                    }
                }
            }
        }

        fn text(&self) -> String {
            self.row.iter().collect()
        }
    }

    /// Types `keys`, checks that the screen shows the edited line, and returns the events.
    fn type_in(editor: &mut Editor, keys: &str) -> Vec<Event> {
        let mut screen = Screen::default();
        let mut echo = String::new();
        editor.begin(&mut echo);
        let mut events = Vec::new();
        for byte in keys.bytes() {
            let event = editor.push(byte, &mut echo);
            screen.show(&core::mem::take(&mut echo));
            if event == Event::None {
                assert_eq!(screen.text(), format!("> {}", editor.line), "after {keys:?}");
                assert_eq!(screen.column, 2 + editor.cursor, "after {keys:?}");
            } else {
                if matches!(event, Event::Line(_)) {
                    editor.begin(&mut echo);
                    screen.show(&core::mem::take(&mut echo));
                }
                events.push(event);
            }
        }
        events
    }

    fn line(editor: &mut Editor, keys: &str) -> String {
        match type_in(editor, keys).as_slice() {
            [Event::Line(line)] => line.clone(),
            other => panic!("expected one line, got {other:?}"),
        }
    }

    fn editor() -> Editor {
        Editor::new("> ")
    }

    #[test]
    fn a_line_ends_with_cr_or_lf_and_crlf_is_one_end() {
        let lines = type_in(&mut editor(), "cpus\r\nnodes\nmem\r\rirq\n");
        let texts: Vec<_> =
            lines.iter().map(|event| if let Event::Line(line) = event { line.as_str() } else { "?" }).collect();
        assert_eq!(texts, ["cpus", "nodes", "mem", "", "irq"]);
    }

    #[test]
    fn keys_edit_in_the_middle_of_the_line() {
        for (keys, expected) in [
            ("cus\x1b[D\x1b[Dp\r", "cpus"),
            ("ccpus\x01\x04\r", "cpus"),
            ("cpusx\x7f\r", "cpus"),
            ("pus\x1b[Hc\x1b[Fx\x08\r", "cpus"),
            ("cpXus\x02\x02\x02\x1b[3~\r", "cpus"),
            ("nodes --json\x17all\r", "nodes all"),
            ("nodes\x15cpus\r", "cpus"),
            ("cpus junk\x1b[D\x1b[D\x1b[D\x1b[D\x1b[D\x0b\r", "cpus"),
            ("cpu\x1b[1;5Cs\r", "cpus"),
            ("\x1bxcpus\r", "cpus"),
        ] {
            assert_eq!(line(&mut editor(), keys), expected, "{keys:?}");
        }
    }

    #[test]
    fn history_brings_lines_back_and_keeps_the_draft() {
        let mut editor = editor();
        line(&mut editor, "first\r");
        line(&mut editor, "second\r");
        line(&mut editor, "second\r");
        assert_eq!(line(&mut editor, "\x1b[A\x1b[A\r"), "first");
        assert_eq!(editor.history().collect::<Vec<_>>(), ["first", "second", "first"]);
        assert_eq!(line(&mut editor, "dra\x1b[A\x1b[A\x1b[B\x1b[Bft\r"), "draft");
        assert_eq!(line(&mut editor, "\x10\x10\x10\x10\x10\x10\r"), "first");
    }

    #[test]
    fn the_history_forgets_the_oldest_lines() {
        let mut editor = editor();
        for number in 0..HISTORY + 5 {
            line(&mut editor, &format!("line {number}\r"));
        }
        assert_eq!(editor.history().count(), HISTORY);
        assert_eq!(editor.history().next(), Some("line 5"));
    }

    #[test]
    fn control_c_gives_up_and_control_d_ends_an_empty_line_only() {
        assert_eq!(type_in(&mut editor(), "half\x03"), [Event::Abandoned]);
        assert_eq!(type_in(&mut editor(), "\x04"), [Event::End]);
        assert_eq!(type_in(&mut editor(), "x\x04"), []);
    }

    #[test]
    fn tab_asks_for_what_stands_before_the_cursor() {
        assert_eq!(type_in(&mut editor(), "no\t"), [Event::Complete("no".into())]);
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_and_what_is_no_text_is_left_out() {
        let long = "x".repeat(MAX_LINE + 10) + "\r";
        assert_eq!(line(&mut editor(), &long).len(), MAX_LINE);
        assert_eq!(line(&mut editor(), "c\u{e4}p\x00us\r"), "cpus");
    }
}
