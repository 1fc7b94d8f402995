//! Parses `JOB` or `JOB@STEP`, which names a checkpoint. Pure.

use anyhow::{Result, anyhow};
use proto::checkpoint::CheckpointRef;
use proto::id::JobId;
use proto::pb;
use std::str::FromStr;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) job: JobId,
    /// None selects the newest checkpoint.
    pub(crate) step: Option<u64>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (job, step) = match text.split_once('@') {
            None => (text, None),
            Some((job, step)) => {
                let wrong = || {
                    format!("`{step}` is no step; write JOB or JOB@STEP, for instance demo-1@400")
                };
                (job, Some(step.parse().map_err(|_| wrong())?))
            }
        };
        let job = proto::wire::job_id(job.to_owned()).map_err(|error| error.to_string())?;
        Ok(Self { job, step })
    }
}

impl Target {
    /// Selects the checkpoint among those of the job.
    pub(crate) fn select(&self, view: &pb::JobView) -> Result<CheckpointRef> {
        let matches = |it: &&pb::CheckpointRef| self.step.is_none_or(|step| it.step == step);
        let found = view
            .checkpoints
            .iter()
            .filter(matches)
            .max_by_key(|it| (it.step, it.generation));
        if let Some(checkpoint) = found {
            return Ok((*checkpoint).into());
        }
        let steps: Vec<String> = view
            .checkpoints
            .iter()
            .map(|it| it.step.to_string())
            .collect();
        Err(match (self.step, steps.as_slice()) {
            (_, []) => anyhow!(
                "job {} has no committed checkpoint; it is {}: {}",
                self.job,
                view.phase,
                view.reason_sentence()
            ),
            (Some(step), steps) => {
                anyhow!(
                    "job {} has no checkpoint of step {step}; it has {}",
                    self.job,
                    steps.join(", ")
                )
            }
            (None, _) => unreachable!("without a step, any checkpoint matches"),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proto::id::{Generation, Step};

    #[test]
    fn a_target_is_a_job_with_or_without_a_step() {
        let target = |text: &str| text.parse::<Target>();
        assert_eq!(
            target("demo-1"),
            Ok(Target {
                job: JobId("demo-1".into()),
                step: None
            })
        );
        assert_eq!(
            target("demo-1@40"),
            Ok(Target {
                job: JobId("demo-1".into()),
                step: Some(40)
            })
        );
        assert!(
            target("demo-1@last")
                .unwrap_err()
                .contains("`last` is no step")
        );
        assert!(target("../x").unwrap_err().contains("field `job`"));
        assert!(target("@4").unwrap_err().contains("field `job`"));
    }

    #[test]
    fn the_newest_generation_of_a_step_is_selected() {
        let reference = |step, generation| pb::CheckpointRef { step, generation };
        let checkpoints = vec![reference(4, 1), reference(4, 2), reference(8, 2)];
        let view = pb::JobView {
            job: "demo-1".into(),
            checkpoints,
            ..Default::default()
        };
        let select = |text: &str| text.parse::<Target>().unwrap().select(&view);
        let expect = |step, generation| CheckpointRef {
            step: Step(step),
            generation: Generation(generation),
        };
        assert_eq!(select("demo-1").unwrap(), expect(8, 2));
        assert_eq!(select("demo-1@4").unwrap(), expect(4, 2));
        assert_eq!(
            select("demo-1@5").unwrap_err().to_string(),
            "job demo-1 has no checkpoint of step 5; it has 4, 4, 8"
        );
    }
}
