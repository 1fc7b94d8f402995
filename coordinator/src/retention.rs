//! Deletes ended jobs that are too old or too many, as the configuration says. Jobs that another
//! job waits for or reads stay.

use crate::jobs::{Jobs, JobsError};
use crate::serve::ServeError;
use crate::text::now_ms;
use coordinator_core::event::{JobPhase, JobRecord};
use proto::id::JobId;
use std::time::Duration;

/// How often the archive is looked through.
const EVERY: Duration = Duration::from_secs(600);
const DAY_MS: u64 = 86_400_000;

/// Which ended jobs are kept. Only archived jobs are deleted, never one of the newest that are in
/// memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retention {
    /// At most so many archived jobs; None: no limit.
    pub(crate) jobs: Option<u64>,
    /// For so many days after their end; None: forever.
    pub(crate) days: Option<u64>,
    /// Delete their checkpoints and images, too.
    pub(crate) checkpoints: bool,
}

impl Retention {
    fn is_none(self) -> bool {
        self.jobs.is_none() && self.days.is_none()
    }

    /// Whether the archived job at this index, newest first, is to be deleted.
    fn is_surplus(self, index: u64, record: &JobRecord, now: u64) -> bool {
        let too_many = self.jobs.is_some_and(|jobs| jobs <= index);
        let ended = match &record.phase {
            JobPhase::Done { ended_ms }
            | JobPhase::Failed { ended_ms, .. }
            | JobPhase::Cancelled { ended_ms } => *ended_ms,
            JobPhase::Queued { .. } | JobPhase::Running { .. } => return false,
        };
        let old = |days: u64| ended.saturating_add(days.saturating_mul(DAY_MS)) <= now;
        too_many || self.days.is_some_and(old)
    }
}

/// Runs until the coordinator stops.
pub(crate) async fn run(jobs: Jobs, retention: Retention) -> ServeError {
    let mut interval = tokio::time::interval(EVERY);
    loop {
        interval.tick().await;
        if retention.is_none() {
            continue;
        }
        if let Err(error) = tidy(&jobs, retention, now_ms()).await {
            tracing::warn!(%error, "old jobs were not deleted");
        }
    }
}

/// Deletes surplus jobs once. Returns their number.
pub(crate) async fn tidy(jobs: &Jobs, retention: Retention, now: u64) -> Result<u64, JobsError> {
    let mut surplus: Vec<JobId> = Vec::new();
    let (mut after, mut index) = (None, 0);
    loop {
        let page = jobs.archive(after.as_ref()).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.record.id.clone());
        for archived in page {
            if retention.is_surplus(index, &archived.record, now) {
                surplus.push(archived.record.id);
            }
            index += 1;
        }
    }
    let mut deleted = 0;
    for job in surplus {
        // An evaluation may have been deleted with its training job.
        if jobs.get(&job).await?.is_none() {
            continue;
        }
        let with = match jobs.delete(job.clone()).await? {
            Ok(with) => with,
            Err(reason) => {
                tracing::info!(%job, %reason, "an old job is kept");
                continue;
            }
        };
        deleted += with.len() as u64;
        if retention.checkpoints
            && let Err(error) = jobs.delete_files(&with).await
        {
            tracing::warn!(%job, %error, "the files of a deleted job were not deleted");
        }
        tracing::info!(%job, "an old job is deleted");
    }
    Ok(deleted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::job_record;

    #[test]
    fn jobs_are_surplus_by_count_or_by_age() {
        let record = JobRecord {
            phase: JobPhase::Done { ended_ms: 5 },
            ..job_record("a-1")
        };
        let retention = |jobs, days| Retention {
            jobs,
            days,
            checkpoints: false,
        };
        for (jobs, days, index, now, expected) in [
            (None, None, 1_000_000, u64::MAX, false),
            (Some(2), None, 1, u64::MAX, false),
            (Some(2), None, 2, 0, true),
            (None, Some(1), 0, 4 + DAY_MS, false),
            (None, Some(1), 0, 5 + DAY_MS, true),
        ] {
            let found = retention(jobs, days).is_surplus(index, &record, now);
            assert_eq!(found, expected, "{jobs:?} {days:?} {index} {now}");
        }
        assert!(!retention(Some(0), Some(0)).is_surplus(9, &job_record("a-1"), u64::MAX));
    }
}
