//! A daemon's log on standard error. A thread of its own writes it, so that a reader that has
//! stopped reading (a terminal after Ctrl-S, a stuck collector) does not stop the daemon. Lines
//! that cannot be written are counted, and the number is logged with the next line that can.

use crate::fields::Fields;
use crate::recent;
use crate::terminal;
use proto::printable::printable_json;
use proto::settings::{Log, LogFormat};
use std::collections::VecDeque;
use std::fmt::Arguments;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait for the reader. Beyond this new lines are lost.
const WAITING_BYTES_MAX: usize = 4 << 20;
/// How long the end of a daemon waits for its log.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// The log of this process, if it is a daemon.
static LOG: OnceLock<Arc<Queue>> = OnceLock::new();

/// Starts the log of a daemon. Later calls change nothing.
///
/// # Errors
/// No thread can be started.
///
/// # Panics
/// If another logger was installed before.
pub fn start(log: &Log) -> std::io::Result<()> {
    let queue = Arc::new(Queue::default());
    if LOG.set(Arc::clone(&queue)).is_err() {
        return Ok(());
    }
    let sink = Sink {
        to: [
            Box::new(std::io::stdout()) as Box<dyn Write + Send>,
            Box::new(std::io::stderr()),
        ],
        torn: [false; 2],
        format: log.format,
    };
    let writer = Arc::clone(&queue);
    std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || write_all(&writer, sink))?;
    let filter = EnvFilter::new(&log.filter);
    let format = log.format;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Writer { queue, format });
    match format {
        LogFormat::Text => subscriber
            .fmt_fields(Fields)
            .with_ansi(terminal::has_colours())
            .init(),
        LogFormat::Json => subscriber.json().init(),
    }
    Ok(())
}

/// Logs plain lines to standard error, for a rank: its daemon adds rank and time, and always reads.
///
/// # Panics
/// If another logger was installed before.
pub fn start_plain() {
    tracing_subscriber::fmt()
        .fmt_fields(Fields)
        .with_writer(|| Ignoring(std::io::stderr()))
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .init();
}

/// Prints the line of stdout with which a daemon announces itself. Lost if nobody reads it.
pub fn announce(text: Arguments<'_>) {
    if let Some(queue) = LOG.get() {
        queue.push(Stream::Out, format!("{text}\n").into_bytes());
    }
}

/// Adds lines to the log, which must be escaped already. False if this process has none.
pub(crate) fn line(text: Arguments<'_>) -> bool {
    let Some(queue) = LOG.get() else { return false };
    recent::add(text.to_string().as_bytes());
    queue.push(Stream::Err, format!("{text}\n").into_bytes());
    true
}

