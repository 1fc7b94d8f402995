//! The order in which waiting jobs would start, where one of them stands in it, and when it may
//! start: for people, decides nothing. The estimate plays the future with the solver that will
//! decide: running jobs end one after the other, as fast as they have worked so far, and their
//! workers are given to whom placement would.

use crate::machine::Coordinator;
use crate::placement::{self, Decision, Problem, Solution, apply_solution};
use crate::record::Millis;
use crate::view_model::JobView;
use proto::id::JobId;
use proto::spec::JobSpec;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Ends of jobs that are played. Each is a placement.
const ENDS_MAX: usize = 32;
/// Beyond this many jobs and workers together there is no estimate: it would take the loop's time.
const SIZE_MAX: usize = 512;

/// A job that waits for workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueuePlace {
    /// From 1, in the order of [`Coordinator::queue`].
    pub place: u64,
    /// All jobs that wait for workers.
    pub waiting: u64,
    /// In how many milliseconds it may start, if running jobs go on as they have so far and nothing
    /// is submitted. None: nobody can say.
    pub starts_in_ms: Option<u64>,
}

impl Coordinator {
    /// Waiting jobs in the order in which the last placement considered them: higher priorities
    /// first, then teams with fewer devices for older jobs, then in submit order. Jobs that ask for
    /// no workers yet (paused, or waiting for another job) come last.
    #[must_use]
    pub fn queue(&self) -> Vec<&JobId> {
        let mut demands = BTreeMap::new();
        if let Some((problem, solution)) = &self.last_placement {
            // Devices given to the jobs of each team, in submit order.
            let mut given: BTreeMap<&str, u64> = BTreeMap::new();
            for demand in &problem.demands {
                let older = given.entry(&demand.team).or_insert(0);
                demands.insert(&demand.job, (Reverse(demand.priority), *older));
                if let Some(Decision::Run(workers)) = solution.get(&demand.job) {
                    *older += workers.len() as u64 * u64::from(demand.devices_per_worker);
                }
            }
        }
        let mut queue: Vec<&JobId> = self
            .in_submit_order()
            .into_iter()
            .filter(|job| job.is_queued())
            .map(|job| &job.head().id)
            .collect();
        // Stable, so that equal ones stay in submit order.
        queue.sort_by_key(|job| {
            let demand = demands.get(job).copied();
            (demand.is_none(), demand)
        });
        queue
    }

    /// None if the job does not wait for workers.
    #[must_use]
    pub fn queue_place(&self, id: &JobId) -> Option<QueuePlace> {
        let (problem, solution) = self.last_placement.as_ref()?;
        let waits = |id: &JobId| matches!(solution.get(id), Some(Decision::Wait(_)));
        if !waits(id) {
            return None;
        }
        let waiting: Vec<&JobId> = self.queue().into_iter().filter(|it| waits(it)).collect();
        let place = waiting.iter().position(|it| *it == id)? as u64 + 1;
        let small = problem.demands.len() + problem.nodes.len() <= SIZE_MAX;
        let now = self.clock.now();
        let ends = || {
            let running = solution
                .iter()
                .filter(|(_, it)| matches!(it, Decision::Run(_)));
            let left = running
                .filter_map(|(id, _)| Some((left_ms(&self.jobs.get(id)?.view(now))?, id.clone())));
            left.collect::<Vec<_>>()
        };
        Some(QueuePlace {
            place,
            waiting: waiting.len() as u64,
            starts_in_ms: small
                .then(|| starts_in_ms(problem.clone(), solution, ends(), id))
                .flatten(),
        })
    }
}

/// `ends`: when running jobs end, in milliseconds from now.
fn starts_in_ms(
    mut problem: Problem,
    solution: &Solution,
    mut ends: Vec<(Millis, JobId)>,
    id: &JobId,
) -> Option<Millis> {
    apply_solution(&mut problem, solution);
    ends.sort();
    for (at, ended) in ends.into_iter().take(ENDS_MAX) {
        problem.demands.retain(|demand| demand.job != ended);
        let next = placement::solve(&problem);
        apply_solution(&mut problem, &next);
        if matches!(next.get(id), Some(Decision::Run(_))) {
            return Some(at);
        }
    }
    None
}

