//! Jobs by id, wherever they are: in the machine's memory, or in the archive of ended jobs. Used by
//! the rpc service and by retention.

use crate::budget::blocking;
use crate::checkpoint::commit::CheckpointStore;
use crate::daemon::{Handle, Stopping};
use crate::journal::Journal;
use crate::status::{self, Detail};
use crate::store::{Archived, StateError, StateStore};
use crate::usage::{Usage, Used};
use coordinator_core::event::Input;
use coordinator_core::event::{JobRecord, Reply};
use coordinator_core::{EndedJob, Why};
use proto::account::Account;
use proto::id::JobId;
use proto::pb;
use proto::phase::Phase;
use proto::spec::JobSpec;
use std::collections::BTreeSet;

/// Archived jobs that are read from the store at a time. Each may have a text of 1 MiB.
pub(crate) const PAGE: usize = 64;

#[derive(Debug, Clone)]
pub(crate) struct Jobs {
    pub(crate) handle: Handle,
    pub(crate) journal: Journal,
    store: StateStore,
    pub(crate) checkpoints: CheckpointStore,
    store_url: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum JobsError {
    #[error(transparent)]
    Stopping(#[from] Stopping),
    #[error(transparent)]
    State(#[from] StateError),
}

/// Which jobs are listed; an empty filter matches every job.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    pub(crate) phase: String,
    pub(crate) team: String,
    /// The job's name or id.
    pub(crate) name: String,
}

impl Filter {
    fn matches(&self, phase: &str, team: &str, name: &str, id: &str) -> bool {
        let is = |filter: &str, value: &str| filter.is_empty() || filter == value;
        is(&self.phase, phase) && is(&self.team, team) && (is(&self.name, name) || self.name == id)
    }
}

impl Jobs {
    pub(crate) fn new(
        handle: Handle,
        journal: Journal,
        store: StateStore,
        checkpoints: CheckpointStore,
        store_url: String,
    ) -> Self {
        Self {
            handle,
            journal,
            store,
            checkpoints,
            store_url,
        }
    }

    /// The job of that id, if there is one.
    pub(crate) async fn get(&self, job: &JobId) -> Result<Option<pb::JobView>, JobsError> {
        if let Some(view) = self.handle.job(job.clone()).await? {
            return Ok(Some(view));
        }
        match self.store.archived(job).await? {
            Some(archived) => Ok(Some(self.view(archived, Detail::Full).await?)),
            None => Ok(None),
        }
    }

    async fn view(&self, archived: Archived, detail: Detail) -> Result<pb::JobView, StateError> {
        let last_step = self.store.last_step(&archived.record.id).await?;
        let store_url = self.store_url.clone();
        let view = parsed(archived.record, move |job| {
            status::job_view(&job.view(), last_step.as_ref(), &store_url, detail)
        });
        Ok(view.await)
    }

    pub(crate) async fn why(&self, job: &JobId) -> Result<Option<Why>, JobsError> {
        if let Some(why) = self.handle.why(job.clone()).await? {
            return Ok(Some(why));
        }
        match self.store.archived(job).await? {
            Some(archived) => Ok(parsed(archived.record, EndedJob::why).await),
            None => Ok(None),
        }
    }

    /// The record of a job that is only in the archive, as a list of at most one.
    pub(crate) async fn archived(&self, job: &JobId) -> Result<Vec<JobRecord>, JobsError> {
        if self.handle.job(job.clone()).await?.is_some() {
            return Ok(Vec::new());
        }
        let archived = self.store.archived(job).await?;
        Ok(archived.into_iter().map(|it| it.record).collect())
    }

    /// The number of ended jobs of this team, and of all.
    pub(crate) async fn ended(&self, team: &str) -> Result<(u64, u64), JobsError> {
        let (own, all) = self.handle.ended(team.to_owned()).await?;
        let (archived_own, archived_all) = self.store.archived_of(team);
        Ok((own + archived_own, all + archived_all))
    }

    /// Records of the archived jobs that a job names.
    pub(crate) async fn archived_names(&self, spec: &JobSpec) -> Result<Vec<JobRecord>, JobsError> {
        // A job may be named several times, and is read once.
        let names: BTreeSet<&JobId> = spec.after.iter().chain(spec.work.read_jobs()).collect();
        let mut records = Vec::new();
        for job in names {
            records.extend(self.archived(job).await?);
        }
        Ok(records)
    }

    /// Up to `limit` jobs that match, in submit order, and the id before which older ones may
    /// follow. `before`: only jobs older than this one.
    pub(crate) async fn list(
        &self,
        filter: &Filter,
        limit: usize,
        before: Option<&JobId>,
    ) -> Result<(Vec<pb::JobView>, Option<JobId>), JobsError> {
        // Newest first until the end.
        let mut jobs = Vec::new();
        let older = |job: &str| before.is_none_or(|before| number(job) < number(&before.0));
        let in_memory = self.handle.snapshot().await?.jobs;
        for job in in_memory.into_iter().rev() {
            if older(&job.job) && filter.matches(&job.phase, &job.team, &job.name, &job.job) {
                jobs.push(job);
            }
        }
        // The archive's newest may be newer than the oldest in memory.
        let mut after = before.cloned();
        let mut is_all = false;
        while jobs.len() <= limit || jobs.iter().any(|job| after_is_newer(after.as_ref(), job)) {
            let page = self.store.archive(after.as_ref(), PAGE).await?;
            let Some(last) = page.last() else {
                is_all = true;
                break;
            };
            after = Some(last.record.id.clone());
            for archived in page {
                let (record, phase) = (&archived.record, archived.record.shown());
                if filter.matches(phase.word(), &archived.team, &archived.name, &record.id.0) {
                    jobs.push(self.view(archived, Detail::Brief).await?);
                }
            }
        }
        jobs.sort_by_key(|job| std::cmp::Reverse(number(&job.job)));
        jobs.dedup_by(|a, b| a.job == b.job);
        let more = limit < jobs.len() || !is_all;
        jobs.truncate(limit);
        let next = jobs
            .last()
            .filter(|_| more)
            .map(|job| JobId(job.job.clone()));
        jobs.reverse();
        Ok((jobs, next))
    }

    /// Adds up what all jobs used, archived ones, too.
    pub(crate) async fn usage(&self, mut usage: Usage) -> Result<Usage, JobsError> {
        let in_memory = self.handle.snapshot().await?.jobs;
        let known: BTreeSet<&str> = in_memory.iter().map(|job| job.job.as_str()).collect();
        for job in &in_memory {
            usage.add(&Used {
                job: job.job.clone(),
                name: job.name.clone(),
                team: job.team.clone(),
                owner: job.owner.clone(),
                labels: job.labels.clone().into_iter().collect(),
                account: job.account.as_ref().map(Account::from).unwrap_or_default(),
            });
        }
        // One that a job names is in memory, too.
        for job in self.store.archived_use() {
            if !known.contains(job.job.as_str()) {
                usage.add(&job);
            }
        }
        Ok(usage)
    }

    /// Archived jobs after `after`, newest first.
    pub(crate) async fn archive(&self, after: Option<&JobId>) -> Result<Vec<Archived>, JobsError> {
        Ok(self.store.archive(after, PAGE).await?)
    }

    /// Deletes an ended job from the state, and with a training job its evaluations. Returns the
    /// jobs that were deleted, or the reason why it may not be.
    pub(crate) async fn delete(&self, job: JobId) -> Result<Result<Vec<JobId>, String>, JobsError> {
        let archived = self.archived(&job).await?;
        let view = self.get(&job).await?;
        let evaluations = view.into_iter().flat_map(|view| view.evaluations);
        let mut all = vec![job.clone()];
        all.extend(evaluations.map(|it| JobId(it.job)));
        let reply = self.handle.request(move |request| Input::Delete {
            request,
            job,
            archived,
        });
        Ok(match reply.await? {
            Reply::Refused { reason } => Err(reason),
            _ => {
                // An evaluation that another job waits for stays.
                let mut deleted = Vec::new();
                for job in all {
                    if self.get(&job).await?.is_none() {
                        deleted.push(job);
                    }
                }
                Ok(deleted)
            }
        })
    }

    /// Deletes the files of jobs that are deleted. Returns their number.
    pub(crate) async fn delete_files(
        &self,
        jobs: &[JobId],
    ) -> Result<u64, crate::checkpoint::CheckpointError> {
        let mut files = 0;
        for job in jobs {
            files += self.checkpoints.delete_job(job).await?;
        }
        Ok(files)
    }

    /// Phase of a job that is only in the archive, where requests change nothing any more.
    pub(crate) async fn archived_phase(&self, job: &JobId) -> Result<Option<Phase>, JobsError> {
        let records = self.archived(job).await?;
        Ok(records.first().map(JobRecord::shown))
    }
}

/// Parses the text of an archived job, on a thread for blocking work.
async fn parsed<T: Send + 'static>(
    record: JobRecord,
    view: impl FnOnce(&EndedJob) -> T + Send + 'static,
) -> T {
    let work = blocking(move || view(&EndedJob::new(record)));
    work.await.expect("a stored text is parsed or refused")
}

/// The number at the end of a job's id, which gives the submit order.
fn number(job: &str) -> u64 {
    let digits = job.rsplit('-').next();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// Whether archived jobs that are not read yet may be newer than this one.
fn after_is_newer(after: Option<&JobId>, job: &pb::JobView) -> bool {
    after.is_none_or(|after| number(&job.job) < number(&after.0))
}