/// Waits until the log is written, but not for a reader that has stopped reading. Call it last.
pub fn flush() {
    if let Some(queue) = LOG.get() {
        queue.flush(FLUSH_WITHIN);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Out,
    Err,
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<(Stream, Vec<u8>)>,
    /// Their total length.
    bytes: usize,
    /// The thread is writing a line that it has taken out.
    is_writing: bool,
    /// Lines lost since the last one that was written.
    lost: u64,
}

impl Queue {
    fn push(&self, stream: Stream, line: Vec<u8>) {
        let mut state = self.lock();
        if WAITING_BYTES_MAX < state.bytes + line.len() {
            state.lost += 1;
            return;
        }
        state.bytes += line.len();
        state.lines.push_back((stream, line));
        drop(state);
        self.changed.notify_all();
    }

    fn flush(&self, within: Duration) {
        let is_busy = |state: &mut State| state.is_writing || !state.lines.is_empty();
        // The result says whether time ran out; either way the process ends now.
        drop(
            self.changed
                .wait_timeout_while(self.lock(), within, is_busy),
        );
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a line. Also returns the number of lines that were lost before it.
    fn take(&self) -> (Stream, Vec<u8>, u64) {
        let mut state = self.lock();
        loop {
            if let Some((stream, line)) = state.lines.pop_front() {
                state.bytes -= line.len();
                state.is_writing = true;
                return (stream, line, state.lost);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The line was written, and the number of lines that were lost before it is known; or it is
    /// lost, too.
    fn done(&self, written: bool, told: u64) {
        let mut state = self.lock();
        state.is_writing = false;
        state.lost = if written {
            state.lost.saturating_sub(told)
        } else {
            state.lost + 1
        };
        drop(state);
        self.changed.notify_all();
    }
}

/// The body of the thread.
fn write_all(queue: &Queue, mut sink: Sink) {
    loop {
        let (stream, line, lost) = queue.take();
        // Only the log tells of lost lines; stdout carries one line that scripts read.
        let told = if stream == Stream::Err { lost } else { 0 };
        let written = sink.write(stream, &line, told);
        queue.done(written, told);
    }
}

struct Sink {
    to: [Box<dyn Write + Send>; 2],
    /// Whether the last line was written in part.
    torn: [bool; 2],
    format: LogFormat,
}

impl Sink {
    fn write(&mut self, stream: Stream, line: &[u8], lost: u64) -> bool {
        let index = usize::from(stream == Stream::Err);
        let mut text = Vec::with_capacity(line.len());
        if self.torn[index] {
            text.push(b'\n');
        }
        if 0 < lost {
            text.extend_from_slice(lost_line(self.format, lost).as_bytes());
        }
        text.extend_from_slice(line);
        let written = write_counted(&mut *self.to[index], &text);
        if 0 < written {
            self.torn[index] = text[written - 1] != b'\n';
        }
        written == text.len()
    }
}

/// Writes as much as possible; returns the number of bytes.
fn write_counted(to: &mut dyn Write, text: &[u8]) -> usize {
    let mut written = 0;
    while written < text.len() {
        match to.write(&text[written..]) {
            Ok(0) => break,
            Ok(count) => written += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    // Stdout has a buffer.
    match to.flush() {
        Ok(()) => written,
        Err(_) => 0,
    }
}

fn lost_line(format: LogFormat, lost: u64) -> String {
    let why = "lines of this log were lost, because nobody read it or it had no room";
    match format {
        LogFormat::Text => format!("WARN {lost} {why}\n"),
        LogFormat::Json => {
            format!("{{\"level\":\"WARN\",\"fields\":{{\"message\":\"{why}\",\"lost\":{lost}}}}}\n")
        }
    }
}

/// Gives the lines of `tracing` to the thread, one whole line per call.
#[derive(Debug, Clone)]
struct Writer {
    queue: Arc<Queue>,
    format: LogFormat,
}

impl Write for Writer {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let shown = match self.format {
            // Its fields are escaped where they are formatted.
            LogFormat::Text => line.to_vec(),
            LogFormat::Json => {
                let text = String::from_utf8_lossy(line);
                printable_json(&text).into_owned().into_bytes()
            }
        };
        recent::add(&shown);
        self.queue.push(Stream::Err, shown);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Writer {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Reports every write as done: `tracing` would print an error to the same stream, and panic.
struct Ignoring<W>(W);

impl<W: Write> Write for Ignoring<W> {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.write_all(line).ok();
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush().ok();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    /// A stream that takes this many more bytes, then has no room.
    #[derive(Debug, Clone, Default)]
    struct Disk(Arc<Mutex<(Vec<u8>, usize)>>);

    impl Disk {
        fn set_room(&self, room: usize) {
            self.0.lock().expect("no panic before").1 = room;
        }

        fn text(&self) -> String {
            let content = self.0.lock().expect("no panic before").0.clone();
            String::from_utf8(content).expect("the log is text")
        }
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let mut disk = self.0.lock().expect("no panic before");
            let count = bytes.len().min(disk.1);
            if count == 0 {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            disk.1 -= count;
            disk.0.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn sink(disk: &Disk, format: LogFormat) -> Sink {
        Sink {
            to: [Box::new(std::io::sink()), Box::new(disk.clone())],
            torn: [false; 2],
            format,
        }
    }

    #[test]
    fn lost_lines_are_counted_and_said_when_there_is_room_again() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let (disk, queue) = (Disk::default(), Queue::default());
            let mut sink = sink(&disk, format);
            let mut write = |text: &str| {
                queue.push(Stream::Err, text.as_bytes().to_vec());
                let (stream, line, lost) = queue.take();
                let written = sink.write(stream, &line, lost);
                queue.done(written, lost);
            };
            disk.set_room(10);
            write("first\n");
            // Written in part.
            write("second\n");
            write("third\n");
            disk.set_room(1000);
            write("fourth\n");
            write("fifth\n");
            let said = lost_line(format, 2);
            let expected = format!("first\nseco\n{said}fourth\nfifth\n");
            assert_eq!(disk.text(), expected, "{format:?}");
        }
    }

    /// A stream whose reader reads nothing until it is told to.
    struct Stuck(Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.recv().ok();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stops_reading_costs_lines_and_no_time() {
        let (go_on, stuck): (SyncSender<()>, _) = sync_channel(0);
        let queue = Arc::new(Queue::default());
        let sink = Sink {
            to: [Box::new(std::io::sink()), Box::new(Stuck(stuck))],
            torn: [false; 2],
            format: LogFormat::Text,
        };
        let writer = Arc::clone(&queue);
        std::thread::spawn(move || write_all(&writer, sink));
        let line = vec![b'x'; WAITING_BYTES_MAX / 4];
        for _ in 0..9 {
            queue.push(Stream::Err, line.clone());
        }
        // One may be in the thread's hand, four wait, the others are lost.
        let lost = queue.lock().lost;
        assert!((4..=5).contains(&lost), "{lost}");
        queue.flush(Duration::ZERO);
        // The reader goes on: everything that waits is written.
        drop(go_on);
        queue.flush(Duration::from_secs(600));
        let state = queue.lock();
        assert!(state.lines.is_empty() && state.bytes == 0 && !state.is_writing);
    }

    #[test]
    fn json_lines_keep_their_values_and_show_no_marks() {
        const HOSTILE: &str = "\u{1b}]0;owned\u{7}w9\r\nERROR forged\u{202e}";
        let queue = Arc::new(Queue::default());
        let writer = Writer {
            queue: Arc::clone(&queue),
            format: LogFormat::Json,
        };
        let subscriber = tracing_subscriber::fmt()
            .json()
            .with_writer(writer)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(worker = %HOSTILE, "hello {HOSTILE}");
        });
        let (_, line, _) = queue.take();
        let text = String::from_utf8(line).expect("the log is text");
        assert_eq!(text.matches('\n').count(), 1, "{text:?}");
        assert!(
            !text.contains('\u{202e}') && text.contains("\\u202e"),
            "{text}"
        );
        let line: serde_json::Value = serde_json::from_str(&text).expect("the log is JSON");
        assert_eq!(line["fields"]["worker"], HOSTILE);
    }
}
