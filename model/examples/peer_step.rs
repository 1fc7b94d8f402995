//! Our side of the peers' rows of `make bench-model` (tests/bench/peer_step.py): runs and times
//! forward and backward, and the update if asked, of one of the paper's peers for each line on
//! stdin. Exports the weights and inputs that the PyTorch side needs to compute the same. Not part
//! of release builds.
//!
//!     peer_step --architecture NAME --size small|full [--resolution PIXELS] [--threads N]
//!     [--export DIR | --export-inputs DIR] [--update]

mod common;

use common::{cpu_seconds, image, memory, print_json, replace_zeros};
use model::noise::{self, Purpose};
use model::schedule::NoiseSchedule;
use model::trainer::Trainer;
use model::weights::{self, NamedTensors, Storage};
use model_data::example::{Concept, Example, Reference};
use model_data::prompt::Prompts;
use proto::spec::TrainWork;
use serde_json::json;
use std::error::Error;
use std::io::BufRead;
use std::path::Path;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// The tag that FastComposer fuses its object into.
const SUBJECT: &str = "1girl";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let option = |name: &str| {
        let index = arguments.iter().position(|it| it == name)?;
        arguments.get(index + 1).map(String::as_str)
    };
    tch::set_num_threads(option("--threads").unwrap_or("1").parse()?);
    let (spec, count) = job(
        option("--architecture").unwrap_or("controlnet"),
        option("--size").unwrap_or("small"),
        option("--resolution"),
    )?;
    let mut trainer = Trainer::new(&spec, None, Device::Cpu)?;
    replace_zeros(&trainer);
    let examples: Vec<Example> = (0..count).map(|n| example(&spec, n)).collect();
    if let Some(folder) = option("--export") {
        for (component, tensors) in trainer.export() {
            let path = Path::new(folder).join(format!("{component}.safetensors"));
            weights::write(&path, &tensors, Storage::Float32)?;
        }
    }
    if let Some(folder) = option("--export").or(option("--export-inputs")) {
        let path = Path::new(folder).join("inputs.safetensors");
        weights::write(&path, &inputs(&spec, &examples), Storage::Float32)?;
    }
    print_json(&describe(&spec, &trainer))?;
    let update = arguments.iter().any(|it| it == "--update");
    for (line, step) in std::io::stdin().lock().lines().zip(1..) {
        line?;
        let (start, cpu_start) = (Instant::now(), cpu_seconds());
        trainer.zero_gradients();
        let loss = trainer.forward(&examples, count)?;
        loss.loss.f_backward()?;
        if update {
            trainer.update(step)?;
        }
        print_json(&json!({
            "loss": loss.total,
            "seconds": start.elapsed().as_secs_f64(),
            "cpu_seconds": cpu_seconds() - cpu_start,
            "peak_memory_bytes": memory("VmHWM:"),
        }))?;
    }
    Ok(())
}

/// A job of a peer: eight samples at 64 pixels, or one at the published size. Nothing is drawn at
/// random in it: latents are the posterior's mean, and the error counts the whole image.
fn job(
    architecture: &str,
    size: &str,
    resolution: Option<&str>,
) -> Result<(TrainWork, u32), Box<dyn Error>> {
    let published = if architecture.starts_with("kandinsky") {
        "kandinsky-2.2"
    } else {
        "sd15"
    };
    let (size, side, count) = match size {
        "small" => ("small", "64", 8),
        "full" => (published, "256", 1),
        other => return Err(format!("size is {other}; it must be small or full").into()),
    };
    let side = resolution.unwrap_or(side);
    let latents = match architecture {
        "kandinsky-prior" => "",
        _ => "latents = \"mean\"\n",
    };
    let loss = match architecture {
        "fastcomposer" => "mask_loss = 0.0\n",
        _ => "",
    };
    let text = format!(
        "name = \"bench\"\n[data]\ndataset = \"file:///none\"\nresolution = {side}\n[model]\n\
         architecture = \"{architecture}\"\nsize = \"{size}\"\ninit = \"file:///none\"\n{latents}\
         [train]\nsteps = 1000\nglobal_batch = {count}\nmicro_batch = {count}\n\
         learning_rate = 1e-4\nwarmup = 0\nclip = 0.0\n{loss}"
    );
    Ok((
        proto::job::parse_training("the benchmark's job", &text)?,
        count,
    ))
}

fn example(spec: &TrainWork, n: u32) -> Example {
    let side = spec.data.resolution;
    let view = spec.model.architecture.view().map(|view| view.side);
    let view = |seed: u32| view.map(|side| image(side, seed));
    Example {
        position: n.into(),
        target: image(side, n * 8),
        target_mask: image::GrayImage::from_pixel(side, side, image::Luma([255])),
        face_mask: image::GrayImage::new(side, side),
        references: vec![Reference {
            image: image(side, n * 8 + 1),
            view: view(n * 8 + 2),
            concept: Concept::Figure,
            position: n.into(),
        }],
        figure_mask: Some(image::GrayImage::from_fn(side, side, |x, y| {
            image::Luma([if x.max(y) < side / 2 { 255 } else { 0 }])
        })),
        target_view: view(n * 8 + 3),
        references_dropped: false,
        prompt: format!("{SUBJECT}, number_{n}, smile"),
        timestep: 40 + 60 * (n % 16),
        noise_seed: u64::from(n) + 1,
    }
}

