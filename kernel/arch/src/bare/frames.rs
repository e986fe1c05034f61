//! How a backtrace is written: one line a frame, and one for all further ones that are the same.
//!
//! Pure, tested on the host.
//!
//! Context: any; takes no lock and allocates nothing.

use core::fmt::{self, Write};

/// Writes return addresses, innermost first, as they are found.
pub struct Frames<'a> {
    out: &'a mut dyn Write,
    result: fmt::Result,
    depth: usize,
    last: Option<u64>,
    /// How many more with the same address as the last that is written.
    repeats: usize,
}

impl<'a> Frames<'a> {
    /// Begins a backtrace, with its heading.
    pub fn new(out: &'a mut dyn Write) -> Self {
        let result = writeln!(out, "backtrace:");
        Self { out, result, depth: 0, last: None, repeats: 0 }
    }

    /// The next frame.
    pub fn push(&mut self, ip: u64) {
        if self.last == Some(ip) {
            self.repeats += 1;
        } else {
            self.end_repeats();
            let depth = self.depth;
            self.write(format_args!("  #{depth} {ip:#018x}\n"));
            self.last = Some(ip);
        }
        self.depth += 1;
    }

    /// That was all.
    ///
    /// # Errors
    /// The first of `out`.
    pub fn finish(mut self) -> fmt::Result {
        self.end_repeats();
        self.result
    }

    fn end_repeats(&mut self) {
        match core::mem::take(&mut self.repeats) {
            0 => {}
            1 => self.write(format_args!("  … the same frame once more\n")),
            n => self.write(format_args!("  … the same frame {n} times more\n")),
        }
    }

    fn write(&mut self, line: fmt::Arguments<'_>) {
        if self.result.is_ok() {
            self.result = self.out.write_fmt(line);
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::String;

    fn written(ips: &[u64]) -> String {
        let mut text = String::new();
        let mut frames = Frames::new(&mut text);
        ips.iter().for_each(|&ip| frames.push(ip));
        frames.finish().unwrap();
        text
    }

    #[test]
    fn frames_are_numbered_from_the_innermost() {
        assert_eq!(written(&[16, 32]), "backtrace:\n  #0 0x0000000000000010\n  #1 0x0000000000000020\n");
    }

    #[test]
    fn repeated_frames_are_counted_and_the_numbers_go_on_behind_them() {
        assert_eq!(
            written(&[1, 7, 7, 7, 2, 2]),
            "backtrace:\n  #0 0x0000000000000001\n  #1 0x0000000000000007\n  … the same frame 2 times more\n  \
             #4 0x0000000000000002\n  … the same frame once more\n"
        );
    }

    #[test]
    fn the_first_error_ends_the_writing() {
        struct Full;
        impl Write for Full {
            fn write_str(&mut self, _: &str) -> fmt::Result {
                Err(fmt::Error)
            }
        }
        let mut out = Full;
        let mut frames = Frames::new(&mut out);
        frames.push(1);
        assert_eq!(frames.finish(), Err(fmt::Error));
    }
}
