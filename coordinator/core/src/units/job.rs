//! The state of a job of units, over its whole life and in each phase. Its durable part is its
//! record.

use super::pace::Rate;
use super::participant::Participant;
use super::pool::Pool;
use crate::head::{Ended, Head};
use crate::outbox::Outbox;
use crate::record::{JobPhase, JobRecord, Member, Millis, RECORD_VERSION, UnitsRecord};
use proto::id::{Generation, Step, WorkerId};
use proto::ledger::Tip;
use proto::phase::Phase;
use proto::reason::Waiting;
use proto::spec::{JobSpec, UnitPlan};
use std::collections::BTreeMap;

#[derive(Debug)]
pub(crate) struct Units {
    pub(crate) head: Head,
    pub(super) state: State,
    pub(super) pool: Pool,
    pub(super) rate: Rate,
    /// Workers on which a process ended without a current unit while there were others, and when
    /// the back-off of each ends.
    pub(super) backing_off: BTreeMap<WorkerId, Millis>,
    /// Units were completed that are not in the record yet.
    pub(super) has_unsaved: bool,
    /// A lease or the pool changed since it was last checked.
    pub(super) is_changed: bool,
    /// An empty ledger; units write no entries.
    ledger: Tip,
}

#[derive(Debug)]
pub(super) enum State {
    /// `reason` is what it waits for.
    Queued {
        reason: Waiting,
    },
    Running(Running),
    Ended(Ended),
}

/// At least one worker runs units of it.
#[derive(Debug)]
pub(super) struct Running {
    /// In the order in which they joined.
    pub(super) participants: Vec<Participant>,
    /// Units became available for ranks without a lease.
    pub(super) units_freed: bool,
}

impl Units {
    /// Creates the job from its record, at submission or after a restart of the coordinator.
    pub(crate) fn new(record: JobRecord, spec: JobSpec, plan: UnitPlan, now: Millis) -> Self {
        let head = Head::new(&record, spec);
        let units = record.units.unwrap_or_default();
        let generations = units
            .generations
            .iter()
            .copied()
            .chain(std::iter::repeat(Generation(0)));
        let state = match record.phase {
            JobPhase::Queued { reason } => State::Queued { reason },
            JobPhase::Running { members } => {
                let participants = members.into_iter().zip(generations);
                let participant =
                    |(member, generation)| Participant::restored(member, generation, now);
                State::Running(Running {
                    participants: participants.map(participant).collect(),
                    units_freed: true,
                })
            }
            JobPhase::Done { ended_ms } => State::Ended(Ended::Done { ended_ms }),
            JobPhase::Failed { cause, ended_ms } => State::Ended(Ended::Failed { cause, ended_ms }),
            JobPhase::Cancelled { ended_ms } => State::Ended(Ended::Cancelled { ended_ms }),
        };
        Self {
            head,
            state,
            pool: Pool::new(plan, &units),
            rate: Rate::default(),
            backing_off: BTreeMap::new(),
            has_unsaved: false,
            is_changed: true,
            ledger: record.ledger,
        }
    }

    /// The durable state of the job.
    pub(crate) fn record(&self) -> JobRecord {
        JobRecord {
            job_toml: self.head.job_toml.clone(),
            source: self.head.source(),
            models: self.head.models(),
            ..self.brief_record()
        }
    }

    /// The same without its text and the jobs that it reads, which may be long.
    pub(crate) fn brief_record(&self) -> JobRecord {
        let participants = self.participants();
        let units = UnitsRecord {
            generations: participants
                .iter()
                .map(|participant| participant.generation)
                .collect(),
            ..self.pool.record()
        };
        let head = &self.head;
        JobRecord {
            version: RECORD_VERSION,
            id: head.id.clone(),
            job_toml: String::new(),
            overrides: head.overrides.clone(),
            trained_ms: 0,
            dataset_version: head.dataset_version.clone(),
            cut_prompts: head.cut_prompts,
            lost_tags: head.lost_tags.clone(),
            adapted: head.adapted,
            source: None,
            models: Vec::new(),
            parent: head.parent.clone(),
            evaluations: None,
            submitted_ms: head.submitted_ms,
            paused: head.paused,
            paused_because: head.paused_because.clone(),
            workers: head.workers,
            generation: head.generation,
            phase: match &self.state {
                State::Queued { reason } => JobPhase::Queued {
                    reason: reason.clone(),
                },
                State::Running(_) => JobPhase::Running {
                    members: participants
                        .iter()
                        .map(|participant| participant.member.clone())
                        .collect(),
                },
                State::Ended(ended) => ended.phase(),
            },
            standbys: Vec::new(),
            ledger: self.ledger.clone(),
            checkpoints: Vec::new(),
            reached: Step(0),
            restarts_without_progress: head.restarts_without_progress,
            permanent_failure: head.permanent_failure,
            restarts: head.restarts,
            incidents: head.incidents.clone(),
            units: Some(units),
            about: head.about.clone(),
            account: head.book.account().clone(),
            faults: head.faults.clone(),
            committed_ms: head.committed_ms,
        }
    }

    pub(crate) fn is_queued(&self) -> bool {
        matches!(self.state, State::Queued { .. })
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
            State::Queued { .. } | State::Running(_) => None,
        }
    }

    pub(super) fn participants(&self) -> &[Participant] {
        match &self.state {
            State::Running(running) => &running.participants,
            State::Queued { .. } | State::Ended(_) => &[],
        }
    }

    pub(super) fn participants_mut(&mut self) -> &mut [Participant] {
        match &mut self.state {
            State::Running(running) => &mut running.participants,
            State::Queued { .. } | State::Ended(_) => &mut [],
        }
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = &Member> {
        self.participants()
            .iter()
            .map(|participant| &participant.member)
    }

    /// Its participant on this worker.
    pub(super) fn participant(&self, worker: &WorkerId) -> Option<&Participant> {
        self.participants()
            .iter()
            .find(|participant| participant.worker() == worker)
    }

    pub(crate) fn is_member(&self, worker: &WorkerId) -> bool {
        self.participant(worker).is_some()
    }

    /// Number of units that are neither done nor set aside.
    pub(super) fn remaining(&self) -> u64 {
        let leased: u64 = self.participants().iter().map(Participant::leased).sum();
        self.pool.waiting() + leased
    }

    pub(crate) fn save(&self, outbox: &mut Outbox) {
        outbox.save.insert(self.head.id.clone());
    }

    pub(super) fn send_to_all(&self, outbox: &mut Outbox) {
        outbox
            .send
            .extend(self.members().map(|it| it.worker.name.clone()));
    }

    /// The phase shown to users.
    pub(crate) fn shown(&self) -> Phase {
        let phase = match &self.state {
            State::Queued { .. } => Phase::Queued,
            State::Running(_) => Phase::Running,
            State::Ended(ended) => ended.phase().shown(),
        };
        phase.or_paused(self.head.paused)
    }
}
