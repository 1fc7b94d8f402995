//! A node in the simulated world: the daemon's shell and its stream to the coordinator. The machine
//! inside is the one that ships. A daemon that dies takes its rank processes with it.

use super::World;
use super::agenda::SimEvent;
use super::bug::Bug;
use super::numbers::Who;
use super::plan::{DETECT_WITHIN_MS, FOR_GOOD_MS};
use super::tell;
use coordinator_core::event as coordinator;
use proto::id::{Generation, WorkerId};
use proto::message::{Peer, WorkerReport};
use proto::spec::DeviceKind;
use worker_core::event::{Effect, Input};
use worker_core::{Config, Worker};

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) devices: u32,
    machine: Option<Worker>,
    pub(crate) boot: u64,
    wake_at: Option<u64>,
    linked: bool,
    /// The start of the coordinator that its stream leads to.
    pub(crate) linked_to: u64,
    /// For how long it stays away after it has left.
    away_ms: u64,
    /// Until then nothing gets through, up and down.
    cut_up: u64,
    cut_down: u64,
    /// Until then its ranks reach no rank of another node.
    pub(crate) ranks_cut: u64,
    /// Whom its daemon asks whether they are there, and whether the next time is on the agenda.
    peers: Vec<Peer>,
    asks: bool,
    /// Until then its stream carries nothing.
    deaf_until: u64,
    /// The last delivery on its stream, up and down: a stream keeps its order.
    last_up: u64,
    last_down: u64,
}

impl Node {
    pub(crate) fn new(number: usize, devices: u32) -> Self {
        Self {
            name: format!("w{}", number + 1),
            devices,
            machine: None,
            boot: 0,
            wake_at: None,
            linked: false,
            linked_to: 0,
            away_ms: 0,
            cut_up: 0,
            cut_down: 0,
            ranks_cut: 0,
            peers: Vec::new(),
            asks: false,
            deaf_until: 0,
            last_up: 0,
            last_down: 0,
        }
    }

    pub(crate) fn is_linked(&self) -> bool {
        self.machine.is_some() && self.linked
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.machine.as_ref().is_some_and(Worker::is_leaving)
    }

    pub(crate) fn deaf_until(&mut self, at: u64) {
        self.deaf_until = at;
    }

    fn id(&self) -> WorkerId {
        WorkerId {
            name: self.name.clone(),
            boot: self.boot,
        }
    }
}

impl World {
    pub(crate) fn start_node(&mut self, number: usize, clock_back: bool) {
        let node = &mut self.nodes[number];
        if node.machine.is_some() {
            return;
        }
        if self.bug != Some(Bug::SameBoot) || node.boot == 0 {
            node.boot = if clock_back && 2 < node.boot {
                node.boot - 2
            } else {
                node.boot + self.now + 10
            };
        }
        let (worker, devices) = (node.id(), node.devices);
        self.trace.line(self.now, || format!("{worker} starts"));
        let config = Config {
            worker,
            device: DeviceKind::Cpu,
            devices,
            peer_address: Some(node.name.clone()),
        };
        node.machine = Some(Worker::new(config, self.now));
        node.wake_at = None;
        (node.peers, node.asks) = (Vec::new(), false);
        let boot = node.boot;
        self.agenda.put(
            self.now + self.rng.between(1, 500),
            SimEvent::LinkOpen { node: number, boot },
        );
    }

    pub(crate) fn crash_node(&mut self, number: usize, down_ms: u64, clock_back: bool) {
        if self.nodes[number].machine.take().is_none() {
            return;
        }
        let worker = self.nodes[number].id();
        self.trace
            .line(self.now, || format!("{worker} is gone, for {down_ms} ms"));
        self.processes.retain(|_, process| process.node != number);
        let delay = self.rng.between(1, 2 * DETECT_WITHIN_MS);
        self.break_link(number, delay);
        self.agenda.put(
            self.now + down_ms,
            SimEvent::NodeStart {
                node: number,
                clock_back,
            },
        );
    }

    pub(crate) fn shut_node_down(&mut self, number: usize, down_ms: u64) {
        let boot = self.nodes[number].boot;
        self.nodes[number].away_ms = down_ms;
        self.node_handles(number, boot, Input::Shutdown);
    }

    pub(crate) fn deafen(&mut self, number: usize, for_ms: u64) {
        let name = &self.nodes[number].name;
        self.trace
            .line(self.now, || format!("{name} is cut off for {for_ms} ms"));
        self.nodes[number].deaf_until = self.now + for_ms;
    }

    pub(crate) fn cut_one_way(&mut self, number: usize, up: bool, for_ms: u64) {
        let name = &self.nodes[number].name;
        let way = if up { "up" } else { "down" };
        self.trace.line(self.now, || {
            format!("{name} is cut off {way} for {for_ms} ms")
        });
        let until = self.now + for_ms;
        let node = &mut self.nodes[number];
        *(if up {
            &mut node.cut_up
        } else {
            &mut node.cut_down
        }) = until;
    }

