//! Trains a job.toml in one process, without orchestration: for looking for hyper-parameters and for
//! measuring speed.
//!
//!     probe JOB.toml OUT [save=STEPS] [guidance=3] [draw=50] [resume=FILE] [random]
//!
//! Prints loss and samples/s every 20 steps; every `save` steps and at the end writes weights (one file for
//! each component, fp32), `state.safetensors` and a grid of held-out samples (target, references, drawn).
//! `random` needs no data set and feeds noise; `init` of the job must be a `file://` folder.
#![allow(clippy::unwrap_used)]

use model::SampleOptions;
use model::init::InitWeights;
use model::trainer::Trainer;
use model::weights::{self, Storage};
use model_data::example::{Concept, Example, Reference};
use model_data::loader::{Loader, LoaderOptions};
use proto::spec::{Architecture, JobSpec};
use std::path::{Path, PathBuf};
use std::time::Instant;

struct Options {
    out: PathBuf,
    save: u64,
    guidance: f64,
    draw: u32,
    resume: Option<PathBuf>,
    random: bool,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let job = Path::new(&arguments[0]);
    let get = |key: &str| arguments.iter().find_map(|a| a.strip_prefix(&format!("{key}=")));
    let options = Options {
        out: PathBuf::from(&arguments[1]),
        save: get("save").map_or(500, |v| v.parse().unwrap()),
        guidance: get("guidance").map_or(3.0, |v| v.parse().unwrap()),
        draw: get("draw").map_or(50, |v| v.parse().unwrap()),
        resume: get("resume").map(PathBuf::from),
        random: arguments.iter().any(|a| a == "random"),
    };
    std::fs::create_dir_all(&options.out).unwrap();
    let folder = job.canonicalize().unwrap();
    let text = std::fs::read_to_string(job).unwrap();
    let spec = proto::job::parse(&arguments[0], &text, folder.parent()).unwrap_or_else(|e| panic!("{e}"));
    tch::set_num_threads(spec.train.threads as i32);
    tch::set_num_interop_threads(1);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut trainer = Trainer::new(&spec, init(&spec).as_ref(), tch::Device::Cpu).unwrap();
    let count: usize = trainer.parameters().iter().map(|(_, t)| t.numel()).sum();
    println!(
        "{count} trainable parameters, {} tensors",
        trainer.parameters().len()
    );
    if let Some(file) = &options.resume {
        let step: u64 = std::fs::read_to_string(file.with_extension("step"))
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        trainer.load_state(&weights::read(file).unwrap(), step).unwrap();
    }
    let loader = (!options.random).then(|| {
        let needs_references = spec.model.architecture == Architecture::Retrinet;
        let options = LoaderOptions {
            needs_references,
            cache_bytes: 4 << 30,
            version: None,
        };
        runtime.block_on(Loader::open(&spec.data, options)).unwrap()
    });
    train(&spec, &options, &mut trainer, loader.as_ref(), &runtime);
}

fn init(spec: &JobSpec) -> Option<InitWeights> {
    let folder = PathBuf::from(
        spec.model
            .init
            .as_ref()?
            .strip_prefix("file://")
            .expect("a file:// URL"),
    );
    let files = ["autoencoder", "text_encoder", "unet"]
        .into_iter()
        .filter_map(|name| {
            let path = folder.join(format!("{name}.safetensors"));
            path.exists().then(|| (name.to_owned(), path))
        });
    Some(files.collect())
}

fn train(
    spec: &JobSpec,
    options: &Options,
    trainer: &mut Trainer,
    loader: Option<&Loader>,
    runtime: &tokio::runtime::Runtime,
) {
    let (global, micro) = (spec.train.global_batch, spec.train.micro_batch);
    let fetch = |step: u64| {
        let loader = loader.cloned();
        let random = random_examples(spec, step, global);
        runtime.spawn(async move {
            match loader {
                Some(loader) => loader.examples(step, global, 0..global).await.unwrap(),
                None => random,
            }
        })
    };
    let first = trainer.step() + 1;
    let mut next = fetch(first);
    let (mut since, mut sums, mut norm_max) = (Instant::now(), [0f64; 3], 0f64);
    for step in first..=spec.train.steps {
        let examples = runtime.block_on(next).unwrap();
        next = fetch(step + 1);
        trainer.zero_gradients();
        for part in examples.chunks(micro as usize) {
            let loss = trainer.forward(part, global).unwrap();
            loss.loss.f_backward().unwrap();
            for (sum, value) in sums.iter_mut().zip([loss.total, loss.target, loss.face]) {
                *sum += value;
            }
        }
        let report = trainer.update(step).unwrap();
        norm_max = norm_max.max(report.gradient_norm);
        if step % 20 == 0 || step == first {
            let steps = if step == first {
                1.0
            } else if step - first < 20 {
                (step - first) as f64
            } else {
                20.0
            };
            let [total, target, face] = sums.map(|sum| sum / steps);
            let speed = steps * f64::from(global) / since.elapsed().as_secs_f64();
            println!(
                "step {step} loss {total:.4} target {target:.4} face {face:.4} norm<={norm_max:.2} \
                 rate {:.2e} {speed:.1} samples/s",
                report.learning_rate
            );
            (since, sums, norm_max) = (Instant::now(), [0.0; 3], 0.0);
        }
        if step % options.save == 0 || step == spec.train.steps {
            save(spec, options, trainer, loader, runtime);
            since = Instant::now();
        }
    }
}

