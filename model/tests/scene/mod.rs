//! A tiny job and examples for the tests of this crate.
#![allow(dead_code, reason = "each test file uses a different part")]

use model_data::example::{Concept, Example, Reference};
use proto::spec::{Architecture, Component, TrainWork};

/// A job of size "tiny" at 32 pixels with the architecture's default freezing. A RetriNet has two
/// references.
pub(crate) fn job(architecture: Architecture, learning_rate: f64) -> TrainWork {
    // Tests run in parallel; with one thread each they do not compete for cores.
    tch::set_num_threads(1);
    let name = match architecture {
        Architecture::Autoencoder => "autoencoder",
        Architecture::TextToImage => "text-to-image",
        Architecture::Retrinet => "retrinet",
        Architecture::Clip => "clip",
        Architecture::ControlNet => "controlnet",
        Architecture::IpAdapter => "ip-adapter",
        Architecture::FastComposer => "fastcomposer",
        Architecture::KandinskyPrior => "kandinsky-prior",
        Architecture::KandinskyDecoder => "kandinsky-decoder",
    };
    let references = match architecture {
        Architecture::Autoencoder
        | Architecture::TextToImage
        | Architecture::Clip
        | Architecture::KandinskyPrior => 0,
        Architecture::Retrinet => 2,
        Architecture::ControlNet
        | Architecture::IpAdapter
        | Architecture::FastComposer
        | Architecture::KandinskyDecoder => 1,
    };
    // The job format requires an init for RetriNet; the model itself can start from random weights.
    let (prompt_drop, init) = if architecture == Architecture::Clip {
        (0.0, "")
    } else {
        (0.5, "init = \"file:///none\"\n")
    };
    let text = format!(
        "name = \"scene\"\n[data]\ndataset = \"file:///none\"\nresolution = 32\nreferences = \
        {references}\nprompt_drop = {prompt_drop}\nseed = 5\n\
         [model]\narchitecture = \"{name}\"\nsize = \"tiny\"\n{init}\
         [train]\nsteps = 100\nglobal_batch = 4\nmicro_batch = 4\nlearning_rate = \
        {learning_rate}\nwarmup = 0\n"
    );
    let mut spec = proto::job::parse_training("scene.toml", &text).unwrap();
    // A random autoencoder's latents are small, so scale them up to make images matter.
    if let Some(autoencoder) = spec.model.architecture.autoencoder_mut() {
        autoencoder.scaling_factor = 20.0;
    }
    spec
}

pub(crate) fn frozen(mut spec: TrainWork, freeze: &[Component]) -> TrainWork {
    spec.model.freeze = freeze.to_vec();
    spec
}

/// Different images, words, time steps and noise for each `seed`.
pub(crate) fn examples(count: u64, seed: u64) -> Vec<Example> {
    (0..count).map(|i| example(seed * 100 + i)).collect()
}

fn example(seed: u64) -> Example {
    let concepts = [Concept::Face, Concept::Clothes, Concept::Figure];
    let reference = |n: u64| Reference {
        image: image(seed * 7 + n + 1),
        // The side of the image encoder of size "tiny".
        view: Some(view(seed * 7 + n + 1)),
        concept: concepts[(seed + n) as usize % 3],
        position: seed,
    };
    Example {
        position: seed,
        target: image(seed),
        target_mask: image::GrayImage::from_fn(32, 32, |x, _| {
            image::Luma([if x < 28 { 255 } else { 0 }])
        }),
        face_mask: image::GrayImage::from_fn(32, 32, |x, y| {
            image::Luma([if x < 12 && y < 14 { 255 } else { 0 }])
        }),
        references: (0..2).map(reference).collect(),
        figure_mask: Some(image::GrayImage::from_fn(32, 32, |x, y| {
            image::Luma([if x > 4 && y > 6 { 255 } else { 0 }])
        })),
        target_view: Some(view(seed)),
        references_dropped: false,
        prompt: if seed.is_multiple_of(2) {
            String::new()
        } else {
            format!("1girl, hair_{seed}")
        },
        timestep: (seed * 331 % 1000) as u32,
        noise_seed: seed,
    }
}

fn view(seed: u64) -> image::RgbImage {
    image::imageops::crop_imm(&image(seed), 0, 0, 28, 28).to_image()
}

/// Smooth waves of colour: something an autoencoder can learn.
fn image(seed: u64) -> image::RgbImage {
    let wave =
        |x: u32, step: u64| (f64::from(x) * 0.1 * (1 + seed * step % 5) as f64 + seed as f64).sin();
    let value = |v: f64| ((v + 1.0) * 127.0) as u8;
    image::RgbImage::from_fn(32, 32, |x, y| {
        image::Rgb([value(wave(x, 1)), value(wave(y, 2)), value(wave(x + y, 3))])
    })
}
