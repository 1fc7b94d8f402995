//! Selects the state from which a generation starts. All ranks know the state labels of all ranks
//! and make the same decision without further communication.

use proto::checkpoint::CheckpointRef;
use proto::id::{Generation, Rank, Step};
use std::collections::BTreeMap;
use std::fmt;

/// Identifies a state after a whole step, in memory or in a checkpoint. A state of a later
/// generation is newer, whatever its step: that generation started from the newest state available,
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
    /// The memory of `root`. `all`: every rank holds the state.
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
    /// The newest available state. `holdings`: the state in memory of each rank, in rank order.
    /// Memory is preferred to a checkpoint of the same state.
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

/// The value of one rank for something that should be equal on all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement {
    pub rank: Rank,
    pub value: i64,
}

/// The values of the ranks differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disagreement {
    what: String,
    by_value: BTreeMap<i64, Vec<u32>>,
}

/// Compares the values of the ranks for `what`.
///
/// # Errors
/// The values differ. The error names the ranks in the minority.
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
        let minority: Vec<String> = by_value
            .values()
            .filter(|ranks| ranks.len() < most)
            .flatten()
            .map(|rank| format!("rank {rank}"))
            .collect();
        if minority.is_empty() {
            return write!(
                f,
                "the ranks differ in {what}, without a majority: {by_value:?}"
            );
        }
        write!(
            f,
            "{} differs from the others in {what}",
            minority.join(" and ")
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
        // Generation 2 continued from step 7, so step 8 of generation 1 is superseded.
        assert_eq!(newest(&[b, c], None), memory(1, 2, 7, false));
        // A rank with an old state returns after the others have committed more and were lost.
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
    fn the_rank_with_a_different_value_is_named() {
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
        assert!(check(&[5, 6]).unwrap_err().contains("without a majority"));
    }
}
