//! Dependencies between jobs: `after`, and the weights that a job reads. A job asks for no workers
//! until its dependencies are met.

use crate::job::Job;
use crate::machine::Coordinator;
use crate::outbox::Outbox;
use proto::checkpoint::CheckpointRef;
use proto::id::{JobId, Step};
use proto::message::SourceJob;
use proto::phase::Phase;
use proto::reason::{Cause, Dependency, DependencyState, MissingSource, Waiting};
use proto::sample::Weights;
use proto::spec::JobSpec;
use std::collections::BTreeSet;

/// The result of looking up the weights that a job reads.
pub(crate) enum SourceLookup {
    /// In the order of [`proto::spec::Work::reads`].
    Found(Vec<SourceJob>),
    /// They do not exist. `may_appear`: the job that is read may still write them.
    Missing {
        source: MissingSource,
        may_appear: bool,
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
            job.is_queued() && (head.lacks_sources() || !head.spec.after.is_empty())
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
        let mut found = Vec::new();
        if blocked_by.is_none() && job.head().lacks_sources() {
            match self.find_sources(&job.head().spec) {
                None => {}
                Some(SourceLookup::Found(sources)) => found = sources,
                Some(SourceLookup::Missing {
                    source,
                    may_appear: true,
                }) => blocked_by = Some(Waiting::Source { source }),
                Some(SourceLookup::Missing { source, .. }) => {
                    if let Some(Job::Units(units)) = self.jobs.get_mut(id) {
                        units.fail(Cause::NoSource { source }, outbox);
                    }
                    return;
                }
            }
        }
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        if !found.is_empty() {
            job.head_mut().sources = found;
            job.save(outbox);
        }
        job.head_mut().blocked_by.clone_from(&blocked_by);
        if let Some(reason) = blocked_by.filter(|_| !job.head().paused) {
            job.wait(reason, outbox);
        }
    }

    /// The dependencies that are not done, as the reason why the job waits.
    fn blocking_dependencies(&self, job: &Job) -> Option<Waiting> {
        let head = job.head();
        let state = |id: &JobId| match self.jobs.get(id).map(Job::shown) {
            Some(Phase::Done) => None,
            Some(Phase::Failed) => Some(DependencyState::Failed),
            Some(Phase::Cancelled) => Some(DependencyState::Cancelled),
            Some(phase) => Some(DependencyState::Pending(phase)),
            None if self.unreadable.contains_key(id) => Some(DependencyState::Unreadable),
            None => Some(DependencyState::Missing),
        };
        let dependency = |id: &JobId| {
            Some(Dependency {
                job: id.clone(),
                state: state(id)?,
            })
        };
        let is_pending = |it: &Dependency| matches!(it.state, DependencyState::Pending(_));
        let open = head.spec.after.iter().filter_map(dependency);
        let (pending, failed): (Vec<_>, Vec<_>) = open.partition(is_pending);
        if !failed.is_empty() {
            return Some(Waiting::DependencyFailed {
                job: head.id.clone(),
                dependencies: failed,
            });
        }
        (!pending.is_empty()).then_some(Waiting::Dependencies {
            dependencies: pending,
        })
    }

    /// Looks up the weights that a job reads. None if it reads none. Of several that are missing,
    /// one that will not appear is named.
    pub(crate) fn find_sources(&self, spec: &JobSpec) -> Option<SourceLookup> {
        let (mut found, mut missing) = (Vec::new(), None);
        for (job, weights) in spec.work.reads() {
            match self.find_source(job, weights) {
                SourceLookup::Found(sources) => found.extend(sources),
                SourceLookup::Missing {
                    source,
                    may_appear: true,
                } => {
                    missing.get_or_insert(SourceLookup::Missing {
                        source,
                        may_appear: true,
                    });
                }
                never @ SourceLookup::Missing { .. } => return Some(never),
            }
        }
        let is_any = !found.is_empty() || missing.is_some();
        is_any.then(|| missing.unwrap_or(SourceLookup::Found(found)))
    }

    fn find_source(&self, id: &JobId, weights: Weights) -> SourceLookup {
        let Some(source) = self.jobs.get(id).and_then(Job::gang) else {
            return SourceLookup::Missing {
                source: MissingSource::Job {
                    job: id.clone(),
                    unreadable: self.unreadable.contains_key(id),
                },
                may_appear: false,
            };
        };
        let checkpoints = &source.checkpoints;
        let found = |checkpoint: Option<CheckpointRef>| {
            SourceLookup::Found(vec![SourceJob {
                job_toml: source.head.effective_toml(),
                checkpoint,
            }])
        };
        let may_appear = |step: Step| {
            !source.is_over() && source.committed() < step && step <= source.steps_max()
        };
        match weights {
            Weights::Base => found(None),
            Weights::Newest => match checkpoints.last() {
                Some(newest) => found(Some(*newest)),
                None => SourceLookup::Missing {
                    source: MissingSource::NoCheckpoint { job: id.clone() },
                    may_appear: may_appear(source.steps_max()),
                },
            },
            Weights::Step(step) => match checkpoints
                .iter()
                .rev()
                .find(|checkpoint| checkpoint.step == step)
            {
                Some(checkpoint) => found(Some(*checkpoint)),
                None => SourceLookup::Missing {
                    source: MissingSource::NoStep {
                        job: id.clone(),
                        step,
                        steps: checkpoints.iter().map(|it| it.step).collect(),
                    },
                    may_appear: may_appear(step),
                },
            },
        }
    }
}
