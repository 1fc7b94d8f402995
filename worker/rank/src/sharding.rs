//! Partitions a checkpoint into shards. Pure arithmetic, so that all ranks agree without
//! communication. The partition of a step's micro-batches is in [`proto::sharding`].

use crate::position::Position;
use std::ops::Range;

/// The range of tensors that `rank` of `world` writes, given the bytes of each tensor. The ranges
/// of all ranks cover all tensors, without overlap, and are as even in bytes as whole tensors
/// allow.
pub(crate) fn tensors(bytes: &[u64], Position { rank, world }: Position) -> Range<usize> {
    let total: u128 = bytes.iter().map(|&b| u128::from(b)).sum();
    // A tensor belongs to the rank whose range of bytes contains the tensor's midpoint.
    let owner = |middle_doubled: u128| middle_doubled * u128::from(world) / (2 * total.max(1));
    let mut offset: u128 = 0;
    let mut range = 0..0;
    for (index, &size) in bytes.iter().enumerate() {
        let middle_doubled = 2 * offset + u128::from(size);
        offset += u128::from(size);
        match owner(middle_doubled)
            .min(u128::from(world - 1))
            .cmp(&u128::from(rank))
        {
            std::cmp::Ordering::Less => range = index + 1..index + 1,
            std::cmp::Ordering::Equal => range.end = index + 1,
            std::cmp::Ordering::Greater => break,
        }
    }
    range
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_split_in_order_without_gap_or_overlap_and_evenly() {
        let bytes: Vec<u64> = (0..50).map(|n| (n * 37) % 91).collect();
        let total: u64 = bytes.iter().sum();
        for world in 1..9u32 {
            let mut next = 0;
            for rank in 0..world {
                let range = tensors(&bytes, Position { rank, world });
                assert_eq!(range.start, next, "rank {rank} of {world}");
                next = range.end;
                let shard_bytes: u64 = bytes[range].iter().sum();
                let even = total / u64::from(world);
                assert!(
                    shard_bytes.abs_diff(even) <= 2 * 91,
                    "{shard_bytes} of {even}"
                );
            }
            assert_eq!(next, bytes.len());
        }
        let lengths = |bytes: &[u64], world| -> usize {
            (0..world)
                .map(|rank| tensors(bytes, Position { rank, world }).len())
                .sum()
        };
        assert_eq!(tensors(&[], Position { rank: 0, world: 2 }), 0..0);
        assert_eq!((lengths(&[0, 0], 2), lengths(&[8], 3)), (2, 1));
    }
}
