//! A `Data` section, an example configuration and small settings for this crate's own tests.

use crate::prepare::ExampleConfig;
use proto::spec::{Clothes, Data, Pairing, PromptOrder, References, Task, Transform};

pub(crate) const SEED: u64 = 7;

pub(crate) fn data() -> Data {
    Data {
        dataset: String::new(),
        resolution: 64,
        prompt_drop: 0.5,
        looks_drop: 0.0,
        prompt_order: PromptOrder::AsWritten,
        holdout: 0.1,
        ratings: proto::rating::Ratings::default(),
        seed: SEED,
    }
}

pub(crate) fn references() -> References {
    References {
        task: Task::Composition,
        pairing: Pairing::B,
        count: 2,
        drop: 0.0,
        joint_drop: None,
        transform: Transform::default(),
        face_probability: 0.5,
        face_enlargement: 1.33,
        figure_threshold: 0.5,
        clothes: Clothes::default(),
        scale: 0.8,
        multitask_reconstruction: 0.5,
    }
}

pub(crate) fn example_config() -> ExampleConfig {
    ExampleConfig {
        references: Some(references()),
        timesteps: 1000,
        view: None,
    }
}
