//! Handles steps whose loss or gradient is not finite: counts skipped steps, ends the job after too
//! many, and adjusts fp16's loss scale. Decisions depend only on values that are the same on every
//! rank (the reduced loss and the norm of the reduced gradient), so all ranks decide alike. Never
//! modifies a parameter. Called by the trainer.

use crate::error::ModelError;
use crate::weights::NamedTensors;
use proto::spec::{OnNonfinite, Precision, SKIPS_MAX, Train};
use tch::Tensor;

/// The initial loss scale of fp16. Without scaling, gradients below 6e-8 underflow to zero.
const INITIAL_SCALE: f32 = 65_536.0;
/// The loss scale doubles after this many updates in a row and halves on an overflow, between
/// `SCALE_MIN` and `SCALE_MAX`.
const GROWTH_INTERVAL: u64 = 2000;
const SCALE_MIN: f64 = 1.0;
const SCALE_MAX: f64 = 16_777_216.0;

/// Why a step cannot update the weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Nonfinite {
    /// The loss of some sample is not finite.
    Loss,
    /// Every loss is finite, but the gradient's norm is this value.
    Gradient(f64),
}

/// See the module's header. The state is part of the checkpoint. It is stored as tensors of one
/// value, so that loading a checkpoint treats it like every other tensor.
#[derive(Debug)]
pub(crate) struct NonfiniteGuard {
    on_nonfinite: OnNonfinite,
    skipped: Tensor,
    consecutive_skips: Tensor,
    /// fp16 only.
    scaler: Option<LossScaler>,
}

/// The dynamic loss scale of fp16, as in PyTorch's `GradScaler`.
#[derive(Debug)]
struct LossScaler {
    scale: Tensor,
    consecutive_updates: Tensor,
}

impl NonfiniteGuard {
    pub(crate) fn new(train: &Train) -> Self {
        let scaler = (train.precision == Precision::Fp16).then(|| LossScaler {
            scale: scalar(INITIAL_SCALE),
            consecutive_updates: scalar(0.0),
        });
        Self {
            on_nonfinite: train.on_nonfinite,
            skipped: scalar(0.0),
            consecutive_skips: scalar(0.0),
            scaler,
        }
    }

    /// The number of steps so far whose update was skipped.
    pub(crate) fn skipped(&self) -> u64 {
        count(&self.skipped)
    }

    /// The factor for the next loss before its backward pass.
    pub(crate) fn loss_scale(&self) -> f64 {
        self.scaler
            .as_ref()
            .map_or(1.0, |scaler| scaler.scale.double_value(&[0]))
    }

    /// Records a completed update.
    pub(crate) fn record_update(&mut self) {
        let _ = self.consecutive_skips.zero_();
        if let Some(scaler) = &mut self.scaler {
            scaler.record_update();
        }
    }

    /// Counts a skipped step, or returns the error that ends the job. An overflowing gradient under
    /// a loss scale is expected: the scale was too large and is halved.
    pub(crate) fn record_nonfinite(&mut self, cause: Nonfinite) -> Result<(), ModelError> {
        if let (Nonfinite::Gradient(_), Some(scaler)) = (cause, &mut self.scaler)
            && scaler.halve()
        {
            let _ = self.skipped.g_add_scalar_(1);
            return Ok(());
        }
        let skips = count(&self.consecutive_skips);
        if self.on_nonfinite == OnNonfinite::Stop || skips == SKIPS_MAX {
            return Err(match cause {
                Nonfinite::Loss => ModelError::NonfiniteLoss { skips },
                Nonfinite::Gradient(norm) => ModelError::NonfiniteGradient { norm, skips },
            });
        }
        for counter in [&mut self.skipped, &mut self.consecutive_skips] {
            let _ = counter.g_add_scalar_(1);
        }
        Ok(())
    }

    /// The state for the checkpoint; empty if no step can be skipped.
    pub(crate) fn state(&self) -> NamedTensors {
        let mut state = NamedTensors::new();
        let mut insert =
            |name: &str, tensor: &Tensor| state.insert(name.to_owned(), tensor.shallow_clone());
        if self.on_nonfinite == OnNonfinite::Skip || self.scaler.is_some() {
            insert("skipped", &self.skipped);
            insert("skipped_in_a_row", &self.consecutive_skips);
        }
        if let Some(scaler) = &self.scaler {
            insert("loss_scale", &scaler.scale);
            insert("good_in_a_row", &scaler.consecutive_updates);
        }
        state
    }
}

