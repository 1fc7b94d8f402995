//! The state machine of the worker daemon. It turns the coordinator's desired state into rank
//! processes, one per device, and reports their state to the coordinator. If a job gets a newer
//! generation that includes this worker, running processes become ranks of it, because they hold
//! the training state. The machine has no async, clock, randomness, sockets, files or logging; the
//! daemon's loop calls [`Worker::handle`] and performs the effects in order.
//!
//! While the coordinator is unreachable ranks continue: the last desired state remains valid.

mod clock;
mod deadline;
pub mod event;
mod peers;
mod rank;
mod refusal;
mod view;

use clock::Clock;
use deadline::Deadlines;
pub use deadline::GRACE;
use event::{Effect, Event, Input, Millis, RankKey};
use peers::Peers;
use proto::id::{Generation, JobId, Rank, WorkerId};
use proto::message::{
    Assignment, DesiredState, RankPhase, RankReport, Refusal, Successor, WorkerReport,
};
use proto::reason::RankFailure;
use proto::spec::DeviceKind;
use rank::{ProcessState, RankState};
use std::collections::{BTreeMap, BTreeSet};
pub use view::{RankView, View};

/// The fixed configuration of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub worker: WorkerId,
    pub device: DeviceKind,
    pub devices: u32,
    /// Where it answers pings of other workers; None: it does not.
    pub peer_address: Option<String>,
}

/// The machine.
#[derive(Debug)]
pub struct Worker {
    config: Config,
    deadlines: Deadlines,
    clock: Clock,
    connected: bool,
    shutdown: Shutdown,
    /// Another daemon of this name took this one's place.
    is_displaced: bool,
    /// The desired state: the newest generation of each job that is assigned to this worker.
    assignments: BTreeMap<JobId, Assignment>,
    /// The assignments of the desired state that this worker cannot accept.
    refused: Vec<Refusal>,
    ranks: BTreeMap<RankKey, RankState>,
    /// The newest generation of each job from which this worker was removed. Its ranks are never
    /// started again: a restarted rank would repeat steps and overwrite shards that a manifest may
    /// already name.
    retired: BTreeMap<JobId, Generation>,
    peers: Peers,
    /// Whether something changed since the last report.
    report_due: bool,
    last_report_at: Millis,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shutdown {
    NotRequested,
    /// No rank is started any more. Running ranks may hand over their state until the deadline.
    Draining {
        until: Millis,
    },
    /// All ranks are being stopped.
    Immediate,
    /// [`Effect::Exit`] was emitted.
    Exited,
}

impl Worker {
    /// The state of a daemon that just started: no ranks, no connection.
    #[must_use]
    pub fn new(config: Config, now: Millis) -> Self {
        Self {
            deadlines: Deadlines::INITIAL,
            config,
            clock: Clock::new(now),
            connected: false,
            shutdown: Shutdown::NotRequested,
            is_displaced: false,
            assignments: BTreeMap::new(),
            refused: Vec::new(),
            ranks: BTreeMap::new(),
            retired: BTreeMap::new(),
            peers: Peers::default(),
            report_due: true,
            last_report_at: now,
        }
    }

    /// Handles one input. The caller performs the effects in order. Never fails and never panics on
    /// invalid input, which is ignored and emitted as [`Event::Ignored`].
    pub fn handle(&mut self, now: Millis, input: Input) -> Vec<Effect> {
        let due = self.due();
        let now = self.clock.advance(now, due, self.deadlines.patience_ms());
        let mut effects = Vec::new();
        match input {
            Input::Connected => {
                self.connected = true;
                self.report_due = true;
            }
            Input::Disconnected => self.connected = false,
            Input::Desired(state) => self.on_desired(now, state, &mut effects),
            Input::RankReported { process, report } => {
                self.on_rank_report(now, &process, *report, &mut effects)
            }
            Input::RankExited {
                key,
                success,
                outcome,
            } => {
                self.on_rank_exited(&key, success, outcome, &mut effects);
            }
            Input::PeerAnswered { peer } => self.report_due |= self.peers.answered(&peer, now),
            Input::PeerFailed { peer, error } => self.peers.failed(&peer, error),
            Input::Shutdown => self.on_shutdown(now),
            Input::Deadline => {}
        }
        self.report_due |= self.peers.mark_overdue(now, self.deadlines);
        self.stop_unassigned(now, &mut effects);
        self.kill_overdue(now, &mut effects);
        self.report_refused();
        self.start(now, &mut effects);
        self.report(now, &mut effects);
        self.exit_if_done(&mut effects);
        effects
    }

