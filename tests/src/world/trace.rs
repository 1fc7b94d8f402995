//! The world's story: told, hashed or dropped. Hashing is how the simulator itself is tested: all
//! that any machine was told and wanted goes into the hash, also what is not worth telling.
//! `numbers.rs` has the hash that compares two versions.

use super::numbers::{Numbered, Numbers, Who};
use std::fmt::{self, Debug, Write as _};
use std::hash::{DefaultHasher, Hasher};

/// What becomes of the story.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Story {
    Dropped,
    /// To the last word.
    Hashed,
    /// As numbers alone, which stay what they are when words change.
    Numbered,
    /// In plain words; each line goes to standard output as it happens.
    Told,
    /// Kept, for tests.
    Kept,
}

#[derive(Debug)]
pub(crate) struct Trace {
    story: Story,
    hasher: DefaultHasher,
    numbers: Numbers,
    kept: Vec<String>,
}

impl Trace {
    pub(crate) fn new(story: Story) -> Self {
        // DefaultHasher::new() has fixed keys: the same story has the same hash in every process.
        Self {
            story,
            hasher: DefaultHasher::new(),
            numbers: Numbers::default(),
            kept: Vec::new(),
        }
    }

    pub(crate) fn line(&mut self, now: u64, text: impl FnOnce() -> String) {
        match self.story {
            Story::Dropped | Story::Numbered => {}
            Story::Hashed => {
                self.hasher.write_u64(now);
                self.hasher.write(text().as_bytes());
            }
            Story::Told | Story::Kept => self.tell(now, &text()),
        }
    }

    /// What a machine was told or wants. `words`: None when nobody would care to hear it.
    pub(crate) fn machine<T: Debug + Numbered>(
        &mut self,
        now: u64,
        who: Who,
        value: &T,
        words: impl FnOnce() -> Option<String>,
    ) {
        self.number(now, who, value);
        self.value(now, value, words);
    }

    /// Of what crosses no edge of a machine in one value: its numbers.
    pub(crate) fn number(&mut self, now: u64, who: Who, value: &impl Numbered) {
        if matches!(self.story, Story::Hashed | Story::Numbered) {
            self.numbers.put(now);
            who.number(&mut self.numbers);
            value.number(&mut self.numbers);
        }
    }

    pub(crate) fn value(
        &mut self,
        now: u64,
        value: &impl Debug,
        words: impl FnOnce() -> Option<String>,
    ) {
        match self.story {
            Story::Dropped | Story::Numbered => {}
            Story::Hashed => {
                self.hasher.write_u64(now);
                write!(Ink(&mut self.hasher), "{value:?}").expect("a hash takes everything");
            }
            Story::Told | Story::Kept => {
                if let Some(words) = words() {
                    self.tell(now, &words);
                }
            }
        }
    }

    fn tell(&mut self, now: u64, text: &str) {
        let line = format!("{:>9.3} s  {text}", now as f64 / 1000.0);
        if self.story == Story::Kept {
            self.kept.push(line);
        } else {
            println!("{line}");
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    /// Of all numbers so far.
    pub(crate) fn numbers(&self) -> u64 {
        self.numbers.value()
    }

    pub(crate) fn take_kept(&mut self) -> Vec<String> {
        std::mem::take(&mut self.kept)
    }
}

/// Text that goes straight into a hash.
struct Ink<'a>(&'a mut DefaultHasher);

impl fmt::Write for Ink<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}