    pub(crate) fn cut_ranks(&mut self, number: usize, for_ms: u64) {
        let name = &self.nodes[number].name;
        self.trace.line(self.now, || {
            format!("ranks on {name} reach no rank of another node for {for_ms} ms")
        });
        self.nodes[number].ranks_cut = self.now + for_ms;
    }

    pub(crate) fn cut_pair(&mut self, nodes: (usize, usize), for_ms: u64) {
        let (a, b) = (&self.nodes[nodes.0].name, &self.nodes[nodes.1].name);
        self.trace.line(self.now, || {
            let how_long = if for_ms == FOR_GOOD_MS {
                "any more".to_owned()
            } else {
                format!("for {for_ms} ms")
            };
            format!("{a} and {b} do not reach each other {how_long}")
        });
        let until = self.cuts.entry(nodes).or_default();
        *until = (self.now + for_ms).max(*until);
    }

    /// Until when these two nodes do not reach each other, if they do not now.
    pub(crate) fn cut_between(&self, a: usize, b: usize) -> Option<u64> {
        let pair = self.cuts.get(&(a.min(b), a.max(b))).copied().unwrap_or(0);
        let until = pair
            .max(self.nodes[a].ranks_cut)
            .max(self.nodes[b].ranks_cut);
        (a != b && self.now < until).then_some(until)
    }

    /// The daemon asks its peers; those that are there and are reached answer at once.
    pub(crate) fn node_asks(&mut self, number: usize, boot: u64) {
        let node = &mut self.nodes[number];
        if node.machine.is_none() || node.boot != boot {
            return;
        }
        if node.peers.is_empty() {
            node.asks = false;
            return;
        }
        for Peer { worker, .. } in node.peers.clone() {
            let blind = self.bug == Some(Bug::CutUnseen);
            let there = |other: &Node| other.id() == worker && other.machine.is_some();
            let other = self.nodes.iter().position(there);
            if other.is_some_and(|other| blind || self.cut_between(number, other).is_none()) {
                self.node_handles(number, boot, Input::PeerAnswered { peer: worker });
            }
        }
        let at = self.now + DETECT_WITHIN_MS / 3;
        self.agenda
            .put(at, SimEvent::NodeAsks { node: number, boot });
    }

    /// The stream breaks: the daemon knows at once, the coordinator after `delay` ms.
    pub(crate) fn break_link(&mut self, number: usize, delay: u64) {
        let node = &mut self.nodes[number];
        if !std::mem::take(&mut node.linked) {
            return;
        }
        let (worker, boot, host) = (node.id(), node.boot, std::mem::take(&mut node.linked_to));
        self.trace
            .line(self.now, || format!("{worker} loses its stream"));
        let hosts = [Some(&mut self.coordinator), self.former.as_mut()];
        hosts
            .into_iter()
            .flatten()
            .filter(|it| it.boot == host)
            .for_each(|it| it.unlink(&worker));
        self.agenda.put(
            self.now + delay,
            SimEvent::CoordinatorLosesLink { boot: host, worker },
        );
        self.node_handles(number, boot, Input::Disconnected);
        self.agenda
            .put(self.now + 200, SimEvent::LinkOpen { node: number, boot });
    }

    pub(crate) fn open_link(&mut self, number: usize, boot: u64) {
        let node = &mut self.nodes[number];
        if node.machine.is_none() || node.boot != boot || node.linked {
            return;
        }
        if !self.coordinator.is_up() || self.now < node.deaf_until {
            self.agenda
                .put(self.now + 500, SimEvent::LinkOpen { node: number, boot });
            return;
        }
        node.linked = true;
        node.linked_to = self.coordinator.boot;
        (node.last_up, node.last_down) = (self.now, self.now);
        let worker = node.id();
        self.coordinator.link(worker, number);
        self.node_handles(number, boot, Input::Connected);
    }

    pub(crate) fn node_wakes(&mut self, number: usize, boot: u64) {
        let node = &mut self.nodes[number];
        if boot != node.boot {
            return;
        }
        node.wake_at = None;
        let Some(machine) = &node.machine else { return };
        if machine
            .next_deadline()
            .is_some_and(|deadline| deadline <= self.now)
        {
            self.node_handles(number, boot, Input::Deadline);
            let next = self.nodes[number]
                .machine
                .as_ref()
                .and_then(Worker::next_deadline);
            let moved = next.is_none_or(|next| self.now < next);
            self.oracle
                .require(moved, || "a daemon's deadline does not move on".to_owned());
        } else {
            self.schedule_node_wake(number);
        }
    }

