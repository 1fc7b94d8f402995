//! What the daemon gave this process to do, and what both of its threads reach: the rank's machine,
//! and the hold on the group that the model's thread waits in. Decides nothing.

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
    /// The device of this node.
    pub(crate) device: u32,
}

impl Task {
    pub(crate) fn generation(&self) -> Generation {
        self.assignment.generation
    }

    /// Where the ranks of a gang meet, once that is known.
    pub(crate) fn store_address(&self) -> Option<&String> {
        let gang = self.assignment.gang()?;
        gang.store_address.as_ref()
    }
}

/// The rank's machine.
#[derive(Debug, Default)]
pub(crate) enum Machine {
    /// The process does not yet know what its work is.
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

/// What the machine wants of the model's thread because of an order, while that has nothing to do.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// In this generation; void when the rank has left it.
    Gang(Generation, Vec<gang::Effect>),
    Units(Vec<units::Effect>),
}

/// What the threads share.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shared {
    machine: Arc<Mutex<Machine>>,
    /// Frees the model's thread from the group that it waits in.
    interrupt: Arc<Mutex<Option<Aborter>>>,
}

impl Shared {
    pub(crate) fn machine(&self) -> MutexGuard<'_, Machine> {
        lock(&self.machine)
    }

    pub(crate) fn interrupt(&self) -> MutexGuard<'_, Option<Aborter>> {
        lock(&self.interrupt)
    }
}

/// What is behind the lock is whole at any moment.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
