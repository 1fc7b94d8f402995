//! Evaluations while a job trains: submits an ordinary `[evaluate]` job for a checkpoint that is
//! due, one at a time, follows it to its end, and has its scores read. The training itself does not wait
//! for any of this.

use crate::deadline::MANIFEST_ATTEMPTS_MAX;
use crate::evaluation::{Evaluation, EvaluationState, Unscored};
use crate::event::{DatasetPin, Event};
use crate::head::Ended;
use crate::job::Job;
use crate::machine::Coordinator;
use crate::outbox::Outbox;
use crate::reading::Reading;
use crate::record::Millis;
use crate::request::Pinned;
use proto::checkpoint::CheckpointRef;
use proto::during::{Parent, Scored};
use proto::id::JobId;
use proto::message::SourceJob;

impl Coordinator {
    /// Moves the evaluations of all training jobs on.
    pub(crate) fn update_evaluations(&mut self, outbox: &mut Outbox) {
        let gangs = self.jobs.values().filter_map(Job::gang);
        let evaluated = gangs.filter(|gang| gang.evaluations.used().is_some());
        let evaluated: Vec<JobId> = evaluated.map(|gang| gang.head.id.clone()).collect();
        for id in evaluated {
            let changed = [
                self.follow_evaluations(&id, outbox),
                self.give_up_paused(&id, outbox),
                self.read_scores(&id, outbox),
                self.submit_due(&id, outbox),
            ];
            if changed.contains(&true) {
                outbox.save.insert(id.clone());
                self.retain(&id, outbox);
            }
        }
    }

    /// Compares each evaluation with the state of its job. Returns true if one changed.
    fn follow_evaluations(&mut self, id: &JobId, outbox: &mut Outbox) -> bool {
        let Some(gang) = self.jobs.get(id).and_then(Job::gang) else {
            return false;
        };
        let next = |it: &Evaluation| {
            let job = self.jobs.get(&it.job);
            let ended = job.map(Job::ended);
            match (&it.state, ended) {
                (EvaluationState::Running, None) => Some(EvaluationState::Unscored(Unscored::Gone)),
                (EvaluationState::Running, Some(Some(ended))) => Some(match ended {
                    Ended::Done { .. } => EvaluationState::Reading,
                    Ended::Failed { .. } => EvaluationState::Unscored(Unscored::Failed),
                    Ended::Cancelled { .. } => EvaluationState::Unscored(Unscored::Cancelled),
                }),
                // A user retries it.
                (EvaluationState::Unscored(_), Some(None)) => Some(EvaluationState::Running),
                _ => None,
            }
        };
        let list = gang.evaluations.list.iter().enumerate();
        let changes: Vec<_> = list
            .filter_map(|(index, it)| Some((index, next(it)?)))
            .collect();
        for (index, state) in &changes {
            self.set_evaluation(id, *index, state.clone(), outbox);
        }
        !changes.is_empty()
    }

    /// An evaluation that waits for a user because its units failed must not keep newer
    /// checkpoints from being evaluated. Returns true if one was given up.
    fn give_up_paused(&mut self, id: &JobId, outbox: &mut Outbox) -> bool {
        let Some(gang) = self.jobs.get(id).and_then(Job::gang) else {
            return false;
        };
        if gang.evaluations.due.is_none() {
            return false;
        }
        let mut given_up = Vec::new();
        for (index, it) in gang.evaluations.list.iter().enumerate() {
            let job = self.jobs.get(&it.job).filter(|job| !job.is_over());
            let because = job.and_then(|job| job.head().paused_because.clone());
            if it.state == EvaluationState::Running
                && let Some(paused) = because
            {
                given_up.push((index, it.job.clone(), Box::new(paused)));
            }
        }
        let any = !given_up.is_empty();
        for (index, job, paused) in given_up {
            if let Some(job) = self.jobs.get_mut(&job) {
                job.cancel(outbox);
            }
            let state = EvaluationState::Unscored(Unscored::GivenUp { paused });
            self.set_evaluation(id, index, state, outbox);
        }
        any
    }

