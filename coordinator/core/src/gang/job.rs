//! The state of a gang, over its whole life and in each phase. Its durable part is its record.

use super::blame::Blame;
use super::ledger::Ledger;
use super::newest::Newest;
use super::running::Running;
use super::standbys::Standbys;
use super::writing::Writing;
use crate::deadline::Deadlines;
use crate::evaluation::Evaluations;
use crate::head::{Ended, Head};
use crate::outbox::Outbox;
use crate::record::{JobPhase, JobRecord, Member, Millis, RECORD_VERSION};
use proto::checkpoint::CheckpointRef;
use proto::id::{Step, WorkerId};
use proto::ledger::Line;
use proto::phase::Phase;
use proto::reason::Waiting;
use proto::spec::{JobSpec, TrainWork};
use std::collections::BTreeMap;

#[derive(Debug)]
pub(crate) struct Gang {
    pub(crate) head: Head,
    pub(crate) plan: Plan,
    pub(super) state: State,
    /// Committed checkpoints that still exist, oldest first.
    pub(crate) checkpoints: Vec<CheckpointRef>,
    pub(crate) evaluations: Evaluations,
    /// The newest step ever reported or committed, as of the end of the last generation.
    pub(super) reached: Step,
    pub(super) ledger: Ledger,
    /// The manifest that is being written. It may outlive its generation; no new generation is
    /// formed before its result is known.
    pub(super) writing: Option<Writing>,
    /// For how long all ranks have trained, over all generations, up to `training_since`.
    pub(super) trained_ms: u64,
    /// The last input, if all ranks trained then.
    pub(super) training_since: Option<Millis>,
    pub(super) newest: Newest,
    pub(super) standbys: Standbys,
    /// Workers whose standby failed, and when the back-off of each ends.
    pub(super) backing_off: BTreeMap<WorkerId, Millis>,
    pub(super) blame: Option<Blame>,
}

#[derive(Debug)]
pub(super) enum State {
    Queued(Queued),
    /// A generation exists, forming or training.
    Running(Running),
    Ended(Ended),
}

#[derive(Debug)]
pub(super) struct Queued {
    /// What it waits for.
    pub(super) reason: Waiting,
    /// Until this time it waits for all workers that it can use.
    pub(super) grace_until: Millis,
    /// The world size of the generation that ended, until its survivors are ordered to leave it.
    pub(super) ended_world: Option<u32>,
}

/// The parameters of its training that scheduling needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) steps: Step,
    pub(crate) global_batch: u32,
    /// Per step, over all ranks.
    pub(crate) micro_batches: u32,
    /// Number of checkpoints to retain.
    pub(crate) keep: usize,
    /// How long it may train in total, in seconds.
    pub(crate) time_limit_s: Option<u64>,
}

impl Plan {
    pub(crate) fn of(work: &TrainWork) -> Self {
        Self {
            steps: Step(work.train.steps),
            global_batch: work.train.global_batch,
            micro_batches: work.micro_batches(),
            keep: work.checkpoint.keep.max(1) as usize,
            time_limit_s: work.train.time_limit.map(|limit| limit.as_secs()),
        }
    }
}

impl Gang {
    /// Creates a gang from its record, at submission or after a restart of the coordinator.
    pub(crate) fn new(
        record: JobRecord,
        spec: JobSpec,
        plan: Plan,
        deadlines: Deadlines,
        now: Millis,
    ) -> Self {
        let head = Head::new(&record, spec);
        // The running generation resumed from a checkpoint of an earlier one.
        let earlier = |checkpoint: &&CheckpointRef| checkpoint.generation < record.generation;
        let mut newest = Newest::new(record.checkpoints.iter().rev().find(earlier).copied());
        // Steps of the running generation that are in the ledger need not be reported again.
        if record.ledger.generation == record.generation {
            newest.acknowledged = newest.acknowledged.max(record.ledger.step);
        }
        let mut world = 0;
        let state = match record.phase {
            JobPhase::Queued { reason } => State::Queued(Queued {
                reason,
                grace_until: deadlines.start_grace(now),
                // The record does not say whether this order was sent; sending it again is
                // harmless.
                ended_world: (!record.standbys.is_empty()).then_some(0),
            }),
            JobPhase::Running { members } => {
                world = members.iter().map(|member| member.ranks).sum();
                // Its ranks may hold state.
                State::Running(Running::new(members, true, now))
            }
            JobPhase::Done { ended_ms } => State::Ended(Ended::Done { ended_ms }),
            JobPhase::Failed { cause, ended_ms } => State::Ended(Ended::Failed { cause, ended_ms }),
            JobPhase::Cancelled { ended_ms } => State::Ended(Ended::Cancelled { ended_ms }),
        };
        Self {
            head,
            plan,
            state,
            checkpoints: record.checkpoints,
            evaluations: record.evaluations.unwrap_or_default(),
            reached: record.reached,
            ledger: Ledger::new(record.ledger),
            writing: None,
            trained_ms: record.trained_ms,
            training_since: None,
            newest,
            standbys: Standbys::restore(record.standbys, world, now),
            backing_off: BTreeMap::new(),
            blame: None,
        }
    }

