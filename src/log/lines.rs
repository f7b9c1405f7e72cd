//! The last stop of a log line: one event is one line, whatever the store, a config or a name in it holds.

use super::quote::{self, quote_most};
use std::borrow::Cow;
use std::io::{self, Write};

/// At most this many characters of a line are written. The errors of several endpoints fit, a whole page does not.
const MOST: usize = 4096;
const _: () = assert!(MOST >= 16 * quote::MOST);

/// Writes lines to `W`, one in each call. It escapes control characters and cuts a line that is too long.
#[derive(Debug)]
pub struct LogLines<W>(pub W);

impl<W: Write> Write for LogLines<W> {
    /// Takes one whole line, as the log's formatter hands it over.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_all(fit(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The line as it may be written.
fn fit(line: &str) -> Cow<'_, str> {
    let text = line.strip_suffix('\n').unwrap_or(line);
    if text.len() <= MOST && !text.contains(char::is_control) {
        return Cow::Borrowed(line);
    }
    Cow::Owned(quote_most(text, MOST) + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_it_says() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let handle = file.as_file().try_clone().unwrap();
        let writer = move || LogLines(handle.try_clone().unwrap());
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(writer);
        tracing::subscriber::with_default(log.finish(), || {
            let name = "a\n2026-01-01 ERROR all is lost\x1b[2J";
            tracing::info!("network {name}: starting");
            tracing::warn!(reason = %"x".repeat(1 << 20), "odd");
            tracing::info!("plain \"text\" \\ ü");
        });
        let text = std::fs::read_to_string(file.path()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(!text.contains('\x1b') && lines[0].contains(r"network a\n2026-01-01 ERROR"), "{text}");
        assert!(
            lines[1].chars().count() == MOST + 1 && lines[1].contains("odd reason=xxx"),
            "{}",
            lines[1].len()
        );
        assert!(lines[2].ends_with("plain \"text\" \\ ü"), "{text}");
    }
}
