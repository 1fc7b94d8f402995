//! A node in the simulated world: the daemon's shell and its stream to the coordinator. The state
//! machine inside is the production one. The ranks of a daemon die with it.

use super::World;
use super::agenda::SimEvent;
use super::bug::Bug;
use super::describe;
use super::plan::{DETECT_WITHIN_MS, FOREVER_MS};
use super::stable_hash::Actor;
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
    /// The boot of the coordinator that its stream leads to.
    pub(crate) linked_to: u64,
    /// How long it stays down after a shutdown.
    away_ms: u64,
    /// Messages up and down are lost until these times.
    cut_up: u64,
    cut_down: u64,
    /// Its ranks cannot reach ranks of other nodes until this time.
    pub(crate) ranks_cut: u64,
    /// The peers that its daemon pings, and whether the next ping is scheduled.
    peers: Vec<Peer>,
    pings: bool,
    /// Its stream carries nothing and cannot be opened until this time.
    link_blocked_until: u64,
    /// The last delivery on its stream, up and down; a stream delivers in order.
    last_up: u64,
    last_down: u64,
}

impl Node {
    pub(crate) fn new(index: usize, devices: u32) -> Self {
        Self {
            name: format!("w{}", index + 1),
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
            pings: false,
            link_blocked_until: 0,
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

    pub(crate) fn link_blocked_until(&mut self, at: u64) {
        self.link_blocked_until = at;
    }

    fn id(&self) -> WorkerId {
        WorkerId {
            name: self.name.clone(),
            boot: self.boot,
        }
    }
}

impl World {
    pub(crate) fn start_node(&mut self, index: usize, clock_back: bool) {
        let node = &mut self.nodes[index];
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
        (node.peers, node.pings) = (Vec::new(), false);
        let boot = node.boot;
        self.agenda.put(
            self.now + self.rng.between(1, 500),
            SimEvent::LinkOpen { node: index, boot },
        );
    }

    pub(crate) fn crash_node(&mut self, index: usize, down_ms: u64, clock_back: bool) {
        if self.nodes[index].machine.take().is_none() {
            return;
        }
        let worker = self.nodes[index].id();
        self.trace
            .line(self.now, || format!("{worker} crashes, for {down_ms} ms"));
        self.processes.retain(|_, process| process.node != index);
        let delay = self.rng.between(1, 2 * DETECT_WITHIN_MS);
        self.break_link(index, delay);
        self.agenda.put(
            self.now + down_ms,
            SimEvent::NodeStart {
                node: index,
                clock_back,
            },
        );
    }

    pub(crate) fn shut_node_down(&mut self, index: usize, down_ms: u64) {
        let boot = self.nodes[index].boot;
        self.nodes[index].away_ms = down_ms;
        self.node_handles(index, boot, Input::Shutdown);
    }

    pub(crate) fn stall_link(&mut self, index: usize, for_ms: u64) {
        let name = &self.nodes[index].name;
        self.trace.line(self.now, || {
            format!("the stream of {name} stalls for {for_ms} ms")
        });
        self.nodes[index].link_blocked_until = self.now + for_ms;
    }

    pub(crate) fn cut_one_way(&mut self, index: usize, up: bool, for_ms: u64) {
        let name = &self.nodes[index].name;
        let direction = if up { "up" } else { "down" };
        self.trace.line(self.now, || {
            format!("the {direction}link of {name} is cut for {for_ms} ms")
        });
        let until = self.now + for_ms;
        let node = &mut self.nodes[index];
        *(if up {
            &mut node.cut_up
        } else {
            &mut node.cut_down
        }) = until;
    }

    pub(crate) fn cut_ranks(&mut self, index: usize, for_ms: u64) {
        let name = &self.nodes[index].name;
        self.trace.line(self.now, || {
            format!("ranks on {name} cannot reach ranks of other nodes for {for_ms} ms")
        });
        self.nodes[index].ranks_cut = self.now + for_ms;
    }

    pub(crate) fn cut_pair(&mut self, nodes: (usize, usize), for_ms: u64) {
        let (a, b) = (&self.nodes[nodes.0].name, &self.nodes[nodes.1].name);
        self.trace.line(self.now, || {
            let how_long = if for_ms == FOREVER_MS {
                "any longer".to_owned()
            } else {
                format!("for {for_ms} ms")
            };
            format!("{a} and {b} cannot reach each other {how_long}")
        });
        let until = self.cuts.entry(nodes).or_default();
        *until = (self.now + for_ms).max(*until);
    }

    /// Until when these two nodes cannot reach each other; None: they can.
    pub(crate) fn cut_between(&self, a: usize, b: usize) -> Option<u64> {
        let pair = self.cuts.get(&(a.min(b), a.max(b))).copied().unwrap_or(0);
        let until = pair
            .max(self.nodes[a].ranks_cut)
            .max(self.nodes[b].ranks_cut);
        (a != b && self.now < until).then_some(until)
    }

    /// The daemon pings its peers; those that run and are reachable answer at once.
    pub(crate) fn ping_peers(&mut self, index: usize, boot: u64) {
        let node = &mut self.nodes[index];
        if node.machine.is_none() || node.boot != boot {
            return;
        }
        if node.peers.is_empty() {
            node.pings = false;
            return;
        }
        for Peer { worker, .. } in node.peers.clone() {
            let blind = self.bug == Some(Bug::PartitionUnreported);
            let there = |other: &Node| other.id() == worker && other.machine.is_some();
            let other = self.nodes.iter().position(there);
            if other.is_some_and(|other| blind || self.cut_between(index, other).is_none()) {
                self.node_handles(index, boot, Input::PeerAnswered { peer: worker });
            }
        }
        let at = self.now + DETECT_WITHIN_MS / 3;
        self.agenda
            .put(at, SimEvent::NodePings { node: index, boot });
    }

    /// The stream breaks: the daemon notices at once, the coordinator after `delay` ms.
    pub(crate) fn break_link(&mut self, index: usize, delay: u64) {
        let node = &mut self.nodes[index];
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
            SimEvent::CoordinatorDisconnected { boot: host, worker },
        );
        self.node_handles(index, boot, Input::Disconnected);
        self.agenda
            .put(self.now + 200, SimEvent::LinkOpen { node: index, boot });
    }

    pub(crate) fn open_link(&mut self, index: usize, boot: u64) {
        let node = &mut self.nodes[index];
        if node.machine.is_none() || node.boot != boot || node.linked {
            return;
        }
        if !self.coordinator.is_up() || self.now < node.link_blocked_until {
            self.agenda
                .put(self.now + 500, SimEvent::LinkOpen { node: index, boot });
            return;
        }
        node.linked = true;
        node.linked_to = self.coordinator.boot;
        (node.last_up, node.last_down) = (self.now, self.now);
        let worker = node.id();
        self.coordinator.link(worker, index);
        self.node_handles(index, boot, Input::Connected);
    }

    pub(crate) fn node_wakes(&mut self, index: usize, boot: u64) {
        let node = &mut self.nodes[index];
        if boot != node.boot {
            return;
        }
        node.wake_at = None;
        let Some(machine) = &node.machine else { return };
        if machine
            .next_deadline()
            .is_some_and(|deadline| deadline <= self.now)
        {
            self.node_handles(index, boot, Input::Deadline);
            let next = self.nodes[index]
                .machine
                .as_ref()
                .and_then(Worker::next_deadline);
            let moved = next.is_none_or(|next| self.now < next);
            self.oracle
                .require(moved, || "a daemon's deadline does not advance".to_owned());
        } else {
            self.schedule_node_wake(index);
        }
    }

    fn schedule_node_wake(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let Some(at) = node.machine.as_ref().and_then(Worker::next_deadline) else {
            return;
        };
        if node.wake_at.is_none_or(|set| at < set) {
            node.wake_at = Some(at);
            self.agenda.put(
                at.max(self.now),
                SimEvent::NodeWake {
                    node: index,
                    boot: node.boot,
                },
            );
        }
    }

    pub(crate) fn node_handles(&mut self, index: usize, boot: u64, event: Input) {
        let node = &mut self.nodes[index];
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
        let actor = Actor::Daemon { node: index, boot };
        self.trace.machine(self.now, actor, &event, || {
            describe::daemon_input(&worker, &event)
        });
        for effect in machine.handle(self.now, event) {
            self.trace.machine(self.now, actor, &effect, || {
                describe::daemon_effect(&worker, &effect)
            });
            match effect {
                Effect::Spawn {
                    key,
                    device,
                    assignment,
                } => self.spawn(index, key, device, *assignment),
                Effect::Update {
                    key,
                    rank,
                    assignment,
                    ..
                } => self.send_order(index, &key, rank, assignment),
                Effect::Stop { key } => self.stop_rank(index, &key),
                Effect::Kill { key } => self.kill_rank(index, &key),
                Effect::Ask { peers, .. } => {
                    let node = &mut self.nodes[index];
                    node.peers = peers;
                    if !std::mem::replace(&mut node.pings, true) {
                        self.agenda
                            .put(self.now + 5, SimEvent::NodePings { node: index, boot });
                    }
                }
                Effect::Report(report) => self.send_up(index, report),
                Effect::Emit(_) => {}
                Effect::Exit => {
                    let left = self.processes.values().any(|process| process.node == index);
                    self.oracle
                        .require(!left, || format!("{worker} exits before its ranks"));
                    self.nodes[index].machine = None;
                    let delay = self.rng.between(1, 50);
                    self.break_link(index, delay);
                    let start = SimEvent::NodeStart {
                        node: index,
                        clock_back: false,
                    };
                    return self.agenda.put(self.now + self.nodes[index].away_ms, start);
                }
            }
            if self.roll_fault(self.plan.noise.daemon_crash) {
                let down_ms = self.rng.between(10, 2_000);
                return self.crash_node(index, down_ms, false);
            }
        }
        self.schedule_node_wake(index);
    }

    fn send_up(&mut self, index: usize, mut report: WorkerReport) {
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
        let boot = self.nodes[index].linked_to;
        let deliveries = self.deliveries(index, true);
        let copies = std::iter::repeat_n(report, deliveries.len());
        for (at, report) in deliveries.into_iter().zip(copies) {
            self.agenda
                .put(at, SimEvent::CoordinatorReceives { boot, report });
        }
    }

    pub(crate) fn coordinator_receives(&mut self, boot: u64, report: WorkerReport) {
        self.as_coordinator(boot, |world| {
            world.coordinator_handles(coordinator::Input::Received { report })
        });
    }

    /// When copies of a message on this node's stream arrive: none, one or two.
    pub(crate) fn deliveries(&mut self, index: usize, up: bool) -> Vec<u64> {
        let delay = self.rng.between(1, 60);
        let node = &mut self.nodes[index];
        let cut = if up { node.cut_up } else { node.cut_down };
        if !node.linked || self.now < node.link_blocked_until || self.now < cut {
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
                let (name, preposition) = (&node.name, if up { "from" } else { "to" });
                self.trace.line(self.now, || {
                    format!("a message {preposition} {name} is lost")
                });
                return Vec::new();
            }
            if self.rng.chance(noise.delayed) {
                // Messages behind it are delayed, too.
                at += self.rng.between(100, DETECT_WITHIN_MS);
            }
            if self.rng.chance(noise.reordered) {
                return vec![at + self.rng.between(0, 2_000)];
            }
            if self.rng.chance(noise.duplicated) {
                *last = at.max(*last);
                return vec![*last, *last + self.rng.between(0, 1_000)];
            }
        }
        at = at.max(*last);
        *last = at;
        vec![at]
    }
}
