//! Twins: two trainings that see the same samples in the same order with the same noise. Their
//! losses of one step differ by what was set differently, and not by what was drawn, so that a
//! paired difference shows what two curves hide. Ours; the paper compares single runs.

use crate::spec::TrainWork;

/// The settings that draw: two jobs whose values of one of these differ are no twins. Each is the
/// field and its two values. The data set is compared by its version, which the specification
/// does not know.
#[must_use]
pub fn differences(a: &TrainWork, b: &TrainWork) -> Vec<(&'static str, String, String)> {
    let drawing = |work: &TrainWork| {
        let data = &work.data;
        [
            ("data.seed", data.seed.to_string()),
            ("data.holdout", data.holdout.to_string()),
            ("data.ratings", data.ratings.to_string()),
            ("data.resolution", data.resolution.to_string()),
            ("train.global_batch", work.train.global_batch.to_string()),
        ]
    };
    drawing(a)
        .into_iter()
        .zip(drawing(b))
        .filter(|((_, a), (_, b))| a != b)
        .map(|((field, a), (_, b))| (field, a, b))
        .collect()
}
