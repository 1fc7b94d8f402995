//! The trace of a world: printed, hashed or dropped. The hash covers every input and effect of
//! every machine, also those that are not printed; it shows that the simulator is deterministic.
//! `stable_hash` has the hash that compares two versions of the code.

use super::stable_hash::{Actor, StableHash, StableHasher};
use std::fmt::{self, Debug, Write as _};
use std::hash::{DefaultHasher, Hasher};

/// What happens to the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceMode {
    Off,
    /// Every input, effect and line, as text.
    Hashed,
    /// Only ids, kinds and numbers: the hash does not change when something is renamed.
    StablyHashed,
    /// Each line goes to standard output at once.
    Printed,
    /// Lines are collected, for tests.
    Collected,
}

#[derive(Debug)]
pub(crate) struct Trace {
    mode: TraceMode,
    hasher: DefaultHasher,
    stable_hasher: StableHasher,
    lines: Vec<String>,
}

impl Trace {
    pub(crate) fn new(mode: TraceMode) -> Self {
        // DefaultHasher::new() has fixed keys: the same trace has the same hash in every process.
        Self {
            mode,
            hasher: DefaultHasher::new(),
            stable_hasher: StableHasher::default(),
            lines: Vec::new(),
        }
    }

    pub(crate) fn line(&mut self, now: u64, text: impl FnOnce() -> String) {
        match self.mode {
            TraceMode::Off | TraceMode::StablyHashed => {}
            TraceMode::Hashed => {
                self.hasher.write_u64(now);
                self.hasher.write(text().as_bytes());
            }
            TraceMode::Printed | TraceMode::Collected => self.emit(now, &text()),
        }
    }

    /// An input or an effect of a machine. `text`: None if it is not worth a line.
    pub(crate) fn machine<T: Debug + StableHash>(
        &mut self,
        now: u64,
        actor: Actor,
        value: &T,
        text: impl FnOnce() -> Option<String>,
    ) {
        self.record(now, actor, value);
        self.value(now, value, text);
    }

    /// Adds to the stable hash what is not a single input or effect of a machine.
    pub(crate) fn record(&mut self, now: u64, actor: Actor, value: &impl StableHash) {
        if matches!(self.mode, TraceMode::Hashed | TraceMode::StablyHashed) {
            self.stable_hasher.put(now);
            actor.stable_hash(&mut self.stable_hasher);
            value.stable_hash(&mut self.stable_hasher);
        }
    }

    pub(crate) fn value(
        &mut self,
        now: u64,
        value: &impl Debug,
        text: impl FnOnce() -> Option<String>,
    ) {
        match self.mode {
            TraceMode::Off | TraceMode::StablyHashed => {}
            TraceMode::Hashed => {
                self.hasher.write_u64(now);
                write!(HashWriter(&mut self.hasher), "{value:?}")
                    .expect("writing to a hasher cannot fail");
            }
            TraceMode::Printed | TraceMode::Collected => {
                if let Some(text) = text() {
                    self.emit(now, &text);
                }
            }
        }
    }

    fn emit(&mut self, now: u64, text: &str) {
        let line = format!("{:>9.3} s  {text}", now as f64 / 1000.0);
        if self.mode == TraceMode::Collected {
            self.lines.push(line);
        } else {
            println!("{line}");
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    /// The stable hash of everything so far.
    pub(crate) fn stable_hash(&self) -> u64 {
        self.stable_hasher.value()
    }

    pub(crate) fn take_lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }
}

/// Writes text straight into a hasher.
struct HashWriter<'a>(&'a mut DefaultHasher);

impl fmt::Write for HashWriter<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}
