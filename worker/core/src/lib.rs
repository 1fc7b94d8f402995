//! What a node should do next about its ranks: a pure machine. It turns the coordinator's desired
//! state into rank processes, one per device, and tells the coordinator what they say. A process
//! that runs when its job gets a newer generation with a place for it here is kept and becomes a
//! rank of that, because it holds the state. It has no async, clock, randomness, sockets, files or
//! logging; the daemon's loop calls [`Worker::handle`] and performs the effects in order.
//!
//! While the coordinator is away ranks go on: the last desired state still holds.

mod clock;
mod deadline;
pub mod event;
mod peers;
mod rank;
mod view;

use clock::Clock;
use deadline::Deadlines;
pub use deadline::GRACE;
use event::{Effect, Event, Input, Millis, RankKey};
use peers::Peers;
use proto::id::{Generation, JobId, Rank, WorkerId};
use proto::message::{Assignment, DesiredState, RankPhase, RankReport, SILENT, WorkerReport};
use proto::spec::DeviceKind;
use rank::{Life, RankState};
use std::collections::{BTreeMap, BTreeSet};
pub use view::{RankView, View};

/// What the machine is told once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub worker: WorkerId,
    pub device: DeviceKind,
    pub devices: u32,
    /// Where it answers other workers; None: nowhere.
    pub peer_address: Option<String>,
}

/// Why a worker that leaves does not run a rank.
const SHUTTING_DOWN: &str = "the worker is shutting down";

/// The machine.
#[derive(Debug)]
pub struct Worker {
    config: Config,
    deadlines: Deadlines,
    clock: Clock,
    connected: bool,
    leave: Leave,
    /// What should be: the newest generation of each job that names this worker.
    assignments: BTreeMap<JobId, Assignment>,
    ranks: BTreeMap<RankKey, RankState>,
    /// The newest generation of each job that this worker was taken off. Its ranks are never
    /// started again: a second life of a rank would repeat steps and overwrite shards that a
    /// manifest may already name.
    retired: BTreeMap<JobId, Generation>,
    peers: Peers,
    /// Something changed that the coordinator has not been told.
    news: bool,
    reported: Millis,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    No,
    /// Asked to: no rank starts any more, and those that run have until then to hand over what they
    /// hold.
    Asked {
        until: Millis,
    },
    /// Asked again: they are sent away.
    Now,
    /// [`Effect::Exit`] was given.
    Gone,
}

impl Worker {
    /// A daemon that was just started: no ranks, no coordinator.
    #[must_use]
    pub fn new(config: Config, now: Millis) -> Self {
        Self {
            deadlines: Deadlines::UNTIL_TOLD,
            config,
            clock: Clock::new(now),
            connected: false,
            leave: Leave::No,
            assignments: BTreeMap::new(),
            ranks: BTreeMap::new(),
            retired: BTreeMap::new(),
            peers: Peers::default(),
            news: true,
            reported: now,
        }
    }

    /// Takes one event; the effects are to be performed in order. Never fails and never panics on
    /// strange input: what cannot be meant is ignored and noted.
    pub fn handle(&mut self, now: Millis, event: Input) -> Vec<Effect> {
        let due = self.due();
        let now = self.clock.advance(now, due, self.deadlines.patience_ms());
        let mut effects = Vec::new();
        match event {
            Input::Connected => {
                self.connected = true;
                self.news = true;
            }
            Input::Disconnected => self.connected = false,
            Input::Desired(state) => self.on_desired(now, state, &mut effects),
            Input::RankSaid { process, report } => {
                self.on_rank_said(now, &process, report, &mut effects)
            }
            Input::RankExited {
                key,
                success,
                outcome,
            } => {
                self.on_rank_exited(&key, success, outcome, &mut effects);
            }
            Input::PeerAnswered { peer } => self.news |= self.peers.answered(&peer, now),
            Input::PeerFailed { peer, error } => self.peers.failed(&peer, error),
            Input::Shutdown => self.on_shutdown(now),
            Input::Deadline => {}
        }
        self.news |= self.peers.tend(now, self.deadlines);
        self.dismiss(now, &mut effects);
        self.kill_overdue(now, &mut effects);
        self.start(now, &mut effects);
        self.report(now, &mut effects);
        self.exit_when_empty(&mut effects);
        effects
    }

    /// When [`Input::Deadline`] is wanted, in the clock of [`Self::handle`].
    #[must_use]
    pub fn next_deadline(&self) -> Option<Millis> {
        self.due().map(|deadline| self.clock.shell_of(deadline))
    }

