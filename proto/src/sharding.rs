//! Which rank computes which micro-batches of a step. Pure arithmetic, so that all ranks agree
//! without communication and it can be reconstructed later which rank saw which sample.

use std::ops::Range;

/// The contiguous range of micro-batches of a step that `rank` of `world` computes. If they do not
/// divide evenly, the first ranks compute one more. The ranges of all ranks cover
/// `0..micro_batches`.
#[must_use]
pub fn micro_batches(micro_batches: u32, rank: u32, world: u32) -> Range<u32> {
    let (base, extra) = (micro_batches / world, micro_batches % world);
    let start = rank * base + rank.min(extra);
    start..start + base + u32::from(rank < extra)
}

/// The rank that computes a micro-batch.
#[must_use]
pub fn rank_of(micro_batch: u32, of: u32, world: u32) -> Option<u32> {
    (0..world).find(|rank| micro_batches(of, *rank, world).contains(&micro_batch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_are_dealt_out_whole_and_the_first_ranks_take_more() {
        assert_eq!(micro_batches(5, 0, 2), 0..3);
        assert_eq!(micro_batches(5, 1, 2), 3..5);
        for total in 1..20 {
            for world in 1..=total {
                let mut next = 0;
                for rank in 0..world {
                    let range = micro_batches(total, rank, world);
                    assert_eq!(range.start, next);
                    assert!(
                        !range.is_empty(),
                        "every rank has work: {total} over {world}"
                    );
                    assert!(
                        range
                            .clone()
                            .all(|it| rank_of(it, total, world) == Some(rank))
                    );
                    next = range.end;
                }
                assert_eq!(next, total);
            }
        }
        assert_eq!(rank_of(5, 5, 2), None);
    }
}
