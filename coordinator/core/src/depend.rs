//! Jobs that wait for other jobs: `after`, and the weights that a job reads. A job that waits so
//! asks for no workers.

use crate::job::Job;
use crate::machine::Coordinator;
use crate::outbox::Outbox;
use crate::shown::DEPENDENCY_FAILED;
use proto::checkpoint::CheckpointRef;
use proto::id::{JobId, Step};
use proto::message::SourceJob;
use proto::phase::Phase;
use proto::sample::Weights;
use proto::spec::JobSpec;
use std::collections::BTreeSet;

/// What becomes of the weights that a job reads.
pub(crate) enum Reads {
    /// They are there.
    Found(SourceJob),
    /// They are not; what they may come with, if they may.
    Missing {
        reason: String,
        waits_for: Option<String>,
    },
}

impl Coordinator {
    /// Whether a job may wait for those that it names. `id` is the one that it would have.
    pub(crate) fn may_follow(&self, id: &JobId, spec: &JobSpec) -> Result<(), String> {
        for other in &spec.after {
            if other == id {
                return Err(format!("after: {id} is this job itself"));
            }
            if !self.jobs.contains_key(other) {
                return Err(format!("after: {}", self.no_such_job(other)));
            }
        }
        match self.circle(id, &spec.after) {
            Some(through) => Err(format!(
                "after: {through} waits for {id} itself, so that none of them would start"
            )),
            None => Ok(()),
        }
    }

    /// A job among those that are waited for that waits for `id`. As every job names older ones
    /// only, there is none.
    fn circle(&self, id: &JobId, after: &[JobId]) -> Option<JobId> {
        let (mut seen, mut left) = (BTreeSet::new(), after.to_vec());
        while let Some(next) = left.pop() {
            let after = self
                .jobs
                .get(&next)
                .map_or(&[][..], |job| &job.head().spec.after);
            if after.contains(id) {
                return Some(next);
            }
            if seen.insert(next) {
                left.extend(after.iter().cloned());
            }
        }
        None
    }

    /// Says of every job that waits for others for which, and finds the weights of those that need
    /// not wait any more.
    pub(crate) fn tend_dependencies(&mut self, outbox: &mut Outbox) {
        let waits = |job: &&Job| {
            let head = job.head();
            let reads = head.spec.work.sampling().is_some() && head.source.is_none();
            job.is_queued() && (reads || !head.spec.after.is_empty())
        };
        let waiting: Vec<JobId> = self
            .jobs
            .values()
            .filter(waits)
            .map(|job| job.head().id.clone())
            .collect();
        for id in waiting {
            self.tend_dependency(&id, outbox);
        }
    }

    fn tend_dependency(&mut self, id: &JobId, outbox: &mut Outbox) {
        let Some(job) = self.jobs.get(id) else { return };
        let mut held_up = self.waits_for_others(job);
        let mut found = None;
        if held_up.is_none() && job.head().source.is_none() {
            match self.reads(&job.head().spec) {
                None => {}
                Some(Reads::Found(source)) => found = Some(source),
                Some(Reads::Missing {
                    waits_for: Some(what),
                    ..
                }) => held_up = Some(format!("waits for {what}")),
                Some(Reads::Missing { reason, .. }) => {
                    if let Some(Job::Units(units)) = self.jobs.get_mut(id) {
                        units.fail(reason, outbox);
                    }
                    return;
                }
            }
        }
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        if found.is_some() {
            job.head_mut().source = found;
            job.save(outbox);
        }
        job.head_mut().held_up.clone_from(&held_up);
        if let Some(reason) = held_up.filter(|_| !job.head().paused) {
            job.wait(reason, outbox);
        }
    }

    /// Which of the jobs that it names are not done, as what it waits for.
    fn waits_for_others(&self, job: &Job) -> Option<String> {
        let head = job.head();
        let phase = |id: &JobId| self.jobs.get(id).map(Job::shown);
        let open: Vec<(&JobId, Option<Phase>)> =
            head.spec.after.iter().map(|id| (id, phase(id))).collect();
        let lost = open.iter().filter_map(|(id, phase)| match phase {
            Some(Phase::Failed) => Some(format!("{id} failed")),
            Some(Phase::Cancelled) => Some(format!("{id} was cancelled")),
            None => Some(format!("the record of {id} cannot be read")),
            Some(_) => None,
        });
        let lost: Vec<String> = lost.collect();
        if !lost.is_empty() {
            return Some(format!(
                "{DEPENDENCY_FAILED}: {}; cancel {}, and submit it again after a job that is done",
                lost.join(", "),
                head.id
            ));
        }
        let open = open.iter().filter_map(|(id, phase)| match phase {
            Some(Phase::Done) | None => None,
            Some(phase) => Some(format!("{id}, which is {phase}")),
        });
        let open: Vec<String> = open.collect();
        (!open.is_empty()).then(|| format!("waits for {}", open.join(", and for ")))
    }

    /// The weights that a job reads, as things stand; None: it reads none.
    pub(crate) fn reads(&self, spec: &JobSpec) -> Option<Reads> {
        let sample = spec.work.sampling()?;
        let id = &sample.job;
        let Some(source) = self.jobs.get(id).and_then(Job::gang) else {
            return Some(Reads::Missing {
                reason: self.no_such_job(id),
                waits_for: None,
            });
        };
        let checkpoints = &source.checkpoints;
        let found = |checkpoint: Option<CheckpointRef>| {
            Reads::Found(SourceJob {
                job_toml: source.head.job_toml.clone(),
                checkpoint,
            })
        };
        let to_come = |step: Step| {
            !source.is_over() && source.committed() < step && step <= source.steps_max()
        };
        Some(match sample.weights {
            Weights::Base => found(None),
            Weights::Newest => match checkpoints.last() {
                Some(newest) => found(Some(*newest)),
                None => Reads::Missing {
                    reason: format!("job {id} has no committed checkpoint yet"),
                    waits_for: to_come(source.steps_max())
                        .then(|| format!("the first checkpoint of {id}")),
                },
            },
            Weights::Step(step) => match checkpoints.iter().rev().find(|kept| kept.step == step) {
                Some(kept) => found(Some(*kept)),
                None => {
                    let steps: Vec<String> = checkpoints
                        .iter()
                        .map(|kept| kept.step.to_string())
                        .collect();
                    let steps = if steps.is_empty() {
                        "none".to_owned()
                    } else {
                        steps.join(", ")
                    };
                    Reads::Missing {
                        reason: format!(
                            "job {id} has no checkpoint of step {step}; it has: {steps}"
                        ),
                        waits_for: to_come(step)
                            .then(|| format!("the checkpoint of step {step} of {id}")),
                    }
                }
            },
        })
    }
}
