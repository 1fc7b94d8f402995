//! The workers, their leases and their devices. A worker is identified by its name and boot number
//! (law 6): a newer boot of a name is another worker and replaces the older one. This module does
//! not know about jobs.

use crate::deadline::Deadlines;
use crate::partitions::Partitions;
use crate::record::Millis;
use proto::id::WorkerId;
use proto::limits::{DEVICES, LIST};
use proto::message::{Peer, Successor, Unreached, WorkerReport};
use proto::spec::DeviceKind;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub(crate) struct Fleet {
    /// By name: two boots of one name never coexist.
    workers: BTreeMap<String, Worker>,
    /// When the leases of those that are present end, and their names.
    leases: BTreeSet<(Millis, String)>,
}

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) device: DeviceKind,
    pub(crate) devices: u32,
    presence: Presence,
    /// False after its stream breaks, until its next report.
    connected: bool,
    pub(crate) last_report_wall: Option<Millis>,
    /// The address at which other workers can reach it.
    peer_address: Option<String>,
    /// The workers that it cannot reach.
    unreached: Vec<Unreached>,
    /// A worker of this name was once assigned something. Others are forgotten when they are gone
    /// for long, because anybody can invent a name.
    held: bool,
    /// When it went; meaningful only while it is down.
    down_since: Millis,
    /// The newest older boot that reported although this worker has replaced it.
    predecessor: Option<Predecessor>,
}

/// An older boot that reports beside the newer one of its name. Two nodes may have one name.
#[derive(Debug, Clone)]
struct Predecessor {
    id: WorkerId,
    address: Option<String>,
    /// When it first reported although it was replaced.
    since: Millis,
    last_report_wall: Millis,
    /// It was told to leave: both run.
    is_displaced: bool,
}

/// An older boot of a worker that was told to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Displaced<'a> {
    pub worker: &'a WorkerId,
    pub address: Option<&'a str>,
    /// The coordinator's clock at its last report.
    pub last_report_ms: Millis,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    /// Its lease is valid until this time.
    Up {
        until: Millis,
    },
    /// No report since the coordinator restarted. It has until this time to reconnect.
    Expected {
        until: Millis,
    },
    Down,
}

/// How a report changes the state of the worker that sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It was already up.
    Known,
    /// It came up.
    Up,
    /// It came up and replaces the older boot of the same name.
    Replaced { old: WorkerId },
    /// A report of an older boot than the one that is up: a late one, or of a daemon that runs
    /// beside the newer one and must leave.
    Stale {
        newer: WorkerId,
        leave: Option<Leave>,
    },
}

/// A displaced worker must leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leave {
    pub(crate) successor: Successor,
    /// It was not told before.
    pub(crate) is_new: bool,
}

