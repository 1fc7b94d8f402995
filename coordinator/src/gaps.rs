//! Where log lines were dropped, so that a reader sees that something is missing: the next line of
//! the same job says how many.

use proto::id::JobId;
use proto::pb;
use std::collections::BTreeMap;

/// Jobs of which it is remembered; of more it is only logged.
const JOBS_MAX: usize = 256;

/// Dropped lines of each job that no line has told of yet.
#[derive(Debug, Default)]
pub(crate) struct Gaps(BTreeMap<JobId, u64>);

impl Gaps {
    /// This line was dropped, and with it what it tells of.
    pub(crate) fn add(&mut self, job: &JobId, line: &pb::LogLine) {
        let count = line.dropped.saturating_add(1);
        if let Some(gap) = self.0.get_mut(job) {
            *gap = gap.saturating_add(count);
        } else if self.0.len() < JOBS_MAX {
            self.0.insert(job.clone(), count);
        }
    }

    /// This line is the next one of its job.
    pub(crate) fn close(&mut self, job: &JobId, line: &mut pb::LogLine) {
        if !self.0.is_empty()
            && let Some(gap) = self.0.remove(job)
        {
            line.dropped = line.dropped.saturating_add(gap);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_line_of_a_job_tells_of_its_gap_once() {
        let (job, other) = (JobId("a-1".into()), JobId("b-2".into()));
        let mut gaps = Gaps::default();
        let mut line = pb::LogLine::default();
        gaps.close(&job, &mut line);
        assert_eq!(line.dropped, 0);
        gaps.add(&job, &line);
        line.dropped = 4;
        gaps.add(&job, &line);
        gaps.close(&other, &mut line);
        assert_eq!(line.dropped, 4);
        gaps.close(&job, &mut line);
        assert_eq!(line.dropped, 4 + 6);
        let mut after = pb::LogLine::default();
        gaps.close(&job, &mut after);
        assert_eq!(after.dropped, 0);
    }

    #[test]
    fn invented_jobs_take_no_memory() {
        let mut gaps = Gaps::default();
        for number in 0..2 * JOBS_MAX {
            gaps.add(&JobId(format!("x-{number}")), &pb::LogLine::default());
        }
        assert_eq!(gaps.0.len(), JOBS_MAX);
    }
}
