//! Our side of `make bench-model` (tests/bench/micro_step.py): runs and times one training
//! micro-step for each line on stdin. Exports the weights and inputs that the PyTorch side needs to
//! compute the same. Not part of release builds.
//!
//!     micro_step --size small|full [--threads N] [--export DIR | --export-inputs DIR]
//!     [--checkpointing COMPONENT,…] [--precision fp32|fp16|bf16] [--resolution PIXELS]

mod common;

use common::{cpu_seconds, image, memory, print_json, replace_zeros};
use model::loss::Masks;
use model::noise::{self, Purpose};
use model::schedule::NoiseSchedule;
use model::trainer::Trainer;
use model::weights::{self, NamedTensors, Storage};
use model_data::example::{Concept, Example, Reference};
use model_data::prompt::Prompts;
use proto::architecture::Diffusion;
use proto::layout::UNetLayout;
use proto::spec::TrainWork;
use serde_json::json;
use std::error::Error;
use std::io::BufRead;
use std::path::Path;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

const CONCEPTS: [Concept; 3] = [Concept::Face, Concept::Clothes, Concept::Figure];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let option = |name: &str| {
        let index = arguments.iter().position(|it| it == name)?;
        arguments.get(index + 1).map(String::as_str)
    };
    let threads: i32 = option("--threads").unwrap_or("1").parse()?;
    tch::set_num_threads(threads);
    let (mut spec, micro_batch) = job(
        option("--size").unwrap_or("small"),
        option("--checkpointing"),
        option("--precision").unwrap_or("fp32"),
    )?;
    if let Some(resolution) = option("--resolution") {
        spec.data.resolution = resolution.parse()?;
    }
    let mut trainer = Trainer::new(&spec, None, Device::Cpu)?;
    replace_zeros(&trainer);
    let examples: Vec<Example> = (0..micro_batch).map(|n| example(&spec, n)).collect();
    if let Some(folder) = option("--export") {
        export(&trainer, Path::new(folder))?;
    }
    if let Some(folder) = option("--export").or(option("--export-inputs")) {
        let path = Path::new(folder).join("inputs.safetensors");
        weights::write(&path, &inputs(&spec, &examples), Storage::Float32)?;
    }
    print_json(&describe(&spec, &trainer))?;
    for (line, step) in std::io::stdin().lock().lines().zip(1..) {
        line?;
        print_json(&micro_step(&mut trainer, &examples, step)?)?;
    }
    Ok(())
}

/// The diffusion settings of the job.
fn diffusion(spec: &TrainWork) -> &Diffusion {
    spec.model
        .architecture
        .diffusion()
        .expect("the job trains a retrinet")
}

fn references(spec: &TrainWork) -> u32 {
    spec.model
        .architecture
        .references()
        .map_or(0, |it| it.count)
}

/// The example job whose networks are measured as "figures".
const FIGURES: &str = include_str!("../../deploy/jobs/figures.toml");

/// A job of the size "small" at 64 pixels with four references, one with the networks of
/// figures.toml and two ("figures"), or the paper's: one target and four references at 384 pixels
/// ("full").
fn job(
    size: &str,
    checkpointing: Option<&str>,
    precision: &str,
) -> Result<(TrainWork, u32), Box<dyn Error>> {
    let (named, resolution, references, micro_batch) = match size {
        "small" => ("small", 64, 4, 8),
        "figures" => ("small", 64, 2, 8),
        "full" => ("sd15", 384, 4, 1),
        other => {
            return Err(format!("size is {other}; it must be small, figures or full").into());
        }
    };
    let networks = match size {
        "figures" => networks_of(FIGURES),
        _ => String::new(),
    };
    let components: Vec<String> = checkpointing
        .into_iter()
        .flat_map(|list| list.split(','))
        .map(|component| format!("\"{component}\""))
        .collect();
    let components = components.join(", ");
    let text = format!(
        "name = \"bench\"\n[data]\ndataset = \"file:///none\"\nresolution = {resolution}\n\
         references = {references}\n[model]\narchitecture = \"retrinet\"\nsize = \"{named}\"\n\
         activation_checkpointing = [{components}]\n{networks}[train]\nsteps = 1000\n\
         global_batch = {micro_batch}\nmicro_batch = {micro_batch}\nlearning_rate = 1e-4\n\
         precision = \"{precision}\"\n"
    );
    Ok((
        proto::job::parse_training("the benchmark's job", &text)?,
        micro_batch,
    ))
}

