//! The kernel command line that QEMU hands over: `key=value` words, a value with spaces in double quotes.

use crate::exit::usage;

/// Above 4,096 bytes QEMU's line overwrites the boot data that lies behind it; the design draws the limit here.
pub const MAX_LINE: usize = 3000;

/// A kernel command line in the making.
#[derive(Clone, Debug, Default)]
pub struct KernelLine {
    line: String,
}

impl KernelLine {
    /// Starts with what the user wrote, as it is.
    #[must_use]
    pub fn new(append: &str) -> Self {
        KernelLine { line: append.trim().to_owned() }
    }

    /// Adds `key=value`, with quotes where the value needs them.
    ///
    /// # Errors
    /// `Usage` when the value holds a double quote or a control character: the kernel could not read it back.
    pub fn set(&mut self, key: &str, value: &str) -> anyhow::Result<()> {
        if value.chars().any(|c| c == '"' || c.is_control()) {
            return Err(usage(format!(
                "{key}={value:?}: a kernel argument holds no double quote and no control character"
            )));
        }
        if !self.line.is_empty() {
            self.line.push(' ');
        }
        let quote = if value.contains(' ') || value.is_empty() { "\"" } else { "" };
        self.line.push_str(&format!("{key}={quote}{value}{quote}"));
        Ok(())
    }

    /// The finished line.
    ///
    /// # Errors
    /// `Usage` when it is longer than [`MAX_LINE`], or when quotes in what the user wrote do not close.
    pub fn finish(&self) -> anyhow::Result<&str> {
        if self.line.len() > MAX_LINE {
            return Err(usage(format!("the kernel command line has {} bytes: at most {MAX_LINE}", self.line.len())));
        }
        if !self.line.matches('"').count().is_multiple_of(2) {
            return Err(usage(format!("--append {}: a double quote is not closed", self.line)));
        }
        if self.line.chars().any(char::is_control) {
            return Err(usage("--append holds a control character: words are separated by spaces".to_owned()));
        }
        Ok(&self.line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_with_spaces_and_semicolons_survive_in_quotes() {
        let mut line = KernelLine::new(" idle=poll ");
        line.set("grange.exec", "cpus; mem --json").unwrap();
        line.set("grange.seed", "7").unwrap();
        assert_eq!(line.finish().unwrap(), r#"idle=poll grange.exec="cpus; mem --json" grange.seed=7"#);
    }

    #[test]
    fn what_the_kernel_could_not_read_back_is_refused() {
        let mut line = KernelLine::default();
        assert!(line.set("grange.exec", r#"say "hi""#).is_err());
        assert!(line.set("grange.exec", "a\nb").is_err());
        assert!(KernelLine::new(r#"a="b"#).finish().unwrap_err().to_string().contains("not closed"));
        assert!(KernelLine::new("a=1\tb=2").finish().is_err());
    }

    #[test]
    fn a_line_over_the_limit_is_refused_and_one_at_it_is_not() {
        assert!(KernelLine::new(&"x".repeat(MAX_LINE)).finish().is_ok());
        let error = KernelLine::new(&"x".repeat(MAX_LINE + 1)).finish().unwrap_err().to_string();
        assert!(error.contains("3001 bytes: at most 3000"), "{error}");
    }
}
