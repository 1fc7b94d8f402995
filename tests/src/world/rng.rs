//! The only random number generator of the simulation: SplitMix64, seeded.

#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    /// `purpose` selects an independent stream of the same seed, so that an additional draw for one
    /// purpose does not change the others.
    pub(crate) fn new(seed: u64, purpose: u64) -> Self {
        let mut rng = Self(seed ^ purpose.wrapping_mul(0xD1B5_4A32_D192_ED03));
        rng.roll();
        rng
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.roll() % (high - low + 1)
    }

    /// True in `permille` of 1000 rolls.
    pub(crate) fn chance(&mut self, permille: u64) -> bool {
        self.between(1, 1000) <= permille
    }

    pub(crate) fn pick(&mut self, count: usize) -> usize {
        (self.roll() % count.max(1) as u64) as usize
    }
}
