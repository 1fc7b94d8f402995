//! Which state a generation begins from. All ranks hear what each of them holds and decide the
//! same, without asking again.

use proto::checkpoint::CheckpointRef;
use proto::id::{Generation, Rank, Step};
use std::collections::BTreeMap;
use std::fmt;

/// Names a state, in memory or in a checkpoint: whole steps only. The state of a later generation
/// is the newer one, whatever its step: that generation began from the newest state that it found,
/// and only one generation trains at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StateLabel {
    /// The generation that last trained with it.
    pub generation: Generation,
    pub step: Step,
}

impl From<CheckpointRef> for StateLabel {
    fn from(checkpoint: CheckpointRef) -> Self {
        Self {
            generation: checkpoint.generation,
            step: checkpoint.step,
        }
    }
}

/// Where a generation's state comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateSource {
    /// The memory of `root`; `all`: every rank holds it.
    Memory {
        root: Rank,
        label: StateLabel,
        all: bool,
    },
    Checkpoint(CheckpointRef),
    /// Base weights, step 0.
    Base,
}

impl StateSource {
    /// The newest state there is. `holdings`: what each rank holds, in rank order. Memory is
    /// preferred to a checkpoint of the same state.
    #[must_use]
    pub fn newest(holdings: &[Option<StateLabel>], resume: Option<CheckpointRef>) -> Self {
        let newest = holdings.iter().flatten().max().copied();
        match (newest, resume) {
            (Some(label), _) if resume.map(StateLabel::from) <= Some(label) => {
                let holds = |holding: &Option<StateLabel>| *holding == Some(label);
                let root = holdings.iter().position(holds).unwrap_or(0);
                Self::Memory {
                    root: Rank(u32::try_from(root).unwrap_or(u32::MAX)),
                    label,
                    all: holdings.iter().all(holds),
                }
            }
            (_, Some(checkpoint)) => Self::Checkpoint(checkpoint),
            (_, None) => Self::Base,
        }
    }

    #[must_use]
    pub fn step(self) -> Step {
        match self {
            Self::Memory { label, .. } => label.step,
            Self::Checkpoint(checkpoint) => checkpoint.step,
            Self::Base => Step(0),
        }
    }
}

/// What one rank says of something that should be the same on all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement {
    pub rank: Rank,
    pub value: i64,
}

/// The ranks do not agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disagreement {
    what: String,
    by_value: BTreeMap<i64, Vec<u32>>,
}

/// Compares what the ranks say of `what`.
///
/// # Errors
/// Not all of them say the same. The error names the ranks that are fewer.
pub fn agree(
    statements: impl IntoIterator<Item = Statement>,
    what: &str,
) -> Result<(), Disagreement> {
    let mut by_value: BTreeMap<i64, Vec<u32>> = BTreeMap::new();
    for Statement { rank, value } in statements {
        by_value.entry(value).or_default().push(rank.0);
    }
    if by_value.len() < 2 {
        return Ok(());
    }
    let what = what.to_owned();
    Err(Disagreement { what, by_value })
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, by_value } = self;
        let most = by_value.values().map(Vec::len).max().unwrap_or(0);
        let fewer: Vec<String> = by_value
            .values()
            .filter(|ranks| ranks.len() < most)
            .flatten()
            .map(|rank| format!("rank {rank}"))
            .collect();
        if fewer.is_empty() {
            return write!(
                f,
                "the ranks differ in {what}, and there are as many on each side: {by_value:?}"
            );
        }
        write!(
            f,
            "{} differs from the others in {what}",
            fewer.join(" and ")
        )
    }
}

impl std::error::Error for Disagreement {}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(generation: u64, step: u64) -> StateLabel {
        StateLabel {
            generation: Generation(generation),
            step: Step(step),
        }
    }

    fn saved(generation: u64, step: u64) -> CheckpointRef {
        CheckpointRef {
            step: Step(step),
            generation: Generation(generation),
        }
    }

    #[test]
    fn the_newest_state_wins_and_memory_is_preferred_to_a_checkpoint_of_the_same_step() {
        let memory = |rank, generation, step, all| StateSource::Memory {
            root: Rank(rank),
            label: held(generation, step),
            all,
        };
        let newest = StateSource::newest;
        let (a, b, c) = (Some(held(1, 7)), Some(held(1, 8)), Some(held(2, 7)));
        assert_eq!(
            newest(&[None, a, b], Some(saved(1, 4))),
            memory(2, 1, 8, false)
        );
        assert_eq!(newest(&[b, b], Some(saved(1, 8))), memory(0, 1, 8, true));
        // Generation 2 went on from step 7; what generation 1 did in step 8 is no longer true.
        assert_eq!(newest(&[b, c], None), memory(1, 2, 7, false));
        // An old survivor comes back after the others committed more and were lost.
        assert_eq!(
            newest(&[b, None], Some(saved(3, 12))),
            StateSource::Checkpoint(saved(3, 12))
        );
        assert_eq!(
            newest(&[None, None], Some(saved(1, 4))),
            StateSource::Checkpoint(saved(1, 4))
        );
        assert_eq!(newest(&[None], None), StateSource::Base);
    }

    #[test]
    fn the_rank_that_is_alone_with_its_answer_is_named() {
        let check = |values: &[i64]| {
            let statements = (0..).zip(values).map(|(rank, value)| Statement {
                rank: Rank(rank),
                value: *value,
            });
            agree(statements, "the state").map_err(|error| error.to_string())
        };
        assert_eq!(check(&[5, 5, 5]), Ok(()));
        assert_eq!(check(&[]), Ok(()));
        let alone = "rank 1 differs from the others in the state".to_owned();
        assert_eq!(check(&[5, 6, 5]), Err(alone));
        assert!(check(&[5, 6]).unwrap_err().contains("as many on each side"));
    }
}
