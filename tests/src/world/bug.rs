//! Bugs that can be planted in a world, to show that the oracle bites. They live in the harness, between
//! machines and world; the machines themselves are the ones that ship.

use super::Kinds;

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
    WrongShare,
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
    ReserveForgets,
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
}

impl Bug {
    pub const ALL: [Self; 24] = [
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
        Self::WrongShare,
        Self::LedgerLost,
        Self::SavesUnfenced,
        Self::ManifestsUnfenced,
        Self::DrainForgotten,
        Self::HandOverForgotten,
        Self::ReserveForgets,
        Self::CutUnseen,
        Self::UnitLeasedTwice,
        Self::UnitOutputLost,
        Self::UnitNeverLeasedAgain,
        Self::DrainKeepsUnits,
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
