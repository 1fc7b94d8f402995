//! Lines for users. They never panic, unlike the macros of the standard library.

use crate::log;
use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

/// The exit code of a command whose reader has left (`… | head -1`): that of a program which
/// SIGPIPE kills, so that shells treat it alike.
pub const READER_GONE: i32 = 141;

/// Prints a line to stdout, for instance a result. Ends the process if nobody can read it.
#[macro_export]
macro_rules! outln {
    ($($text:tt)*) => {
        $crate::print::out(format_args!($($text)*))
    };
}

/// Prints a line to stderr, for instance a remark. Goes on if nobody can read it.
#[macro_export]
macro_rules! errln {
    ($($text:tt)*) => {
        { $crate::print::err(format_args!($($text)*)); }
    };
}

/// Prints a line to stdout. If the reader has left, the process ends quietly with [`READER_GONE`];
/// if there is no room, with a message and exit code 1.
pub fn out(text: Arguments<'_>) {
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