/// The tables of the networks in a job.toml.
fn networks_of(job: &str) -> String {
    let mut table = "";
    let lines = job.lines().filter(|line| {
        if line.starts_with('[') {
            table = line;
        }
        [
            "[model.unet]",
            "[model.autoencoder]",
            "[model.text_encoder]",
        ]
        .contains(&table)
    });
    lines.map(|line| format!("{line}\n")).collect()
}

/// An example with patches of colour and a prompt of its own.
fn example(spec: &TrainWork, n: u32) -> Example {
    let side = spec.data.resolution;
    let reference = |slot: u32| Reference {
        image: image(side, n * 8 + slot + 1),
        view: None,
        concept: CONCEPTS[slot as usize % CONCEPTS.len()],
        position: u64::from(n),
    };
    Example {
        position: u64::from(n),
        target: image(side, n * 8),
        target_mask: image::GrayImage::from_pixel(side, side, image::Luma([255])),
        face_mask: image::GrayImage::from_fn(side, side, |x, y| {
            image::Luma([if x.max(y) < side / 3 { 255 } else { 0 }])
        }),
        references: (0..references(spec)).map(reference).collect(),
        figure_mask: None,
        target_view: None,
        references_dropped: false,
        prompt: format!("1girl, number_{n}, smile"),
        timestep: 40 + 60 * (n % 16),
        noise_seed: u64::from(n) + 1,
    }
}

/// Writes all weights by component; those that only a RetriNet has go to one file, by full name.
fn export(trainer: &Trainer, folder: &Path) -> Result<(), Box<dyn Error>> {
    let mut own = NamedTensors::new();
    for (component, tensors) in trainer.export() {
        if ["autoencoder", "text_encoder", "unet"].contains(&component.as_str()) {
            let path = folder.join(format!("{component}.safetensors"));
            weights::write(&path, &tensors, Storage::Float32)?;
        } else {
            let named = tensors.into_iter();
            own.extend(named.map(|(name, tensor)| (format!("{component}.{name}"), tensor)));
        }
    }
    Ok(weights::write(
        &folder.join("retrinet.safetensors"),
        &own,
        Storage::Float32,
    )?)
}

/// The examples as input tensors for the PyTorch side; integers are stored as floats.
fn inputs(spec: &TrainWork, examples: &[Example]) -> NamedTensors {
    let mut inputs = images(spec, examples);
    inputs.extend(words(spec, examples));
    inputs.extend(noises(spec, examples));
    let named = inputs.into_iter();
    named
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .collect()
}

fn images(spec: &TrainWork, examples: &[Example]) -> Vec<(&'static str, Tensor)> {
    let side = i64::from(spec.data.resolution);
    let references = examples.iter().flat_map(|example| &example.references);
    let targets = examples.iter().map(|example| &example.target);
    let images = targets.chain(references.map(|reference| &reference.image));
    let bytes: Vec<u8> = images.flat_map(|it| it.as_raw().iter().copied()).collect();
    let images = Tensor::from_slice(&bytes)
        .view([-1, side, side, 3])
        .permute([0, 3, 1, 2]);
    let mask = |field: fn(&Example) -> &image::GrayImage| {
        let masks = examples.iter().map(field);
        let bytes: Vec<u8> = masks
            .flat_map(|mask| mask.as_raw().iter().copied())
            .collect();
        let mask = Tensor::from_slice(&bytes).view([-1, 1, side, side]);
        mask.to_kind(Kind::Float) / 255.0
    };
    let masks = Masks::at_latents(
        &mask(|example| &example.target_mask),
        &mask(|example| &example.face_mask),
        i64::from(diffusion(spec).autoencoder.factor()),
        diffusion(spec).objective.target_mask_threshold,
    );
    vec![
        ("images", images.to_kind(Kind::Float) / 127.5 - 1.0),
        ("target_mask", masks.target),
        ("face_mask", masks.face),
    ]
}

