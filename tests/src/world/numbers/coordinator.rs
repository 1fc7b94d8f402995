//! Numbers of what the coordinator's machine is told and wants.

use super::{Numbered, Numbers};
use coordinator_core::event::{self as coordinator, JobPhase, JobRecord, Record, Reply};
use proto::spec::Work;

impl Numbered for coordinator::Input {
    fn number(&self, numbers: &mut Numbers) {
        match self {
            Self::Submit { request, spec, .. } => {
                numbers.put(1_u8);
                numbers.put(request.0);
                numbers.put(spec.resources.workers_min);
                numbers.put(spec.resources.workers_max);
                match &spec.work {
                    Work::Train(work) => numbers.put(work.train.steps),
                    Work::Sample(work) => {
                        numbers.job(&work.job);
                        numbers.put(work.units().count);
                    }
                }
                // Who waits for nobody has none, as before there was waiting.
                spec.after.iter().for_each(|job| numbers.job(job));
            }
            Self::Cancel { request, job } => {
                numbers.put(3_u8);
                numbers.put(request.0);
                numbers.job(job);
            }
            Self::Pause {
                request,
                job,
                paused,
            } => {
                numbers.put(4_u8);
                numbers.put(request.0);
                numbers.job(job);
                numbers.put(*paused);
            }
            Self::Scale {
                request,
                job,
                workers,
            } => {
                numbers.put(5_u8);
                numbers.put(request.0);
                numbers.job(job);
                numbers.put(*workers);
            }
            Self::Drain {
                request,
                worker,
                drained,
            } => {
                numbers.put(6_u8);
                numbers.put(request.0);
                numbers.id(worker);
                numbers.put(*drained);
            }
            Self::Received { report } => {
                numbers.put(7_u8);
                report.number(numbers);
            }
            Self::Disconnected { worker } => {
                numbers.put(8_u8);
                numbers.worker(worker);
            }
            Self::ManifestWritten {
                job,
                checkpoint,
                result,
            } => {
                numbers.put(9_u8);
                numbers.job(job);
                numbers.checkpoint(*checkpoint);
                numbers.put(result.is_ok());
            }
            Self::Deadline => numbers.put(10_u8),
        }
    }
}

impl Numbered for coordinator::Effect {
    fn number(&self, numbers: &mut Numbers) {
        match self {
            Self::Save(records) => {
                numbers.put(20_u8);
                numbers.all(records, |numbers, record| record.number(numbers));
            }
            Self::Send { worker, state } => {
                numbers.put(21_u8);
                numbers.worker(worker);
                state.number(numbers);
            }
            Self::Reply { request, reply } => {
                numbers.put(22_u8);
                numbers.put(request.0);
                reply.number(numbers);
            }
            Self::WriteManifest { manifest } => {
                numbers.put(23_u8);
                numbers.job(&manifest.job);
                numbers.put(manifest.step.0);
                numbers.put(manifest.generation.0);
                numbers.put(manifest.shards.len() as u64);
            }
            Self::DeleteCheckpoint { job, checkpoint } => {
                numbers.put(24_u8);
                numbers.job(job);
                numbers.checkpoint(*checkpoint);
            }
            Self::Emit(event) => {
                numbers.put(25_u8);
                event.number(numbers);
            }
        }
    }
}

impl Numbered for Record {
    fn number(&self, numbers: &mut Numbers) {
        match self {
            Self::Counters(counters) => {
                numbers.put(1_u8);
                numbers.put(counters.jobs);
            }
            Self::Drained(names) => {
                numbers.put(2_u8);
                numbers.all(names, |numbers, name| numbers.id(name));
            }
            Self::Job(job) => {
                numbers.put(3_u8);
                job.number(numbers);
            }
            Self::Ledger { job, entries } => {
                numbers.put(4_u8);
                numbers.job(job);
                numbers.put(entries.len() as u64);
            }
        }
    }
}

