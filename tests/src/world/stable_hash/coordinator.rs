//! Stable hashes of the coordinator's inputs and effects.

use super::{StableHash, StableHasher};
use coordinator_core::event::{self as coordinator, JobPhase, JobRecord, Record, Reply};
use proto::spec::Work;

impl StableHash for coordinator::Input {
    fn stable_hash(&self, hasher: &mut StableHasher) {
        match self {
            Self::Submit { request, spec, .. } => {
                hasher.put(1_u8);
                hasher.put(request.0);
                hasher.put(spec.resources.workers_min);
                hasher.put(spec.resources.workers_max);
                match &spec.work {
                    Work::Train(work) => hasher.put(work.train.steps),
                    Work::Sample(work) => {
                        hasher.job(&work.job);
                        hasher.put(work.units().count);
                    }
                    Work::Evaluate(work) => {
                        work.models.iter().for_each(|model| hasher.job(&model.job));
                        hasher.put(work.units().count);
                    }
                    Work::Build(work) => hasher.put(work.units().count),
                }
                // Nothing for a job without dependencies, as before dependencies existed.
                spec.after.iter().for_each(|job| hasher.job(job));
            }
            Self::Retry { request, job, .. } => {
                hasher.put(11_u8);
                hasher.put(request.0);
                hasher.job(job);
            }
            Self::Delete { request, job, .. } => {
                hasher.put(12_u8);
                hasher.put(request.0);
                hasher.job(job);
            }
            Self::Cancel { request, job } => {
                hasher.put(3_u8);
                hasher.put(request.0);
                hasher.job(job);
            }
            Self::Pause {
                request,
                job,
                paused,
            } => {
                hasher.put(4_u8);
                hasher.put(request.0);
                hasher.job(job);
                hasher.put(*paused);
            }
            Self::Scale {
                request,
                job,
                workers,
            } => {
                hasher.put(5_u8);
                hasher.put(request.0);
                hasher.job(job);
                hasher.put(*workers);
            }
            Self::Drain {
                request,
                worker,
                drained,
            } => {
                hasher.put(6_u8);
                hasher.put(request.0);
                hasher.id(worker);
                hasher.put(*drained);
            }
            Self::Received { report } => {
                hasher.put(7_u8);
                report.stable_hash(hasher);
            }
            Self::Disconnected { worker } => {
                hasher.put(8_u8);
                hasher.worker(worker);
            }
            Self::ManifestWritten {
                job,
                checkpoint,
                result,
            } => {
                hasher.put(9_u8);
                hasher.job(job);
                hasher.checkpoint(*checkpoint);
                hasher.put(result.is_ok());
            }
            Self::Deadline => hasher.put(10_u8),
            Self::ScoresRead { evaluation, result } => {
                hasher.put(13_u8);
                hasher.job(evaluation);
                hasher.put(result.is_ok());
            }
        }
    }
}

impl StableHash for coordinator::Effect {
    fn stable_hash(&self, hasher: &mut StableHasher) {
        match self {
            Self::Save(records) => {
                hasher.put(20_u8);
                hasher.all(records, |hasher, record| record.stable_hash(hasher));
            }
            Self::Send { worker, state } => {
                hasher.put(21_u8);
                hasher.worker(worker);
                state.stable_hash(hasher);
            }
            Self::Reply { request, reply } => {
                hasher.put(22_u8);
                hasher.put(request.0);
                reply.stable_hash(hasher);
            }
            Self::WriteManifest { manifest } => {
                hasher.put(23_u8);
                hasher.job(&manifest.job);
                hasher.put(manifest.step.0);
                hasher.put(manifest.generation.0);
                hasher.put(manifest.shards.len() as u64);
            }
            Self::DeleteCheckpoint { job, checkpoint } => {
                hasher.put(24_u8);
                hasher.job(job);
                hasher.checkpoint(*checkpoint);
            }
            Self::ReadScores { evaluation } => {
                hasher.put(26_u8);
                hasher.job(evaluation);
            }
            Self::Emit(event) => {
                hasher.put(25_u8);
                event.stable_hash(hasher);
            }
        }
    }
}

impl StableHash for Record {
    fn stable_hash(&self, hasher: &mut StableHasher) {
        match self {
            Self::Counters(counters) => {
                hasher.put(1_u8);
                hasher.put(counters.jobs);
            }
            Self::Drained(names) => {
                hasher.put(2_u8);
                hasher.all(names, |hasher, name| hasher.id(name));
            }
            Self::Job(job) => {
                hasher.put(3_u8);
                job.stable_hash(hasher);
            }
            Self::Archived(job) => {
                hasher.put(5_u8);
                hasher.job(&job.id);
            }
            Self::Deleted(job) => {
                hasher.put(6_u8);
                hasher.job(job);
            }
            Self::Ledger { job, entries } => {
                hasher.put(4_u8);
                hasher.job(job);
                hasher.put(entries.len() as u64);
            }
        }
    }
}

