//! Bugs that can be planted in a world, to show that the oracle bites. They live in the harness,
//! between machines and world; the machines themselves are the ones that ship.

use super::Kinds;
use proto::message::GracefulStop;
use rank_core::gang::{Effect, GangRank, Input};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A desired state is sent once; repetitions are swallowed.
    SendOnce,
    /// A restarted daemon keeps its boot number.
    SameBoot,
    /// Ranks report a shard before it is written.
    ShardBeforeWritten,
    /// The coordinator's shell saves after it sent and replied.
    SaveLast,
    /// Now and then a save is reported done and is not.
    SaveLost,
    /// Ranks resume at the checkpoint's step without its state.
    StateNotLoaded,
    /// A survivor keeps what it had summed up of the step that was under way.
    PartialStepKept,
    /// A generation goes on from the lowest step that a survivor holds.
    LowestStepTaken,
    /// A new process takes over the step of the survivors and not their state.
    StateNotHandedOver,
    /// The coordinator's shell gives the same time for ever.
    ClockStopped,
    /// Daemons report every rank under the newest generation.
    GenerationsMixed,
    /// Daemons do not kill what they are told to kill.
    KillIgnored,
    /// One rank takes the micro-batches of another.
    WrongShard,
    /// Now and then entries of a ledger are reported saved and are not.
    LedgerLost,
    /// A coordinator whose place another took still saves.
    SavesUnfenced,
    /// A coordinator whose place another took still writes manifests.
    ManifestsUnfenced,
    /// A drained worker's name is not saved.
    DrainForgotten,
    /// Ranks that stop in order for the next generation do not keep what they hold.
    HandOverForgotten,
    /// Survivors that wait for more workers do not keep what they hold.
    StandbyForgets,
    /// Daemons take every peer for reached.
    CutUnseen,
    /// Units are leased to two workers, and each puts an output of its own.
    UnitLeasedTwice,
    /// Now and then a unit is said to be done and its output is not there.
    UnitOutputLost,
    /// A unit that was leased to one worker is given to no other.
    UnitNeverLeasedAgain,
    /// A drained worker goes on with the units that it has.
    DrainKeepsUnits,
    /// A rank goes by the order to halt that it has itself, not by what all were told.
    StopReceivedByOne,
    /// The last rank of a generation that halts for a checkpoint says that it has finished and
    /// writes no shard.
    StopShardForgotten,
    /// Of what the ranks hold the furthest step wins, also when it is of an older generation.
    OlderLineWins,
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
        Self::LowestStepTaken,
        Self::StateNotHandedOver,
        Self::ClockStopped,
        Self::GenerationsMixed,
        Self::KillIgnored,
        Self::WrongShard,
        Self::LedgerLost,
        Self::SavesUnfenced,
        Self::ManifestsUnfenced,
        Self::DrainForgotten,
        Self::HandOverForgotten,
        Self::StandbyForgets,
        Self::CutUnseen,
        Self::UnitLeasedTwice,
        Self::UnitOutputLost,
        Self::UnitNeverLeasedAgain,
        Self::DrainKeepsUnits,
        Self::StopReceivedByOne,
        Self::StopShardForgotten,
        Self::OlderLineWins,
    ];

    /// In which worlds there is something for it to spoil.
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

/// Tells the machine of a rank what happened and returns what it wants. What is planted in it
/// changes the one or the other.
pub(crate) fn gang_rank(bug: Option<Bug>, machine: &mut GangRank, mut event: Input) -> Vec<Effect> {
    match (bug, &mut event) {
        (Some(Bug::LowestStepTaken), Input::Met { holdings }) => {
            let lowest = holdings.iter().flatten().min().copied();
            for holding in holdings.iter_mut() {
                *holding = holding.filter(|label| Some(*label) == lowest);
            }
        }
        (Some(Bug::OlderLineWins), Input::Met { holdings }) => {
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
    if bug == Some(Bug::StopShardForgotten)
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
