//! The daemon's order, and the state that the model thread shares with the connection task: the
//! rank's state machine and the aborter of the current group. Makes no decisions.

use crate::collective::Aborter;
use proto::id::{Generation, Rank};
use proto::message::Assignment;
use rank_core::gang::{self, GangRank};
use rank_core::units::{self, UnitRank};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) assignment: Assignment,
    pub(crate) rank: Rank,
    /// Index of the device on this node.
    pub(crate) device: u32,
}

impl Task {
    pub(crate) fn generation(&self) -> Generation {
        self.assignment.generation
    }

    /// The rendezvous address of a gang, once it is known.
    pub(crate) fn store_address(&self) -> Option<&String> {
        let gang = self.assignment.gang()?;
        gang.store_address.as_ref()
    }
}

/// The rank's state machine.
#[derive(Debug, Default)]
pub(crate) enum Machine {
    /// The work has not started.
    #[default]
    None,
    Gang(GangRank),
    Units(UnitRank),
}

impl Machine {
    pub(crate) fn gang(&self) -> Option<&GangRank> {
        match self {
            Self::Gang(machine) => Some(machine),
            Self::None | Self::Units(_) => None,
        }
    }
}

/// Effects of an order, for the model thread to perform once it is idle.
#[derive(Debug)]
pub(crate) enum PendingEffects {
    /// Void if the rank has left this generation.
    Gang(Generation, Vec<gang::Effect>),
    Units(Vec<units::Effect>),
}

/// What the threads share.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shared {
    machine: Arc<Mutex<Machine>>,
    /// Aborts the collectives of the current group.
    aborter: Arc<Mutex<Option<Aborter>>>,
}

impl Shared {
    pub(crate) fn machine(&self) -> MutexGuard<'_, Machine> {
        lock(&self.machine)
    }

    pub(crate) fn aborter(&self) -> MutexGuard<'_, Option<Aborter>> {
        lock(&self.aborter)
    }
}

/// Ignores poisoning: no critical section leaves the data inconsistent.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
