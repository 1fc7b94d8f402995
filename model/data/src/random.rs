//! Law 2: every random number of a sample is a pure function of (seed, epoch, sample, purpose).
//! Each purpose has its own generator, so an additional random number for one purpose does not
//! change another, and a sample does not depend on a rank's history.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// The purpose of a random stream. The numbers are part of the meaning of a seed: never reuse or
/// change one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    Timestep = 1,
    Noise = 2,
    Crop = 3,
    Pad = 4,
    ReferenceChoice = 5,
    Concept = 6,
    PromptDrop = 7,
    Task = 8,
    /// The autoencoder's sample from its posterior.
    Latent = 9,
    /// The random transform of the target, in pairing a.
    TargetTransform = 10,
    /// The random transforms of the references, in pairing a.
    ReferenceTransform = 11,
    ReferenceDrop = 12,
    /// The image of an object: noise around it, and its augmentations.
    ObjectView = 14,
    /// Whether training keeps a sample's object.
    ObjectKeep = 15,
    /// The order of the tags in a prompt.
    PromptOrder = 13,
    /// Whether the tags of looks are left out of a prompt.
    LooksDrop = 16,
}

/// The random stream of one sample for one purpose. `sample` is the position in the data set,
/// `epoch` 0-based.
#[must_use]
pub fn random(seed: u64, epoch: u64, sample: u64, purpose: Purpose) -> ChaCha8Rng {
    let mut hash = Sha256::new();
    hash.update(b"retri sample stream 1");
    for number in [seed, epoch, sample, purpose as u64] {
        hash.update(number.to_le_bytes());
    }
    ChaCha8Rng::from_seed(hash.finalize().into())
}

/// A 64-bit hash of a seed and words, for choices by name (for example of held-out characters).
#[must_use]
pub fn hash_words(seed: u64, words: &[&str]) -> u64 {
    let mut hash = Sha256::new();
    hash.update(b"retri words 1");
    hash.update(seed.to_le_bytes());
    for word in words {
        hash.update((word.len() as u64).to_le_bytes());
        hash.update(word.as_bytes());
    }
    let digest = hash.finalize();
    u64::from_le_bytes(digest[..8].try_into().expect("a SHA-256 has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngCore;

    #[test]
    fn each_argument_changes_the_stream_and_equal_arguments_repeat_it() {
        let first = |seed, epoch, sample, purpose| random(seed, epoch, sample, purpose).next_u64();
        let base = first(1, 2, 3, Purpose::Noise);
        assert_eq!(base, first(1, 2, 3, Purpose::Noise));
        let others = [
            first(2, 2, 3, Purpose::Noise),
            first(1, 3, 3, Purpose::Noise),
            first(1, 2, 4, Purpose::Noise),
            first(1, 2, 3, Purpose::Pad),
            first(1, 3, 2, Purpose::Noise),
        ];
        assert!(others.iter().all(|o| *o != base), "{others:?}");
    }

    #[test]
    fn the_stream_is_pinned_so_that_old_jobs_can_be_reproduced() {
        assert_eq!(
            random(7, 0, 42, Purpose::Timestep).next_u64(),
            9_553_407_906_246_695_317
        );
        assert_ne!(hash_words(1, &["ab", "c"]), hash_words(1, &["a", "bc"]));
    }
}
