//! Selects the characters that are held out of training, so that sampling can use characters that
//! the model has not seen. The choice is a hash of the name: it is the same on every rank and after
//! every restart, and does not depend on the order of the data set.

use crate::random::hash_words;

/// True if all images of `character` are held out of training. `fraction` is a probability over
/// characters, 0..=1.
#[must_use]
pub fn is_held_out(seed: u64, character: &str, fraction: f64) -> bool {
    // An f64 represents 53 bits exactly.
    let uniform = (hash_words(seed, &["holdout", character]) >> 11) as f64 / (1u64 << 53) as f64;
    uniform < fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fraction_holds_and_the_ends_are_exact() {
        let count = |fraction| {
            (0..10_000)
                .filter(|i| is_held_out(3, &format!("c{i}"), fraction))
                .count()
        };
        assert_eq!(count(0.0), 0);
        assert_eq!(count(1.0), 10_000);
        let tenth = count(0.1);
        assert!((900..1100).contains(&tenth), "{tenth}");
    }

    #[test]
    fn a_larger_fraction_still_holds_out_the_same_characters() {
        for i in 0..200 {
            let name = format!("c{i}");
            assert!(!is_held_out(3, &name, 0.1) || is_held_out(3, &name, 0.3));
        }
    }
}
