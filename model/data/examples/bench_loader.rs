//! Our side of `make bench-loader` (tests/bench/loader_peers.py): for each line on stdin, loads,
//! decodes and prepares that many samples and prints how long it took, as JSON. A sample is a
//! target and its references. Without caches, so that every image is decoded. Not part of release
//! builds.
//!
//!     bench_loader URL RESOLUTION REFERENCES
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, Write};
use std::time::Instant;

use model_data::loader::{Loader, LoaderOptions};
use model_data::prepare::ExampleConfig;
use proto::rating::Ratings;
use proto::spec::{Clothes, Data, Pairing, PromptOrder, References, Task, Transform};

/// Samples that are prepared at once, as a rank does for a step.
const BATCH: u32 = 16;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, resolution, references] = &arguments[..] else {
        panic!("usage: bench_loader URL RESOLUTION REFERENCES");
    };
    let (data, options) = job(
        url,
        resolution.parse().unwrap(),
        references.parse().unwrap(),
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
    let loader = runtime.block_on(Loader::open(&data, options)).unwrap();
    let mut step = 0;
    for line in std::io::stdin().lock().lines() {
        let samples: u32 = line.unwrap().parse().unwrap();
        let begun = Instant::now();
        let mut pixels = 0;
        for _ in 0..samples / BATCH {
            step += 1;
            let examples = runtime
                .block_on(loader.examples(step, BATCH, 0..BATCH))
                .unwrap();
            for example in &examples {
                let references = example.references.iter().map(|it| it.image.len());
                pixels += (example.target.len() + references.sum::<usize>()) / 3;
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        let samples = samples / BATCH * BATCH;
        println!(r#"{{"samples": {samples}, "seconds": {seconds}, "pixels": {pixels}}}"#);
        std::io::stdout().flush().unwrap();
    }
}

/// A job with the defaults of RetriNet's data section.
fn job(url: &str, resolution: u32, count: u32) -> (Data, LoaderOptions) {
    let data = Data {
        dataset: url.to_owned(),
        resolution,
        prompt_drop: 0.5,
        prompt_order: PromptOrder::AsWritten,
        ratings: Ratings::default(),
        holdout: 0.0,
        seed: 0,
    };
    let references = References {
        task: Task::Composition,
        pairing: Pairing::B,
        count,
        drop: 0.0,
        joint_drop: None,
        transform: Transform::default(),
        face_probability: 0.5,
        face_enlargement: 1.33,
        figure_threshold: 0.5,
        clothes: Clothes::default(),
        scale: 0.8,
        multitask_reconstruction: 0.5,
    };
    let options = LoaderOptions {
        examples: ExampleConfig {
            references: Some(references),
            view: None,
            timesteps: 1000,
        },
        cache_bytes: 0,
        version: None,
    };
    (data, options)
}
