//! What holds for ControlNet: its number of parameters, that it begins as its base, what it trains,
//! and its sampling.
#![allow(clippy::unwrap_used)]

mod scene;

use model::SampleOptions;
use model::controlnet::ControlBranch;
use model::init::InitWeights;
use model::parameter::Parameters;
use model::trainer::Trainer;
use model::unet::UNet;
use model::weights::{NamedTensors, Storage, write};
use proto::knobs::Knobs;
use proto::layout::{UNetLayout, hint_widths};
use proto::public::names::diffusers_controlnet;
use proto::sample::SampleMethod;
use proto::spec::{Architecture, Component, TrainWork};
use scene::{examples, frozen, job};
use std::path::Path;
use tch::Device;

#[test]
fn the_branch_has_the_published_number_of_parameters() {
    let layout = UNetLayout::from(&proto::size::named("sd15").unwrap().0);
    let parameters = Parameters::shapes();
    let branch = ControlBranch::new(&parameters.root(), &layout, &hint_widths(8));
    assert_eq!(branch.outputs(), 13);
    assert_eq!(parameters.count(), 361_279_120);
    let sum = |prefix: &str| -> i64 {
        let under = parameters.under(prefix);
        under
            .values()
            .map(|it| it.size().iter().product::<i64>())
            .sum()
    };
    assert_eq!(sum("input_hint_block."), 1_086_480);
    assert_eq!(sum("zero_convs.") + sum("middle_block_out."), 11_479_680);
    // Unlocked, the decoder trains too.
    let unet = Parameters::shapes();
    let _ = UNet::new(&unet.root(), &layout);
    let decoder: i64 = ["output_blocks.", "out."]
        .iter()
        .flat_map(|prefix| unet.under(prefix).into_values())
        .map(|it| it.size().iter().product::<i64>())
        .sum();
    assert_eq!(parameters.count() + decoder as u64, 872_087_124);
}

/// A base model that is trained for some steps, because an untrained one outputs zero.
fn base(folder: &Path) -> InitWeights {
    let mut base = Trainer::new(&job(Architecture::TextToImage, 0.05), None, Device::Cpu).unwrap();
    for step in 1..=3 {
        backward(&mut base, step);
        base.update(step).unwrap();
    }
    save(folder, &base)
}

fn save(folder: &Path, trainer: &Trainer) -> InitWeights {
    let mut init = InitWeights::new();
    for (component, tensors) in trainer.export() {
        let path = folder.join(format!("{component}.safetensors"));
        write(&path, &tensors, Storage::Float32).unwrap();
        init.insert(component, path);
    }
    init
}

fn backward(trainer: &mut Trainer, seed: u64) -> u64 {
    trainer.zero_gradients();
    let loss = trainer.forward(&examples(4, seed), 4).unwrap();
    loss.loss.f_backward().unwrap();
    loss.total.to_bits()
}

fn trainer(spec: &TrainWork, init: &InitWeights) -> Trainer {
    Trainer::new(spec, Some(init), Device::Cpu).unwrap()
}

fn options(knobs: Knobs) -> SampleOptions {
    SampleOptions {
        method: SampleMethod::Ddim,
        steps: 3,
        guidance: 2.0,
        reference_guidance: 1.0,
        negative_prompt: String::new(),
        knobs,
        seed: 3,
    }
}

/// A text-to-image job that computes the loss of the peers: without a pad and a face.
fn plain(learning_rate: f64) -> TrainWork {
    let mut spec = job(Architecture::TextToImage, learning_rate);
    spec.model.freeze = vec![Component::Autoencoder, Component::TextEncoder];
    spec.model.architecture.diffusion_mut().unwrap().latents = proto::architecture::Latents::Sample;
    spec
}

#[test]
fn before_its_first_update_a_controlnet_is_its_base_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let init = base(folder.path());
    let spec = job(Architecture::ControlNet, 0.01);
    let mut control = trainer(&spec, &init);
    // 1. the same images
    let example = examples(1, 5);
    let mut base = trainer(&plain(0.01), &init);
    let expected = base.sample(&example, &options(Knobs::default())).unwrap();
    for knobs in [
        Knobs::default(),
        Knobs {
            guess_mode: Some(true),
            ..Knobs::default()
        },
    ] {
        assert_eq!(control.sample(&example, &options(knobs)).unwrap(), expected);
    }
    // 2. gradients reach only the zero convolutions
    backward(&mut control, 9);
    for (name, parameter) in control.parameters() {
        assert!(name.starts_with("controlnet."), "{name}");
        let is_zero = parameter.grad().abs().max().double_value(&[]) == 0.0;
        let is_output = name.starts_with("controlnet.zero_convs.")
            || name.starts_with("controlnet.middle_block_out.");
        assert_eq!(is_zero, !is_output, "{name}");
    }
    // 3. after one step only they have moved, but for the decay of weights; after two all
    let before = control.export();
    control.update(1).unwrap();
    backward(&mut control, 2);
    let hint = "controlnet.input_hint_block.";
    let moved = control.parameters().iter().filter(|(name, parameter)| {
        name.starts_with(hint) && parameter.grad().abs().max().double_value(&[]) > 0.0
    });
    assert!(moved.count() > 0, "the hint learns after one update");
    assert!(
        before["unet"]
            .iter()
            .all(|(name, tensor)| { control.export()["unet"][name].equal(tensor) })
    );
}