impl StableHash for JobRecord {
    fn stable_hash(&self, hasher: &mut StableHasher) {
        hasher.job(&self.id);
        hasher.put(self.generation.0);
        let phase = match &self.phase {
            JobPhase::Queued { .. } => 1_u8,
            JobPhase::Running { .. } => 2,
            JobPhase::Done { .. } => 3,
            JobPhase::Failed { .. } => 4,
            JobPhase::Cancelled { .. } => 5,
        };
        hasher.put(phase);
        if let JobPhase::Running { members } = &self.phase {
            hasher.all(members, StableHasher::member);
        }
        if !self.phase.is_over() {
            hasher.all(&self.standbys, StableHasher::member);
            hasher.put(self.paused);
            hasher.some(self.workers, StableHasher::put);
        }
        hasher.put(self.ledger.step.0);
        hasher.put(self.ledger.entries);
        hasher.all(&self.checkpoints, |hasher, checkpoint| {
            hasher.checkpoint(*checkpoint);
        });
        hasher.put(self.restarts);
        if let Some(units) = &self.units {
            hasher.all(&units.done, |hasher, range| hasher.units(*range));
            hasher.all(&units.set_aside, |hasher, range| hasher.units(*range));
        }
    }
}

impl StableHash for Reply {
    fn stable_hash(&self, hasher: &mut StableHasher) {
        match self {
            Self::Accepted { job } => {
                hasher.put(1_u8);
                hasher.job(job);
            }
            Self::Phase { .. } => hasher.put(2_u8),
            Self::Worker { worker, drained } => {
                hasher.put(3_u8);
                hasher.id(worker);
                hasher.put(*drained);
            }
            Self::Refused { .. } => hasher.put(4_u8),
            Self::Deleted { job } => {
                hasher.put(5_u8);
                hasher.job(job);
            }
        }
    }
}

impl StableHash for coordinator::Event {
    fn stable_hash(&self, hasher: &mut StableHasher) {
        match self {
            Self::WorkerUp { worker } => hasher.of_worker(1, worker),
            Self::WorkerDown { worker, .. } => hasher.of_worker(2, worker),
            Self::WorkersForgotten { workers } => {
                workers
                    .iter()
                    .for_each(|worker| hasher.of_worker(20, worker));
            }
            Self::JobQueued { job, .. } => hasher.of_job(3, job),
            Self::GenerationFormed {
                job,
                generation,
                world,
            } => {
                hasher.of_generation(4, job, *generation);
                hasher.put(*world);
            }
            Self::GenerationEnded {
                job, generation, ..
            } => hasher.of_generation(5, job, *generation),
            Self::Stopping {
                job, generation, ..
            } => hasher.of_generation(6, job, *generation),
            Self::Stopped {
                job, generation, ..
            } => hasher.of_generation(7, job, *generation),
            Self::StandbyAdded {
                job,
                generation,
                worker,
            } => {
                hasher.of_generation(8, job, *generation);
                hasher.worker(worker);
            }
            Self::StandbyLost {
                job,
                generation,
                worker,
                ..
            } => {
                hasher.of_generation(9, job, *generation);
                hasher.worker(worker);
            }
            Self::Stepped {
                job,
                generation,
                report,
            } => {
                hasher.of_generation(10, job, *generation);
                hasher.put(report.step.0);
            }
            Self::Committed { job, checkpoint } => {
                hasher.of_job(11, job);
                hasher.checkpoint(*checkpoint);
            }
            Self::JobDone { job, step } => hasher.of_step(12, job, *step),
            Self::JobFailed { job, .. } => hasher.of_job(13, job),
            Self::JobCancelled { job } => hasher.of_job(14, job),
            Self::Unreachable { .. } => hasher.put(15_u8),
            Self::WorkerDisplaced { worker, by } => {
                hasher.of_worker(21, worker);
                hasher.worker(&by.worker);
            }
            Self::Ignored { worker, .. } => hasher.of_worker(16, worker),
            Self::UnitFailed {
                job, unit, worker, ..
            } => {
                hasher.of_job(17, job);
                hasher.put(*unit);
                hasher.worker(worker);
            }
            Self::UnitSetAside { job, unit, .. } => {
                hasher.of_job(18, job);
                hasher.put(*unit);
            }
            Self::EvaluationSubmitted { job, step, .. } => hasher.of_step(22, job, *step),
            Self::EvaluationScored { job, step, .. } => hasher.of_step(23, job, *step),
            Self::EvaluationUnscored { job, step, .. } => hasher.of_step(24, job, *step),
            Self::EvaluationSkipped { job, step } => hasher.of_step(25, job, *step),
        }
    }
}
