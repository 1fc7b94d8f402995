//! The coordinator's shell in the simulated world: it performs effects in order, can be killed
//! between any two of them, and restarts from what was saved. The state machine inside is the
//! production one.

use super::World;
use super::agenda::SimEvent;
use super::bug::Bug;
use super::describe;
use super::outcome::Kinds;
use super::plan::DETECT_WITHIN_MS;
use super::stable_hash::Actor;
use coordinator_core::event::{Durable, Effect, Event, Input, Record};
use coordinator_core::{Config, Coordinator, Deadlines, WaitingQuotas};
use proto::checkpoint::{CheckpointManifest, CheckpointRef};
use proto::id::{JobId, WorkerId};
use proto::message::DesiredState;
use proto::reason::Stopped;
use std::collections::BTreeMap;

/// The wall clock at the start of the world; setting it back must leave it above 0.
const WALL_AT_START: u64 = 1_000_000;

#[derive(Debug)]
pub(crate) struct CoordinatorHost {
    machine: Option<Coordinator>,
    /// Counts starts; what was sent to an earlier boot is lost.
    pub(crate) boot: u64,
    /// Offset of its wall clock from the time of the world.
    skew: i64,
    /// For [`Bug::ClockStopped`].
    stopped: bool,
    wake_at: Option<u64>,
    /// The latest time that its clock has shown since it started.
    latest: u64,
    /// It handles no event before this time.
    pub(crate) stalled_until: u64,
    /// It waits for a slow save: its events are deferred until it has performed the remaining
    /// effects.
    pub(crate) is_saving: bool,
    /// The node of each connected worker.
    links: BTreeMap<WorkerId, usize>,
    /// Last desired state by worker, for [`Bug::SendOnce`].
    sent: BTreeMap<WorkerId, DesiredState>,
}

impl CoordinatorHost {
    pub(crate) fn new(stopped: bool) -> Self {
        let (links, sent) = (BTreeMap::new(), BTreeMap::new());
        Self {
            machine: None,
            boot: 0,
            skew: 0,
            stopped,
            wake_at: None,
            latest: 0,
            stalled_until: 0,
            is_saving: false,
            links,
            sent,
        }
    }

    /// A new process that replaces `former`.
    pub(crate) fn after(former: &Self) -> Self {
        Self {
            boot: former.boot,
            ..Self::new(former.stopped)
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.machine.is_some()
    }

    fn wall(&self, now: u64) -> u64 {
        let now = if self.stopped { 0 } else { now };
        (WALL_AT_START + now).saturating_add_signed(self.skew)
    }

    pub(crate) fn link(&mut self, worker: WorkerId, node: usize) {
        self.links.insert(worker, node);
    }

    pub(crate) fn unlink(&mut self, worker: &WorkerId) {
        self.links.remove(worker);
    }
}

impl World {
    pub(crate) fn start_coordinator(&mut self) {
        self.trace
            .line(self.now, || "the coordinator starts".to_owned());
        self.oracle.on_restore(&self.durable);
        let host = &mut self.coordinator;
        let config = Config {
            store_url: "memory:".to_owned(),
            detect_within_ms: DETECT_WITHIN_MS,
            quotas: self.plan.quotas.clone(),
            waiting: WaitingQuotas::default(),
            ended_jobs_max: match self.kinds {
                Kinds::Archived => 0,
                Kinds::All | Kinds::Gangs | Kinds::Mixed => 64,
                // Every second world archives at once.
                Kinds::Evaluated if self.plan.heal_at.is_multiple_of(2) => 0,
                Kinds::Evaluated => 64,
            },
        };
        // As in the state store, recovery parses the stored text.
        let text = serde_json::to_string(&self.durable).expect("durable state can be serialized");
        let durable: Durable = serde_json::from_str(&text).expect("stored state can be parsed");
        host.boot += 1;
        host.machine = Some(Coordinator::restore(config, durable, host.wall(self.now)));
        host.wake_at = None;
        host.latest = host.wall(self.now);
        self.schedule_coordinator_wake();
    }

