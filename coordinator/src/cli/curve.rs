//! What a loss curve says in a few numbers. Pure. Used by `describe`.

use crate::metrics::phases;
use proto::message::PhaseSeconds;
use proto::pb;
use serde_json::{Value, json};

/// A job's finished steps, summed up.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Summary {
    pub(crate) steps: usize,
    /// Mean loss over the first and the last tenth of the steps.
    pub(crate) loss_first: f64,
    pub(crate) loss_last: f64,
    /// Samples over the seconds of their steps.
    pub(crate) samples_per_second: f64,
    /// Share of all step time by phase, in the order of a step.
    pub(crate) fractions: Vec<(&'static str, f64)>,
    pub(crate) peak_memory_bytes: u64,
}

impl Summary {
    /// None without any step.
    #[allow(clippy::cast_precision_loss)] // Means and shares.
    pub(crate) fn of(steps: &[pb::StepReport]) -> Option<Self> {
        if steps.is_empty() {
            return None;
        }
        let window = steps.len().div_ceil(10);
        let mean = |part: &[pb::StepReport]| {
            part.iter().map(|it| it.loss).sum::<f64>() / part.len() as f64
        };
        let mut seconds: Vec<(&'static str, f64)> = phases(&PhaseSeconds::default()).to_vec();
        for step in steps {
            let own = step.seconds.unwrap_or_default();
            let own = [
                own.data,
                own.forward,
                own.backward,
                own.communication,
                own.optimizer,
                own.checkpoint,
            ];
            for ((_, sum), value) in seconds.iter_mut().zip(own) {
                *sum += value;
            }
        }
        let total: f64 = seconds
            .iter()
            .map(|(_, it)| it)
            .sum::<f64>()
            .max(f64::MIN_POSITIVE);
        let samples: f64 = steps.iter().map(|it| f64::from(it.samples)).sum();
        Some(Self {
            steps: steps.len(),
            loss_first: mean(&steps[..window]),
            loss_last: mean(&steps[steps.len() - window..]),
            samples_per_second: samples / total,
            fractions: seconds
                .into_iter()
                .map(|(phase, it)| (phase, it / total))
                .collect(),
            peak_memory_bytes: steps
                .iter()
                .map(|it| it.peak_memory_bytes)
                .max()
                .unwrap_or(0),
        })
    }

    pub(crate) fn json(&self) -> Value {
        let fractions: serde_json::Map<String, Value> = self
            .fractions
            .iter()
            .map(|(phase, fraction)| ((*phase).to_owned(), json!(fraction)))
            .collect();
        json!({
            "steps": self.steps,
            "loss_first": self.loss_first,
            "loss_last": self.loss_last,
            "samples_per_second": self.samples_per_second,
            "shares": fractions,
            "peak_memory_bytes": self.peak_memory_bytes,
        })
    }

    /// `forward 40 %, backward 55 %, …`, the phases that took any time.
    pub(crate) fn fractions_text(&self) -> String {
        let percent =
            |(phase, fraction): &(&'static str, f64)| format!("{phase} {:.1} %", fraction * 100.0);
        self.fractions
            .iter()
            .filter(|(_, fraction)| 0.0 < *fraction)
            .map(percent)
            .collect::<Vec<_>>()
            .join(", ")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_curve_is_summed_up_by_its_ends_and_its_shares() {
        let steps: Vec<pb::StepReport> = (1..=40u32)
            .map(|it| pb::StepReport {
                step: it.into(),
                loss: f64::from(it),
                samples: 4,
                seconds: Some(pb::PhaseSeconds {
                    forward: 0.25,
                    backward: 0.75,
                    ..Default::default()
                }),
                peak_memory_bytes: it.into(),
                ..Default::default()
            })
            .collect();
        let summary = Summary::of(&steps).unwrap();
        assert_eq!((summary.loss_first, summary.loss_last), (2.5, 38.5));
        assert_eq!(summary.samples_per_second, 4.0);
        assert_eq!(summary.fractions_text(), "forward 25.0 %, backward 75.0 %");
        assert_eq!(summary.peak_memory_bytes, 40);
        assert_eq!(Summary::of(&[]), None);
    }
}