fn words(spec: &TrainWork, examples: &[Example]) -> Vec<(&'static str, Tensor)> {
    let prompts = Prompts::new(diffusion(spec).text_encoder.tokens);
    let ids = |texts: &[&str]| {
        let ids = texts.iter().flat_map(|text| prompts.ids(text));
        let ids: Vec<f32> = ids.map(|id| id as f32).collect();
        Tensor::from_slice(&ids).view([texts.len() as i64, -1])
    };
    let texts: Vec<&str> = examples
        .iter()
        .map(|example| example.prompt.as_str())
        .collect();
    let references = examples.iter().flat_map(|example| &example.references);
    let concept = |reference: &Reference| CONCEPTS.iter().position(|it| *it == reference.concept);
    let index: Vec<f32> = references
        .map(|reference| concept(reference).unwrap_or_default() as f32)
        .collect();
    vec![
        ("prompt_ids", ids(&texts)),
        ("word_ids", ids(&CONCEPTS.map(Concept::word))),
        ("word_index", Tensor::from_slice(&index)),
    ]
}

fn noises(spec: &TrainWork, examples: &[Example]) -> Vec<(&'static str, Tensor)> {
    let autoencoder = &diffusion(spec).autoencoder;
    let side = i64::from(spec.data.resolution / autoencoder.factor());
    let latent = [i64::from(autoencoder.latent_channels), side, side];
    let seeds: Vec<u64> = examples.iter().map(|example| example.noise_seed).collect();
    let schedule = NoiseSchedule::default();
    let column = |value: &dyn Fn(&Example) -> f64| {
        let values: Vec<f32> = examples.iter().map(|it| value(it) as f32).collect();
        Tensor::from_slice(&values)
    };
    let alpha_sigma = |example: &Example| schedule.alpha_sigma(example.timestep as usize);
    let noise = noise::normal(&seeds, Purpose::Target, &latent, Device::Cpu);
    vec![
        ("noise", noise),
        (
            "signal",
            column(&|it| alpha_sigma(it).0).view([-1, 1, 1, 1]),
        ),
        ("level", column(&|it| alpha_sigma(it).1).view([-1, 1, 1, 1])),
        ("timesteps", column(&|it| f64::from(it.timestep))),
    ]
}

fn describe(spec: &TrainWork, trainer: &Trainer) -> serde_json::Value {
    let trained: usize = trainer.parameters().iter().map(|(_, it)| it.numel()).sum();
    let layout = UNetLayout::from(&diffusion(spec).unet);
    let widths: Vec<i64> = layout
        .input_levels()
        .into_iter()
        .map(|level| layout.widths[level])
        .collect();
    json!({
        "trained": trained,
        "unet": diffusion(spec).unet,
        "widths": widths,
        "autoencoder": diffusion(spec).autoencoder,
        "text_encoder": diffusion(spec).text_encoder,
        "learning_rate": spec.train.learning_rate,
        "memory_bytes": memory("VmRSS:"),
    })
}

fn micro_step(
    trainer: &mut Trainer,
    examples: &[Example],
    step: u64,
) -> Result<serde_json::Value, Box<dyn Error>> {
    let (start, cpu_start) = (Instant::now(), cpu_seconds());
    trainer.zero_gradients();
    let loss = trainer.forward(examples, examples.len() as u32)?;
    let forward = start.elapsed().as_secs_f64();
    loss.loss.f_backward()?;
    let backward = start.elapsed().as_secs_f64();
    trainer.update(step)?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(json!({
        "loss": loss.total,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds() - cpu_start,
        "forward": forward,
        "backward": backward - forward,
        "optimizer": seconds - backward,
        "peak_memory_bytes": memory("VmHWM:"),
    }))
}