impl LossScaler {
    fn record_update(&mut self) {
        let _ = self.consecutive_updates.g_add_scalar_(1);
        if count(&self.consecutive_updates) == GROWTH_INTERVAL {
            self.multiply(2.0);
        }
    }

    /// Returns false if the scale is already at its minimum.
    fn halve(&mut self) -> bool {
        let at_minimum = self.scale.double_value(&[0]) <= SCALE_MIN;
        if !at_minimum {
            self.multiply(0.5);
        }
        !at_minimum
    }

    fn multiply(&mut self, factor: f64) {
        let _ = self
            .scale
            .g_mul_scalar_(factor)
            .clamp_(SCALE_MIN, SCALE_MAX);
        let _ = self.consecutive_updates.zero_();
    }
}

fn scalar(value: f32) -> Tensor {
    Tensor::from_slice(&[value])
}

/// An integer that fp32 represents exactly: no job skips 16 million steps.
fn count(counter: &Tensor) -> u64 {
    counter.int64_value(&[0]).unsigned_abs()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn guard(on_nonfinite: &str, precision: &str) -> NonfiniteGuard {
        let text = format!(
            "name = \"a\"\n[data]\ndataset = \"file:///none\"\nresolution = \
            32\n[model]\narchitecture = \
             \"autoencoder\"\nsize = \"tiny\"\n[train]\nsteps = 4\nglobal_batch = 1\nmicro_batch \
            = 1\n\
             on_nonfinite = \"{on_nonfinite}\"\nprecision = \"{precision}\"\n"
        );
        NonfiniteGuard::new(
            &proto::job::parse_training("nonfinite.toml", &text)
                .unwrap()
                .train,
        )
    }

    #[test]
    fn stop_ends_at_once_and_stores_no_state() {
        let mut guard = guard("stop", "bf16");
        let error = guard.record_nonfinite(Nonfinite::Loss).unwrap_err();
        assert!(error.is_permanent());
        assert_eq!(
            error.to_string(),
            "the loss is not finite; nothing was changed"
        );
        assert!(guard.state().is_empty());
    }

    #[test]
    fn skip_counts_and_is_bounded_in_a_row() {
        let mut guard = guard("skip", "fp32");
        for _ in 0..SKIPS_MAX {
            guard
                .record_nonfinite(Nonfinite::Gradient(f64::INFINITY))
                .unwrap();
        }
        guard.record_update();
        assert_eq!(guard.skipped(), SKIPS_MAX);
        for _ in 0..SKIPS_MAX {
            guard.record_nonfinite(Nonfinite::Loss).unwrap();
        }
        let error = guard
            .record_nonfinite(Nonfinite::Gradient(f64::INFINITY))
            .unwrap_err();
        assert!(error.is_permanent());
        assert_eq!(
            error.to_string(),
            "the gradient norm is inf; nothing was changed, and the 10 steps before it were \
            skipped"
        );
        assert_eq!(guard.skipped(), 2 * SKIPS_MAX);
    }

    #[test]
    fn an_overflow_halves_the_scale_and_many_updates_double_it() {
        let mut guard = guard("stop", "fp16");
        guard
            .record_nonfinite(Nonfinite::Gradient(f64::INFINITY))
            .unwrap();
        assert_eq!((guard.loss_scale(), guard.skipped()), (32_768.0, 1));
        (1..GROWTH_INTERVAL).for_each(|_| guard.record_update());
        assert_eq!(guard.loss_scale(), 32_768.0);
        guard.record_update();
        assert_eq!(guard.loss_scale(), 65_536.0);
        // An overflow resets the count of consecutive updates.
        (1..GROWTH_INTERVAL).for_each(|_| guard.record_update());
        guard
            .record_nonfinite(Nonfinite::Gradient(f64::NAN))
            .unwrap();
        guard.record_update();
        assert_eq!(guard.loss_scale(), 32_768.0);
        // At a scale of 1 an overflow is an error. A nonfinite loss is one at every scale.
        guard.record_nonfinite(Nonfinite::Loss).unwrap_err();
        while guard.loss_scale() > 1.0 {
            guard
                .record_nonfinite(Nonfinite::Gradient(f64::INFINITY))
                .unwrap();
        }
        guard
            .record_nonfinite(Nonfinite::Gradient(f64::INFINITY))
            .unwrap_err();
        let names: Vec<String> = guard.state().into_keys().collect();
        assert_eq!(
            names,
            ["good_in_a_row", "loss_scale", "skipped", "skipped_in_a_row"]
        );
    }
}
