//! Bugs that can be planted in a world, to test the oracle. They are in the harness, between
//! machines and world; the state machines themselves are not changed.

use super::Kinds;
use proto::message::GracefulStop;
use rank_core::gang::{Effect, GangRank, Input};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A desired state is sent once; repetitions are dropped.
    SendOnce,
    /// A restarted daemon keeps its boot number.
    SameBoot,
    /// Ranks report a shard before it is written.
    ShardBeforeWritten,
    /// The coordinator's shell saves after it has sent and replied.
    SaveLast,
    /// Some saves are confirmed and not performed.
    SaveLost,
    /// Ranks resume at the checkpoint's step without its state.
    StateNotLoaded,
    /// A survivor keeps the partial sum of the interrupted step.
    PartialStepKept,
    /// A generation continues from the lowest step that a survivor holds.
    LowestStepSelected,
    /// A new process gets the step of the survivors and not their state.
    StateNotHandedOver,
    /// The coordinator's clock stands still.
    ClockStopped,
    /// Daemons report every rank under the newest generation.
    GenerationsMixed,
    /// Daemons ignore the effect `Kill`.
    KillIgnored,
    /// One rank computes the micro-batches of another.
    WrongShard,
    /// Some ledger entries are confirmed and not saved.
    LedgerLost,
    /// Saves of a replaced coordinator are not fenced off.
    SavesUnfenced,
    /// Manifests of a replaced coordinator are not fenced off.
    ManifestsUnfenced,
    /// Drained workers are not saved.
    DrainForgotten,
    /// Ranks that stop gracefully for the next generation lose their state.
    SurvivorStateDropped,
    /// Survivors that become standbys lose their state.
    StandbyStateDropped,
    /// Daemons count every peer as reachable.
    PartitionUnreported,
    /// Units are leased to two workers, and each puts its own output.
    UnitLeasedTwice,
    /// Some units are reported as done, and their output does not exist.
    UnitOutputLost,
    /// A unit that was leased once is never leased to another worker.
    UnitNeverLeasedAgain,
    /// A drained worker keeps its units.
    DrainKeepsUnits,
    /// A rank acts on its own stop order instead of the one that all ranks agreed on.
    StopReceivedByOne,
    /// The last rank of a generation that stops with a checkpoint finishes without writing its
    /// shard.
    StopShardMissing,
    /// The highest step wins, even if it is of an older generation.
    StaleGenerationWins,
}

impl Bug {
    pub const ALL: [Self; 27] = [
        Self::SendOnce,
        Self::SameBoot,
        Self::ShardBeforeWritten,
        Self::SaveLast,
        Self::SaveLost,
        Self::StateNotLoaded,
        Self::PartialStepKept,
        Self::LowestStepSelected,
        Self::StateNotHandedOver,
        Self::ClockStopped,
        Self::GenerationsMixed,
        Self::KillIgnored,
        Self::WrongShard,
        Self::LedgerLost,
        Self::SavesUnfenced,
        Self::ManifestsUnfenced,
        Self::DrainForgotten,
        Self::SurvivorStateDropped,
        Self::StandbyStateDropped,
        Self::PartitionUnreported,
        Self::UnitLeasedTwice,
        Self::UnitOutputLost,
        Self::UnitNeverLeasedAgain,
        Self::DrainKeepsUnits,
        Self::StopReceivedByOne,
        Self::StopShardMissing,
        Self::StaleGenerationWins,
    ];

    /// The worlds in which the bug can have an effect.
    #[must_use]
    pub fn kinds(self) -> Kinds {
        match self {
            Self::UnitLeasedTwice
            | Self::UnitOutputLost
            | Self::UnitNeverLeasedAgain
            | Self::DrainKeepsUnits => Kinds::Mixed,
            _ => Kinds::All,
        }
    }
}

/// Passes an input to the machine of a rank and returns its effects. A planted bug changes the one
/// or the other.
pub(crate) fn handle_gang_input(
    bug: Option<Bug>,
    machine: &mut GangRank,
    mut event: Input,
) -> Vec<Effect> {
    match (bug, &mut event) {
        (Some(Bug::LowestStepSelected), Input::Met { holdings }) => {
            let lowest = holdings.iter().flatten().min().copied();
            for holding in holdings.iter_mut() {
                *holding = holding.filter(|label| Some(*label) == lowest);
            }
        }
        (Some(Bug::StaleGenerationWins), Input::Met { holdings }) => {
            let newest = holdings
                .iter()
                .flatten()
                .map(|label| label.generation)
                .max();
            for label in holdings.iter_mut().flatten() {
                label.generation = newest.unwrap_or(label.generation);
            }
        }
        (Some(Bug::StopReceivedByOne), Input::Stepped { graceful_stop, .. }) => {
            *graceful_stop = machine.graceful_stop().is_some()
        }
        _ => {}
    }
    let mut effects = machine.handle(event);
    let serving = machine.serving();
    let is_last = serving.rank.0 + 1 == serving.world;
    if bug == Some(Bug::StopShardMissing)
        && is_last
        && serving.graceful_stop == Some(GracefulStop::WithCheckpoint)
    {
        effects.retain(|effect| match effect {
            Effect::Save(step) => {
                drop(machine.handle(Input::Saved { step: *step }));
                false
            }
            _ => true,
        });
    }
    effects
}
