//! Which running jobs make no progress. Pure.

use proto::pb;
use proto::phase::Phase;
use std::collections::BTreeMap;
use std::time::Duration;

/// A job's newest position, and since when.
#[derive(Debug, Clone, Copy)]
struct Position {
    step: u64,
    units: u64,
    since_ms: u64,
    told: bool,
}

/// The positions of the jobs that have workers.
#[derive(Debug, Default)]
pub(crate) struct Stalls {
    jobs: BTreeMap<String, Position>,
}

impl Stalls {
    /// The jobs that have now had workers and made no step and no unit for that long, each once
    /// until it makes one. A job that waits for workers, or is paused, does not stall.
    pub(crate) fn look<'a>(
        &mut self,
        jobs: &'a [pb::JobView],
        after: Duration,
        now_ms: u64,
    ) -> Vec<&'a pb::JobView> {
        let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        let mut before = std::mem::take(&mut self.jobs);
        let mut stalled = Vec::new();
        for job in jobs.iter().filter(|job| has_workers(&job.phase)) {
            let (step, units) = (job.step, job.units.as_ref().map_or(0, |it| it.done));
            let same = |it: &Position| (it.step, it.units) == (step, units);
            let mut position = before.remove(&job.job).filter(same).unwrap_or(Position {
                step,
                units,
                since_ms: now_ms,
                told: false,
            });
            let is_late = after_ms <= now_ms.saturating_sub(position.since_ms);
            if is_late && !std::mem::replace(&mut position.told, is_late) {
                stalled.push(job);
            }
            self.jobs.insert(job.job.clone(), position);
        }
        stalled
    }
}

fn has_workers(phase: &str) -> bool {
    match Phase::of(phase) {
        Some(
            Phase::Running
            | Phase::Pausing
            | Phase::Forming
            | Phase::Training
            | Phase::Working
            | Phase::Finishing
            | Phase::Stopping,
        ) => true,
        Some(Phase::Queued | Phase::Paused | Phase::Done | Phase::Failed | Phase::Cancelled)
        | None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(10);

    fn job(phase: &str, step: u64) -> pb::JobView {
        pb::JobView {
            job: "demo-1".into(),
            phase: phase.into(),
            step,
            ..Default::default()
        }
    }

    #[test]
    fn a_job_stalls_once_until_it_makes_a_step() {
        let mut stalls = Stalls::default();
        let mut look = |phase, step, now_ms| stalls.look(&[job(phase, step)], AFTER, now_ms).len();
        assert_eq!(look("training", 3, 0), 0);
        assert_eq!(look("training", 3, 9_999), 0);
        assert_eq!(look("forming", 3, 10_000), 1, "a new generation is no step");
        assert_eq!(look("training", 3, 60_000), 0, "it was told");
        assert_eq!(look("training", 4, 61_000), 0);
        assert_eq!(look("training", 4, 71_000), 1, "it stalls again");
    }

    #[test]
    fn a_job_without_workers_does_not_stall_and_one_of_units_counts_them() {
        let mut stalls = Stalls::default();
        let mut look = |phase, step, now_ms| stalls.look(&[job(phase, step)], AFTER, now_ms).len();
        assert_eq!(look("training", 3, 0), 0);
        assert_eq!(look("queued", 3, 20_000), 0);
        assert_eq!(look("training", 3, 21_000), 0, "it is counted anew");
        let units = |done| pb::JobView {
            units: Some(pb::UnitsView {
                done,
                ..Default::default()
            }),
            ..job("working", 0)
        };
        let mut stalls = Stalls::default();
        assert!(stalls.look(&[units(1)], AFTER, 0).is_empty());
        assert!(stalls.look(&[units(2)], AFTER, 10_000).is_empty());
        assert_eq!(stalls.look(&[units(2)], AFTER, 20_000).len(), 1);
    }
}