    fn schedule_node_wake(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        let Some(at) = node.machine.as_ref().and_then(Worker::next_deadline) else {
            return;
        };
        if node.wake_at.is_none_or(|set| at < set) {
            node.wake_at = Some(at);
            self.agenda.put(
                at.max(self.now),
                SimEvent::NodeWake {
                    node: number,
                    boot: node.boot,
                },
            );
        }
    }

    pub(crate) fn node_handles(&mut self, number: usize, boot: u64, event: Input) {
        let node = &mut self.nodes[number];
        if node.boot != boot {
            return;
        }
        let Some(machine) = &mut node.machine else {
            return;
        };
        let worker = WorkerId {
            name: node.name.clone(),
            boot,
        };
        let who = Who::Daemon { node: number, boot };
        self.trace.machine(self.now, who, &event, || {
            tell::daemon_heard(&worker, &event)
        });
        for effect in machine.handle(self.now, event) {
            self.trace.machine(self.now, who, &effect, || {
                tell::daemon_wanted(&worker, &effect)
            });
            match effect {
                Effect::Spawn {
                    key,
                    device,
                    assignment,
                } => self.spawn(number, key, device, *assignment),
                Effect::Update {
                    key,
                    rank,
                    assignment,
                    ..
                } => self.tell_rank(number, &key, rank, assignment),
                Effect::Stop { key } => self.stop_rank(number, &key),
                Effect::Kill { key } => self.kill_rank(number, &key),
                Effect::Ask { peers, .. } => {
                    let node = &mut self.nodes[number];
                    node.peers = peers;
                    if !std::mem::replace(&mut node.asks, true) {
                        self.agenda
                            .put(self.now + 5, SimEvent::NodeAsks { node: number, boot });
                    }
                }
                Effect::Report(report) => self.send_up(number, report),
                Effect::Emit(_) => {}
                Effect::Exit => {
                    let left = self
                        .processes
                        .values()
                        .any(|process| process.node == number);
                    self.oracle
                        .require(!left, || format!("{worker} leaves and its ranks do not"));
                    self.nodes[number].machine = None;
                    let delay = self.rng.between(1, 50);
                    self.break_link(number, delay);
                    let start = SimEvent::NodeStart {
                        node: number,
                        clock_back: false,
                    };
                    return self
                        .agenda
                        .put(self.now + self.nodes[number].away_ms, start);
                }
            }
            if self.trouble(self.plan.noise.daemon_partitioned) {
                let down_ms = self.rng.between(10, 2_000);
                return self.crash_node(number, down_ms, false);
            }
        }
        self.schedule_node_wake(number);
    }

    fn send_up(&mut self, number: usize, mut report: WorkerReport) {
        if self.bug == Some(Bug::GenerationsMixed) {
            for rank in &mut report.ranks {
                let newest = self
                    .durable
                    .jobs
                    .get(&rank.job)
                    .map_or(Generation(0), |job| job.generation);
                rank.generation = newest;
            }
        }
        let boot = self.nodes[number].linked_to;
        let deliveries = self.deliveries(number, true);
        let copies = std::iter::repeat_n(report, deliveries.len());
        for (at, report) in deliveries.into_iter().zip(copies) {
            self.agenda
                .put(at, SimEvent::CoordinatorHears { boot, report });
        }
    }

    pub(crate) fn coordinator_hears(&mut self, boot: u64, report: WorkerReport) {
        self.as_coordinator(boot, |world| {
            world.coordinator_handles(coordinator::Input::Received { report })
        });
    }

    /// When copies of a message on this node's stream arrive: none, one or two.
    pub(crate) fn deliveries(&mut self, number: usize, up: bool) -> Vec<u64> {
        let delay = self.rng.between(1, 60);
        let node = &mut self.nodes[number];
        let cut = if up { node.cut_up } else { node.cut_down };
        if !node.linked || self.now < node.deaf_until || self.now < cut {
            return Vec::new();
        }
        let last = if up {
            &mut node.last_up
        } else {
            &mut node.last_down
        };
        let mut at = self.now + delay;
        if self.now < self.plan.heal_at {
            let noise = self.plan.noise;
            if self.rng.chance(noise.lost) {
                let (name, way) = (&node.name, if up { "of" } else { "for" });
                self.trace
                    .line(self.now, || format!("a message {way} {name} is lost"));
                return Vec::new();
            }
            if self.rng.chance(noise.delayed) {
                // What follows it waits behind it.
                at += self.rng.between(100, DETECT_WITHIN_MS);
            }
            if self.rng.chance(noise.reordered) {
                return vec![at + self.rng.between(0, 2_000)];
            }
            if self.rng.chance(noise.doubled) {
                *last = at.max(*last);
                return vec![*last, *last + self.rng.between(0, 1_000)];
            }
        }
        at = at.max(*last);
        *last = at;
        vec![at]
    }
}
