//! A job of units: what it holds over its whole life, and what it holds in each phase. What is
//! durable of it is its record.

use super::pace::Rate;
use super::part::Part;
use super::pool::Pool;
use crate::head::{Ended, Head};
use crate::outbox::Outbox;
use crate::record::{JobPhase, JobRecord, Member, Millis, RECORD_VERSION, UnitsRecord};
use proto::id::{Generation, Step, WorkerId};
use proto::ledger::Tip;
use proto::phase::Phase;
use proto::spec::{JobSpec, UnitPlan};
use std::collections::BTreeMap;

#[derive(Debug)]
pub(crate) struct Units {
    pub(crate) head: Head,
    pub(super) state: State,
    pub(super) pool: Pool,
    pub(super) rate: Rate,
    /// Workers on which a process ended with no unit in hand while there were others, and until
    /// when none is tried there.
    pub(super) backing_off: BTreeMap<WorkerId, Millis>,
    /// Units were done that the record does not name yet.
    pub(super) has_unsaved: bool,
    /// A lease or the pool changed since it was last checked.
    pub(super) is_changed: bool,
    /// A ledger without entries: units have none.
    ledger: Tip,
}

#[derive(Debug)]
pub(super) enum State {
    /// What it waits for.
    Queued {
        reason: String,
    },
    Running(Running),
    Ended(Ended),
}

/// At least one worker works on it.
#[derive(Debug)]
pub(super) struct Running {
    /// In the order in which they came.
    pub(super) parts: Vec<Part>,
    /// Units became free that ranks without any could have.
    pub(super) has_news: bool,
}

impl Units {
    /// A job as its record says, at the moment it was submitted or the coordinator restarted.
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
                let parts = members.into_iter().zip(generations);
                let part = |(member, generation)| Part::restored(member, generation, now);
                State::Running(Running {
                    parts: parts.map(part).collect(),
                    has_news: true,
                })
            }
            JobPhase::Done { ended_ms } => State::Ended(Ended::Done { ended_ms }),
            JobPhase::Failed { reason, ended_ms } => {
                State::Ended(Ended::Failed { reason, ended_ms })
            }
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

    /// What a restart needs of it.
    pub(crate) fn record(&self) -> JobRecord {
        let parts = self.parts();
        let units = UnitsRecord {
            generations: parts.iter().map(|part| part.generation).collect(),
            ..self.pool.record()
        };
        let head = &self.head;
        JobRecord {
            version: RECORD_VERSION,
            id: head.id.clone(),
            job_toml: head.job_toml.clone(),
            dataset_version: head.dataset_version.clone(),
            source: head.source.clone(),
            submitted_ms: head.submitted_ms,
            paused: head.paused,
            workers: head.workers,
            generation: head.generation,
            phase: match &self.state {
                State::Queued { reason } => JobPhase::Queued {
                    reason: reason.clone(),
                },
                State::Running(_) => JobPhase::Running {
                    members: parts.iter().map(|part| part.member.clone()).collect(),
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
        }
    }

    pub(crate) fn is_queued(&self) -> bool {
        matches!(self.state, State::Queued { .. })
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, State::Running(_))
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Ended(_))
    }

    pub(super) fn parts(&self) -> &[Part] {
        match &self.state {
            State::Running(running) => &running.parts,
            State::Queued { .. } | State::Ended(_) => &[],
        }
    }

    pub(super) fn parts_mut(&mut self) -> &mut [Part] {
        match &mut self.state {
            State::Running(running) => &mut running.parts,
            State::Queued { .. } | State::Ended(_) => &mut [],
        }
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = &Member> {
        self.parts().iter().map(|part| &part.member)
    }

    /// Its part on this worker.
    pub(super) fn part(&self, worker: &WorkerId) -> Option<&Part> {
        self.parts().iter().find(|part| part.worker() == worker)
    }

    pub(crate) fn is_member(&self, worker: &WorkerId) -> bool {
        self.part(worker).is_some()
    }

    /// Units that are neither done nor set aside.
    pub(super) fn remaining(&self) -> u64 {
        let leased: u64 = self.parts().iter().map(Part::leased).sum();
        self.pool.waiting() + leased
    }

    pub(crate) fn save(&self, outbox: &mut Outbox) {
        outbox.save.insert(self.head.id.clone());
    }

    pub(super) fn send_to_all(&self, outbox: &mut Outbox) {
        outbox
            .tell
            .extend(self.members().map(|it| it.worker.name.clone()));
    }

    /// Its phase as people see it.
    pub(crate) fn shown(&self) -> Phase {
        let phase = match &self.state {
            State::Queued { .. } => Phase::Queued,
            State::Running(_) => Phase::Running,
            State::Ended(ended) => ended.phase().shown(),
        };
        phase.or_paused(self.head.paused)
    }
}