#[test]
fn unlocked_the_decoder_trains_too_and_scales_and_hints_matter() {
    let folder = tempfile::tempdir().unwrap();
    let init = base(folder.path());
    let unlocked = frozen(
        job(Architecture::ControlNet, 0.05),
        &[
            Component::Autoencoder,
            Component::TextEncoder,
            Component::Encoder,
            Component::Middle,
        ],
    );
    let mut control = trainer(&unlocked, &init);
    for step in 1..=4 {
        backward(&mut control, step);
        control.update(step).unwrap();
    }
    let trained: Vec<&str> = control
        .parameters()
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert!(
        trained
            .iter()
            .any(|name| name.starts_with("unet.output_blocks."))
    );
    assert!(
        !trained
            .iter()
            .any(|name| name.starts_with("unet.input_blocks."))
    );
    let example = examples(1, 5);
    let mut sampled =
        |knobs: Knobs, example: &[_]| control.sample(example, &options(knobs)).unwrap().remove(0);
    let scaled = |scales: &[f64]| Knobs {
        control_scales: Some(scales.to_vec()),
        ..Knobs::default()
    };
    let full = sampled(Knobs::default(), &example);
    assert_eq!(sampled(scaled(&[1.0]), &example), full);
    assert_eq!(sampled(scaled(&[1.0; 5]), &example), full);
    let none = sampled(scaled(&[0.0]), &example);
    assert_ne!(none, full);
    let guess = Knobs {
        guess_mode: Some(true),
        ..Knobs::default()
    };
    assert_ne!(sampled(guess, &example), full);
    let mut other = example.clone();
    other[0].references = examples(1, 77)[0].references.clone();
    assert_ne!(sampled(Knobs::default(), &other), full);
    // Without residuals the hint has no effect.
    assert_eq!(sampled(scaled(&[0.0]), &other), none);
    // An image does not depend on the others of its call.
    let both = control
        .sample(
            &[other[0].clone(), example[0].clone()],
            &options(Knobs::default()),
        )
        .unwrap();
    assert_eq!(both[1], full);
}

#[test]
fn a_published_branch_loads_in_every_naming() {
    let folder = tempfile::tempdir().unwrap();
    let init = base(folder.path());
    let spec = job(Architecture::ControlNet, 0.05);
    let mut control = trainer(&spec, &init);
    for step in 1..=2 {
        backward(&mut control, step);
        control.update(step).unwrap();
    }
    let expected = backward(&mut control, 9);
    let branch = control.export().remove("controlnet").unwrap();
    let layout = UNetLayout::from(spec.model.architecture.unet().unwrap());
    let hint = hint_widths(4).len();
    let renamed = |name: &dyn Fn(&str) -> String| -> NamedTensors {
        let all = branch.iter();
        all.map(|(ours, tensor)| (name(ours), tensor.shallow_clone()))
            .collect()
    };
    for tensors in [
        renamed(&|name| name.to_owned()),
        renamed(&|name| format!("control_model.{name}")),
        renamed(&|name| diffusers_controlnet(name, &layout, hint).unwrap()),
    ] {
        let file = folder.path().join("own.safetensors");
        write(&file, &tensors, Storage::Float32).unwrap();
        let mut init = init.clone();
        init.insert("controlnet".to_owned(), file.clone());
        let mut again = trainer(&spec, &init);
        assert_eq!(backward(&mut again, 9), expected);
        // A tensor less is refused by its name in the file.
        let mut fewer = tensors;
        let (name, _) = fewer.pop_last().unwrap();
        write(&file, &fewer, Storage::Float32).unwrap();
        let error = Trainer::new(&spec, Some(&init), Device::Cpu).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains(&format!("own.safetensors: tensor {name:?} is missing")),
            "{error}"
        );
    }
}

#[test]
fn a_hint_of_another_size_and_a_missing_hint_are_refused() {
    let mut control =
        Trainer::new(&job(Architecture::ControlNet, 0.01), None, Device::Cpu).unwrap();
    let mut small = examples(1, 5);
    small[0].references[0].image = image::RgbImage::new(16, 16);
    let error = control.forward(&small, 1).unwrap_err().to_string();
    let expected = "reference is 16x16 pixels; this job works at 32x32 pixels";
    assert!(error.ends_with(expected), "{error}");
    small[0].references.clear();
    let error = control.forward(&small, 1).unwrap_err().to_string();
    assert!(error.contains("number of references is 0"), "{error}");
}
