//! What becomes of a step whose numbers are not finite, the count of such steps, and fp16's loss
//! scale. It decides from figures that are the same on every rank (the reduced loss and the norm of
//! the reduced gradient), so that all ranks decide alike. Never touches a parameter; called by the
//! trainer.

use crate::error::ModelError;
use crate::weights::NamedTensors;
use proto::spec::{OnNonfinite, Precision, SKIPS_MAX, Train};
use tch::Tensor;

/// What fp16's loss is multiplied with at first. A gradient below 6e-8 would be zero in fp16.
const SCALE_FIRST: f32 = 65_536.0;
/// An overflowing gradient halves the scale, this many good steps in a row double it; it stays
/// within the bounds.
const GROWTH_STEPS: u64 = 2000;
const SCALE_MIN: f64 = 1.0;
const SCALE_MAX: f64 = 16_777_216.0;

/// What a step's figures say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Trouble {
    /// The loss of some sample is not finite.
    Loss,
    /// Every loss is finite, and the gradient's norm is this.
    Gradient(f64),
}

/// See the module's header. What it remembers is part of a checkpoint wherever it can change: one
/// value each, so that a checkpoint is loaded into them as into everything else.
#[derive(Debug)]
pub(crate) struct Guard {
    on_nonfinite: OnNonfinite,
    skipped: Tensor,
    in_a_row: Tensor,
    /// fp16 only.
    scale: Option<Scale>,
}

#[derive(Debug)]
struct Scale {
    value: Tensor,
    good_in_a_row: Tensor,
}

impl Guard {
    pub(crate) fn new(train: &Train) -> Self {
        let scale = (train.precision == Precision::Fp16).then(|| Scale {
            value: one(SCALE_FIRST),
            good_in_a_row: one(0.0),
        });
        Self {
            on_nonfinite: train.on_nonfinite,
            skipped: one(0.0),
            in_a_row: one(0.0),
            scale,
        }
    }

    /// Steps so far whose update was left out.
    pub(crate) fn skipped(&self) -> u64 {
        value(&self.skipped)
    }

    /// What the next loss is multiplied with before its gradient is taken.
    pub(crate) fn loss_scale(&self) -> f64 {
        self.scale
            .as_ref()
            .map_or(1.0, |scale| scale.value.double_value(&[0]))
    }

    /// The update of a step was done.
    pub(crate) fn good(&mut self) {
        let _ = self.in_a_row.zero_();
        if let Some(scale) = &mut self.scale {
            scale.grow();
        }
    }

    /// Counts a step that is to be left out, or says why the job has to end. A gradient that
    /// overflows under a loss scale is nothing unusual: the scale was too large, and becomes
    /// smaller.
    pub(crate) fn bad(&mut self, trouble: Trouble) -> Result<(), ModelError> {
        if let (Trouble::Gradient(_), Some(scale)) = (trouble, &mut self.scale)
            && scale.shrink()
        {
            let _ = self.skipped.g_add_scalar_(1);
            return Ok(());
        }
        let skips = value(&self.in_a_row);
        if self.on_nonfinite == OnNonfinite::Stop || skips == SKIPS_MAX {
            return Err(match trouble {
                Trouble::Loss => ModelError::Loss { skips },
                Trouble::Gradient(norm) => ModelError::Gradient { norm, skips },
            });
        }
        for count in [&mut self.skipped, &mut self.in_a_row] {
            let _ = count.g_add_scalar_(1);
        }
        Ok(())
    }

    /// Its part of a checkpoint; nothing while nothing can be skipped.
    pub(crate) fn state(&self) -> NamedTensors {
        let mut state = NamedTensors::new();
        let mut put =
            |name: &str, tensor: &Tensor| state.insert(name.to_owned(), tensor.shallow_clone());
        if self.on_nonfinite == OnNonfinite::Skip || self.scale.is_some() {
            put("skipped", &self.skipped);
            put("skipped_in_a_row", &self.in_a_row);
        }
        if let Some(scale) = &self.scale {
            put("loss_scale", &scale.value);
            put("good_in_a_row", &scale.good_in_a_row);
        }
        state
    }
}