    /// When the next [`Input::Deadline`] is due, in the time of [`Self::handle`].
    #[must_use]
    pub fn next_deadline(&self) -> Option<Millis> {
        self.due().map(|deadline| self.clock.to_shell(deadline))
    }

    #[must_use]
    pub fn view(&self) -> View<'_> {
        let ranks = self.ranks.iter().map(|(key, state)| RankView {
            key,
            device: state.device(),
            report: &state.report,
            assignment: state.assignment.as_deref(),
        });
        View {
            connected: self.connected,
            leaving: self.is_leaving(),
            ranks: ranks.collect(),
        }
    }

    /// True once a shutdown was requested; no new rank is accepted then.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.shutdown != Shutdown::NotRequested
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
            .then(|| self.deadlines.report_at(self.last_report_at));
        let shutdown = match self.shutdown {
            Shutdown::Draining { until } => Some(until),
            Shutdown::NotRequested | Shutdown::Immediate | Shutdown::Exited => None,
        };
        let peers = self.peers.deadline(self.deadlines);
        ranks
            .into_iter()
            .chain(report)
            .chain(shutdown)
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
        if let Some(by) = state.successor {
            self.on_displaced(by, effects);
        }
        let deadlines = Deadlines::new(state.detect_within_ms);
        let peers_changed = self.peers.set(state.peers, now);
        if peers_changed || self.deadlines != deadlines {
            effects.push(Effect::Ask {
                peers: self.peers.list(),
                detect_within_ms: state.detect_within_ms,
            });
        }
        self.deadlines = deadlines;
        self.set_refused(state.refused, effects);
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
            // The messages arrived out of order.
            let what = format!(
                "{} generation {} is outdated",
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
        self.move_processes(now, effects);
        self.forward_assignments(effects);
    }

    /// Another daemon of this name took this one's place, and its ranks are members of nothing any
    /// more: they stop at once.
    fn on_displaced(&mut self, by: Successor, effects: &mut Vec<Effect>) {
        if self.is_displaced || self.shutdown == Shutdown::Exited {
            return;
        }
        self.is_displaced = true;
        self.shutdown = Shutdown::Immediate;
        effects.push(Effect::Emit(Event::Displaced {
            worker: self.config.worker.clone(),
            by,
        }));
    }

    /// Assigns the ranks of a newer generation to running processes of the job, in order.
    fn move_processes(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if !matches!(
            self.shutdown,
            Shutdown::NotRequested | Shutdown::Draining { .. }
        ) {
            return;
        }
        let leave_by = self.deadlines.leave_at(now);
        for assignment in self.assignments.values() {
            for key in rank_keys(assignment, self.config.devices) {
                if self.ranks.contains_key(&key) || self.is_retired(assignment) {
                    continue;
                }
                let assignment = Box::new(assignment.clone());
                let successor = self.ranks.iter().find_map(|(old, state)| {
                    let same_job = old.job == key.job;
                    let new =
                        same_job.then(|| state.successor(&key, assignment.clone(), leave_by))?;
                    Some((old.clone(), new?))
                });
                // In a job of units, a later rank may have a process that continues even if this
                // one has none.
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
                self.report_due = true;
            }
        }
    }

    /// Sends changed assignments to the processes that run them.
    fn forward_assignments(&mut self, effects: &mut Vec<Effect>) {
        for (key, state) in &mut self.ranks {
            let Some(assignment) = self.assignments.get(&key.job) else {
                continue;
            };
            let ProcessState::Running { device, .. } = state.process_state else {
                continue;
            };
            if !assigns(assignment, key) || state.assignment.as_deref() == Some(assignment) {
                continue;
            }
            let assignment = Box::new(assignment.clone());
            self.report_due |= state.set_assignment(assignment.clone());
            effects.push(Effect::Update {
                key: state.process.clone(),
                rank: key.rank,
                device,
                assignment,
            });
        }
    }

