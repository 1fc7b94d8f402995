//! The evaluations of a training job's checkpoints, as its record keeps them.

use proto::checkpoint::CheckpointRef;
use proto::during::Scored;
use proto::id::JobId;
use proto::reason::Waiting;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The evaluations of a job that has some. One runs at a time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluations {
    /// The newest checkpoint that is to be evaluated, as soon as no other one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<CheckpointRef>,
    /// Checkpoints that were due and are never evaluated, because a newer one was due before an
    /// evaluation could begin.
    #[serde(default)]
    pub skipped: u64,
    /// In the order in which they were submitted.
    #[serde(default)]
    pub list: Vec<Evaluation>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    pub checkpoint: CheckpointRef,
    /// The job that evaluates it.
    pub job: JobId,
    pub state: EvaluationState,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EvaluationState {
    /// Its job is not over.
    Running,
    /// Its job is done; its scores are being read.
    Reading,
    Scored(Scored),
    Unscored(Unscored),
}

/// Why an evaluation gave no scores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Unscored {
    Failed,
    Cancelled,
    /// Its job was deleted, or its record cannot be read.
    Gone,
    /// Too many of its units failed, so it was given up when a newer checkpoint was due.
    GivenUp {
        paused: Box<Waiting>,
    },
    /// What its job wrote cannot be read.
    Unreadable {
        error: String,
    },
}

impl Evaluations {
    /// The checkpoint whose images have the largest score, the older one of two. An evaluation in
    /// which images are missing is not compared.
    #[must_use]
    pub fn best(&self) -> Option<CheckpointRef> {
        let mut best: Option<(f64, CheckpointRef)> = None;
        for it in &self.list {
            if let EvaluationState::Scored(scored) = &it.state
                && let Some(score) = scored.score.filter(|_| scored.missing == 0)
                && best.is_none_or(|(other, _)| other < score)
            {
                best = Some((score, it.checkpoint));
            }
        }
        best.map(|(_, checkpoint)| checkpoint)
    }

    /// Those whose scores are still to come.
    pub(crate) fn open(&self) -> impl Iterator<Item = &Evaluation> {
        let is_open = |it: &&Evaluation| {
            matches!(
                it.state,
                EvaluationState::Running | EvaluationState::Reading
            )
        };
        self.list.iter().filter(is_open)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.due.is_some() || self.open().next().is_some()
    }

    /// Whether retention must keep the checkpoint: it is the best, or is or will be evaluated.
    pub(crate) fn keeps(&self, checkpoint: CheckpointRef) -> bool {
        self.due == Some(checkpoint)
            || self.best() == Some(checkpoint)
            || self.open().any(|it| it.checkpoint == checkpoint)
    }

    /// What a table of jobs shows: the newest scores, the best, and what is open.
    pub(crate) fn brief(&self) -> Self {
        let best = self.best();
        let is_scored = |it: &Evaluation| matches!(it.state, EvaluationState::Scored(_));
        let newest = self.list.iter().rposition(is_scored);
        let open: Vec<&JobId> = self.open().map(|it| &it.job).collect();
        let shown = self.list.iter().enumerate().filter(|(index, it)| {
            Some(*index) == newest || Some(it.checkpoint) == best || open.contains(&&it.job)
        });
        Self {
            list: shown.map(|(_, it)| it.clone()).collect(),
            ..*self
        }
    }

    /// None if the job was never evaluated.
    pub(crate) fn used(&self) -> Option<&Self> {
        (self.due.is_some() || !self.list.is_empty()).then_some(self)
    }
}

impl fmt::Display for Unscored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed => f.write_str("it failed"),
            Self::Cancelled => f.write_str("it was cancelled"),
            Self::Gone => f.write_str("its job does not exist any more"),
            Self::GivenUp { paused } => {
                write!(f, "given up for a newer checkpoint; it was {paused}")
            }
            Self::Unreadable { error } => write!(f, "its scores cannot be read: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::id::{Generation, Step};

    fn evaluation(step: u64, state: EvaluationState) -> Evaluation {
        Evaluation {
            checkpoint: at(step),
            job: JobId(format!("eval-{step}")),
            state,
        }
    }

    fn at(step: u64) -> CheckpointRef {
        CheckpointRef {
            step: Step(step),
            generation: Generation(1),
        }
    }

    fn scored(score: Option<f64>, missing: u64) -> EvaluationState {
        EvaluationState::Scored(Scored {
            score,
            missing,
            ..Scored::default()
        })
    }

    #[test]
    fn the_best_has_the_largest_score_of_all_images_and_is_the_first_of_equals() {
        let mut evaluations = Evaluations::default();
        assert_eq!(evaluations.best(), None);
        for (step, state, best) in [
            (1, scored(None, 0), None),
            (2, scored(Some(-1.0), 0), Some(2)),
            (3, scored(Some(0.5), 0), Some(3)),
            (4, scored(Some(0.9), 1), Some(3)),
            (5, scored(Some(0.5), 0), Some(3)),
            (6, EvaluationState::Running, Some(3)),
            (7, EvaluationState::Unscored(Unscored::Failed), Some(3)),
        ] {
            evaluations.list.push(evaluation(step, state));
            assert_eq!(evaluations.best(), best.map(at), "{step}");
        }
        evaluations.due = Some(at(8));
        let kept: Vec<u64> = (1..9).filter(|step| evaluations.keeps(at(*step))).collect();
        assert_eq!(kept, [3, 6, 8]);
        let brief = evaluations.brief();
        let shown: Vec<u64> = brief.list.iter().map(|it| it.checkpoint.step.0).collect();
        assert_eq!((shown, brief.due), (vec![3, 5, 6], Some(at(8))));
        assert_eq!(brief.best(), Some(at(3)));
    }
}
