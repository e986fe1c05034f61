//! What a test finds in the kernel's log.

use alloc::string::String;

/// The last report whose first line has `words`: that line and those of the report after it, as one line. Long lines of a
/// report continue behind a `…`, which is left out.
pub(crate) fn last_report(words: &str) -> String {
    let (mut report, mut inside) = (String::new(), false);
    sync::log::for_each_line(|line| {
        let line = String::from_utf8_lossy(line);
        let text = line.split_once("] ").map_or(&*line, |(_, text)| text);
        if text.contains(words) {
            report.clear();
            inside = true;
        } else if !text.starts_with("  ") && !text.starts_with('…') {
            inside = false;
        }
        if inside {
            report.push_str(text.trim_start_matches('…'));
        }
    });
    report
}