    #[must_use]
    pub fn view(&self) -> View<'_> {
        let ranks = self.ranks.iter().map(|(key, state)| RankView {
            key,
            device: state.device(),
            report: &state.report,
            assignment: state.handed.as_deref(),
        });
        View {
            connected: self.connected,
            leaving: self.is_leaving(),
            ranks: ranks.collect(),
        }
    }

    /// True once the daemon was asked to leave: it takes no new rank.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.leave != Leave::No
    }

    /// The next deadline, in the time of [`Clock`].
    fn due(&self) -> Option<Millis> {
        let ranks = self
            .ranks
            .values()
            .filter_map(|rank| rank.deadline(self.deadlines))
            .min();
        let report = self
            .connected
            .then(|| self.deadlines.report_at(self.reported));
        let leave = match self.leave {
            Leave::Asked { until } => Some(until),
            Leave::No | Leave::Now | Leave::Gone => None,
        };
        let peers = self.peers.deadline(self.deadlines);
        ranks
            .into_iter()
            .chain(report)
            .chain(leave)
            .chain(peers)
            .min()
    }

    fn on_desired(&mut self, now: Millis, state: DesiredState, effects: &mut Vec<Effect>) {
        if state.worker != self.config.worker {
            let what = format!(
                "orders for {}; this is {}",
                state.worker, self.config.worker
            );
            effects.push(Effect::Emit(Event::Ignored {
                worker: state.worker,
                what,
            }));
            return;
        }
        let deadlines = Deadlines::new(state.detect_within_ms);
        let others = self.peers.take(state.peers, now);
        if others || self.deadlines != deadlines {
            effects.push(Effect::Ask {
                peers: self.peers.list(),
                detect_within_ms: state.detect_within_ms,
            });
        }
        self.deadlines = deadlines;
        let mut wanted = BTreeMap::new();
        for assignment in state.assignments {
            let known = self
                .assignments
                .get(&assignment.job)
                .map(|known| known.generation);
            if known.is_none_or(|known| known <= assignment.generation) {
                wanted.insert(assignment.job.clone(), assignment);
                continue;
            }
            // A message that was overtaken by a newer one.
            let what = format!(
                "{} generation {} is over",
                assignment.job, assignment.generation
            );
            effects.push(Effect::Emit(Event::Ignored {
                worker: self.config.worker.clone(),
                what,
            }));
            if let Some(newer) = self.assignments.get(&assignment.job) {
                wanted.insert(assignment.job, newer.clone());
            }
        }
        for (job, old) in std::mem::replace(&mut self.assignments, wanted) {
            if self
                .assignments
                .get(&job)
                .is_none_or(|new| new.generation != old.generation)
            {
                let retired = self.retired.entry(job).or_default();
                *retired = old.generation.max(*retired);
            }
        }
        self.move_over(now, effects);
        self.hand_on(effects);
    }

    /// Gives running processes the ranks of a newer generation of their job, in order.
    fn move_over(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if !matches!(self.leave, Leave::No | Leave::Asked { .. }) {
            return;
        }
        let leave_by = self.deadlines.leave_at(now);
        for assignment in self.assignments.values() {
            for key in places(assignment, self.config.devices) {
                if self.ranks.contains_key(&key) || self.is_retired(assignment) {
                    continue;
                }
                let assignment = Box::new(assignment.clone());
                let successor = self.ranks.iter().find_map(|(old, state)| {
                    let same = old.job == key.job;
                    let new = same.then(|| state.successor(&key, assignment.clone(), leave_by))?;
                    Some((old.clone(), new?))
                });
                // Of units, another rank may go on where this one has nobody.
                let Some((old, state)) = successor else {
                    continue;
                };
                self.ranks.remove(&old);
                effects.extend(state.device().map(|device| Effect::Update {
                    key: state.process.clone(),
                    rank: key.rank,
                    device,
                    assignment,
                }));
                effects.push(Effect::Emit(Event::RankMoved {
                    from: old,
                    to: key.clone(),
                }));
                self.ranks.insert(key, state);
                self.news = true;
            }
        }
    }

    /// Passes changed assignments on to the processes that run them.
    fn hand_on(&mut self, effects: &mut Vec<Effect>) {
        for (key, state) in &mut self.ranks {
            let Some(assignment) = self.assignments.get(&key.job) else {
                continue;
            };
            let Life::Running { device, .. } = state.life else {
                continue;
            };
            if !names(assignment, key) || state.handed.as_deref() == Some(assignment) {
                continue;
            }
            let assignment = Box::new(assignment.clone());
            self.news |= state.hand(assignment.clone());
            effects.push(Effect::Update {
                key: state.process.clone(),
                rank: key.rank,
                device,
                assignment,
            });
        }
    }

    fn on_rank_said(
        &mut self,
        now: Millis,
        process: &RankKey,
        said: RankReport,
        effects: &mut Vec<Effect>,
    ) {
        let deadlines = self.deadlines;
        let place = (&said.generation, &said.rank);
        match self.process(process) {
            Some((key, state)) if (&key.generation, &key.rank) == place && key.job == said.job => {
                self.news |= state.merge(said, now);
            }
            // It has not yet heard of the newer one; what it says of the older one is over.
            Some((key, state)) if said.generation < key.generation && key.job == said.job => {
                state.lives(said.activity, deadlines, now);
            }
            Some(_) | None => {
                let what = format!(
                    "{} generation {} rank {} has no process here",
                    said.job, said.generation, said.rank
                );
                effects.push(Effect::Emit(Event::Ignored {
                    worker: self.config.worker.clone(),
                    what,
                }));
            }
        }
    }

    /// The rank that this process is now, if the process is there.
    fn process(&mut self, process: &RankKey) -> Option<(&RankKey, &mut RankState)> {
        let there = |state: &RankState| state.process == *process && state.life != Life::Gone;
        self.ranks.iter_mut().find(|(_, state)| there(state))
    }

    fn on_rank_exited(
        &mut self,
        process: &RankKey,
        success: bool,
        outcome: String,
        effects: &mut Vec<Effect>,
    ) {
        let Some((key, state)) = self.process(process) else {
            return;
        };
        let key = key.clone();
        let error = if success {
            format!("left before its work was done ({outcome})")
        } else {
            outcome.clone()
        };
        state.advance(RankPhase::Failed {
            error,
            permanent: false,
        });
        state.life = Life::Gone;
        self.news = true;
        effects.push(Effect::Emit(Event::RankGone {
            key,
            success,
            outcome,
        }));
    }

    fn on_shutdown(&mut self, now: Millis) {
        let until = self.deadlines.gone_at(now);
        self.leave = match self.leave {
            Leave::No => Leave::Asked { until },
            Leave::Asked { .. } | Leave::Now => Leave::Now,
            Leave::Gone => Leave::Gone,
        };
        self.news = true;
    }

    /// Taken off this generation once. A reserve does no step and writes nothing, so it may come
    /// and go.
    fn is_retired(&self, assignment: &Assignment) -> bool {
        let retired = self.retired.get(&assignment.job);
        !assignment.is_standby() && retired.is_some_and(|retired| assignment.generation <= *retired)
    }

    /// Sends away the ranks that should not be, and forgets those that are gone and that nobody
    /// asks about.
    fn dismiss(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let kill_at = self.deadlines.kill_at(now);
        if matches!(self.leave, Leave::Asked { until } if until <= now) {
            self.leave = Leave::Now;
        }
        let leaving = matches!(self.leave, Leave::Now | Leave::Gone);
        for (key, state) in &mut self.ranks {
            let named = self
                .assignments
                .get(&key.job)
                .is_some_and(|a| names(a, key));
            if named && !leaving {
                continue;
            }
            if let Life::Running { device, .. } = state.life {
                if leaving {
                    state.advance(RankPhase::Failed {
                        error: SHUTTING_DOWN.to_owned(),
                        permanent: false,
                    });
                }
                state.life = Life::Leaving { device, kill_at };
                effects.push(Effect::Stop {
                    key: state.process.clone(),
                });
            }
        }
        let assignments = &self.assignments;
        let before = self.ranks.len();
        self.ranks.retain(|key, state| {
            let named = assignments.get(&key.job).is_some_and(|a| names(a, key));
            named || state.life != Life::Gone
        });
        self.news |= self.ranks.len() != before;
    }

    /// Kills ranks that are silent, and those that did not leave when asked.
    fn kill_overdue(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let kill_at = self.deadlines.kill_at(now);
        for (key, state) in &mut self.ranks {
            if state
                .deadline(self.deadlines)
                .is_none_or(|deadline| now < deadline)
            {
                continue;
            }
            if let Life::Running {
                device,
                heard,
                spoke,
                ..
            } = state.life
            {
                let silent_ms = now.saturating_sub(heard);
                let phase = phase_word(&state.report.phase);
                let activity = state.report.activity;
                let place =
                    activity.map_or_else(String::new, |activity| format!(", in {activity}"));
                let error = if self.deadlines.silent_at(heard, spoke) <= now {
                    format!("{SILENT} {silent_ms} ms while {phase}{place}; killed by its daemon")
                } else {
                    "did not leave the older generation in time; killed by its daemon".to_owned()
                };
                self.news |= state.advance(RankPhase::Failed {
                    error,
                    permanent: false,
                });
                state.life = Life::Leaving { device, kill_at };
                effects.push(Effect::Emit(Event::RankSilent {
                    key: key.clone(),
                    silent_ms,
                }));
            } else if let Life::Leaving { device, .. } = state.life {
                state.life = Life::Leaving { device, kill_at };
            }
            effects.push(Effect::Kill {
                key: state.process.clone(),
            });
        }
    }

    /// Starts the ranks that should be and are not, each on the lowest device that no process
    /// holds. A rank for which there is none waits: an older process is on its way out. A worker
    /// that leaves starts none, and says so.
    fn start(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let held: BTreeSet<u32> = self.ranks.values().filter_map(RankState::device).collect();
        let mut free = (0..self.config.devices).filter(|device| !held.contains(device));
        for assignment in self.assignments.values() {
            for key in places(assignment, self.config.devices) {
                if self.ranks.contains_key(&key) {
                    continue;
                }
                let refusal = if self.leave != Leave::No {
                    Some(SHUTTING_DOWN)
                } else if self.is_retired(assignment) {
                    Some("this worker was taken off this generation and does not go back")
                } else {
                    None
                };
                if let Some(error) = refusal {
                    self.ranks
                        .insert(key.clone(), RankState::refused(&key, error));
                    self.news = true;
                    continue;
                }
                // A process keeps its name to its end, and no other may bear it: what is heard of
                // the one would be taken for the other.
                if self
                    .ranks
                    .values()
                    .any(|state| state.process == key && state.device().is_some())
                {
                    continue;
                }
                let Some(device) = free.next() else { return };
                let boxed = Box::new(assignment.clone());
                self.ranks.insert(
                    key.clone(),
                    RankState::started(&key, device, boxed.clone(), now),
                );
                self.news = true;
                effects.push(Effect::Spawn {
                    key: key.clone(),
                    device,
                    assignment: boxed,
                });
                effects.push(Effect::Emit(Event::RankStarted { key }));
            }
        }
    }

    /// Tells the coordinator what is new, and repeats itself often enough to keep its lease.
    fn report(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if !self.connected || !(self.news || self.deadlines.report_at(self.reported) <= now) {
            return;
        }
        self.news = false;
        self.reported = now;
        // A worker that is leaving has nothing to offer.
        let devices = if self.leave == Leave::No {
            self.config.devices
        } else {
            0
        };
        effects.push(Effect::Report(WorkerReport {
            worker: self.config.worker.clone(),
            device: self.config.device,
            devices,
            ranks: self.ranks.values().map(|state| state.told(now)).collect(),
            peer_address: self.config.peer_address.clone(),
            unreached: self.peers.unreached(),
        }));
    }

    fn exit_when_empty(&mut self, effects: &mut Vec<Effect>) {
        let empty = self.ranks.values().all(|state| state.life == Life::Gone);
        if matches!(self.leave, Leave::Asked { .. } | Leave::Now) && empty {
            self.leave = Leave::Gone;
            effects.push(Effect::Exit);
        }
    }
}

/// The ranks that an assignment has for this worker. More than it has devices can never start; the
/// coordinator's own deadline says so to people.
fn places(assignment: &Assignment, devices: u32) -> Vec<RankKey> {
    let place = |offset| RankKey {
        job: assignment.job.clone(),
        generation: assignment.generation,
        rank: Rank(assignment.first_rank.0.saturating_add(offset)),
    };
    (0..assignment.ranks.min(devices)).map(place).collect()
}

/// Whether the assignment has this rank for this worker.
fn names(assignment: &Assignment, key: &RankKey) -> bool {
    let first = assignment.first_rank;
    assignment.generation == key.generation
        && first <= key.rank
        && key.rank.0 - first.0 < assignment.ranks
}

fn phase_word(phase: &RankPhase) -> &'static str {
    match phase {
        RankPhase::Ready => "waiting for a place",
        RankPhase::Finished | RankPhase::Failed { .. } => "leaving",
        RankPhase::Starting
        | RankPhase::Joining
        | RankPhase::Training
        | RankPhase::Broken { .. } => phase.word(),
    }
}