    /// Requests the scores of evaluations that are done, again if an answer is overdue. Returns
    /// true if one gets none.
    fn read_scores(&mut self, id: &JobId, outbox: &mut Outbox) -> bool {
        let Some(gang) = self.jobs.get(id).and_then(Job::gang) else {
            return false;
        };
        let mut given_up = Vec::new();
        for (index, it) in gang.evaluations.list.iter().enumerate() {
            if it.state != EvaluationState::Reading {
                continue;
            }
            let reading = self.readings.entry(it.job.clone()).or_insert(Reading {
                retry_at: 0,
                attempts: 0,
                error: "no response".to_owned(),
            });
            if outbox.now < reading.retry_at {
                continue;
            }
            if MANIFEST_ATTEMPTS_MAX <= reading.attempts {
                let error = reading.error.clone();
                given_up.push((index, Unscored::Unreadable { error }));
                continue;
            }
            reading.attempts += 1;
            reading.retry_at = self.deadlines.manifest_retry(outbox.now);
            outbox.read_scores(it.job.clone());
        }
        let any = !given_up.is_empty();
        for (index, why) in given_up {
            self.set_evaluation(id, index, EvaluationState::Unscored(why), outbox);
        }
        any
    }

    /// Submits the evaluation of the checkpoint that is due, if no other is open. Returns true if
    /// it did.
    fn submit_due(&mut self, id: &JobId, outbox: &mut Outbox) -> bool {
        let Some(gang) = self.jobs.get(id).and_then(Job::gang) else {
            return false;
        };
        let (evaluations, spec) = (&gang.evaluations, &gang.head.spec);
        let busy = evaluations.open().next().is_some() || gang.head.paused && !gang.is_over();
        let Some(checkpoint) = evaluations.due.filter(|_| !busy) else {
            return false;
        };
        let work = spec.training();
        let plan = work.and_then(|work| work.evaluation.as_deref());
        let job = work.and_then(|work| work.evaluation_job(id, spec, checkpoint.step));
        let (Some(plan), Some(job)) = (plan, job) else {
            // A retry took the plan away.
            return self.forget_due(id);
        };
        let parent = Parent {
            job: id.clone(),
            on: plan.on,
        };
        let pinned = Pinned {
            dataset: DatasetPin {
                version: gang.head.dataset_version.clone(),
                ..DatasetPin::default()
            },
            sources: vec![SourceJob {
                job_toml: gang.head.effective_toml(),
                checkpoint: Some(checkpoint),
            }],
        };
        let text = proto::job::to_toml(&job);
        // Its device-time is that of the same user.
        let about = gang.head.about.clone();
        let evaluation = self.enqueue(job, text, pinned, (Some(parent), about), outbox);
        if let Some(gang) = self.jobs.get_mut(id).and_then(Job::gang_mut) {
            gang.evaluations.due = None;
            gang.evaluations.list.push(Evaluation {
                checkpoint,
                job: evaluation.clone(),
                state: EvaluationState::Running,
            });
        }
        outbox.emit(Event::EvaluationSubmitted {
            job: id.clone(),
            step: checkpoint.step,
            evaluation,
        });
        true
    }

    fn forget_due(&mut self, id: &JobId) -> bool {
        if let Some(gang) = self.jobs.get_mut(id).and_then(Job::gang_mut) {
            gang.evaluations.due = None;
        }
        true
    }

