//! The coordinator's shell in the simulated world: it performs effects in order, can be killed
//! between any two of them, and starts again from what was saved. The machine inside is the one
//! that ships.

use super::World;
use super::agenda::SimEvent;
use super::bug::Bug;
use super::numbers::Who;
use super::plan::DETECT_WITHIN_MS;
use super::tell;
use coordinator_core::event::{Durable, Effect, Event, Input, Record};
use coordinator_core::{Config, Coordinator, Deadlines};
use proto::checkpoint::{CheckpointManifest, CheckpointRef};
use proto::id::{JobId, WorkerId};
use proto::message::DesiredState;
use std::collections::BTreeMap;

/// The wall clock at the world's beginning, so that setting it back leaves it above 0.
const WALL_AT_START: u64 = 1_000_000;

#[derive(Debug)]
pub(crate) struct CoordinatorHost {
    machine: Option<Coordinator>,
    /// Counts starts; what was sent to an earlier start is lost.
    pub(crate) boot: u64,
    /// How far its wall clock is from the world's time.
    skew: i64,
    /// For [`Bug::ClockStopped`].
    stopped: bool,
    wake_at: Option<u64>,
    /// Until then it does nothing, and what comes for it waits.
    pub(crate) stalled_until: u64,
    /// It is in the middle of its effects: whatever happens to it waits until it has gone on with
    /// the rest.
    pub(crate) saves: bool,
    /// Which node a worker's stream leads to.
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
            stalled_until: 0,
            saves: false,
            links,
            sent,
        }
    }

    /// Another process, which takes the place of this one.
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
        };
        // Recovery goes through text, as it does in the state store.
        let text = serde_json::to_string(&self.durable).expect("durable state is plain data");
        let durable: Durable = serde_json::from_str(&text).expect("what was written can be read");
        host.boot += 1;
        host.machine = Some(Coordinator::restore(config, durable, host.wall(self.now)));
        host.wake_at = None;
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
        self.coordinator.saves = false;
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
        // A real shell's sleep is not moved by the wall clock, so it looks again soon.
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
                    "the deadline does not move on".to_owned()
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
        let Some(machine) = &mut self.coordinator.machine else {
            return;
        };
        let boot = self.coordinator.boot;
        self.trace
            .machine(self.now, Who::Coordinator { boot }, &event, || {
                tell::heard(&event)
            });
        let mut effects = machine.handle(wall, event);
        if self.bug == Some(Bug::SaveLast) {
            effects.sort_by_key(|effect| matches!(effect, Effect::Save(_)));
        }
        self.perform_all(effects);
    }

    /// In order, until one of them is the last thing that this process does.
    pub(crate) fn perform_all(&mut self, effects: Vec<Effect>) {
        let mut effects = effects.into_iter();
        while let Some(effect) = effects.next() {
            let boot = self.coordinator.boot;
            self.trace
                .machine(self.now, Who::Coordinator { boot }, &effect, || {
                    tell::wanted(&effect)
                });
            if self.fenced && self.is_refused(&effect) {
                self.trace.line(self.now, || {
                    "the store refuses the first coordinator".to_owned()
                });
                self.coordinator.machine = None;
                return;
            }
            if matches!(effect, Effect::Save(_)) && self.trouble(self.plan.noise.save_trouble) {
                return self.save_fails(effect);
            }
            if matches!(effect, Effect::Save(_)) && self.trouble(self.plan.noise.save_trouble) {
                return self.save_takes_long(effect, effects.collect());
            }
            self.perform(effect);
            if self.trouble(self.plan.noise.crash_between_effects) {
                return self.partition_coordinator();
            }
        }
        if !self.fenced {
            self.oracle.on_told(&self.durable);
        }
        self.schedule_coordinator_wake();
    }

    /// True in so many of 1000 cases, as long as the world is rough.
    pub(crate) fn trouble(&mut self, permille: u64) -> bool {
        self.is_rough() && self.rng.chance(permille)
    }

    /// The state store answers with an error, whether or not it has written: that is the end of the
    /// process.
    fn save_fails(&mut self, save: Effect) {
        let written = self.rng.chance(500);
        let what = if written {
            "is written and not answered"
        } else {
            "fails"
        };
        self.trace.line(self.now, || format!("the save {what}"));
        if written {
            self.perform(save);
        }
        self.partition_coordinator();
    }

    /// The state store takes its time, and whatever comes for the coordinator waits; too long is as
    /// good as an error.
    fn save_takes_long(&mut self, save: Effect, rest: Vec<Effect>) {
        let most = Deadlines::new(DETECT_WITHIN_MS).save_ms();
        let takes = self.rng.between(1, most + most / 5);
        self.trace
            .line(self.now, || format!("the save takes {takes} ms"));
        self.perform(save);
        let at = self.now + takes.min(most);
        self.coordinator.stalled_until = at;
        self.coordinator.saves = true;
        let boot = self.coordinator.boot;
        let next = if takes < most {
            SimEvent::CoordinatorGoesOn {
                boot,
                effects: rest,
            }
        } else {
            SimEvent::CoordinatorGivesUp { boot }
        };
        self.agenda.put(at, next);
    }

    /// The coordinator that acts dies here and now, between two effects.
    pub(crate) fn partition_coordinator(&mut self) {
        if self.fenced {
            self.trace
                .line(self.now, || "the first coordinator dies".to_owned());
            self.coordinator.machine = None;
            return;
        }
        let down_ms = self.rng.between(10, 2_000);
        self.crash_coordinator(down_ms);
    }

    /// Whether the store refuses a coordinator whose place another took.
    fn is_refused(&self, effect: &Effect) -> bool {
        match effect {
            Effect::Save(_) => self.bug != Some(Bug::SavesUnfenced),
            Effect::WriteManifest { .. } => self.bug != Some(Bug::ManifestsUnfenced),
            Effect::DeleteCheckpoint { .. } => true,
            Effect::Send { .. } | Effect::Reply { .. } | Effect::Emit(_) => false,
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Save(records) => {
                if let Some(writes) = &mut self.writes {
                    writes.push(records.clone());
                }
                if let Some(measured) = &mut self.measured {
                    measured.on_save(&records);
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
                        self.specs.learn(job);
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
                // What a former coordinator still says is of old generations, which can publish
                // nothing.
                if !self.fenced {
                    self.oracle.on_send(&self.durable, &worker, &state);
                    self.oracle.on_lease(&worker, &state);
                }
                let state = self.spoilt(&worker, state);
                self.send_down(&worker, state);
            }
            Effect::Reply { request, reply } => self.on_reply(request, reply),
            Effect::WriteManifest { manifest } => {
                self.oracle
                    .on_write_manifest(&self.durable, &manifest, &self.store);
                let slow = self.trouble(self.plan.noise.manifest_trouble / 2);
                let delay = if slow {
                    self.rng.between(1, 2 * DETECT_WITHIN_MS)
                } else {
                    self.rng.between(5, 60)
                };
                let boot = self.coordinator.boot;
                self.agenda
                    .put(self.now + delay, SimEvent::ManifestLands { boot, manifest });
            }
            Effect::DeleteCheckpoint { job, checkpoint } => {
                self.oracle.on_delete(&self.durable, &job, checkpoint);
                self.delete_later(job, checkpoint);
            }
            Effect::Emit(event) if !self.fenced => {
                self.oracle.on_event(&self.durable, &event);
                // What began to halt when all was well came to its end in time. A group that was
                // torn apart in silence notices it only after 30 `detect_within`, and until then no
                // halt that began can end.
                if let Event::Stopped { job, reason, .. } = &event
                    && self.plan.heal_at + 45 * DETECT_WITHIN_MS < self.now
                {
                    let late = reason.contains(" within ");
                    self.oracle
                        .require(!late, || format!("{job} halts: {reason}"));
                }
            }
            Effect::Emit(_) => {}
        }
    }

    /// The store takes its time, or fails: then the checkpoint stays, which harms nobody.
    fn delete_later(&mut self, job: JobId, checkpoint: CheckpointRef) {
        let trouble = self.trouble(self.plan.noise.manifest_trouble);
        if trouble && self.rng.chance(500) {
            self.trace
                .line(self.now, || "the store fails to delete".to_owned());
            return;
        }
        let most = if trouble { 2 * DETECT_WITHIN_MS } else { 60 };
        let at = self.now + self.rng.between(1, most);
        let boot = self.coordinator.boot;
        self.agenda.put(
            at,
            SimEvent::CheckpointGoes {
                boot,
                job,
                checkpoint,
            },
        );
    }

    /// A checkpoint is deleted, if the process that wants it still lives.
    pub(crate) fn checkpoint_goes(&mut self, boot: u64, job: &JobId, checkpoint: CheckpointRef) {
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
                .put(at, SimEvent::NodeHears { node, boot, state });
        }
    }

    /// A manifest reaches the store, whether or not the one who sent it still lives.
    pub(crate) fn manifest_lands(&mut self, boot: u64, manifest: &CheckpointManifest) {
        let trouble = self.trouble(self.plan.noise.manifest_trouble);
        let kind = if trouble { self.rng.between(1, 3) } else { 0 };
        let result = match kind {
            // The call fails and nothing is written.
            1 => Err("503 slow down".to_owned()),
            _ if self.store.was_deleted(manifest) => Ok(()),
            _ => self.store.put_manifest(manifest),
        };
        let result = match kind {
            // It is written, and the answer is lost or is an error.
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
            SimEvent::ManifestAnswered {
                boot,
                job,
                checkpoint,
                result,
            },
        );
    }
}
