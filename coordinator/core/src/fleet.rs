//! The workers: who is up, until when, with what. A worker is a name and a boot number (law 6): a
//! newer boot of a name is another worker, and the older one is gone. It knows nothing of jobs.

use crate::deadline::Deadlines;
use crate::partitions::Partitions;
use crate::record::Millis;
use proto::id::WorkerId;
use proto::message::{Peer, Unreached, WorkerReport};
use proto::spec::DeviceKind;
use std::collections::BTreeMap;

/// More devices than any node has; keeps sums of what workers claim far from overflow.
const DEVICES_MAX: u32 = 1024;

#[derive(Debug, Default)]
pub(crate) struct Fleet {
    /// By name: two boots of one name are never there together.
    workers: BTreeMap<String, Worker>,
}

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) device: DeviceKind,
    pub(crate) devices: u32,
    presence: Presence,
    /// False after its stream broke, until it is heard again.
    connected: bool,
    pub(crate) heard_wall: Option<Millis>,
    /// Where it answers other workers.
    peer_address: Option<String>,
    /// The workers that do not answer it.
    unreached: Vec<Unreached>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    /// Its lease holds until then.
    Up {
        until: Millis,
    },
    /// Not heard since the coordinator restarted; it has until then.
    Expected {
        until: Millis,
    },
    Down,
}

/// What a report says about the worker that sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It was up before.
    Known,
    /// It is up now and was not before.
    Up,
    /// It is up now; the older boot of the same name is gone.
    Replaced { old: WorkerId },
    /// The report is of an older boot than the one that is up, late.
    Stale { newer: WorkerId },
}

impl Fleet {
    /// A member of a generation that ran when the coordinator went down.
    pub(crate) fn expect(
        &mut self,
        id: &WorkerId,
        device: DeviceKind,
        devices: u32,
        until: Millis,
    ) {
        let entry = self
            .workers
            .entry(id.name.clone())
            .or_insert_with(|| Worker {
                id: id.clone(),
                device,
                devices: 0,
                presence: Presence::Expected { until },
                connected: false,
                heard_wall: None,
                peer_address: None,
                unreached: Vec::new(),
            });
        entry.devices = entry.devices.saturating_add(devices);
    }

    pub(crate) fn receive(
        &mut self,
        report: &WorkerReport,
        deadlines: Deadlines,
        now: Millis,
        wall: Millis,
    ) -> Arrival {
        let fresh = Worker {
            id: report.worker.clone(),
            device: report.device,
            devices: report.devices.min(DEVICES_MAX),
            presence: Presence::Up {
                until: deadlines.lease(now),
            },
            connected: true,
            heard_wall: Some(wall),
            peer_address: report.peer_address.clone(),
            unreached: report.unreached.clone(),
        };
        let Some(known) = self.workers.get_mut(&report.worker.name) else {
            self.workers.insert(report.worker.name.clone(), fresh);
            return Arrival::Up;
        };
        // A lower boot number than that of a worker that is down is a daemon whose clock was set
        // back, not a ghost.
        if report.worker.boot < known.id.boot && known.presence != Presence::Down {
            return Arrival::Stale {
                newer: known.id.clone(),
            };
        }
        let old = std::mem::replace(known, fresh);
        match old.presence {
            Presence::Up { .. } if old.id == known.id => Arrival::Known,
            Presence::Up { .. } | Presence::Expected { .. } if old.id != known.id => {
                Arrival::Replaced { old: old.id }
            }
            Presence::Up { .. } | Presence::Expected { .. } | Presence::Down => Arrival::Up,
        }
    }

    pub(crate) fn disconnect(&mut self, id: &WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id.name)
            && worker.id == *id
        {
            worker.connected = false;
        }
    }

    /// Takes down every worker whose time is over, and names them.
    pub(crate) fn expire(&mut self, now: Millis) -> Vec<WorkerId> {
        let mut gone = Vec::new();
        for worker in self.workers.values_mut() {
            if worker.until().is_some_and(|until| until <= now) {
                worker.presence = Presence::Down;
                worker.connected = false;
                gone.push(worker.id.clone());
            }
        }
        gone
    }

    pub(crate) fn next_deadline(&self) -> Option<Millis> {
        self.workers.values().filter_map(Worker::until).min()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.workers.values()
    }

    /// The worker of this name that can be told something now.
    pub(crate) fn reachable(&self, name: &str) -> Option<&Worker> {
        self.workers
            .get(name)
            .filter(|worker| worker.is_reachable())
    }

    /// Who does not reach whom, of those that are heard here: of the others it is known that they
    /// are gone.
    pub(crate) fn partitions(&self) -> Partitions {
        let mut partitions = Partitions::default();
        for worker in self.workers.values().filter(|worker| worker.is_reachable()) {
            for Unreached { peer, error } in &worker.unreached {
                if *peer != worker.id
                    && self
                        .reachable(&peer.name)
                        .is_some_and(|other| other.id == *peer)
                {
                    partitions.add(&worker.id, peer, error);
                }
            }
        }
        partitions
    }

    /// The worker as others may ask it.
    pub(crate) fn peer(&self, id: &WorkerId) -> Option<Peer> {
        let worker = self.reachable(&id.name).filter(|worker| worker.id == *id)?;
        let address = worker.peer_address.clone()?;
        let worker = id.clone();
        Some(Peer { worker, address })
    }

    /// True while this very boot is up or expected back.
    pub(crate) fn holds(&self, id: &WorkerId) -> bool {
        self.workers
            .get(&id.name)
            .is_some_and(|worker| worker.id == *id && worker.presence != Presence::Down)
    }
}

impl Worker {
    /// Up, or expected back.
    pub(crate) fn is_present(&self) -> bool {
        self.presence != Presence::Down
    }

    pub(crate) fn is_up(&self) -> bool {
        matches!(self.presence, Presence::Up { .. })
    }

    pub(crate) fn is_reachable(&self) -> bool {
        self.is_up() && self.connected
    }

    fn until(&self) -> Option<Millis> {
        match self.presence {
            Presence::Up { until } | Presence::Expected { until } => Some(until),
            Presence::Down => None,
        }
    }
}
