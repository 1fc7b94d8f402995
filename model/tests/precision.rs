//! fp16 and bf16 training on the CPU: loss and gradients close to fp32, loss scaling on overflow,
//! and the same bits after a resume. `worker-rank gpu-check` tests the kernels of a GPU.
#![allow(clippy::unwrap_used)]

mod scene;

use model::trainer::Trainer;
use model::weights::{NamedTensors, digest};
use proto::spec::{Architecture, Precision};
use scene::{examples, job};
use tch::{Device, Kind, Tensor};

fn new(architecture: Architecture, precision: Precision) -> Trainer {
    let mut spec = job(architecture, 0.01);
    spec.train.precision = precision;
    // Keep latents in the range of half precision.
    spec.model
        .architecture
        .autoencoder_mut()
        .unwrap()
        .scaling_factor = 1.0;
    Trainer::new(&spec, None, Device::Cpu).unwrap()
}

fn backward(trainer: &mut Trainer, seed: u64) -> f64 {
    trainer.zero_gradients();
    let loss = trainer.forward(&examples(4, seed), 4).unwrap();
    loss.loss.f_backward().unwrap();
    loss.total
}

fn gradient(trainer: &Trainer, scale: f64) -> Tensor {
    let flats: Vec<Tensor> = trainer
        .parameters()
        .iter()
        .map(|(_, p)| p.grad().to_kind(Kind::Double).flatten(0, -1) / scale)
        .collect();
    Tensor::cat(&flats, 0)
}

fn state(trainer: &Trainer) -> NamedTensors {
    let copied = trainer.state().into_iter();
    copied.map(|(name, tensor)| (name, tensor.copy())).collect()
}

/// Asserts that loss and gradients of every architecture are within relative bounds of fp32's.
fn assert_near_fp32(precision: Precision, scale: f64, loss_bound: f64, gradient_bound: f64) {
    for architecture in [
        Architecture::Autoencoder,
        Architecture::TextToImage,
        Architecture::Retrinet,
    ] {
        let (mut exact, mut rounded) = (
            new(architecture, Precision::Fp32),
            new(architecture, precision),
        );
        // After two updates no weight is zero, so that every gradient is tested.
        for step in 1..=2 {
            backward(&mut exact, step);
            exact.update(step).unwrap();
        }
        let mut weights = state(&rounded);
        weights.extend(state(&exact));
        rounded.load_state(&weights, 2).unwrap();
        let (expected, found) = (backward(&mut exact, 9), backward(&mut rounded, 9));
        assert!(
            (expected - found).abs() < loss_bound * expected,
            "{architecture:?}: loss {expected}, in {precision:?} {found}"
        );
        assert_ne!(expected, found, "{architecture:?}: nothing was rounded");
        let (expected, found) = (gradient(&exact, 1.0), gradient(&rounded, scale));
        let error = ((&found - &expected).norm() / expected.norm()).double_value(&[]);
        assert!(
            error < gradient_bound,
            "{architecture:?} in {precision:?}: {error}"
        );
        assert!(
            rounded
                .parameters()
                .iter()
                .all(|(_, p)| p.kind() == Kind::Float)
        );
    }
}

#[test]
fn fp16_is_near_fp32() {
    assert_near_fp32(Precision::Fp16, 65_536.0, 2e-3, 2e-2);
}

#[test]
fn bf16_is_near_fp32() {
    assert_near_fp32(Precision::Bf16, 1.0, 2e-2, 1e-1);
}

#[test]
fn frozen_weights_are_stored_in_half_precision() {
    let trainer = new(Architecture::Retrinet, Precision::Fp16);
    let files = trainer.export();
    let kind = |file: &str, name: &str| files[file][name].kind();
    assert_eq!(
        kind("unet", "input_blocks.1.0.in_layers.2.weight"),
        Kind::Half
    );
    assert_eq!(
        kind("unet", "input_blocks.1.0.in_layers.0.weight"),
        Kind::Float
    );
    assert_eq!(
        kind("unet", "output_blocks.1.0.in_layers.2.weight"),
        Kind::Float
    );
    assert_eq!(kind("autoencoder", "encoder.conv_in.weight"), Kind::Half);
}

#[test]
fn an_overflow_halves_the_scale_and_changes_no_weight() {
    let mut trainer = new(Architecture::Retrinet, Precision::Fp16);
    backward(&mut trainer, 1);
    assert_eq!(trainer.update(1).unwrap().loss_scale, 65_536.0);
    let before = state(&trainer);
    backward(&mut trainer, 2);
    let _ = trainer.parameters()[3].1.grad().fill_(f64::INFINITY);
    let report = trainer.update(2).unwrap();
    assert_eq!((report.loss_scale, report.skipped_steps), (32_768.0, 1));
    for (name, tensor) in state(&trainer) {
        assert!(
            name.starts_with("guard/") || tensor.equal(&before[&name]),
            "{name}"
        );
    }
    // The scale does not affect the weights: half the scale gives half the gradient and the same
    // norm.
    let norm = |trainer: &mut Trainer| {
        backward(trainer, 3);
        let scaled = gradient(trainer, 1.0).norm().double_value(&[]);
        (scaled, trainer.update(3).unwrap().gradient_norm)
    };
    let mut other = new(Architecture::Retrinet, Precision::Fp16);
    other.load_state(&before, 1).unwrap();
    let (half, whole) = (norm(&mut trainer), norm(&mut other));
    assert!(
        (2.0 * half.0 / whole.0 - 1.0).abs() < 1e-2,
        "{half:?} {whole:?}"
    );
    assert!((half.1 / whole.1 - 1.0).abs() < 1e-2, "{half:?} {whole:?}");
}

#[test]
fn save_load_step_equals_step_in_fp16() {
    let mut straight = new(Architecture::Retrinet, Precision::Fp16);
    backward(&mut straight, 1);
    straight.update(1).unwrap();
    backward(&mut straight, 2);
    let _ = straight.parameters()[0].1.grad().fill_(f64::NAN);
    straight.update(2).unwrap();
    let saved = state(&straight);
    let mut resumed = new(Architecture::Retrinet, Precision::Fp16);
    resumed.load_state(&saved, 2).unwrap();
    for trainer in [&mut straight, &mut resumed] {
        backward(trainer, 3);
        trainer.update(3).unwrap();
    }
    assert_eq!(digest(&state(&straight)), digest(&state(&resumed)));
    assert_ne!(digest(&state(&straight)), digest(&saved));
}

#[test]
fn images_are_sampled_in_fp16() {
    use model::SampleOptions;
    use proto::sample::SampleMethod;
    let mut trainer = new(Architecture::Retrinet, Precision::Fp16);
    let options = SampleOptions {
        method: SampleMethod::Ddim,
        steps: 2,
        guidance: 2.0,
        reference_guidance: 1.0,
        negative_prompt: String::new(),
        seed: 1,
    };
    assert_eq!(trainer.sample(&examples(2, 3), &options).unwrap().len(), 2);
}
