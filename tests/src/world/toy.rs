//! The toy that stands for a model: one integer. A step adds up one number per micro-batch and
//! folds the sum in, so that the value after step s depends on every step before and on nothing
//! else: not on who computed what, not on how often the job was restarted. What a lost, repeated or
//! misplaced step leaves behind is a wrong number.

/// What the micro-batches of `rank` add in step `step`.
pub(crate) fn partial_sum(seed: u64, step: u64, micro_batches: u64, rank: u32, world: u32) -> u64 {
    let own = (0..micro_batches).filter(|m| m % u64::from(world) == u64::from(rank));
    own.fold(0, |sum, m| {
        sum.wrapping_add((seed + 1).wrapping_mul(step * 1_000 + m + 7))
    })
}

/// The value after a step, from the value before and the sum over all ranks.
pub(crate) fn fold(value: u64, sum: u64) -> u64 {
    value.wrapping_mul(5).wrapping_add(sum)
}

/// The value after `steps` steps in a world where nothing goes wrong.
pub(crate) fn undisturbed(seed: u64, steps: u64, micro_batches: u64) -> u64 {
    (1..=steps).fold(0, |value, step| {
        fold(value, partial_sum(seed, step, micro_batches, 0, 1))
    })
}