/// How long it works on, if it goes on as it has so far. None: it has done too little to say.
fn left_ms(view: &JobView<'_>) -> Option<Millis> {
    if let Some(units) = &view.units {
        let left = units.total.saturating_sub(units.done + units.set_aside);
        return ratio(left, 1000, units.per_second);
    }
    let train = &view.spec.and_then(JobSpec::training)?.train;
    let (step, trained) = (view.step.0, view.record.trained_ms);
    let left = ratio(train.steps.saturating_sub(step), trained, float(step))?;
    let limit = train.time_limit.map(|limit| {
        let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        limit.saturating_sub(trained)
    });
    Some(limit.map_or(left, |limit| limit.min(left)))
}

/// `count * factor / by`; None if nothing is known.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Clamped before.
fn ratio(count: u64, factor: u64, by: f64) -> Option<u64> {
    let result = float(count) * float(factor) / by;
    (0.0 < by && factor != 0 && result.is_finite()).then_some(result.clamp(0.0, 1e15) as u64)
}

#[allow(clippy::cast_precision_loss)] // An estimate.
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::partitions::Partitions;
    use crate::placement::{Access, Demand, NodeCapacity, Takes};
    use proto::id::WorkerId;
    use proto::spec::DeviceKind;

    fn worker(number: u64) -> WorkerId {
        WorkerId {
            name: format!("w{number}"),
            boot: 1,
        }
    }

    fn demand(number: u64, workers: u32, holds: Vec<WorkerId>) -> Demand {
        Demand {
            job: JobId(format!("j-{number}")),
            number,
            priority: 0,
            team: String::new(),
            workers_min: workers,
            workers_max: workers,
            devices_per_worker: 1,
            device: DeviceKind::Cpu,
            in_grace_period: false,
            holds,
            warm: Vec::new(),
            avoid: Vec::new(),
            takes: Takes::Any,
            partitions: Partitions::default(),
        }
    }

    /// Two workers with one device each: two jobs of one worker run, and two wait.
    fn problem(third: u32) -> Problem {
        let node = |number| NodeCapacity {
            worker: worker(number),
            device: DeviceKind::Cpu,
            devices: 1,
            access: Access::Open,
        };
        Problem {
            demands: vec![
                demand(1, 1, vec![worker(1)]),
                demand(2, 1, vec![worker(2)]),
                demand(3, third, Vec::new()),
                demand(4, 1, Vec::new()),
            ],
            nodes: vec![node(1), node(2)],
            quotas: [].into(),
        }
    }

    fn start(third: u32, ends: &[(u64, u64)], job: u64) -> Option<u64> {
        let problem = problem(third);
        let solution = placement::solve(&problem);
        let ends = ends
            .iter()
            .map(|(at, job)| (*at, JobId(format!("j-{job}"))));
        starts_in_ms(
            problem,
            &solution,
            ends.collect(),
            &JobId(format!("j-{job}")),
        )
    }

    #[test]
    fn a_job_starts_when_those_before_it_leave_it_enough_workers() {
        let both = [(9_000, 1), (4_000, 2)];
        assert_eq!(start(1, &both, 3), Some(4_000), "the first that is free");
        assert_eq!(start(1, &both, 4), Some(9_000), "the next one");
        assert_eq!(start(2, &both, 3), Some(9_000), "it needs both");
        assert_eq!(
            start(2, &both, 4),
            None,
            "how long the third runs is not known"
        );
        assert_eq!(start(1, &[], 3), None, "nobody says when a job ends");
    }

    #[test]
    fn what_is_left_follows_from_what_was_done() {
        assert_eq!(ratio(10, 1000, 2.5), Some(4_000));
        assert_eq!(ratio(10, 1000, 0.0), None);
        assert_eq!(ratio(90, 60_000, 10.0), Some(540_000));
        assert_eq!(ratio(90, 0, 10.0), None, "it has not trained yet");
        assert_eq!(ratio(u64::MAX, u64::MAX, 1.0), Some(1_000_000_000_000_000));
    }
}
