//! Which characters training never shows, so that sampling can draw what the model has not seen. By
//! a hash of the name: the same answer on every rank and after every restart, and independent of
//! the order of the data set.

use crate::random::hash_words;

/// Whether all pictures of `character` are kept out of training. `share` is a probability over
/// characters, 0..=1.
#[must_use]
pub fn is_held_out(seed: u64, character: &str, share: f64) -> bool {
    // 53 bits are what an f64 holds exactly.
    let uniform = (hash_words(seed, &["holdout", character]) >> 11) as f64 / (1u64 << 53) as f64;
    uniform < share
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_kept_and_the_ends_are_exact() {
        let held = |share| {
            (0..10_000)
                .filter(|i| is_held_out(3, &format!("c{i}"), share))
                .count()
        };
        assert_eq!(held(0.0), 0);
        assert_eq!(held(1.0), 10_000);
        let tenth = held(0.1);
        assert!((900..1100).contains(&tenth), "{tenth}");
    }

    #[test]
    fn a_larger_share_keeps_those_that_were_held_out() {
        for i in 0..200 {
            let name = format!("c{i}");
            assert!(!is_held_out(3, &name, 0.1) || is_held_out(3, &name, 0.3));
        }
    }
}
