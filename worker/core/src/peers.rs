//! Whether this worker gets through to those with which it shares a job: where daemons do not,
//! their ranks do not either. The shell asks every peer again and again and tells what came of it;
//! here it is decided who does not answer for too long. What follows from that is the coordinator's
//! to decide.

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
    /// When it last answered; before the first time, when it was named.
    heard: Millis,
    error: Option<String>,
    unreached: bool,
}

impl Peers {
    /// Takes whom the coordinator names. True when they are others than before.
    pub(crate) fn take(&mut self, peers: Vec<Peer>, now: Millis) -> bool {
        let mut old = std::mem::take(&mut self.0);
        let mut changed = false;
        for Peer { worker, address } in peers {
            let known = old.remove(&worker).filter(|state| state.address == address);
            changed |= known.is_none();
            let state = known.unwrap_or(State {
                address,
                heard: now,
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

    /// True when it did not answer before.
    pub(crate) fn answered(&mut self, peer: &WorkerId, now: Millis) -> bool {
        let Some(state) = self.0.get_mut(peer) else {
            return false;
        };
        (state.heard, state.error) = (now, None);
        std::mem::take(&mut state.unreached)
    }

    pub(crate) fn failed(&mut self, peer: &WorkerId, error: String) {
        if let Some(state) = self.0.get_mut(peer) {
            state.error = Some(error);
        }
    }

    /// True when somebody is overdue now who was not before.
    pub(crate) fn tend(&mut self, now: Millis, deadlines: Deadlines) -> bool {
        let mut news = false;
        for state in self.0.values_mut() {
            let overdue = deadlines.unreached_at(state.heard) <= now;
            news |= overdue && !state.unreached;
            state.unreached = overdue;
        }
        news
    }

    /// When the next one is overdue.
    pub(crate) fn deadline(&self, deadlines: Deadlines) -> Option<Millis> {
        let waits = self.0.values().filter(|state| !state.unreached);
        waits.map(|state| deadlines.unreached_at(state.heard)).min()
    }

    pub(crate) fn unreached(&self) -> Vec<Unreached> {
        let overdue = self.0.iter().filter(|(_, state)| state.unreached);
        let unreached = |(peer, state): (&WorkerId, &State)| Unreached {
            peer: peer.clone(),
            error: format!(
                "{}: {}",
                state.address,
                state.error.as_deref().unwrap_or("it did not answer")
            ),
        };
        overdue.map(unreached).collect()
    }
}
