//! The world's story: kept, hashed or dropped. Hashing the whole story is how the simulator itself is tested.

use std::hash::{DefaultHasher, Hasher};

/// What becomes of the story.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Story {
    Dropped,
    Hashed,
    /// Each line goes to standard output as it happens.
    Told,
}

#[derive(Debug)]
pub(crate) struct Trace {
    story: Story,
    hasher: DefaultHasher,
}

impl Trace {
    pub(crate) fn new(story: Story) -> Self {
        // DefaultHasher::new() has fixed keys: the same story has the same hash in every process.
        Self {
            story,
            hasher: DefaultHasher::new(),
        }
    }

    pub(crate) fn line(&mut self, now: u64, text: impl FnOnce() -> String) {
        match self.story {
            Story::Dropped => {}
            Story::Hashed => {
                self.hasher.write_u64(now);
                self.hasher.write(text().as_bytes());
            }
            Story::Told => println!("{:>9.3} {}", now as f64 / 1000.0, text()),
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hasher.finish()
    }
}
