//! A `Data` section and small samples for this crate's own tests.

use proto::spec::{Clothes, Data, Pairing, Task};

pub(crate) fn data() -> Data {
    Data {
        dataset: String::new(),
        task: Task::Composition,
        pairing: Pairing::B,
        references: 2,
        resolution: 64,
        prompt_drop: 0.5,
        face_probability: 0.5,
        face_enlargement: 1.33,
        figure_threshold: 0.5,
        clothes: Clothes::default(),
        reference_scale: 0.8,
        multitask_reconstruction: 0.5,
        holdout: 0.1,
        seed: 7,
    }
}
