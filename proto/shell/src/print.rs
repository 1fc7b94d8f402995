//! Lines for users. They never panic, unlike the macros of the standard library, and what they show
//! cannot lie: values come from job files, data sets and workers, so everything is escaped here
//! ([`proto::printable`]).

use crate::log;
use proto::printable::{Printable, printable_lines};
use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

/// The exit code of a command whose reader has left (`… | head -1`): that of a program which
/// SIGPIPE kills, so that shells treat it alike.
pub const READER_GONE: i32 = 141;

/// Prints exactly one line to stdout, whatever its values contain, for instance a result. Ends the
/// process if nobody can read it.
#[macro_export]
macro_rules! outln {
    ($($text:tt)*) => {
        $crate::print::out(format_args!($($text)*))
    };
}

/// Prints exactly one line to stderr, whatever its values contain, for instance a remark. Goes on
/// if nobody can read it.
#[macro_export]
macro_rules! errln {
    ($($text:tt)*) => {
        { $crate::print::err(format_args!($($text)*)); }
    };
}

/// Prints a line to stdout. If the reader has left, the process ends quietly with [`READER_GONE`];
/// if there is no room, with a message and exit code 1.
pub fn out(text: Arguments<'_>) {
    write_out(format_args!("{}", Printable(text)));
}

/// As [`out`], for a text that has lines of its own, such as a table. Its values must be escaped
/// already, so that none of them adds a line.
pub fn out_lines(text: &str) {
    write_out(format_args!("{}", printable_lines(text)));
}

/// Replaces what the terminal at stdout shows with these lines, which must fit into it.
pub fn redraw(lines: &[String]) {
    let lines: Vec<String> = lines
        .iter()
        .map(|line| Printable(line).to_string())
        .collect();
    let mut stdout = std::io::stdout().lock();
    // Home; each line, and nothing after it; nothing below.
    let page = format!("\u{1b}[H{}\u{1b}[K\u{1b}[J", lines.join("\u{1b}[K\r\n"));
    let written = stdout
        .write_all(page.as_bytes())
        .and_then(|()| stdout.flush());
    if written.is_err() {
        std::process::exit(READER_GONE);
    }
}

fn write_out(text: Arguments<'_>) {
    let mut stdout = std::io::stdout().lock();
    let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    let Err(error) = written else { return };
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(READER_GONE);
    }
    err(format_args!(
        "error: cannot write to standard output: {error}"
    ));
    std::process::exit(1);
}

/// Prints a line to stderr, in a daemon through its log. Returns whether somebody may have read it:
/// false if the reader has left.
pub fn err(text: Arguments<'_>) -> bool {
    write_err(format_args!("{}", Printable(text)))
}

/// As [`err`], for a text that has lines of its own, such as an error with a list.
pub fn err_lines(text: &str) -> bool {
    write_err(format_args!("{}", printable_lines(text)))
}

fn write_err(text: Arguments<'_>) -> bool {
    if log::line(text) {
        return true;
    }
    // One write, so that lines of several processes do not mix.
    let line = format!("{text}\n");
    match std::io::stderr().lock().write_all(line.as_bytes()) {
        Ok(()) => true,
        Err(error) => error.kind() != ErrorKind::BrokenPipe,
    }
}