/// The examples as input tensors for the PyTorch side; integers are stored as floats.
fn inputs(spec: &TrainWork, examples: &[Example]) -> NamedTensors {
    let job = &spec.model.architecture;
    let mut inputs = NamedTensors::new();
    let mut put = |name: &str, tensor: Tensor| inputs.insert(name.to_owned(), tensor);
    let references = examples.iter().flat_map(|it| &it.references);
    put(
        "images",
        pixels(examples.iter().map(|it| &it.target)) * 2.0 - 1.0,
    );
    put("hints", pixels(references.clone().map(|it| &it.image)));
    let seen: Vec<&image::RgbImage> = match job.references() {
        Some(_) => references.filter_map(|it| it.view.as_ref()).collect(),
        None => examples
            .iter()
            .filter_map(|it| it.target_view.as_ref())
            .collect(),
    };
    if !seen.is_empty() {
        put("views", pixels(seen.into_iter()));
    }
    let side = i64::from(spec.data.resolution);
    let masks: Vec<f32> = examples
        .iter()
        .flat_map(|it| it.figure_mask.iter().flat_map(|mask| mask.iter()))
        .map(|value| f32::from(u8::from(*value >= 128)))
        .collect();
    put(
        "figures",
        Tensor::from_slice(&masks).view([-1, 1, side, side]),
    );
    if let Some(text) = job.text_encoder() {
        let prompts = Prompts::new(text.tokens);
        let ids = examples.iter().flat_map(|it| prompts.ids(&it.prompt));
        let ids: Vec<f32> = ids.map(|id| id as f32).collect();
        put(
            "prompt_ids",
            Tensor::from_slice(&ids).view([examples.len() as i64, -1]),
        );
        let subjects = [SUBJECT.to_owned()];
        let at = |it: &Example| prompts.subject_ids(&it.prompt, &subjects).1.unwrap_or(0) as f32;
        put(
            "subject",
            Tensor::from_slice(&examples.iter().map(at).collect::<Vec<_>>()),
        );
    }
    let shape = match job.autoencoder() {
        Some(it) => {
            let cells = side / i64::from(it.factor());
            vec![i64::from(it.latent_channels), cells, cells]
        }
        None => vec![job.image_encoder().map_or(0, |it| it.projection.into())],
    };
    let seeds: Vec<u64> = examples.iter().map(|it| it.noise_seed).collect();
    put(
        "noise",
        noise::normal(&seeds, Purpose::Target, &shape, Device::Cpu),
    );
    let schedule = NoiseSchedule::new(&job.noise().unwrap_or_default());
    let column = |value: &dyn Fn(&Example) -> f64| {
        let values: Vec<f32> = examples.iter().map(|it| value(it) as f32).collect();
        let ones = vec![1; shape.len()];
        Tensor::from_slice(&values).view([&[-1][..], &ones].concat().as_slice())
    };
    let of = |it: &Example| schedule.alpha_sigma(it.timestep as usize);
    put("signal", column(&|it| of(it).0));
    put("level", column(&|it| of(it).1));
    put("timesteps", column(&|it| it.timestep.into()).flatten(0, -1));
    inputs
}

/// Images as [B, 3, S, S] in [0, 1].
fn pixels<'a>(images: impl Iterator<Item = &'a image::RgbImage>) -> Tensor {
    let (mut bytes, mut side) = (Vec::new(), 0);
    for image in images {
        side = i64::from(image.width());
        bytes.extend_from_slice(image.as_raw());
    }
    let pixels = Tensor::from_slice(&bytes).view([-1, side, side, 3]);
    pixels
        .permute([0, 3, 1, 2])
        .contiguous()
        .to_kind(Kind::Float)
        / 255.0
}

fn describe(spec: &TrainWork, trainer: &Trainer) -> serde_json::Value {
    let job = &spec.model.architecture;
    let trained: usize = trainer.parameters().iter().map(|(_, it)| it.numel()).sum();
    let proto::spec::Optimizer::AdamW { weight_decay, .. } = spec.train.optimizer;
    json!({
        "trained": trained,
        "unet": job.unet(),
        "autoencoder": job.autoencoder(),
        "text_encoder": job.text_encoder(),
        "image_encoder": job.image_encoder(),
        "prior": job.prior(),
        "learning_rate": spec.train.learning_rate,
        "weight_decay": weight_decay,
        "localization": 1e-3,
        "memory_bytes": memory("VmRSS:"),
    })
}
