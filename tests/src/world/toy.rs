//! A toy model: one integer. A step adds one number per micro-batch and folds the sum into the
//! value, so that the value after step s depends on all steps before and on nothing else: not on
//! which rank computed what, not on the number of restarts. A lost, repeated or wrong step gives a
//! wrong value.

/// The sum over the micro-batches of `rank` in step `step`.
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

/// The value after `steps` steps without faults.
pub(crate) fn undisturbed(seed: u64, steps: u64, micro_batches: u64) -> u64 {
    (1..=steps).fold(0, |value, step| {
        fold(value, partial_sum(seed, step, micro_batches, 0, 1))
    })
}