    pub(crate) fn crash_coordinator(&mut self, down_ms: u64) {
        if self.coordinator.machine.take().is_none() {
            return;
        }
        self.trace.line(self.now, || {
            format!("the coordinator crashes, for {down_ms} ms")
        });
        self.coordinator.links.clear();
        self.coordinator.sent.clear();
        self.coordinator.stalled_until = 0;
        self.coordinator.is_saving = false;
        self.requests.clear();
        for node in 0..self.nodes.len() {
            if self.nodes[node].linked_to != self.coordinator.boot {
                continue;
            }
            let delay = self.rng.between(1, 50);
            self.break_link(node, delay);
        }
        let at = (self.now + down_ms).min(self.plan.heal_at.max(self.now));
        self.agenda.put(at, SimEvent::CoordinatorStart);
    }

    pub(crate) fn jump_clock(&mut self, by_ms: i64) {
        self.trace.line(self.now, || {
            format!("the coordinator's clock is set by {by_ms} ms")
        });
        self.coordinator.skew = (self.coordinator.skew + by_ms).clamp(-900_000, 900_000);
        // A real shell sleeps on the monotonic clock, so it re-checks its deadline soon.
        self.coordinator.wake_at = None;
        let boot = self.coordinator.boot;
        self.agenda
            .put(self.now + 1_000, SimEvent::CoordinatorWake { boot });
    }

    pub(crate) fn coordinator_wakes(&mut self, boot: u64) {
        if boot != self.coordinator.boot {
            return;
        }
        self.coordinator.wake_at = None;
        let Some(machine) = &self.coordinator.machine else {
            return;
        };
        let wall = self.coordinator.wall(self.now);
        if machine
            .next_deadline()
            .is_some_and(|deadline| deadline <= wall)
        {
            self.coordinator_handles(Input::Deadline);
            let next = self
                .coordinator
                .machine
                .as_ref()
                .and_then(Coordinator::next_deadline);
            self.oracle
                .require(next.is_none_or(|next| wall < next), || {
                    "the deadline does not advance".to_owned()
                });
        } else {
            self.schedule_coordinator_wake();
        }
    }

    fn schedule_coordinator_wake(&mut self) {
        let host = &mut self.coordinator;
        let Some(deadline) = host.machine.as_ref().and_then(Coordinator::next_deadline) else {
            return;
        };
        let at = self.now + deadline.saturating_sub(host.wall(self.now));
        if host.wake_at.is_none_or(|set| at < set) {
            host.wake_at = Some(at);
            self.agenda
                .put(at, SimEvent::CoordinatorWake { boot: host.boot });
        }
    }

    pub(crate) fn coordinator_handles(&mut self, event: Input) {
        let wall = self.coordinator.wall(self.now);
        self.coordinator.latest = self.coordinator.latest.max(wall);
        let Some(machine) = &mut self.coordinator.machine else {
            return;
        };
        let boot = self.coordinator.boot;
        self.trace
            .machine(self.now, Actor::Coordinator { boot }, &event, || {
                describe::input(&event)
            });
        let mut effects = machine.handle(wall, event);
        if self.bug == Some(Bug::SaveLast) {
            effects.sort_by_key(|effect| matches!(effect, Effect::Save(_)));
        }
        self.perform_all(effects);
    }

    /// Performs effects in order, until one of them ends the process.
    pub(crate) fn perform_all(&mut self, effects: Vec<Effect>) {
        let mut effects = effects.into_iter();
        while let Some(effect) = effects.next() {
            let boot = self.coordinator.boot;
            self.trace
                .machine(self.now, Actor::Coordinator { boot }, &effect, || {
                    describe::effect(&effect)
                });
            if self.former_acts && self.is_refused(&effect) {
                self.trace.line(self.now, || {
                    "the store refuses the first coordinator".to_owned()
                });
                self.coordinator.machine = None;
                return;
            }
            if matches!(effect, Effect::Save(_)) && self.roll_fault(self.plan.noise.save_faults) {
                return self.save_fails(effect);
            }
            if matches!(effect, Effect::Save(_)) && self.roll_fault(self.plan.noise.save_faults) {
                return self.save_takes_long(effect, effects.collect());
            }
            self.perform(effect);
            if self.roll_fault(self.plan.noise.coordinator_crash) {
                return self.crash_acting_coordinator();
            }
        }
        if !self.former_acts {
            self.oracle.check_leases(&self.durable);
        }
        self.schedule_coordinator_wake();
    }

    /// True in `permille` of 1000 cases while the world has faults.
    pub(crate) fn roll_fault(&mut self, permille: u64) -> bool {
        self.has_faults() && self.rng.chance(permille)
    }

