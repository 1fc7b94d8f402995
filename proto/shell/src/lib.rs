//! What all programs share at their edge to the operating system: the log of a daemon, lines for
//! users, signals, and what the terminal can show.
//!
//! Two rules hold here, so that they hold everywhere. A program never panics and never hangs
//! because its output has no reader or no room: daemons go on without a log, and commands end
//! quietly. A daemon can be stopped at any moment, also before it is ready.

pub mod exposition;
mod fields;
pub mod log;
pub mod print;
pub mod recent;
pub mod signals;
pub mod terminal;
pub mod threads;
