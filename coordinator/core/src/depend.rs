//! Dependencies between jobs: `after`, and the weights that a job reads. A job asks for no workers
//! until its dependencies are met.

use crate::job::Job;
use crate::machine::Coordinator;
use crate::outbox::Outbox;
use crate::view_model::DEPENDENCY_FAILED;
use proto::checkpoint::CheckpointRef;
use proto::id::{JobId, Step};
use proto::message::SourceJob;
use proto::phase::Phase;
use proto::sample::Weights;
use proto::spec::JobSpec;
use std::collections::BTreeSet;

/// The result of looking up the weights that a job reads.
pub(crate) enum SourceLookup {
    Found(SourceJob),
    /// They do not exist. `waits_for` names what may still produce them, if anything.
    Missing {
        reason: String,
        waits_for: Option<String>,
    },
}

impl Coordinator {
    /// Checks the dependencies that a job names. `id` is the id that it would get.
    pub(crate) fn check_dependencies(&self, id: &JobId, spec: &JobSpec) -> Result<(), String> {
        for other in &spec.after {
            if other == id {
                return Err(format!("after: {id} is this job itself"));
            }
            if !self.jobs.contains_key(other) {
                return Err(format!("after: {}", self.no_such_job(other)));
            }
        }
        match self.find_cycle(id, &spec.after) {
            Some(through) => Err(format!(
                "after: {through} waits for {id}, so neither would ever start"
            )),
            None => Ok(()),
        }
    }

    /// A direct or indirect dependency that itself waits for `id`. There is none as long as jobs
    /// can name only older jobs.
    fn find_cycle(&self, id: &JobId, after: &[JobId]) -> Option<JobId> {
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

    /// Updates the reason of every job that waits for dependencies, and looks up the weights of
    /// those whose dependencies are done.
    pub(crate) fn update_dependencies(&mut self, outbox: &mut Outbox) {
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
            self.update_dependency(&id, outbox);
        }
    }

    fn update_dependency(&mut self, id: &JobId, outbox: &mut Outbox) {
        let Some(job) = self.jobs.get(id) else { return };
        let mut blocked_by = self.blocking_dependencies(job);
        let mut found = None;
        if blocked_by.is_none() && job.head().source.is_none() {
            match self.find_source(&job.head().spec) {
                None => {}
                Some(SourceLookup::Found(source)) => found = Some(source),
                Some(SourceLookup::Missing {
                    waits_for: Some(what),
                    ..
                }) => blocked_by = Some(format!("waits for {what}")),
                Some(SourceLookup::Missing { reason, .. }) => {
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
        job.head_mut().blocked_by.clone_from(&blocked_by);
        if let Some(reason) = blocked_by.filter(|_| !job.head().paused) {
            job.wait(reason, outbox);
        }
    }

    /// Names the dependencies that are not done, as the reason why the job waits.
    fn blocking_dependencies(&self, job: &Job) -> Option<String> {
        let head = job.head();
        let phase = |id: &JobId| self.jobs.get(id).map(Job::shown);
        let dependencies: Vec<(&JobId, Option<Phase>)> =
            head.spec.after.iter().map(|id| (id, phase(id))).collect();
        let failed = dependencies.iter().filter_map(|(id, phase)| match phase {
            Some(Phase::Failed) => Some(format!("{id} failed")),
            Some(Phase::Cancelled) => Some(format!("{id} was cancelled")),
            None => Some(format!("the record of {id} cannot be read")),
            Some(_) => None,
        });
        let failed: Vec<String> = failed.collect();
        if !failed.is_empty() {
            return Some(format!(
                "{DEPENDENCY_FAILED}: {}; cancel {} and resubmit it after a job that is done",
                failed.join(", "),
                head.id
            ));
        }
        let pending = dependencies.iter().filter_map(|(id, phase)| match phase {
            Some(Phase::Done) | None => None,
            Some(phase) => Some(format!("{id}, which is {phase}")),
        });
        let pending: Vec<String> = pending.collect();
        (!pending.is_empty()).then(|| format!("waits for {}", pending.join(", and for ")))
    }

    /// Looks up the weights that a job reads. None if it reads none.
    pub(crate) fn find_source(&self, spec: &JobSpec) -> Option<SourceLookup> {
        let sample = spec.work.sampling()?;
        let id = &sample.job;
        let Some(source) = self.jobs.get(id).and_then(Job::gang) else {
            return Some(SourceLookup::Missing {
                reason: self.no_such_job(id),
                waits_for: None,
            });
        };
        let checkpoints = &source.checkpoints;
        let found = |checkpoint: Option<CheckpointRef>| {
            SourceLookup::Found(SourceJob {
                job_toml: source.head.job_toml.clone(),
                checkpoint,
            })
        };
        let may_appear = |step: Step| {
            !source.is_over() && source.committed() < step && step <= source.steps_max()
        };
        Some(match sample.weights {
            Weights::Base => found(None),
            Weights::Newest => match checkpoints.last() {
                Some(newest) => found(Some(*newest)),
                None => SourceLookup::Missing {
                    reason: format!("job {id} has no committed checkpoint yet"),
                    waits_for: may_appear(source.steps_max())
                        .then(|| format!("the first checkpoint of {id}")),
                },
            },
            Weights::Step(step) => match checkpoints
                .iter()
                .rev()
                .find(|checkpoint| checkpoint.step == step)
            {
                Some(checkpoint) => found(Some(*checkpoint)),
                None => {
                    let steps: Vec<String> = checkpoints
                        .iter()
                        .map(|checkpoint| checkpoint.step.to_string())
                        .collect();
                    let steps = if steps.is_empty() {
                        "none".to_owned()
                    } else {
                        steps.join(", ")
                    };
                    SourceLookup::Missing {
                        reason: format!(
                            "job {id} has no checkpoint of step {step}; it has: {steps}"
                        ),
                        waits_for: may_appear(step)
                            .then(|| format!("the checkpoint of step {step} of {id}")),
                    }
                }
            },
        })
    }
}
