//! How the log shows fields: whatever a field or message contains, an event is one line, and
//! nothing in it moves the cursor or turns the reading direction; see [`proto::printable`].

use proto::printable::Printable;
use std::fmt::{self, Debug};
use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::{FormatFields, Writer};

/// Formats fields as `message key=value`, like the library's own format, but in one line.
#[derive(Debug)]
pub(crate) struct Fields;

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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{self, Write};
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
}
