//! Detects peers that this worker cannot reach. If two daemons cannot reach each other, neither can
//! their ranks. The shell pings each peer repeatedly and reports every result; this file decides
//! which peers have not answered for too long. The coordinator decides what follows from that.

use crate::deadline::Deadlines;
use crate::event::Millis;
use proto::id::WorkerId;
use proto::message::{Peer, Unreached};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(crate) struct Peers(BTreeMap<WorkerId, State>);

#[derive(Debug)]
struct State {
    address: String,
    /// Time of the last answer, or of the assignment before the first answer.
    last_answer: Millis,
    error: Option<String>,
    unreached: bool,
}

impl Peers {
    /// Sets the peers that the coordinator assigned. Returns true if they changed.
    pub(crate) fn set(&mut self, peers: Vec<Peer>, now: Millis) -> bool {
        let mut old = std::mem::take(&mut self.0);
        let mut changed = false;
        for Peer { worker, address } in peers {
            let known = old.remove(&worker).filter(|state| state.address == address);
            changed |= known.is_none();
            let state = known.unwrap_or(State {
                address,
                last_answer: now,
                error: None,
                unreached: false,
            });
            self.0.insert(worker, state);
        }
        changed || !old.is_empty()
    }

    pub(crate) fn list(&self) -> Vec<Peer> {
        let peer = |(worker, state): (&WorkerId, &State)| Peer {
            worker: worker.clone(),
            address: state.address.clone(),
        };
        self.0.iter().map(peer).collect()
    }

    /// Returns true if the peer counted as unreachable before.
    pub(crate) fn answered(&mut self, peer: &WorkerId, now: Millis) -> bool {
        let Some(state) = self.0.get_mut(peer) else {
            return false;
        };
        (state.last_answer, state.error) = (now, None);
        std::mem::take(&mut state.unreached)
    }

    pub(crate) fn failed(&mut self, peer: &WorkerId, error: String) {
        if let Some(state) = self.0.get_mut(peer) {
            state.error = Some(error);
        }
    }

    /// Marks overdue peers as unreachable. Returns true if a peer is newly unreachable.
    pub(crate) fn mark_overdue(&mut self, now: Millis, deadlines: Deadlines) -> bool {
        let mut changed = false;
        for state in self.0.values_mut() {
            let overdue = deadlines.unreached_at(state.last_answer) <= now;
            changed |= overdue && !state.unreached;
            state.unreached = overdue;
        }
        changed
    }

    /// When the next peer becomes overdue.
    pub(crate) fn deadline(&self, deadlines: Deadlines) -> Option<Millis> {
        let reachable = self.0.values().filter(|state| !state.unreached);
        reachable
            .map(|state| deadlines.unreached_at(state.last_answer))
            .min()
    }

    pub(crate) fn unreached(&self) -> Vec<Unreached> {
        let overdue = self.0.iter().filter(|(_, state)| state.unreached);
        let unreached = |(peer, state): (&WorkerId, &State)| Unreached {
            peer: peer.clone(),
            error: format!(
                "{}: {}",
                state.address,
                state.error.as_deref().unwrap_or("no answer")
            ),
        };
        overdue.map(unreached).collect()
    }
}