    fn on_rank_report(
        &mut self,
        now: Millis,
        process: &RankKey,
        report: RankReport,
        effects: &mut Vec<Effect>,
    ) {
        let deadlines = self.deadlines;
        let reported = (&report.job, report.generation, report.rank);
        match self.find_process(process) {
            Some((key, state)) if (&key.job, key.generation, key.rank) == reported => {
                self.report_due |= state.merge(report, now);
            }
            // The process has not adopted the newer generation yet. Its report of the older one
            // only counts as a heartbeat.
            Some((key, state)) if report.generation < key.generation && key.job == report.job => {
                state.record_heartbeat(report.activity, deadlines, now);
            }
            Some(_) | None => {
                let what = format!(
                    "{} generation {} rank {} has no process on this worker",
                    report.job, report.generation, report.rank
                );
                effects.push(Effect::Emit(Event::Ignored {
                    worker: self.config.worker.clone(),
                    what,
                }));
            }
        }
    }

    /// The rank that this process currently is, if the process exists.
    fn find_process(&mut self, process: &RankKey) -> Option<(&RankKey, &mut RankState)> {
        self.ranks.iter_mut().find(|(_, state)| {
            state.process == *process && state.process_state != ProcessState::Exited
        })
    }

    fn on_rank_exited(
        &mut self,
        process: &RankKey,
        success: bool,
        outcome: String,
        effects: &mut Vec<Effect>,
    ) {
        let Some((key, state)) = self.find_process(process) else {
            return;
        };
        let key = key.clone();
        state.advance(RankPhase::Failed {
            failure: RankFailure::Exited {
                outcome: outcome.clone(),
                success,
            },
        });
        state.process_state = ProcessState::Exited;
        self.report_due = true;
        effects.push(Effect::Emit(Event::RankGone {
            key,
            success,
            outcome,
        }));
    }

    fn on_shutdown(&mut self, now: Millis) {
        let until = self.deadlines.grace_ends_at(now);
        self.shutdown = match self.shutdown {
            Shutdown::NotRequested => Shutdown::Draining { until },
            Shutdown::Draining { .. } | Shutdown::Immediate => Shutdown::Immediate,
            Shutdown::Exited => Shutdown::Exited,
        };
        self.report_due = true;
    }

    /// Whether this worker was removed from the assignment's generation before. Standbys do not
    /// count as removed, because they do no steps and write nothing.
    fn is_retired(&self, assignment: &Assignment) -> bool {
        let retired = self.retired.get(&assignment.job);
        !assignment.is_standby() && retired.is_some_and(|retired| assignment.generation <= *retired)
    }

    /// Stops the ranks that are no longer assigned, and removes those that have exited and are no
    /// longer assigned.
    fn stop_unassigned(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let kill_at = self.deadlines.kill_at(now);
        if matches!(self.shutdown, Shutdown::Draining { until } if until <= now) {
            self.shutdown = Shutdown::Immediate;
        }
        let stop_all = matches!(self.shutdown, Shutdown::Immediate | Shutdown::Exited);
        let unassigned: BTreeSet<RankKey> = self
            .ranks
            .keys()
            .filter(|key| !self.is_assigned(key))
            .cloned()
            .collect();
        for (key, state) in &mut self.ranks {
            if !unassigned.contains(key) && !stop_all {
                continue;
            }
            if let ProcessState::Running { device, .. } = state.process_state {
                if stop_all {
                    state.advance(RankPhase::Failed {
                        failure: RankFailure::WorkerLeaves,
                    });
                }
                state.process_state = ProcessState::Stopping { device, kill_at };
                effects.push(Effect::Stop {
                    key: state.process.clone(),
                });
            }
        }
        let before = self.ranks.len();
        self.ranks.retain(|key, state| {
            !unassigned.contains(key) || state.process_state != ProcessState::Exited
        });
        self.report_due |= self.ranks.len() != before;
    }

    /// Whether the desired state names this rank, even if this worker refuses it.
    fn is_assigned(&self, key: &RankKey) -> bool {
        let assignment = self.assignments.get(&key.job);
        assignment.is_some_and(|it| assigns(it, key)) || self.is_refused(key)
    }