fn save(
    spec: &JobSpec,
    options: &Options,
    trainer: &mut Trainer,
    loader: Option<&Loader>,
    runtime: &tokio::runtime::Runtime,
) {
    for (component, tensors) in trainer.export() {
        let path = options.out.join(format!("{component}.safetensors"));
        weights::write(&path, &tensors, Storage::Float32).unwrap();
    }
    let state = options.out.join("state.safetensors");
    weights::write(&state, &trainer.state().into_iter().collect(), Storage::Float32).unwrap();
    std::fs::write(state.with_extension("step"), trainer.step().to_string()).unwrap();
    let examples = match loader {
        Some(loader) => {
            let from = if loader.held_out().is_empty() {
                loader.training()
            } else {
                loader.held_out()
            };
            let stride = (from.len() / 24).max(1);
            let places = from
                .iter()
                .step_by(stride)
                .take(24)
                .map(|position| (0, *position))
                .collect();
            runtime.block_on(loader.examples_at(places)).unwrap()
        }
        None => random_examples(spec, 0, 4),
    };
    let draw = SampleOptions {
        steps: options.draw,
        guidance: options.guidance,
        seed: 1,
    };
    let started = Instant::now();
    let drawn = trainer.sample(&examples, &draw).unwrap();
    println!(
        "drew {} pictures in {:.1} s",
        drawn.len(),
        started.elapsed().as_secs_f64()
    );
    let side = spec.data.resolution;
    let columns = 2 + examples.iter().map(|e| e.references.len()).max().unwrap_or(0) as u32;
    let rows = (examples.len() as u32).div_ceil(2);
    let mut grid = image::RgbImage::new(2 * columns * side, rows * side);
    for (index, (example, drawn)) in examples.iter().zip(&drawn).enumerate() {
        let references = example.references.iter().map(|reference| &reference.picture);
        let cells = std::iter::once(&example.target).chain(references).chain([drawn]);
        let (left, top) = ((index as u32 % 2) * columns * side, (index as u32 / 2) * side);
        for (column, cell) in cells.enumerate() {
            let x = i64::from(left + column as u32 * side);
            image::imageops::replace(&mut grid, cell, x, i64::from(top));
        }
    }
    grid.save(options.out.join(format!("grid-{:06}.png", trainer.step())))
        .unwrap();
}

fn random_examples(spec: &JobSpec, step: u64, count: u32) -> Vec<Example> {
    let side = spec.data.resolution;
    let picture = |seed: u64| {
        let value =
            |x: u32, y: u32, c: u64| ((u64::from(x * 7 + y * 13) * (seed + c) * 2_654_435_761) >> 16) as u8;
        image::RgbImage::from_fn(side, side, |x, y| {
            image::Rgb([value(x, y, 1), value(x, y, 2), value(x, y, 3)])
        })
    };
    let mask = image::GrayImage::from_pixel(side, side, image::Luma([255]));
    let needs = spec.model.architecture == Architecture::Retrinet;
    let references = if needs { spec.data.references } else { 0 };
    let example = |i: u32| {
        let seed = step * 1000 + u64::from(i);
        let concept = [Concept::Face, Concept::Clothes][i as usize % 2];
        let reference = |n: u32| Reference {
            picture: picture(seed + u64::from(n)),
            concept,
            position: 0,
        };
        Example {
            position: u64::from(i),
            target: picture(seed),
            target_mask: mask.clone(),
            face_mask: mask.clone(),
            references: (0..references).map(reference).collect(),
            prompt: if i.is_multiple_of(2) {
                String::new()
            } else {
                format!("1girl, blue_hair, number {i}")
            },
            timestep: (seed * 7919 % 1000) as u32,
            noise_seed: seed,
        }
    };
    (0..count).map(example).collect()
}