impl Scale {
    fn grow(&mut self) {
        let _ = self.good_in_a_row.g_add_scalar_(1);
        if value(&self.good_in_a_row) == GROWTH_STEPS {
            self.set(2.0);
        }
    }

    /// False when it is at its least already.
    fn shrink(&mut self) -> bool {
        let least = self.value.double_value(&[0]) <= SCALE_MIN;
        if !least {
            self.set(0.5);
        }
        !least
    }

    fn set(&mut self, factor: f64) {
        let _ = self
            .value
            .g_mul_scalar_(factor)
            .clamp_(SCALE_MIN, SCALE_MAX);
        let _ = self.good_in_a_row.zero_();
    }
}

fn one(value: f32) -> Tensor {
    Tensor::from_slice(&[value])
}

/// A whole number that fp32 holds exactly: no job skips 16 million steps.
fn value(count: &Tensor) -> u64 {
    count.int64_value(&[0]).unsigned_abs()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn guard(on_nonfinite: &str, precision: &str) -> Guard {
        let text = format!(
            "name = \"a\"\n[data]\ndataset = \"file:///none\"\nresolution = \
            32\n[model]\narchitecture = \
             \"autoencoder\"\nsize = \"tiny\"\n[train]\nsteps = 4\nglobal_batch = 1\nmicro_batch \
            = 1\n\
             on_nonfinite = \"{on_nonfinite}\"\nprecision = \"{precision}\"\n"
        );
        Guard::new(
            &proto::job::parse_training("guard.toml", &text)
                .unwrap()
                .train,
        )
    }

    #[test]
    fn stop_ends_at_once_and_remembers_nothing() {
        let mut guard = guard("stop", "bf16");
        let error = guard.bad(Trouble::Loss).unwrap_err();
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
            guard.bad(Trouble::Gradient(f64::INFINITY)).unwrap();
        }
        guard.good();
        assert_eq!(guard.skipped(), SKIPS_MAX);
        for _ in 0..SKIPS_MAX {
            guard.bad(Trouble::Loss).unwrap();
        }
        let error = guard.bad(Trouble::Gradient(f64::INFINITY)).unwrap_err();
        assert!(error.is_permanent());
        assert_eq!(
            error.to_string(),
            "the gradient's norm is inf; nothing was changed, and the 10 steps before it were \
            skipped"
        );
        assert_eq!(guard.skipped(), 2 * SKIPS_MAX);
    }

    #[test]
    fn an_overflow_halves_the_scale_and_many_good_steps_double_it() {
        let mut guard = guard("stop", "fp16");
        guard.bad(Trouble::Gradient(f64::INFINITY)).unwrap();
        assert_eq!((guard.loss_scale(), guard.skipped()), (32_768.0, 1));
        (1..GROWTH_STEPS).for_each(|_| guard.good());
        assert_eq!(guard.loss_scale(), 32_768.0);
        guard.good();
        assert_eq!(guard.loss_scale(), 65_536.0);
        // An overflow begins the count of good steps anew.
        (1..GROWTH_STEPS).for_each(|_| guard.good());
        guard.bad(Trouble::Gradient(f64::NAN)).unwrap();
        guard.good();
        assert_eq!(guard.loss_scale(), 32_768.0);
        // At 1 an overflow is no longer the scale's fault; a loss that is not finite never was.
        guard.bad(Trouble::Loss).unwrap_err();
        while guard.loss_scale() > 1.0 {
            guard.bad(Trouble::Gradient(f64::INFINITY)).unwrap();
        }
        guard.bad(Trouble::Gradient(f64::INFINITY)).unwrap_err();
        let names: Vec<String> = guard.state().into_keys().collect();
        assert_eq!(
            names,
            ["good_in_a_row", "loss_scale", "skipped", "skipped_in_a_row"]
        );
    }
}