impl Numbered for JobRecord {
    fn number(&self, numbers: &mut Numbers) {
        numbers.job(&self.id);
        numbers.put(self.generation.0);
        let phase = match &self.phase {
            JobPhase::Queued { .. } => 1_u8,
            JobPhase::Running { .. } => 2,
            JobPhase::Done { .. } => 3,
            JobPhase::Failed { .. } => 4,
            JobPhase::Cancelled { .. } => 5,
        };
        numbers.put(phase);
        if let JobPhase::Running { members } = &self.phase {
            numbers.all(members, Numbers::member);
        }
        if !self.phase.is_over() {
            numbers.all(&self.standbys, Numbers::member);
            numbers.put(self.paused);
            numbers.some(self.workers, Numbers::put);
        }
        numbers.put(self.ledger.step.0);
        numbers.put(self.ledger.entries);
        numbers.all(&self.checkpoints, |numbers, checkpoint| {
            numbers.checkpoint(*checkpoint);
        });
        numbers.put(self.restarts);
        if let Some(units) = &self.units {
            numbers.all(&units.done, |numbers, range| numbers.units(*range));
            numbers.all(&units.set_aside, |numbers, range| numbers.units(*range));
        }
    }
}

impl Numbered for Reply {
    fn number(&self, numbers: &mut Numbers) {
        match self {
            Self::Accepted { job } => {
                numbers.put(1_u8);
                numbers.job(job);
            }
            Self::Phase { .. } => numbers.put(2_u8),
            Self::Worker { worker, drained } => {
                numbers.put(3_u8);
                numbers.id(worker);
                numbers.put(*drained);
            }
            Self::Refused { .. } => numbers.put(4_u8),
        }
    }
}

impl Numbered for coordinator::Event {
    fn number(&self, numbers: &mut Numbers) {
        match self {
            Self::WorkerUp { worker } => numbers.of_worker(1, worker),
            Self::WorkerDown { worker, .. } => numbers.of_worker(2, worker),
            Self::JobQueued { job, .. } => numbers.of_job(3, job),
            Self::GenerationFormed {
                job,
                generation,
                world,
            } => {
                numbers.of_generation(4, job, *generation);
                numbers.put(*world);
            }
            Self::GenerationEnded {
                job, generation, ..
            } => numbers.of_generation(5, job, *generation),
            Self::Stopping {
                job, generation, ..
            } => numbers.of_generation(6, job, *generation),
            Self::Stopped {
                job, generation, ..
            } => numbers.of_generation(7, job, *generation),
            Self::StandbyAdded {
                job,
                generation,
                worker,
            } => {
                numbers.of_generation(8, job, *generation);
                numbers.worker(worker);
            }
            Self::StandbyLost {
                job,
                generation,
                worker,
                ..
            } => {
                numbers.of_generation(9, job, *generation);
                numbers.worker(worker);
            }
            Self::Stepped {
                job,
                generation,
                report,
            } => {
                numbers.of_generation(10, job, *generation);
                numbers.put(report.step.0);
            }
            Self::Committed { job, checkpoint } => {
                numbers.of_job(11, job);
                numbers.checkpoint(*checkpoint);
            }
            Self::JobDone { job, step } => {
                numbers.of_job(12, job);
                numbers.put(step.0);
            }
            Self::JobFailed { job, .. } => numbers.of_job(13, job),
            Self::JobCancelled { job } => numbers.of_job(14, job),
            Self::Parted { .. } => numbers.put(15_u8),
            Self::Ignored { worker, .. } => numbers.of_worker(16, worker),
            Self::UnitFailed {
                job, unit, worker, ..
            } => {
                numbers.of_job(17, job);
                numbers.put(*unit);
                numbers.worker(worker);
            }
            Self::UnitSetAside { job, unit, .. } => {
                numbers.of_job(18, job);
                numbers.put(*unit);
            }
        }
    }
}
