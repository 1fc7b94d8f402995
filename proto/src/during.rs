//! Evaluations while a job trains: `train.evaluate_every` and the plan in the job's own
//! `[evaluate]`. Each is a job of its own, an ordinary `[evaluate]` of one checkpoint, which the
//! coordinator submits. Plain values and arithmetic.

use crate::evaluate::{EvaluateWork, EvaluatedModel, EvaluationPlan, MetricSettings};
use crate::id::{JobId, Step};
use crate::sample::Weights;
use crate::score::{Expression, Means};
use crate::spec::{JobSpec, Resources, TrainWork, Work};
use serde::{Deserialize, Serialize};

/// Evaluations of one training job at most: its record keeps the scores of each.
pub const EVALUATIONS_MAX: u64 = 200;

/// The plan of a training job's evaluations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingEvaluation {
    /// Steps between two evaluations: a multiple of `checkpoint.every`. The last step always has
    /// one.
    pub every: u64,
    pub on: EvaluateOn,
    pub plan: EvaluationPlan,
    pub metrics: MetricSettings,
    /// As in [`EvaluateWork`].
    pub failed_share_max: f64,
    /// How its images are generated. Its name, job and weights are those of each evaluation.
    pub model: EvaluatedModel,
}

/// Which device an evaluation of a training job gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EvaluateOn {
    /// One that no job holds.
    #[default]
    Free,
    /// The same, or else one of a worker that the training job gives up, if it holds more than its
    /// minimum.
    Shrink,
}

/// The job that an evaluation belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    pub job: JobId,
    pub on: EvaluateOn,
}

/// What became of an evaluation, as its ranks computed it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// Images with scores.
    pub images: u64,
    /// Images that failed for good.
    pub missing: u64,
    pub means: Means,
    /// The mean of `checkpoint.keep_best` over the images; None: there is none, or no image has the
    /// scores that it names.
    pub score: Option<f64>,
}

impl TrainingEvaluation {
    /// Whether the checkpoint of this step is evaluated.
    #[must_use]
    pub fn is_due(&self, step: Step, last: Step) -> bool {
        step == last || step.0.is_multiple_of(self.every.max(1))
    }

    /// The number of evaluations over all steps.
    #[must_use]
    pub fn count(&self, steps: u64) -> u64 {
        steps.div_ceil(self.every.max(1))
    }

    /// The evaluation of one checkpoint. `score`: `checkpoint.keep_best`.
    #[must_use]
    pub fn of(&self, parent: &JobId, step: Step, score: Option<&Expression>) -> EvaluateWork {
        EvaluateWork {
            plan: self.plan.clone(),
            models: vec![EvaluatedModel {
                name: format!("{parent}@{step}"),
                job: parent.clone(),
                weights: Weights::Step(step),
                ..self.model.clone()
            }],
            metrics: MetricSettings {
                score: score.cloned(),
                ..self.metrics.clone()
            },
            failed_share_max: self.failed_share_max,
        }
    }
}

impl TrainWork {
    /// The job that evaluates the checkpoint of `step` of this work, which `parent` does with
    /// `spec`. None: the work is not evaluated.
    #[must_use]
    pub fn evaluation_job(&self, parent: &JobId, spec: &JobSpec, step: Step) -> Option<JobSpec> {
        let evaluation = self.evaluation.as_ref()?;
        let score = self.checkpoint.keep_best.as_ref();
        Some(JobSpec {
            name: evaluation_name(&spec.name),
            resources: Resources {
                workers_min: 1,
                workers_max: 1,
                devices_per_worker: 1,
                ..spec.resources.clone()
            },
            after: Vec::new(),
            work: Work::Evaluate(Box::new(evaluation.of(parent, step, score))),
        })
    }
}

/// The name of a training job's evaluations, as long as a name may be.
fn evaluation_name(name: &str) -> String {
    let stem: String = name.chars().take(35).collect();
    format!("{stem}-eval")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_evaluations_are_names_of_jobs() {
        assert_eq!(evaluation_name("demo"), "demo-eval");
        assert_eq!(evaluation_name(&"a".repeat(40)).len(), 40);
    }
}
