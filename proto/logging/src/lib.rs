//! Logs on standard error, for the three programs. Whatever a field or message contains, an event
//! is one line, and nothing in it moves the cursor or turns the reading direction: see
//! [`proto::printable`].

use proto::printable::{Printable, printable_json};
use proto::settings::{Log, LogFormat};
use std::fmt::{self, Debug};
use std::io::{self, IsTerminal, Write};
use tracing::field::{Field, Visit};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::{FormatFields, Writer};

/// Starts the log of a daemon, as its settings say.
///
/// # Panics
/// If the process has a log already.
pub fn start(log: &Log) {
    let filter = EnvFilter::new(&log.filter);
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter);
    match log.format {
        LogFormat::Text => subscriber
            .fmt_fields(Fields)
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .init(),
        LogFormat::Json => subscriber
            .json()
            .with_writer(|| JsonLines(io::stderr()))
            .init(),
    }
}

/// Starts the log of a rank: plain lines. The daemon, which reads them, adds rank and time.
///
/// # Panics
/// If the process has a log already.
pub fn start_plain() {
    tracing_subscriber::fmt()
        .fmt_fields(Fields)
        .with_writer(io::stderr)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .init();
}

/// Formats fields as `message key=value`, like the library's own format, but in one line.
#[derive(Debug)]
struct Fields;

impl<'writer> FormatFields<'writer> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut line = Line {
            writer,
            is_first: true,
            result: Ok(()),
        };
        fields.record(&mut line);
        line.result
    }
}

struct Line<'writer> {
    writer: Writer<'writer>,
    is_first: bool,
    result: fmt::Result,
}

impl Line<'_> {
    fn write(&mut self, name: &str, value: &dyn Debug) -> fmt::Result {
        if !std::mem::take(&mut self.is_first) {
            self.writer.write_char(' ')?;
        }
        let value = Printable(format_args!("{value:?}")).to_string();
        let is_ansi = self.writer.has_ansi_escapes();
        match (name.strip_prefix("r#").unwrap_or(name), is_ansi) {
            ("message", _) => self.writer.write_str(&value),
            (name, true) => write!(
                self.writer,
                "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m{value}"
            ),
            (name, false) => write!(self.writer, "{name}={value}"),
        }
    }
}

impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Fields with this prefix repeat, for the crate `log`, what the line says already.
        if self.result.is_ok() && !field.name().starts_with("log.") {
            self.result = self.write(field.name(), value);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.record_debug(field, &format_args!("{value}"));
        } else {
            self.record_debug(field, &value);
        }
    }
}

/// Passes JSON lines on, one whole line per call.
struct JsonLines<W>(W);

impl<W: Write> Write for JsonLines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        self.0.write_all(printable_json(&text).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::{Arc, Mutex};

    const HOSTILE: &str = "\u{1b}]0;owned\u{7}w9\r\n2026-01-01 ERROR forged\u{202e}";

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Buffer {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn emit() {
        let error = io::Error::other(HOSTILE);
        let _span = tracing::info_span!("from", peer = HOSTILE).entered();
        tracing::info!(worker = %HOSTILE, name = HOSTILE, error = &error as &dyn std::error::Error,
            count = 3, "hello {HOSTILE}");
    }

    #[test]
    fn an_event_is_one_line_whatever_its_fields_hold() {
        for ansi in [false, true] {
            let buffer = Buffer::default();
            let writer = buffer.clone();
            let subscriber = tracing_subscriber::fmt()
                .fmt_fields(Fields)
                .with_ansi(ansi)
                .with_writer(move || writer.clone())
                .finish();
            tracing::subscriber::with_default(subscriber, emit);
            let text = buffer.text();
            assert_eq!(text.matches('\n').count(), 1, "{text:?}");
            assert!(!text.contains(['\r', '\u{7}', '\u{202e}']), "{text:?}");
            assert!(!text.contains("\u{1b}]0"), "{text:?}");
            let shown = r"\u{1b}]0;owned\u{7}w9\r\n2026-01-01 ERROR forged\u{202e}";
            assert_eq!(text.matches(shown).count(), 5, "{text}");
            assert!(text.contains(&format!("hello {shown}")), "{text}");
            assert!(
                ansi || text.contains(&format!(" worker={shown} ")),
                "{text}"
            );
            assert!(ansi || text.ends_with(" count=3\n"), "{text}");
        }
    }

    #[test]
    fn json_lines_keep_their_values_and_show_no_marks() {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .with_writer(move || JsonLines(writer.clone()))
            .finish();
        tracing::subscriber::with_default(subscriber, emit);
        let text = buffer.text();
        assert_eq!(text.matches('\n').count(), 1, "{text:?}");
        assert!(
            !text.contains('\u{202e}') && text.contains("\\u202e"),
            "{text}"
        );
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["fields"]["worker"], HOSTILE);
    }
}
