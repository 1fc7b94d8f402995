//! Reads lines of other processes with a bound on their length: a process that never ends its line
//! must not take the daemon's memory. Used by [`crate::child`].

use proto::limits::cut;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// A line without its line break, and how much of it did not fit.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct RawLine {
    pub(crate) bytes: Vec<u8>,
    pub(crate) dropped: usize,
}

impl RawLine {
    /// At most this many bytes of text; says if it was cut.
    pub(crate) fn text(&self, limit: usize) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        let text = text.trim_end();
        match self.dropped {
            0 => cut(text, limit),
            dropped => {
                let note = format!(" … (cut: it has {} bytes)", self.bytes.len() + dropped);
                let mut end = limit.saturating_sub(note.len()).min(text.len());
                while !text.is_char_boundary(end) {
                    end -= 1;
                }
                format!("{}{note}", &text[..end])
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct LineReader<R> {
    reader: BufReader<R>,
    limit: usize,
    line: RawLine,
}

impl<R: AsyncRead + Unpin> LineReader<R> {
    /// `limit`: bytes of a line that are kept.
    pub(crate) fn new(reader: R, limit: usize) -> Self {
        Self {
            reader: BufReader::new(reader),
            limit,
            line: RawLine::default(),
        }
    }

    /// The next line; None at the end. May be cancelled: what was read is kept for the next call.
    pub(crate) async fn next(&mut self) -> std::io::Result<Option<RawLine>> {
        loop {
            let available = self.reader.fill_buf().await?;
            if available.is_empty() {
                let line = std::mem::take(&mut self.line);
                return Ok(Some(line).filter(|line| !line.bytes.is_empty()));
            }
            let end = available.iter().position(|byte| *byte == b'\n');
            let part = &available[..end.unwrap_or(available.len())];
            let room = self.limit.saturating_sub(self.line.bytes.len());
            let kept = room.min(part.len());
            self.line.bytes.extend_from_slice(&part[..kept]);
            self.line.dropped += part.len() - kept;
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                return Ok(Some(std::mem::take(&mut self.line)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn long_lines_are_cut_and_the_next_one_is_whole() {
        let text = format!("one\n{}\n\nlast", "x".repeat(100));
        let mut lines = LineReader::new(text.as_bytes(), 40);
        let mut next = async || lines.next().await.unwrap().map(|line| line.text(40));
        assert_eq!(next().await.unwrap(), "one");
        let long = next().await.unwrap();
        assert_eq!(
            long,
            format!("{} … (cut: it has 100 bytes)", "x".repeat(12))
        );
        assert_eq!(next().await.unwrap(), "");
        assert_eq!(next().await.unwrap(), "last");
        assert_eq!(next().await, None);
    }
}
