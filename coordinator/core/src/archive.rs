//! Ended jobs leave the machine's memory, so that they cost nothing: their records move to an
//! archive in the store, from which the shell passes them back to a request that names them. An
//! ended job stays as long as a job that is not over names it.

use crate::event::{Reply, RequestId};
use crate::gang::Gang;
use crate::job::Job;
use crate::machine::{Coordinator, parse_record};
use crate::outbox::Outbox;
use crate::record::{JobPhase, JobRecord, Millis, Record};
use proto::id::JobId;
use proto::job::overrides::{Override, check_limits, check_progress};
use proto::ledger::Line;
use proto::reason::Waiting;
use proto::spec::JobSpec;
use std::collections::BTreeSet;

impl Coordinator {
    /// Brings archived jobs back into memory, because a request names them.
    pub(crate) fn recall(&mut self, records: Vec<JobRecord>, now: Millis) {
        for record in records {
            let id = record.id.clone();
            if self.jobs.contains_key(&id) || self.unreadable.contains_key(&id) {
                continue;
            }
            match parse_record(&record) {
                Ok(spec) => {
                    let job = Job::new(record, spec, self.deadlines, now);
                    self.jobs.insert(id.clone(), job);
                    self.recalled.insert(id);
                }
                Err(error) => {
                    self.unreadable.insert(id, record.into_unreadable(&error));
                }
            }
        }
    }

    /// Jobs that a job which is not over waits for or reads.
    fn named(&self) -> BTreeSet<JobId> {
        let heads = self.jobs.values().filter(|job| !job.is_over());
        let names = heads.flat_map(|job| {
            let spec = &job.head().spec;
            spec.after.iter().chain(spec.work.read_jobs())
        });
        names.cloned().collect()
    }

    /// Drops recalled jobs that no job names any more: their records are in the archive already.
    pub(crate) fn drop_unnamed(&mut self) {
        if self.recalled.is_empty() {
            return;
        }
        let named = self.named();
        let recalled = std::mem::take(&mut self.recalled);
        let (stay, go): (BTreeSet<JobId>, BTreeSet<JobId>) =
            recalled.into_iter().partition(|id| named.contains(id));
        self.recalled = stay;
        self.jobs.retain(|id, _| !go.contains(id));
    }

    /// Archives the ended jobs beyond [`crate::Config::ended_jobs_max`], oldest first. One whose
    /// record is saved with this input waits for the next one.
    pub(crate) fn archive_ended(&mut self, outbox: &mut Outbox) {
        self.recalled.retain(|id| !outbox.save.contains(id));
        self.drop_unnamed();
        let over = |(id, job): (&JobId, &Job)| {
            let ended = job.ended_ms()?;
            let settled = !outbox.save.contains(id) && !self.recalled.contains(id);
            (settled && !job.is_writing() && !job.is_evaluated())
                .then(|| (ended, job.head().number, id.clone()))
        };
        let mut ended: Vec<(Millis, u64, JobId)> = self.jobs.iter().filter_map(over).collect();
        if ended.len() <= self.config.ended_jobs_max {
            return;
        }
        let named = self.named();
        ended.retain(|(_, _, id)| !named.contains(id));
        ended.sort();
        let surplus = ended.len().saturating_sub(self.config.ended_jobs_max);
        for (_, _, id) in ended.into_iter().take(surplus) {
            if let Some(job) = self.jobs.remove(&id) {
                let record = Box::new(job.record());
                outbox.removed.push(Record::Archived(record));
            }
        }
    }

    pub(crate) fn on_delete(&mut self, request: RequestId, id: &JobId, outbox: &mut Outbox) {
        let reply = match self.check_delete(id) {
            Ok(()) => {
                for evaluation in self.evaluations_of(id) {
                    self.forget(&evaluation, outbox);
                }
                self.forget(id, outbox);
                Reply::Deleted { job: id.clone() }
            }
            Err(reason) => Reply::Refused { reason },
        };
        outbox.reply(request, reply);
    }

    fn forget(&mut self, id: &JobId, outbox: &mut Outbox) {
        self.jobs.remove(id);
        self.recalled.remove(id);
        self.unreadable.remove(id);
        outbox.removed.push(Record::Deleted(id.clone()));
    }