impl Fleet {
    /// Registers a member of a generation that was running when the coordinator stopped.
    pub(crate) fn expect_return(
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
                last_report_wall: None,
                peer_address: None,
                unreached: Vec::new(),
                held: true,
                down_since: 0,
                predecessor: None,
            });
        entry.devices = entry.devices.saturating_add(devices);
        self.index(&id.name, None);
    }

    fn until(&self, name: &str) -> Option<Millis> {
        self.workers.get(name).and_then(Worker::until)
    }

    /// The lease of this worker ended at `before` until now.
    fn index(&mut self, name: &str, before: Option<Millis>) {
        let after = self.until(name);
        if before != after {
            if let Some(until) = before {
                self.leases.remove(&(until, name.to_owned()));
            }
            if let Some(until) = after {
                self.leases.insert((until, name.to_owned()));
            }
        }
    }

    pub(crate) fn receive(
        &mut self,
        report: &WorkerReport,
        deadlines: Deadlines,
        now: Millis,
        wall: Millis,
    ) -> Arrival {
        let before = self.until(&report.worker.name);
        let arrival = self.register(report, deadlines, now, wall);
        self.index(&report.worker.name, before);
        arrival
    }

    fn register(
        &mut self,
        report: &WorkerReport,
        deadlines: Deadlines,
        now: Millis,
        wall: Millis,
    ) -> Arrival {
        let fresh = Worker {
            id: report.worker.clone(),
            device: report.device,
            devices: report.devices.min(DEVICES),
            presence: Presence::Up {
                until: deadlines.lease(now),
            },
            connected: true,
            last_report_wall: Some(wall),
            peer_address: report.peer_address.clone(),
            unreached: report.unreached.clone(),
            held: false,
            down_since: 0,
            predecessor: None,
        };
        let Some(known) = self.workers.get_mut(&report.worker.name) else {
            self.workers.insert(report.worker.name.clone(), fresh);
            return Arrival::Up;
        };
        // If the known worker is down, a lower boot number means that the daemon's clock was set
        // back; the report is not stale.
        if report.worker.boot < known.id.boot && known.presence != Presence::Down {
            return Arrival::Stale {
                newer: known.id.clone(),
                leave: known.on_predecessor(report, deadlines, now, wall),
            };
        }
        let mut old = std::mem::replace(known, fresh);
        known.held = old.held;
        if old.id == known.id {
            known.predecessor = old.predecessor.take();
        }
        match old.presence {
            Presence::Up { .. } if old.id == known.id => Arrival::Known,
            Presence::Up { .. } | Presence::Expected { .. } if old.id != known.id => {
                Arrival::Replaced { old: old.id }
            }
            Presence::Up { .. } | Presence::Expected { .. } | Presence::Down => Arrival::Up,
        }
    }

    /// Extends the lease of a worker that is reachable and reports what it reported before. Returns
    /// false, and changes nothing, if there is more to do.
    pub(crate) fn renew(
        &mut self,
        report: &WorkerReport,
        deadlines: Deadlines,
        now: Millis,
        wall: Millis,
    ) -> bool {
        let before = self.until(&report.worker.name);
        let Some(known) = self.workers.get_mut(&report.worker.name) else {
            return false;
        };
        let is_same = known.id == report.worker
            && known.is_reachable()
            && known.device == report.device
            && known.devices == report.devices.min(DEVICES)
            && known.peer_address == report.peer_address
            && known.unreached == report.unreached;
        if is_same {
            known.presence = Presence::Up {
                until: deadlines.lease(now),
            };
            known.last_report_wall = Some(wall);
            self.index(&report.worker.name, before);
        }
        is_same
    }

    pub(crate) fn disconnect(&mut self, id: &WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id.name)
            && worker.id == *id
        {
            worker.connected = false;
        }
    }

    /// Marks every worker with an expired lease as down, and returns them.
    pub(crate) fn expire(&mut self, now: Millis) -> Vec<WorkerId> {
        let mut expired = Vec::new();
        while self.leases.first().is_some_and(|(until, _)| *until <= now) {
            let gone = self.leases.pop_first();
            if let Some(worker) = gone.and_then(|(_, name)| self.workers.get_mut(&name)) {
                worker.presence = Presence::Down;
                worker.connected = false;
                worker.down_since = now;
                expired.push(worker.id.clone());
            }
        }
        expired.sort();
        expired
    }

    /// This worker was assigned something.
    pub(crate) fn set_held(&mut self, id: &WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id.name) {
            worker.held = true;
        }
    }

    /// Whether a worker of this name was once assigned something.
    pub(crate) fn has_held(&self, name: &str) -> bool {
        self.workers.get(name).is_some_and(|worker| worker.held)
    }

    /// Forgets the workers that never held anything and have been gone for long, and the oldest of
    /// them at once if there are more than [`LIST`]. Returns the forgotten ones. It has no deadline
    /// of its own: the next input is soon enough.
    pub(crate) fn forget(&mut self, deadlines: Deadlines, now: Millis) -> Vec<WorkerId> {
        let invented = |worker: &&Worker| !worker.held && !worker.is_present();
        let invented = || self.workers.values().filter(invented);
        let oldest = invented().map(|worker| worker.down_since).min();
        let is_late = oldest.is_some_and(|since| deadlines.forget(since) <= now);
        if !is_late && invented().count() <= LIST {
            return Vec::new();
        }
        let mut gone: Vec<(Millis, WorkerId)> = invented()
            .map(|worker| (worker.down_since, worker.id.clone()))
            .collect();
        gone.sort();
        let surplus = gone.len().saturating_sub(LIST);
        let late = |(index, (since, _)): &(usize, (Millis, WorkerId))| {
            *index < surplus || deadlines.forget(*since) <= now
        };
        let gone = gone.into_iter().enumerate().take_while(late);
        let gone: Vec<WorkerId> = gone.map(|(_, (_, id))| id).collect();
        for id in &gone {
            self.workers.remove(&id.name);
        }
        gone
    }

    pub(crate) fn next_deadline(&self) -> Option<Millis> {
        self.leases.first().map(|(until, _)| *until)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.workers.values()
    }

    /// The worker of this name, if it is up and connected.
    pub(crate) fn reachable(&self, name: &str) -> Option<&Worker> {
        self.workers
            .get(name)
            .filter(|worker| worker.is_reachable())
    }

    /// Pairs of live workers that cannot reach each other. Workers that are down are not included.
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

    /// The worker's address for its peers.
    pub(crate) fn peer(&self, id: &WorkerId) -> Option<Peer> {
        let worker = self.reachable(&id.name).filter(|worker| worker.id == *id)?;
        let address = worker.peer_address.clone()?;
        let worker = id.clone();
        Some(Peer { worker, address })
    }

    /// True while this boot of the worker is up or expected to reconnect.
    pub(crate) fn is_alive(&self, id: &WorkerId) -> bool {
        self.workers
            .get(&id.name)
            .is_some_and(|worker| worker.id == *id && worker.presence != Presence::Down)
    }
}

impl Worker {
    /// An older boot reported although this one replaced it. Both run if the older one still
    /// reports some time later, and this one has reported since; then the older one must leave.
    fn on_predecessor(
        &mut self,
        report: &WorkerReport,
        deadlines: Deadlines,
        now: Millis,
        wall: Millis,
    ) -> Option<Leave> {
        let lease_until = self.until();
        let known = self.predecessor.take();
        let mut predecessor = known
            .filter(|known| known.id == report.worker)
            .unwrap_or_else(|| Predecessor {
                id: report.worker.clone(),
                address: None,
                since: now,
                last_report_wall: wall,
                is_displaced: false,
            });
        predecessor.address.clone_from(&report.peer_address);
        predecessor.last_report_wall = wall;
        let since = predecessor.since;
        let newer_reported = lease_until.is_some_and(|until| deadlines.lease(since) < until);
        let runs = deadlines.displaced(since) <= now && newer_reported && self.is_reachable();
        let is_new = runs && !predecessor.is_displaced;
        predecessor.is_displaced |= runs;
        let is_displaced = predecessor.is_displaced;
        self.predecessor = Some(predecessor);
        is_displaced.then(|| Leave {
            successor: Successor {
                worker: self.id.clone(),
                address: self.peer_address.clone(),
            },
            is_new,
        })
    }

    /// The older boot that was told to leave.
    pub(crate) fn displaced(&self) -> Option<Displaced<'_>> {
        let it = self.predecessor.as_ref().filter(|it| it.is_displaced)?;
        Some(Displaced {
            worker: &it.id,
            address: it.address.as_deref(),
            last_report_ms: it.last_report_wall,
        })
    }

    /// Up, or expected to reconnect.
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