    /// The state store returns an error, and may have written nevertheless. The process exits.
    fn save_fails(&mut self, save: Effect) {
        let written = self.rng.chance(500);
        let what = if written {
            "is written, and its answer is lost"
        } else {
            "fails"
        };
        self.trace.line(self.now, || format!("the save {what}"));
        if written {
            self.perform(save);
        }
        self.crash_acting_coordinator();
    }

    /// The state store is slow, and the coordinator's events are deferred. A save that exceeds its
    /// deadline counts as failed.
    fn save_takes_long(&mut self, save: Effect, rest: Vec<Effect>) {
        let most = Deadlines::new(DETECT_WITHIN_MS).save_ms();
        let takes = self.rng.between(1, most + most / 5);
        self.trace
            .line(self.now, || format!("the save takes {takes} ms"));
        self.perform(save);
        let at = self.now + takes.min(most);
        self.coordinator.stalled_until = at;
        self.coordinator.is_saving = true;
        let boot = self.coordinator.boot;
        let next = if takes < most {
            SimEvent::CoordinatorSaved {
                boot,
                effects: rest,
            }
        } else {
            SimEvent::CoordinatorSaveTimeout { boot }
        };
        self.agenda.put(at, next);
    }

    /// The coordinator that handles the current event crashes between two effects.
    pub(crate) fn crash_acting_coordinator(&mut self) {
        if self.former_acts {
            self.trace
                .line(self.now, || "the first coordinator dies".to_owned());
            self.coordinator.machine = None;
            return;
        }
        let down_ms = self.rng.between(10, 2_000);
        self.crash_coordinator(down_ms);
    }

    /// Whether the store fences off this effect of a replaced coordinator.
    fn is_refused(&self, effect: &Effect) -> bool {
        match effect {
            Effect::Save(_) => self.bug != Some(Bug::SavesUnfenced),
            Effect::WriteManifest { .. } => self.bug != Some(Bug::ManifestsUnfenced),
            Effect::DeleteCheckpoint { .. } => true,
            Effect::ReadScores { .. }
            | Effect::Send { .. }
            | Effect::Reply { .. }
            | Effect::Emit(_) => false,
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Save(records) => {
                if let Some(writes) = &mut self.writes {
                    writes.push(records.clone());
                }
                if let Some(save_stats) = &mut self.save_stats {
                    save_stats.on_save(&records);
                }
                let lost = self.bug == Some(Bug::SaveLost) && self.rng.chance(100);
                for record in records {
                    let drain = matches!(record, Record::Drained(_));
                    if drain && self.bug == Some(Bug::DrainForgotten) {
                        continue;
                    }
                    let ledger = matches!(record, Record::Ledger { .. });
                    if ledger && self.bug == Some(Bug::LedgerLost) && self.rng.chance(100) {
                        continue;
                    }
                    if let Record::Job(job) = &record {
                        self.specs.insert(job);
                    }
                    if let Record::Job(job) = &record {
                        let wall = self.coordinator.wall(self.now);
                        let old = self.durable.jobs.get(&job.id);
                        let latest = self.coordinator.latest;
                        self.oracle.on_account(old, job, wall, latest);
                    }
                    self.oracle
                        .on_save(&self.durable, &record, &self.store, &self.specs);
                    if !lost {
                        self.durable.apply(record);
                    }
                }
                let nodes = self.nodes.iter();
                let devices = nodes
                    .map(|node| (node.name.clone(), node.devices))
                    .collect();
                self.oracle.on_saved(&self.durable, &self.specs, &devices);
            }
            Effect::Send { worker, state } => {
                // A former coordinator sends only old generations, which cannot publish.
                if !self.former_acts {
                    self.oracle.on_send(&self.durable, &worker, &state);
                    self.oracle.on_lease(&worker, &state);
                }
                let state = self.with_unit_bugs(&worker, state);
                self.send_down(&worker, state);
            }
            Effect::Reply { request, reply } => self.on_reply(request, reply),
            Effect::WriteManifest { manifest } => {
                self.oracle
                    .on_write_manifest(&self.durable, &manifest, &self.store);
                let slow = self.roll_fault(self.plan.noise.manifest_faults / 2);
                let delay = if slow {
                    self.rng.between(1, 2 * DETECT_WITHIN_MS)
                } else {
                    self.rng.between(5, 60)
                };
                let boot = self.coordinator.boot;
                self.agenda.put(
                    self.now + delay,
                    SimEvent::ManifestWritten { boot, manifest },
                );
            }
            Effect::ReadScores { evaluation } => self.read_scores(evaluation),
            Effect::DeleteCheckpoint { job, checkpoint } => {
                self.oracle.on_delete(&self.durable, &job, checkpoint);
                self.delete_later(job, checkpoint);
            }
            Effect::Emit(event) if !self.former_acts => {
                self.oracle.on_event(&self.durable, &event);
                self.check_stopped_in_time(&event);
            }
            Effect::Emit(_) => {}
        }
    }

