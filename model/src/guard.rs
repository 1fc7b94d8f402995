//! What becomes of a step whose numbers are not finite, and the count of such steps. It decides from figures that are the
//! same on every rank (the reduced loss and the norm of the reduced gradient), so that all ranks decide alike. Never
//! touches a parameter; called by the trainer.

use crate::error::ModelError;
use crate::weights::NamedTensors;
use proto::spec::{OnNonfinite, SKIPS_MAX, Train};
use tch::Tensor;

/// What a step's figures say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Trouble {
    /// The loss of some sample is not finite.
    Loss,
    /// Every loss is finite, and the gradient's norm is this.
    Gradient(f64),
}

/// See the module's header. What it remembers is part of a checkpoint wherever it can change.
#[derive(Debug)]
pub(crate) struct Guard {
    on_nonfinite: OnNonfinite,
    /// One value each, so that a checkpoint is loaded into them as into everything else.
    skipped: Tensor,
    in_a_row: Tensor,
}

impl Guard {
    pub(crate) fn new(train: &Train) -> Self {
        let zero = || Tensor::from_slice(&[0f32]);
        Self {
            on_nonfinite: train.on_nonfinite,
            skipped: zero(),
            in_a_row: zero(),
        }
    }

    /// Steps so far whose update was left out.
    pub(crate) fn skipped(&self) -> u64 {
        value(&self.skipped)
    }

    /// The update of a step was done.
    pub(crate) fn good(&mut self) {
        let _ = self.in_a_row.zero_();
    }

    /// Counts a step that is to be left out, or says why the job has to end.
    pub(crate) fn bad(&mut self, trouble: Trouble) -> Result<(), ModelError> {
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
        if self.on_nonfinite == OnNonfinite::Stop {
            return NamedTensors::new();
        }
        NamedTensors::from([
            ("skipped".to_owned(), self.skipped.shallow_clone()),
            ("skipped_in_a_row".to_owned(), self.in_a_row.shallow_clone()),
        ])
    }
}

/// A whole number that fp32 holds exactly: no job skips 16 million steps.
fn value(count: &Tensor) -> u64 {
    count.int64_value(&[0]).unsigned_abs()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn guard(on_nonfinite: &str) -> Guard {
        let text = format!(
            "name = \"a\"\n[data]\ndataset = \"file:///none\"\nresolution = 32\n[model]\narchitecture = \
             \"autoencoder\"\nsize = \"tiny\"\n[train]\nsteps = 4\nglobal_batch = 1\nmicro_batch = 1\n\
             on_nonfinite = \"{on_nonfinite}\"\n"
        );
        Guard::new(&proto::job::parse("guard.toml", &text, None).unwrap().train)
    }

    #[test]
    fn stop_ends_at_once_and_remembers_nothing() {
        let mut guard = guard("stop");
        let error = guard.bad(Trouble::Loss).unwrap_err();
        assert!(error.is_permanent());
        assert_eq!(error.to_string(), "the loss is not finite; nothing was changed");
        assert!(guard.state().is_empty());
    }

    #[test]
    fn skip_counts_and_is_bounded_in_a_row() {
        let mut guard = guard("skip");
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
            "the gradient's norm is inf; nothing was changed, and the 10 steps before it were skipped"
        );
        assert_eq!(guard.skipped(), 2 * SKIPS_MAX);
    }
}
