//! Communication between ranks: a safe interface to libtorch's c10d. Beside [`crate::stacks`] the
//! only folder with `unsafe` code; each block states why it is sound. Makes no decisions:
//! [`crate::train`] does. Every failure is a [`CollectiveError`].
#![allow(unsafe_code)]

pub(crate) mod device;
mod ffi;
mod group;
pub(crate) mod network;
pub(crate) mod precision;
pub(crate) mod recorder;
mod store;

pub(crate) use group::{Aborter, Group, Membership};
pub(crate) use store::Store;

use std::ffi::CStr;

/// The action that failed, and the first line of libtorch's message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{action}: {reason}")]
pub(crate) struct CollectiveError {
    pub(crate) action: String,
    pub(crate) reason: String,
}

impl CollectiveError {
    /// Reads the message of the last failed shim call on this thread.
    fn last(action: impl Into<String>) -> Self {
        // SAFETY: the shim returns a pointer to a thread-local string that lives until this
        // thread's next shim call.
        let text = unsafe { CStr::from_ptr(ffi::retri_error()) };
        Self {
            action: action.into(),
            reason: first_line(&text.to_string_lossy()).to_owned(),
        }
    }
}

/// libtorch's messages carry a C++ stack after their first line.
pub(crate) fn first_line(message: &str) -> &str {
    let line = message
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("no message")
        .trim();
    line.strip_prefix("Internal torch error: ").unwrap_or(line)
}

/// Exits the process at once, from any thread, without destructors: those of c10d would wait for
/// peers that may have exited.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` takes any code and does not return.
    unsafe { ffi::retri_exit(code) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stack_of_a_message_is_cut() {
        assert_eq!(
            first_line("\nConnection closed by peer [127.0.0.1]:1\nException raised from x"),
            "Connection closed by peer [127.0.0.1]:1"
        );
        assert_eq!(first_line(""), "no message");
    }
}
