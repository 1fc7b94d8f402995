//! Summary statistics of a loss curve. Pure. Used by `describe`.

use crate::text::bytes;
use proto::message::{LossTerm, PhaseSeconds};
use proto::pb;
use proto::wire::loss_terms;
use serde_json::{Value, json};

/// The terms of the validation after a step, the loss first; empty if there was none.
pub(crate) fn validation_terms(step: &pb::StepReport) -> Vec<LossTerm> {
    let terms = loss_terms(step).into_iter();
    terms.filter(LossTerm::is_validation).collect()
}

/// Summary of a job's finished steps.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Summary {
    pub(crate) steps: usize,
    /// Mean loss over the first and the last tenth of the steps.
    pub(crate) loss_first: f64,
    pub(crate) loss_last: f64,
    /// All samples divided by the total step time.
    pub(crate) samples_per_second: f64,
    /// Fraction of the total step time by phase, in execution order.
    pub(crate) fractions: Vec<(&'static str, f64)>,
    /// The newest validation: its step and its terms.
    pub(crate) validation: Option<(u64, Vec<LossTerm>)>,
    /// Host memory.
    pub(crate) peak_memory_bytes: u64,
    /// 0 on a CPU.
    pub(crate) peak_device_memory_bytes: u64,
}

impl Summary {
    /// None if there is no step.
    #[allow(clippy::cast_precision_loss)] // Means and fractions.
    pub(crate) fn of(steps: &[pb::StepReport]) -> Option<Self> {
        if steps.is_empty() {
            return None;
        }
        let window = steps.len().div_ceil(10);
        let mean = |steps: &[pb::StepReport]| {
            steps.iter().map(|it| it.loss).sum::<f64>() / steps.len() as f64
        };
        let mut seconds: Vec<(&'static str, f64)> = PhaseSeconds::default().phases().to_vec();
        for step in steps {
            let it = step.seconds.unwrap_or_default();
            let values = [
                it.data,
                it.forward,
                it.backward,
                it.communication,
                it.optimizer,
                it.checkpoint,
                it.validation,
            ];
            for ((_, sum), value) in seconds.iter_mut().zip(values) {
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
            validation: steps.iter().rev().find_map(|step| {
                let terms = validation_terms(step);
                (!terms.is_empty()).then_some((step.step, terms))
            }),
            peak_memory_bytes: steps
                .iter()
                .map(|it| it.peak_memory_bytes)
                .max()
                .unwrap_or(0),
            peak_device_memory_bytes: steps
                .iter()
                .map(|it| it.peak_device_memory_bytes)
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
        let validation = self.validation.as_ref().map(|(step, terms)| {
            let mut value = json!({ "step": step });
            for term in terms {
                value[format!("loss_{}", term.name)] = json!(term.value);
            }
            value
        });
        json!({
            "steps": self.steps,
            "loss_first": self.loss_first,
            "loss_last": self.loss_last,
            "samples_per_second": self.samples_per_second,
            "fractions": fractions,
            "validation": validation,
            "peak_memory_bytes": self.peak_memory_bytes,
            "peak_device_memory_bytes": self.peak_device_memory_bytes,
        })
    }

    /// `1.5 GiB at most on the host`, and on a GPU what its tensors occupied.
    pub(crate) fn memory_text(&self) -> String {
        let host = format!("{} at most on the host", bytes(self.peak_memory_bytes));
        match self.peak_device_memory_bytes {
            0 => format!("{host} (rank 0)"),
            device => format!("{host}, {} on the GPU (rank 0)", bytes(device)),
        }
    }

    /// `forward 40.0 %, backward 55.0 %, …`, without phases that took no time.
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
    fn a_summary_has_the_loss_at_both_ends_and_the_fraction_of_time_by_phase() {
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
        assert_eq!(summary.memory_text(), "40 B at most on the host (rank 0)");
        let on_gpu = Summary {
            peak_device_memory_bytes: 3 << 30,
            ..summary
        };
        assert_eq!(
            on_gpu.memory_text(),
            "40 B at most on the host, 3.0 GiB on the GPU (rank 0)"
        );
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn the_newest_validation_is_named_with_its_step() {
        let step = |step, terms: &[(&str, f64)]| pb::StepReport {
            step,
            terms: terms
                .iter()
                .map(|(name, value)| pb::LossTerm {
                    name: (*name).to_owned(),
                    value: *value,
                })
                .collect(),
            ..Default::default()
        };
        let steps = [
            step(1, &[("target", 1.0), ("validation", 0.5)]),
            step(
                2,
                &[
                    ("target", 1.0),
                    ("validation", 0.25),
                    ("validation_face", 0.125),
                ],
            ),
            step(3, &[("target", 1.0), ("validations", 9.0)]),
        ];
        let json = Summary::of(&steps).unwrap().json();
        let expected = json!({
            "step": 2, "loss_validation": 0.25, "loss_validation_face": 0.125
        });
        assert_eq!(json["validation"], expected);
        let json = Summary::of(&steps[2..]).unwrap().json();
        assert_eq!(json["validation"], Value::Null);
    }
}