    /// Kills ranks that sent no heartbeat in time or did not leave an older generation in time, and
    /// processes that did not stop in time.
    fn kill_overdue(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let kill_at = self.deadlines.kill_at(now);
        for (key, state) in &mut self.ranks {
            if state
                .deadline(self.deadlines)
                .is_none_or(|deadline| now < deadline)
            {
                continue;
            }
            if let ProcessState::Running {
                device,
                last_heard,
                has_reported,
                ..
            } = state.process_state
            {
                let silent_ms = now.saturating_sub(last_heard);
                let failure = if self.deadlines.silent_at(last_heard, has_reported) <= now {
                    RankFailure::Silent {
                        for_ms: silent_ms,
                        phase: describe_phase(&state.report.phase).to_owned(),
                        activity: state.report.activity,
                    }
                } else {
                    RankFailure::NotLeft
                };
                self.report_due |= state.advance(RankPhase::Failed { failure });
                state.process_state = ProcessState::Stopping { device, kill_at };
                effects.push(Effect::Emit(Event::RankSilent {
                    key: key.clone(),
                    silent_ms,
                }));
            } else if let ProcessState::Stopping { device, .. } = state.process_state {
                state.process_state = ProcessState::Stopping { device, kill_at };
            }
            effects.push(Effect::Kill {
                key: state.process.clone(),
            });
        }
    }

    /// Starts the assigned ranks that have no process, each on the lowest free device. If no device
    /// is free, a rank waits until an older process has exited. During a shutdown ranks are
    /// refused.
    fn start(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let held: BTreeSet<u32> = self.ranks.values().filter_map(RankState::device).collect();
        let mut free = (0..self.config.devices).filter(|device| !held.contains(device));
        for assignment in self.assignments.values() {
            for key in rank_keys(assignment, self.config.devices) {
                if self.ranks.contains_key(&key) {
                    continue;
                }
                let refusal = if self.shutdown != Shutdown::NotRequested {
                    Some(RankFailure::WorkerLeaves)
                } else if self.is_retired(assignment) {
                    Some(RankFailure::Removed)
                } else {
                    None
                };
                if let Some(failure) = refusal {
                    self.ranks
                        .insert(key.clone(), RankState::refused(&key, failure));
                    self.report_due = true;
                    continue;
                }
                // A process keeps its key until it exits, and keys must be unique: otherwise a
                // report of the one would be attributed to the other.
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
                self.report_due = true;
                effects.push(Effect::Spawn {
                    key: key.clone(),
                    device,
                    assignment: boxed,
                });
                effects.push(Effect::Emit(Event::RankStarted { key }));
            }
        }
    }

    /// Reports changes to the coordinator, and repeats the report often enough to keep the lease.
    fn report(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if !self.connected
            || !(self.report_due || self.deadlines.report_at(self.last_report_at) <= now)
        {
            return;
        }
        self.report_due = false;
        self.last_report_at = now;
        // A worker that is shutting down offers no devices.
        let devices = if self.shutdown == Shutdown::NotRequested {
            self.config.devices
        } else {
            0
        };
        effects.push(Effect::Report(WorkerReport {
            worker: self.config.worker.clone(),
            device: self.config.device,
            devices,
            ranks: self
                .ranks
                .values()
                .map(|state| state.current_report(now))
                .collect(),
            peer_address: self.config.peer_address.clone(),
            unreached: self.peers.unreached(),
        }));
    }

    fn exit_if_done(&mut self, effects: &mut Vec<Effect>) {
        let all_exited = self
            .ranks
            .values()
            .all(|state| state.process_state == ProcessState::Exited);
        if matches!(
            self.shutdown,
            Shutdown::Draining { .. } | Shutdown::Immediate
        ) && all_exited
        {
            self.shutdown = Shutdown::Exited;
            effects.push(Effect::Exit);
        }
    }
}

/// The ranks that an assignment has for this worker, limited to its number of devices. More could
/// never start; the coordinator's own deadline reports that to users.
fn rank_keys(assignment: &Assignment, devices: u32) -> Vec<RankKey> {
    let rank_key = |offset| RankKey {
        job: assignment.job.clone(),
        generation: assignment.generation,
        rank: Rank(assignment.first_rank.0.saturating_add(offset)),
    };
    (0..assignment.ranks.min(devices)).map(rank_key).collect()
}

/// Whether the assignment contains this rank.
fn assigns(assignment: &Assignment, key: &RankKey) -> bool {
    let first = assignment.first_rank;
    assignment.generation == key.generation
        && first <= key.rank
        && key.rank.0 - first.0 < assignment.ranks
}

fn describe_phase(phase: &RankPhase) -> &'static str {
    match phase {
        RankPhase::Ready => "on standby",
        RankPhase::Finished | RankPhase::Failed { .. } => "exiting",
        RankPhase::Starting
        | RankPhase::Joining
        | RankPhase::Training
        | RankPhase::Broken { .. } => phase.word(),
    }
}