    /// The jobs that evaluated checkpoints of this job, which are deleted with it: nobody else
    /// waits for them or reads them.
    fn evaluations_of(&self, id: &JobId) -> Vec<JobId> {
        let Some(gang) = self.jobs.get(id).and_then(Job::gang) else {
            return Vec::new();
        };
        let named = self.named();
        let list = gang.evaluations.list.iter().map(|it| &it.job);
        let is_over = |id: &&JobId| self.jobs.get(*id).is_none_or(Job::is_over);
        let list = list.filter(|id| !named.contains(*id) && is_over(id));
        list.cloned().collect()
    }

    fn check_delete(&self, id: &JobId) -> Result<(), String> {
        if self.unreadable.contains_key(id) {
            return Ok(());
        }
        let job = self.jobs.get(id).ok_or_else(|| self.no_such_job(id))?;
        if !job.is_over() {
            return Err(format!(
                "job {id} is {}; `coordinator cancel {id}` ends it first",
                job.shown()
            ));
        }
        let names = |other: &&Job| {
            let spec = &other.head().spec;
            let reads = spec.work.read_jobs().any(|job| job == id);
            !other.is_over() && (reads || spec.after.contains(id))
        };
        match self.jobs.values().find(names) {
            Some(other) => Err(format!(
                "job {} waits for job {id} or reads it; cancel that one first",
                other.head().id
            )),
            None => Ok(()),
        }
    }

    pub(crate) fn on_retry(
        &mut self,
        request: RequestId,
        id: &JobId,
        overrides: Vec<Override>,
        outbox: &mut Outbox,
    ) {
        match self.retried(id, overrides, outbox.now) {
            Ok(job) => {
                job.emit_queued(outbox);
                self.recalled.remove(id);
                self.jobs.insert(id.clone(), job);
                outbox.save.insert(id.clone());
                outbox.phase_replies.push((request, id.clone()));
            }
            Err(reason) => outbox.reply(request, Reply::Refused { reason }),
        }
    }

    /// Refuses a job whose checkpoints were deleted since it ended: it pins them no longer.
    fn check_sources(&self, spec: &JobSpec, record: &JobRecord) -> Result<(), String> {
        let sources = record.source.iter().chain(&record.models);
        for ((id, _), source) in spec.work.reads().into_iter().zip(sources) {
            let read = self.jobs.get(id).and_then(Job::gang);
            if let (Some(read), Some(checkpoint)) = (read, source.checkpoint)
                && !read.checkpoints.contains(&checkpoint)
            {
                return Err(format!(
                    "job {} reads the checkpoint of step {} of {id}, which was deleted since; \
                     submit it again, with another checkpoint",
                    record.id, checkpoint.step
                ));
            }
        }
        Ok(())
    }

    /// The job as it continues: under its own id, from its last checkpoint, or with the units that
    /// are not done.
    fn retried(&self, id: &JobId, new: Vec<Override>, now: Millis) -> Result<Job, String> {
        let job = self.jobs.get(id).ok_or_else(|| self.no_such_job(id))?;
        let old = job.record();
        match &old.phase {
            JobPhase::Failed { .. } | JobPhase::Cancelled { .. } => {}
            JobPhase::Done { .. } => {
                return Err(format!("job {id} is done; nothing is left to do"));
            }
            JobPhase::Queued { .. } | JobPhase::Running { .. } => {
                return Err(format!(
                    "job {id} is {}; only a failed or cancelled job is retried",
                    job.shown()
                ));
            }
        }
        if job.is_writing() {
            return Err(format!(
                "job {id} still waits for an answer about its last manifest; try again in a moment"
            ));
        }
        let mut record = JobRecord {
            phase: JobPhase::Queued {
                reason: Waiting::Retried,
            },
            paused: false,
            paused_because: None,
            restarts_without_progress: 0,
            permanent_failure: false,
            ..old
        };
        record.overrides.extend(new.iter().cloned());
        let spec = parse_record(&record)?;
        check_limits(&spec, &record.overrides)?;
        self.check_waiting(&spec.resources.team)?;
        let committed = record.checkpoints.last().map_or(0, |last| last.step.0);
        check_progress(&spec, committed)?;
        self.check_sources(&spec, &record)?;
        let trained_s = record.trained_ms / 1000;
        let mut job = Job::new(record, spec, self.deadlines, now);
        if job.gang().is_some_and(Gang::is_time_up) {
            return Err(format!(
                "train.time_limit: job {id} has trained for {trained_s} s, which is all of its \
                 time limit; set a larger one: --set train.time_limit=…"
            ));
        }
        for Override { key, value } in new {
            job.ledger_write(Line::Override { key, value });
        }
        Ok(job)
    }
}
