//! Invariants that are checked after every event, whatever has failed. The world stops at the first
//! violation. The oracle sees inputs and effects of the machines, never their internal state.

use super::describe;
use super::evaluations::reader;
use super::group::JOIN_TIMEOUT;
use super::specs::Specs;
use super::store::Store;
use super::units::oracle::UnitHistory;
use coordinator_core::event::{Durable, Event, JobPhase, JobRecord, Member, Record, Reply};
use proto::checkpoint::{CheckpointManifest, CheckpointRef};
use proto::id::{Generation, JobId, Step, WorkerId};
use proto::ledger::{Entry, Replay, Tip};
use proto::message::DesiredState;
use proto::reason::{Ending, Fault, GenerationEnd, RankFailure};
use proto::spec::JobSpec;
use std::collections::{BTreeMap, BTreeSet};
use worker_core::event::RankKey;

#[derive(Debug, Default)]
pub(crate) struct Oracle {
    pub(crate) violation: Option<String>,
    accepted: BTreeSet<JobId>,
    started: BTreeSet<RankKey>,
    /// Every saved ledger, replayed as `audit` does.
    ledgers: BTreeMap<JobId, Replay>,
    pub(crate) units: UnitHistory,
}

impl Oracle {
    pub(crate) fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.violation.is_none() {
            self.violation = Some(what());
        }
    }

    /// Checks a record before it becomes durable.
    pub(crate) fn on_save(
        &mut self,
        durable: &Durable,
        record: &Record,
        store: &Store,
        specs: &Specs,
    ) {
        let (old, new) = match record {
            Record::Counters(new) => {
                let old = durable.counters;
                return self.require(old.jobs <= new.jobs, || {
                    format!("counters go back: {old:?} to {new:?}")
                });
            }
            Record::Drained(_) => return,
            Record::Ledger { job, entries } => return self.on_ledger(durable, specs, job, entries),
            Record::Job(new) => (durable.jobs.get(&new.id), new),
            Record::Archived(new) => {
                let saved = durable.jobs.get(&new.id) == Some(new) && new.phase.is_over();
                self.require(saved, || {
                    format!("{} is archived otherwise than it was saved", new.id)
                });
                (durable.jobs.get(&new.id), new)
            }
            Record::Deleted(_) => return,
        };
        let id = &new.id;
        for checkpoint in &new.checkpoints {
            let known = old.is_some_and(|old| old.checkpoints.contains(checkpoint));
            let readable = if known {
                Ok(0)
            } else {
                store.load(id, *checkpoint)
            };
            self.require(readable.is_ok(), || {
                format!(
                    "{id} commits {}: {}",
                    describe::checkpoint(*checkpoint),
                    error_text(&readable)
                )
            });
        }
        self.on_units_saved(old, new, store, specs);
        let Some(old) = old else { return };
        let generations = (old.generation, new.generation);
        self.require(generations.0 <= generations.1, || {
            format!(
                "{id}: generation goes back: from {} to {}",
                generations.0, generations.1
            )
        });
        let committed = (newest(old), newest(new));
        let change = || {
            let word = |newest: Option<CheckpointRef>| {
                newest.map_or("nothing".to_owned(), describe::checkpoint)
            };
            format!("from {} to {}", word(committed.0), word(committed.1))
        };
        self.require(
            committed.0.map(|c| c.step) <= committed.1.map(|c| c.step),
            || format!("{id}: committed step goes back: {}", change()),
        );
        self.require(
            committed.0.map(|c| c.generation) <= committed.1.map(|c| c.generation),
            || {
                format!(
                    "{id}: an older generation commits after a newer one: {}",
                    change()
                )
            },
        );
        let phases = (old.phase.word(), new.phase.word());
        let stays = !old.phase.is_over() || phases.0 == phases.1;
        self.require(stays, || {
            format!("{id} was {} and is {}", phases.0, phases.1)
        });
    }

    fn on_ledger(&mut self, durable: &Durable, specs: &Specs, id: &JobId, entries: &[Entry]) {
        let Some(record) = durable.jobs.get(id) else {
            return self.require(false, || format!("{id} has a ledger and no record"));
        };
        let begin = Tip::begin(id, &record.dataset_version, &record.job_toml);
        let batch = specs.get(id).and_then(JobSpec::training);
        let batch = batch.map_or(0, |work| work.train.global_batch);
        let replay = self
            .ledgers
            .entry(id.clone())
            .or_insert_with(|| Replay::new(begin, batch));
        if let Some(fault) = entries.iter().find_map(|entry| replay.take(entry).err()) {
            self.require(false, || format!("the ledger of {id}: {fault}"));
        }
    }

    /// The audit of a job's ledger at the end.
    pub(crate) fn audit(&self, record: &JobRecord) -> Result<(), String> {
        let id = &record.id;
        let Some(replay) = self.ledgers.get(id) else {
            return if record.ledger.entries == 0 {
                Ok(())
            } else {
                Err(format!("{id} has no ledger"))
            };
        };
        replay
            .ends_at(&record.ledger)
            .map_err(|fault| format!("the ledger of {id}: {fault}"))?;
        let mut counted: Vec<_> = replay
            .done()
            .iter()
            .filter(|done| !done.superseded)
            .collect();
        counted.sort_by_key(|done| done.first);
        let mut next = Step(1);
        for done in counted {
            if done.first != next {
                return Err(format!(
                    "the ledger of {id} counts {done:?} where step {next} should be"
                ));
            }
            next = Step(done.last.0 + 1);
        }
        let committed = newest(record).map_or(Step(0), |newest| newest.step);
        if next <= committed {
            return Err(format!(
                "{id} committed step {committed}, and step {next} is not in its ledger"
            ));
        }
        Ok(())
    }

    /// The coordinator has started from the durable state.
    pub(crate) fn on_restore(&mut self, durable: &Durable) {
        self.units.forget_leases();
        let lost = self
            .accepted
            .iter()
            .find(|id| !durable.jobs.contains_key(*id))
            .cloned();
        if let Some(lost) = lost {
            self.require(false, || format!("{lost} was accepted and is forgotten"));
        }
    }

    pub(crate) fn on_reply(&mut self, durable: &Durable, reply: &Reply, requested: Option<&JobId>) {
        match reply {
            Reply::Accepted { job } => {
                let saved = durable.jobs.contains_key(job);
                self.require(saved, || format!("{job} is accepted and not saved"));
                self.accepted.insert(job.clone());
            }
            Reply::Phase { phase } => {
                let saved = requested
                    .and_then(|id| durable.jobs.get(id))
                    .map(JobRecord::word);
                self.require(saved == Some(phase), || {
                    let (requested, saved) = (
                        requested.map_or("no job", |id| &id.0),
                        saved.unwrap_or("unknown"),
                    );
                    format!("{requested} is reported as {phase} and is {saved}")
                });
            }
            Reply::Worker { worker, drained } => {
                let saved = durable.drained.contains(worker);
                self.require(saved == *drained, || {
                    format!("{worker} is reported as drained: {drained}, and is saved as {saved}")
                });
            }
            Reply::Refused { .. } | Reply::Deleted { .. } => {}
        }
    }

    pub(crate) fn on_send(&mut self, durable: &Durable, worker: &WorkerId, state: &DesiredState) {
        for assignment in &state.assignments {
            let saved = durable.jobs.get(&assignment.job);
            let member = saved.is_some_and(|job| {
                let members: &[Member] = match &job.phase {
                    JobPhase::Running { members } => members,
                    _ => &[],
                };
                let is_its =
                    |m: &&Member| m.worker == *worker && m.first_rank == assignment.first_rank;
                // In a job of units every worker has its own generation.
                let Some(units) = &job.units else {
                    let is_assigned = members.iter().chain(&job.standbys).any(|m| is_its(&m));
                    return job.generation == assignment.generation && is_assigned;
                };
                let mut assigned = members.iter().zip(&units.generations);
                assigned.any(|(m, generation)| is_its(&m) && *generation == assignment.generation)
            });
            let gang = assignment.gang().cloned().unwrap_or_default();
            let resumed = gang.resume.map_or(Step(0), |resume| resume.step);
            let ledgered = saved.map_or(Step(0), |job| job.ledger.step).max(resumed);
            self.require(gang.acknowledged_step <= ledgered, || {
                let (job, step) = (&assignment.job, gang.acknowledged_step);
                format!(
                    "{worker} may forget step {step} of {job}, and the ledger ends at {ledgered}"
                )
            });
            self.require(member, || {
                let (job, generation) = (&assignment.job, assignment.generation);
                format!("{worker} is sent {job} generation {generation}, which is not saved")
            });
        }
    }

    pub(crate) fn on_write_manifest(
        &mut self,
        durable: &Durable,
        manifest: &CheckpointManifest,
        store: &Store,
    ) {
        let (id, generation) = (&manifest.job, manifest.generation);
        let newest = durable.jobs.get(id).map(|job| job.generation);
        self.require(newest == Some(generation), || {
            let newest = newest.map_or("none".to_owned(), |newest| newest.to_string());
            format!("{id}: generation {generation} publishes while {newest} is the newest")
        });
        if !store.was_deleted(manifest) {
            let shards = store.check_shards(manifest);
            self.require(shards.is_ok(), || {
                format!(
                    "{id}: manifest of step {}: {}",
                    manifest.step,
                    error_text(&shards)
                )
            });
        }
    }

    pub(crate) fn on_delete(&mut self, durable: &Durable, id: &JobId, checkpoint: CheckpointRef) {
        let reader = reader(durable, id, checkpoint);
        self.require(reader.is_none(), || {
            let (step, reader) = (checkpoint.step, reader.map_or("", |id| &id.0));
            format!("{id}: step {step} is deleted while {reader} evaluates it")
        });
        let is_named = durable
            .jobs
            .get(id)
            .is_some_and(|job| job.checkpoints.contains(&checkpoint));
        self.require(!is_named, || {
            format!(
                "{id}: {} is deleted while the record names it",
                describe::checkpoint(checkpoint)
            )
        });
    }

    /// Events must not report what is not durable.
    pub(crate) fn on_event(&mut self, durable: &Durable, event: &Event) {
        let saved = match event {
            Event::Committed { job, checkpoint } => durable
                .jobs
                .get(job)
                .is_some_and(|job| job.checkpoints.contains(checkpoint)),
            Event::GenerationFormed {
                job, generation, ..
            } => durable
                .jobs
                .get(job)
                .is_some_and(|job| *generation <= job.generation),
            Event::JobDone { job, .. }
            | Event::JobFailed { job, .. }
            | Event::JobCancelled { job } => {
                durable.jobs.get(job).is_some_and(|job| job.phase.is_over())
            }
            Event::GenerationEnded {
                job,
                generation,
                reason,
            } => {
                // Fallback deadlines: they must not expire while daemons and streams work.
                let is_fallback = match reason {
                    GenerationEnd::Ending(ending)
                    | GenerationEnd::Fault(
                        Fault::Generation { ending, .. }
                        | Fault::Process { ending, .. }
                        | Fault::Worker { ending },
                    ) => is_fallback(ending),
                    GenerationEnd::Fault(_)
                    | GenerationEnd::UnitsRetried
                    | GenerationEnd::CoordinatorReplaced => false,
                };
                self.require(!is_fallback, || {
                    format!("{job} generation {generation} needs a fallback deadline: {reason}")
                });
                true
            }
            Event::Stopping {
                job, generation, ..
            } => {
                self.units.on_stopping(job, *generation);
                true
            }
            Event::EvaluationSubmitted { evaluation, .. } => durable.jobs.contains_key(evaluation),
            Event::EvaluationScored { .. }
            | Event::EvaluationUnscored { .. }
            | Event::EvaluationSkipped { .. }
            | Event::WorkerUp { .. }
            | Event::WorkerDown { .. }
            | Event::WorkersForgotten { .. }
            | Event::JobQueued { .. }
            | Event::Stopped { .. }
            | Event::StandbyAdded { .. }
            | Event::StandbyLost { .. }
            | Event::Stepped { .. }
            | Event::UnitFailed { .. }
            | Event::UnitSetAside { .. }
            | Event::Unreachable { .. }
            | Event::WorkerDisplaced { .. }
            | Event::Ignored { .. } => true,
        };
        self.require(saved, || format!("{event:?} is emitted and not saved"));
    }

    /// A generation begins to train after step `began`, which must be the newest one known.
    /// `holdings`: states that its ranks hold, as generation, step and value; `saved`: generation
    /// and step of its checkpoint; `reached`: the newest generation and step that any of these
    /// processes ever had, whether it still holds it or not.
    pub(crate) fn on_begin(
        &mut self,
        job: &JobId,
        generation: Generation,
        began: u64,
        holdings: &[(Generation, u64, u64)],
        saved: Option<(Generation, u64)>,
        reached: Option<(Generation, u64)>,
    ) {
        let newest = holdings
            .iter()
            .map(|(held, step, _)| (*held, *step))
            .chain(saved)
            .chain(reached)
            .max();
        self.require(newest.is_none_or(|(_, step)| began == step), || {
            let (held, step) = newest.unwrap_or((Generation(0), 0));
            format!(
                "{job} generation {generation} begins at step {began}, and step {step} of \
                generation {held} is available"
            )
        });
        let of_newest: BTreeSet<u64> = holdings
            .iter()
            .filter(|(held, step, _)| Some((*held, *step)) == newest)
            .map(|(_, _, value)| *value)
            .collect();
        self.require(of_newest.len() < 2, || {
            format!(
                "{job} generation {generation}: ranks hold different states of one step: \
            {of_newest:?}"
            )
        });
    }

    /// A daemon spawns a rank process.
    pub(crate) fn on_spawn(
        &mut self,
        key: &RankKey,
        (device, devices): (u32, u32),
        held_by: Option<&RankKey>,
        is_standby: bool,
    ) {
        self.require(device < devices, || {
            format!(
                "{} starts on device {device} of {devices}",
                describe::key(key)
            )
        });
        self.require(held_by.is_none(), || {
            let held_by = held_by.map_or(String::new(), describe::key);
            format!("{} starts on the device of {held_by}", describe::key(key))
        });
        // A standby does no step, so it may be started again.
        let first = is_standby || self.started.insert(key.clone());
        self.require(first, || {
            format!("{} is started a second time", describe::key(key))
        });
    }
}

/// The error, or a placeholder.
fn error_text<T>(result: &Result<T, String>) -> &str {
    result.as_ref().err().map_or("no error", String::as_str)
}

fn newest(record: &JobRecord) -> Option<CheckpointRef> {
    record.checkpoints.last().copied()
}

/// True if a fallback deadline ended the generation: of the coordinator, or of ranks that wait for
/// each other to join.
fn is_fallback(ending: &Ending) -> bool {
    match ending {
        Ending::RankMissing { .. } | Ending::LastCheckpointMissing { .. } => true,
        Ending::RankFailed {
            failure: RankFailure::Error { text, .. },
            ..
        } => text.contains(JOIN_TIMEOUT),
        Ending::GroupBroken { error, .. } => error.contains(JOIN_TIMEOUT),
        Ending::RankFailed { .. }
        | Ending::WorkerLost { .. }
        | Ending::WorkerRestarted { .. }
        | Ending::Partitioned { .. }
        | Ending::WeightsDisagree { .. }
        | Ending::ShardsDisagree { .. }
        | Ending::ManifestRefused { .. } => false,
    }
}