    /// A stop that began long after the faults ended must end in time. A group that was silently
    /// partitioned notices only after 30 `detect_within`, and until then no stop can end.
    fn check_stopped_in_time(&mut self, event: &Event) {
        let Event::Stopped { job, reason, .. } = event else {
            return;
        };
        let Stopped::Released {
            overdue: Some(overdue),
            ..
        } = reason
        else {
            return;
        };
        let in_peace = self.plan.heal_at + 45 * DETECT_WITHIN_MS < self.now;
        self.oracle.require(!in_peace, || {
            let what = match overdue.rank {
                Some(_) => "with its ranks",
                None => "with its checkpoint",
            };
            format!("{job} stops late, {what}: {reason}")
        });
    }

    /// The store may be slow, or fail; then the checkpoint stays, which is harmless.
    fn delete_later(&mut self, job: JobId, checkpoint: CheckpointRef) {
        let fault = self.roll_fault(self.plan.noise.manifest_faults);
        if fault && self.rng.chance(500) {
            self.trace
                .line(self.now, || "the store fails to delete".to_owned());
            return;
        }
        let most = if fault { 2 * DETECT_WITHIN_MS } else { 60 };
        let at = self.now + self.rng.between(1, most);
        let boot = self.coordinator.boot;
        self.agenda.put(
            at,
            SimEvent::CheckpointDeleted {
                boot,
                job,
                checkpoint,
            },
        );
    }

    /// Deletes the checkpoint if the process that requested it still runs.
    pub(crate) fn checkpoint_deleted(&mut self, boot: u64, job: &JobId, checkpoint: CheckpointRef) {
        let former = self
            .former
            .as_ref()
            .is_some_and(|former| former.boot == boot);
        if former || self.coordinator.is_up() && self.coordinator.boot == boot {
            self.oracle.on_delete(&self.durable, job, checkpoint);
            self.store.delete_checkpoint(job, checkpoint);
        }
    }

    fn send_down(&mut self, worker: &WorkerId, state: DesiredState) {
        let Some(node) = self.coordinator.links.get(worker).copied() else {
            return;
        };
        if self.bug == Some(Bug::SendOnce) {
            let known = self.coordinator.sent.insert(worker.clone(), state.clone());
            if known.as_ref() == Some(&state) {
                return;
            }
        }
        let (boot, deliveries) = (worker.boot, self.deliveries(node, false));
        let copies = std::iter::repeat_n(state, deliveries.len());
        for (at, state) in deliveries.into_iter().zip(copies) {
            self.agenda
                .put(at, SimEvent::NodeReceives { node, boot, state });
        }
    }

    /// A manifest reaches the store, whether or not its sender still runs.
    pub(crate) fn manifest_written(&mut self, boot: u64, manifest: &CheckpointManifest) {
        let fault = self.roll_fault(self.plan.noise.manifest_faults);
        let kind = if fault { self.rng.between(1, 3) } else { 0 };
        let result = match kind {
            // The call fails and nothing is written.
            1 => Err("503 slow down".to_owned()),
            _ if self.store.was_deleted(manifest) => Ok(()),
            _ => self.store.put_manifest(manifest),
        };
        let result = match kind {
            // It is written, and the answer is lost or an error.
            2 => return,
            3 => Err("connection reset".to_owned()),
            _ => result,
        };
        let job = manifest.job.clone();
        let checkpoint = CheckpointRef {
            step: manifest.step,
            generation: manifest.generation,
        };
        let at = self.now + self.rng.between(1, 20);
        self.agenda.put(
            at,
            SimEvent::ManifestReply {
                boot,
                job,
                checkpoint,
                result,
            },
        );
    }
}
