//! The plain loop that `make bench-evaluate` compares an evaluation with: loads a model once and
//! generates images of held-out samples one after the other, as anybody would in a script. Not part
//! of release builds.
//!
//!     sample_loop JOB.toml COUNT STEPS OUT
//!
//! Weights are random: an image takes the same time. Prints the images per second from the end of
//! the first image to the end of the last one, as the evaluation's are measured.

use model::SampleOptions;
use model::trainer::Trainer;
use model_data::loader::{Loader, LoaderOptions};
use proto::job::parse_training;
use proto::knobs::Knobs;
use proto::sample::SampleMethod;
use std::error::Error;
use std::path::Path;
use std::time::Instant;
use tch::Device;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, count, steps, out] = arguments.as_slice() else {
        return Err("usage: sample_loop JOB.toml COUNT STEPS OUT".into());
    };
    let (count, steps): (usize, u32) = (count.parse()?, steps.parse()?);
    let mut spec = parse_training(file, &std::fs::read_to_string(file)?)?;
    spec.model.init = None;
    tch::set_num_threads(i32::try_from(spec.train.threads)?);
    let mut trainer = Trainer::new(&spec, None, Device::Cpu)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let options = LoaderOptions::new(&spec.model.architecture, 1 << 30, None);
    let loader = runtime.block_on(Loader::open(&spec.data, options))?;
    let mut first = None;
    for (number, position) in loader.held_out().iter().cycle().take(count).enumerate() {
        let read = loader.examples_at(vec![(0, *position)]);
        let examples = runtime.block_on(read)?;
        let options = SampleOptions {
            method: SampleMethod::Ddim,
            steps,
            guidance: 7.5,
            reference_guidance: 1.0,
            negative_prompt: String::new(),
            knobs: Knobs::default(),
            seed: number as u64,
        };
        for image in trainer.sample(&examples, &options)? {
            image.save(Path::new(out).join(format!("{number}.png")))?;
        }
        first.get_or_insert_with(Instant::now);
    }
    let first: Instant = first.ok_or("COUNT is 0")?;
    let rate = (count - 1) as f64 / first.elapsed().as_secs_f64();
    println!("{rate}");
    Ok(())
}