    /// The durable state of the gang.
    pub(crate) fn record(&self) -> JobRecord {
        JobRecord {
            job_toml: self.head.job_toml.clone(),
            evaluations: self.evaluations.used().cloned(),
            ..self.brief_record()
        }
    }

    /// The same without its text and most of its evaluations, which may be long.
    pub(crate) fn brief_record(&self) -> JobRecord {
        let head = &self.head;
        JobRecord {
            version: RECORD_VERSION,
            id: head.id.clone(),
            job_toml: String::new(),
            overrides: head.overrides.clone(),
            trained_ms: self.trained_ms,
            dataset_version: head.dataset_version.clone(),
            cut_prompts: head.cut_prompts,
            lost_tags: head.lost_tags.clone(),
            adapted: head.adapted,
            source: None,
            models: Vec::new(),
            parent: None,
            evaluations: self.evaluations.used().map(Evaluations::brief),
            submitted_ms: head.submitted_ms,
            paused: head.paused,
            paused_because: head.paused_because.clone(),
            workers: head.workers,
            generation: head.generation,
            phase: match &self.state {
                State::Queued(queued) => JobPhase::Queued {
                    reason: queued.reason.clone(),
                },
                State::Running(running) => JobPhase::Running {
                    members: running.members.clone(),
                },
                State::Ended(ended) => ended.phase(),
            },
            standbys: self.standbys.members().to_vec(),
            ledger: self.ledger.saved().clone(),
            checkpoints: self.checkpoints.clone(),
            reached: self.reached,
            restarts_without_progress: head.restarts_without_progress,
            permanent_failure: head.permanent_failure,
            restarts: head.restarts,
            incidents: head.incidents.clone(),
            units: None,
            about: head.about.clone(),
            account: head.book.account().clone(),
            faults: head.faults.clone(),
            committed_ms: head.committed_ms,
        }
    }

    pub(crate) fn is_queued(&self) -> bool {
        matches!(self.state, State::Queued(_))
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, State::Running(_))
    }

    pub(crate) fn is_over(&self) -> bool {
        self.ended().is_some()
    }

    pub(crate) fn ended(&self) -> Option<&Ended> {
        match &self.state {
            State::Ended(ended) => Some(ended),
            State::Queued(_) | State::Running(_) => None,
        }
    }

    /// The result of a manifest write is still to come.
    pub(crate) fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    pub(crate) fn ledger_write(&mut self, line: Line) {
        self.ledger.write(line);
    }

    pub(super) fn running(&self) -> Option<&Running> {
        match &self.state {
            State::Running(running) => Some(running),
            State::Queued(_) | State::Ended(_) => None,
        }
    }

    pub(super) fn running_mut(&mut self) -> Option<&mut Running> {
        match &mut self.state {
            State::Running(running) => Some(running),
            State::Queued(_) | State::Ended(_) => None,
        }
    }

    /// The members of the running generation; empty if none runs.
    pub(crate) fn members(&self) -> &[Member] {
        self.running().map_or(&[], |running| &running.members)
    }

    pub(crate) fn is_member(&self, worker: &WorkerId) -> bool {
        self.members().iter().any(|member| member.worker == *worker)
    }

    pub(crate) fn standby_members(&self) -> &[Member] {
        self.standbys.members()
    }

    /// The workers of its standbys.
    pub(crate) fn standby_workers(&self) -> impl Iterator<Item = &WorkerId> + Clone {
        self.standbys.workers()
    }

    pub(crate) fn committed(&self) -> Step {
        self.checkpoints
            .last()
            .map_or(Step(0), |checkpoint| checkpoint.step)
    }

    /// The last step that its ranks can report.
    pub(crate) fn steps_max(&self) -> Step {
        self.plan.steps
    }

    pub(crate) fn send_to_members(&self, outbox: &mut Outbox) {
        outbox.send_to_all(self.members());
    }

    pub(crate) fn save(&self, outbox: &mut Outbox) {
        outbox.save.insert(self.head.id.clone());
    }

    /// The phase shown to users.
    pub(crate) fn shown(&self) -> Phase {
        let phase = match &self.state {
            State::Queued(_) => Phase::Queued,
            State::Running(_) => Phase::Running,
            State::Ended(ended) => ended.phase().shown(),
        };
        phase.or_paused(self.head.paused)
    }
}
