//! Law 1: the order of the samples in the infinite training sequence. A seeded permutation of each
//! epoch with O(1) random access (a Feistel network with cycle walking, Black and Rogaway 2002).
//! Any rank can find the samples of any step without a cursor, and the order does not depend on the
//! world size. Pure. Used by the loader and by provenance queries.

use crate::random::hash_words;

const ROUNDS: usize = 6;

/// The order of `samples` items. Positions are indices into the list of items that are trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleOrder {
    seed: u64,
    samples: u64,
    /// Half the bits of the smallest even-width binary domain that holds all samples.
    half_bits: u32,
}

impl SampleOrder {
    /// # Panics
    /// If `samples` is 0. The loader rejects an empty data set before.
    #[must_use]
    pub fn new(seed: u64, samples: u64) -> Self {
        assert!(samples > 0, "a sample order needs at least one sample");
        let bits = 64 - (samples - 1).leading_zeros();
        Self {
            seed,
            samples,
            half_bits: bits.div_ceil(2).max(1),
        }
    }

    #[must_use]
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// The sample at `index` (0-based, `< samples`) of `epoch`.
    ///
    /// # Panics
    /// If `index` is not below the number of samples.
    #[must_use]
    pub fn position(&self, epoch: u64, index: u64) -> u64 {
        assert!(
            index < self.samples,
            "index {index} of {} samples",
            self.samples
        );
        let keys = self.round_keys(epoch);
        let mut value = index;
        loop {
            // The domain is less than four times the number of samples, so the walk is short. It
            // ends because the network is a bijection: the walk must return to the range in which
            // it started.
            value = self.permute(value, &keys);
            if value < self.samples {
                return value;
            }
        }
    }

    /// Epoch and sample at one index of the infinite sequence.
    #[must_use]
    pub fn at(&self, index: u64) -> (u64, u64) {
        let epoch = index / self.samples;
        (epoch, self.position(epoch, index % self.samples))
    }

    /// The samples of `step` (1-based, as `proto::id::Step` counts updates), as (epoch, sample):
    /// indices `(step - 1) * global_batch` to `step * global_batch` of the infinite sequence.
    ///
    /// # Panics
    /// If `step` is 0, which is the state before any update.
    pub fn samples_of_step(
        &self,
        step: u64,
        global_batch: u32,
    ) -> impl Iterator<Item = (u64, u64)> + use<> {
        assert!(
            step > 0,
            "step 0 has no samples: the first update is step 1"
        );
        let order = *self;
        let first = (step - 1) * u64::from(global_batch);
        (first..first + u64::from(global_batch)).map(move |index| order.at(index))
    }

    fn round_keys(&self, epoch: u64) -> [u64; ROUNDS] {
        std::array::from_fn(|round| {
            hash_words(
                self.seed,
                &["order", &epoch.to_string(), &round.to_string()],
            )
        })
    }

    fn permute(&self, value: u64, keys: &[u64; ROUNDS]) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        (left << self.half_bits) | right
    }
}

/// The finalizer of splitmix64: every input bit affects every output bit.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_size_is_a_bijection() {
        for samples in (1..130).chain([255, 256, 257, 1000, 4096, 5000]) {
            let order = SampleOrder::new(11, samples);
            let mut seen: Vec<u64> = (0..samples).map(|i| order.position(3, i)).collect();
            seen.sort_unstable();
            assert!(seen.iter().copied().eq(0..samples), "{samples} samples");
        }
    }

    #[test]
    fn epochs_and_seeds_shuffle_differently() {
        let shuffled = |seed, epoch| -> Vec<u64> {
            let order = SampleOrder::new(seed, 500);
            (0..500).map(|i| order.position(epoch, i)).collect()
        };
        assert_ne!(shuffled(1, 0), shuffled(1, 1));
        assert_ne!(shuffled(1, 0), shuffled(2, 0));
        let moved = shuffled(1, 0)
            .iter()
            .enumerate()
            .filter(|(i, p)| *i as u64 != **p)
            .count();
        assert!(
            moved > 480,
            "a shuffle moves nearly all samples, moved {moved}"
        );
    }

    #[test]
    fn the_first_sample_is_uniform_over_seeds() {
        let mut counts = [0u32; 10];
        for seed in 0..5000 {
            counts[SampleOrder::new(seed, 10).position(0, 0) as usize] += 1;
        }
        assert!(counts.iter().all(|c| (400..600).contains(c)), "{counts:?}");
    }

    #[test]
    fn the_largest_sizes_do_not_overflow() {
        let order = SampleOrder::new(1, u64::MAX);
        assert_ne!(order.position(0, 5), order.position(0, 6));
    }

    proptest! {
        #[test]
        fn steps_are_the_endless_sequence_cut_anywhere(
            seed: u64, samples in 1u64..300, batch in 1u32..40, steps in 1u64..20,
        ) {
            let order = SampleOrder::new(seed, samples);
            let by_steps: Vec<_> = (1..=steps)
                .flat_map(|step| order.samples_of_step(step, batch))
                .collect();
            let whole: Vec<_> = order.samples_of_step(1, batch * steps as u32).collect();
            prop_assert_eq!(&by_steps, &whole);
            for (index, (epoch, position)) in whole.iter().enumerate() {
                prop_assert_eq!(index as u64 / samples, *epoch);
                prop_assert!(*position < samples);
            }
        }
    }
}