    fn set_evaluation(
        &mut self,
        id: &JobId,
        index: usize,
        state: EvaluationState,
        outbox: &mut Outbox,
    ) {
        let gang = self.jobs.get_mut(id).and_then(Job::gang_mut);
        let Some(it) = gang.and_then(|gang| gang.evaluations.list.get_mut(index)) else {
            return;
        };
        it.state = state.clone();
        let (step, evaluation) = (it.checkpoint.step, it.job.clone());
        outbox.save.insert(id.clone());
        if state != EvaluationState::Reading {
            self.readings.remove(&evaluation);
        }
        let job = id.clone();
        match state {
            EvaluationState::Running | EvaluationState::Reading => {}
            EvaluationState::Scored(scored) => outbox.emit(Event::EvaluationScored {
                job,
                step,
                evaluation,
                scored,
            }),
            EvaluationState::Unscored(why) => outbox.emit(Event::EvaluationUnscored {
                job,
                step,
                evaluation,
                why,
            }),
        }
    }

    /// The scores of an evaluation were read, or cannot be. An answer that nobody waits for changes
    /// nothing.
    pub(crate) fn on_scores_read(
        &mut self,
        evaluation: &JobId,
        result: Result<Scored, String>,
        outbox: &mut Outbox,
    ) {
        let waits = |it: &Evaluation| it.job == *evaluation && it.state == EvaluationState::Reading;
        let mut gangs = self.jobs.values().filter_map(Job::gang);
        let found = gangs.find_map(|gang| {
            let index = gang.evaluations.list.iter().position(waits)?;
            Some((gang.head.id.clone(), index))
        });
        let Some((id, index)) = found else { return };
        match result {
            Ok(scored) => {
                self.set_evaluation(&id, index, EvaluationState::Scored(scored), outbox);
                self.retain(&id, outbox);
            }
            // It is retried at its deadline, as an outage of the store usually lasts longer.
            Err(error) => {
                if let Some(reading) = self.readings.get_mut(evaluation) {
                    reading.error = error;
                }
            }
        }
    }

    /// A user cancels a training job: its evaluations end with it.
    pub(crate) fn cancel_evaluations(&mut self, id: &JobId, outbox: &mut Outbox) {
        let Some(gang) = self.jobs.get_mut(id).and_then(Job::gang_mut) else {
            return;
        };
        gang.evaluations.due = None;
        for evaluation in self.running_evaluations(id) {
            if let Some(job) = self.jobs.get_mut(&evaluation) {
                job.cancel(outbox);
            }
        }
    }

    /// The jobs that evaluate checkpoints of this job and are not over.
    pub(crate) fn running_evaluations(&self, id: &JobId) -> Vec<JobId> {
        let gang = self.jobs.get(id).and_then(Job::gang);
        let list = gang.into_iter().flat_map(|gang| &gang.evaluations.list);
        let runs = |it: &&Evaluation| self.jobs.get(&it.job).is_some_and(|job| !job.is_over());
        list.filter(runs).map(|it| it.job.clone()).collect()
    }

    /// When an answer about scores is overdue.
    pub(crate) fn next_reading(&self) -> Option<Millis> {
        let gangs = self.jobs.values().filter_map(Job::gang);
        let reading = gangs.flat_map(|gang| gang.evaluations.open());
        let reading = reading.filter(|it| it.state == EvaluationState::Reading);
        // After a restart none has been requested yet.
        let retry_at = |it: &Evaluation| self.readings.get(&it.job).map_or(0, |it| it.retry_at);
        reading.map(retry_at).min()
    }

    /// What is evaluated of a training job, as the end of a sentence; empty if nothing is.
    pub(crate) fn evaluations_text(&self, id: &JobId) -> String {
        let Some(gang) = self.jobs.get(id).and_then(Job::gang) else {
            return String::new();
        };
        let mut text = String::new();
        for it in gang.evaluations.open() {
            let (step, job) = (it.checkpoint.step, &it.job);
            text += &match (&it.state, self.jobs.get(job)) {
                (EvaluationState::Running, Some(evaluation)) => {
                    format!(
                        "; {job} evaluates step {step} and is {}",
                        evaluation.shown()
                    )
                }
                _ => format!("; the scores of step {step} are being read"),
            };
        }
        if let Some(CheckpointRef { step, .. }) = gang.evaluations.due {
            text += &format!("; step {step} is evaluated next");
        }
        text
    }
}
