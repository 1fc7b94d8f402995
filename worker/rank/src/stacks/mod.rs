//! Where every thread of this process is, with the functions of libtorch: for `coordinator stacks`.
//! A thread is interrupted for as long as its stack is walked. Beside [`crate::collective`] the
//! only folder with `unsafe` code.
#![allow(unsafe_code)]

use proto::probe::{Stacks, Thread};
use shell::threads;
use std::ffi::{c_int, c_void};
use std::sync::Mutex;

/// Innermost frames that are shown.
const FRAMES: usize = 96;
/// How long one thread may take to answer.
const WITHIN_MS: c_int = 300;
/// Characters of a function's name; C++ templates have long ones.
const NAME_CHARS: usize = 300;

unsafe extern "C" {
    fn retri_stacks_prepare() -> c_int;
    fn retri_stack(thread: c_int, frames: *mut *mut c_void, max: c_int, timeout_ms: c_int)
    -> c_int;
}

/// Walks stacks; one at a time.
#[derive(Debug)]
pub(crate) struct Walker(Mutex<()>);

impl Walker {
    /// Call it before threads are asked.
    ///
    /// # Errors
    /// The signal cannot be caught.
    pub(crate) fn new() -> std::io::Result<Self> {
        // SAFETY: it installs a handler for a signal that nobody else uses, and has no arguments.
        match unsafe { retri_stacks_prepare() } {
            0 => Ok(Self(Mutex::new(()))),
            error => Err(std::io::Error::from_raw_os_error(error)),
        }
    }

    /// All threads but the one that asks.
    pub(crate) fn all(&self) -> Stacks {
        let own = rustix::thread::gettid().as_raw_nonzero().get();
        let (threads, note) = match threads::of_process(std::process::id()) {
            Ok(threads) => (threads, String::new()),
            Err(error) => (Vec::new(), format!("cannot list the threads: {error}")),
        };
        let others = threads.into_iter().filter(|thread| thread.id != own);
        let threads = others.map(|thread| self.walk(thread)).collect();
        // It holds the symbols of libtorch, which are large.
        backtrace::clear_symbol_cache();
        Stacks {
            activity: String::new(),
            threads,
            note,
        }
    }

    fn walk(&self, mut thread: Thread) -> Thread {
        let guard = self.0.lock();
        let mut addresses = [std::ptr::null_mut::<c_void>(); FRAMES];
        let max = c_int::try_from(FRAMES).unwrap_or(c_int::MAX);
        // SAFETY: `addresses` has room for `max` pointers, and the lock keeps others out.
        let count = unsafe { retri_stack(thread.id, addresses.as_mut_ptr(), max, WITHIN_MS) };
        drop(guard);
        let note = match count {
            -1 => "it has ended",
            -2 => "it did not answer: it is stopped, or busy in the kernel",
            -3 => "an earlier thread never answered; nobody is asked any more",
            _ => "",
        };
        note.clone_into(&mut thread.note);
        let count = usize::try_from(count).unwrap_or(0);
        let frames = addresses.iter().take(count).enumerate();
        thread.frames = frames
            .flat_map(|(index, address)| names(*address, index))
            .collect();
        thread
    }
}

/// The function at an address, and those that the compiler merged into it. Outside of the innermost
/// frame the address is that of the next instruction, which may belong to another line.
fn names(address: *mut c_void, index: usize) -> Vec<String> {
    let within = if index == 0 {
        address
    } else {
        address.wrapping_byte_sub(1)
    };
    let mut names = Vec::new();
    backtrace::resolve(within, |symbol| {
        let Some(name) = symbol.name() else { return };
        let mut text: String = format!("{name:#}").chars().take(NAME_CHARS).collect();
        if let (Some(file), Some(line)) = (symbol.filename(), symbol.lineno()) {
            text += &format!(" at {}:{line}", file.display());
        }
        names.push(text);
    });
    if names.is_empty() {
        names.push(format!("{address:p}"));
    }
    names
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::mpsc;

    #[inline(never)]
    fn waits_here_for_a_word(word: &mpsc::Receiver<()>) {
        // Fails when the test has ended.
        word.recv().ok();
        std::hint::black_box(word);
    }

    /// One test, because a process has one handler.
    #[test]
    fn a_waiting_thread_is_found_by_its_name_and_function_and_goes_on() {
        let walker = Walker::new().unwrap();
        let (word, waits) = mpsc::channel();
        let (begun, has_begun) = mpsc::channel();
        let waiting = std::thread::Builder::new()
            .name("patient".into())
            .spawn(move || {
                begun.send(()).unwrap();
                waits_here_for_a_word(&waits);
                7
            });
        let waiting = waiting.unwrap();
        has_begun.recv().unwrap();
        let seen = |thread: &Thread| {
            thread.name == "patient"
                && thread
                    .frames
                    .iter()
                    .any(|it| it.contains("waits_here_for_a_word"))
        };
        // It may not have reached the function yet.
        while !walker.all().threads.iter().any(seen) {
            std::thread::yield_now();
        }
        word.send(()).unwrap();
        assert_eq!(waiting.join().unwrap(), 7);
        let gone = Thread {
            id: i32::MAX,
            ..Thread::default()
        };
        assert_eq!(walker.walk(gone).note, "it has ended");
        assert!(!walker.all().threads.iter().any(|it| it.name == "patient"));
    }
}
