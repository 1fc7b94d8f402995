//! Training: models learn, resuming from a checkpoint is bit-exact, micro-batches add up, and
//! invalid input is refused.
#![allow(clippy::unwrap_used)]

mod scene;

use model::SampleOptions;
use model::error::ModelError;
use model::trainer::Trainer;
use model::weights::{NamedTensors, digest};
use model_data::example::Example;
use model_data::prompt::Prompts;
use proto::architecture::{Noise, NoiseKind, Prediction};
use proto::sample::SampleMethod;
use proto::spec::{Architecture, LossWeighting, OnNonfinite};
use scene::{examples, job};
use tch::Device;

fn new(architecture: Architecture, learning_rate: f64) -> Trainer {
    Trainer::new(&job(architecture, learning_rate), None, Device::Cpu).unwrap()
}

/// Runs one step on the examples of `seed`, in micro-batches of `micro`; returns the step's loss.
fn step(trainer: &mut Trainer, step: u64, seed: u64, micro: usize) -> f64 {
    step_on(trainer, step, &examples(4, seed), micro)
}

/// Runs one step on four examples.
fn step_on(trainer: &mut Trainer, step: u64, examples: &[Example], micro: usize) -> f64 {
    trainer.zero_gradients();
    let mut total = 0.0;
    for micro_batch in examples.chunks(micro) {
        let loss = trainer.forward(micro_batch, 4).unwrap();
        loss.loss.f_backward().unwrap();
        total += loss.total;
    }
    trainer.update(step).unwrap();
    total
}

fn options() -> SampleOptions {
    SampleOptions {
        method: SampleMethod::Ddim,
        steps: 2,
        guidance: 1.0,
        reference_guidance: 1.0,
        negative_prompt: String::new(),
        knobs: proto::knobs::Knobs::default(),
        seed: 0,
    }
}

fn state(trainer: &Trainer) -> NamedTensors {
    trainer
        .state()
        .into_iter()
        .map(|(name, tensor)| (name, tensor.copy()))
        .collect()
}

/// Asserts that the loss on one fixed batch falls below `fraction` of its first value.
fn learns(architecture: Architecture, learning_rate: f64, steps: u64, fraction: f64) {
    let mut trainer = new(architecture, learning_rate);
    let losses: Vec<f64> = (1..=steps).map(|s| step(&mut trainer, s, 1, 4)).collect();
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    assert!(
        last < fraction * first,
        "{architecture:?}: {first} -> {last}"
    );
}

#[test]
fn an_autoencoder_learns_a_batch() {
    learns(Architecture::Autoencoder, 0.01, 25, 0.6);
}

#[test]
fn a_text_to_image_model_learns_a_batch() {
    learns(Architecture::TextToImage, 0.01, 25, 0.2);
}

#[test]
fn a_model_that_predicts_v_on_another_schedule_learns_a_batch() {
    let mut spec = job(Architecture::TextToImage, 0.01);
    let diffusion = spec.model.architecture.diffusion_mut().unwrap();
    diffusion.noise = Noise {
        kind: NoiseKind::Cosine,
        prediction: Prediction::V,
        ..Noise::default()
    };
    let mut trainer = Trainer::new(&spec, None, Device::Cpu).unwrap();
    let losses: Vec<f64> = (1..=25).map(|s| step(&mut trainer, s, 1, 4)).collect();
    assert!(losses[24] < 0.3 * losses[0], "{losses:?}");
    let mut plain = new(Architecture::TextToImage, 0.01);
    assert_ne!(step(&mut plain, 1, 1, 4), losses[0]);
}

#[test]
fn time_steps_past_the_end_of_the_job_s_schedule_are_refused() {
    let mut spec = job(Architecture::TextToImage, 0.01);
    spec.model.architecture.diffusion_mut().unwrap().noise.steps = 100;
    let mut trainer = Trainer::new(&spec, None, Device::Cpu).unwrap();
    let mut example = examples(1, 1);
    example[0].timestep = 100;
    let message = trainer.forward(&example, 1).unwrap_err().to_string();
    assert_eq!(
        message,
        "example at position 100: timestep is 100; it must be below 100"
    );
}

#[test]
fn a_validation_is_the_loss_without_weights_by_noise_level_and_leaves_the_state_alone() {
    let weighted = |weighting| {
        let mut spec = job(Architecture::Retrinet, 0.01);
        let diffusion = spec.model.architecture.diffusion_mut().unwrap();
        diffusion.objective.loss_weighting = weighting;
        Trainer::new(&spec, None, Device::Cpu).unwrap()
    };
    let mut plain = weighted(LossWeighting::Epsilon);
    let before = digest(&state(&plain));
    let batch = examples(3, 1);
    let loss = plain.forward(&batch, 1).unwrap();
    let found = plain.validate(&batch).unwrap();
    let names = ["validation", "validation_target", "validation_face"];
    assert_eq!(plain.validation_terms(), names);
    let expected = [&[loss.total], loss.terms.as_slice()].concat();
    for (found, expected) in found.iter().zip(&expected) {
        assert!(
            (found - expected).abs() < 1e-5 * expected,
            "{found} {expected}"
        );
    }
    assert_eq!(plain.validate(&batch).unwrap(), found);
    assert_eq!(digest(&state(&plain)), before);
    let mut noise = weighted(LossWeighting::Noise);
    assert_ne!(noise.forward(&batch, 1).unwrap().total, loss.total);
    for (found, expected) in noise.validate(&batch).unwrap().iter().zip(&found) {
        assert!(
            (found - expected).abs() < 1e-5 * expected,
            "{found} {expected}"
        );
    }
    let timesteps = plain.validation_timesteps();
    assert_eq!(timesteps, [62, 187, 312, 437, 562, 687, 812, 937]);

    let mut autoencoder = new(Architecture::Autoencoder, 0.01);
    assert_eq!(autoencoder.validation_terms(), ["validation"]);
    assert_eq!(autoencoder.validation_timesteps(), [0u32; 0]);
    let loss = autoencoder.forward(&batch, 1).unwrap();
    let [reconstruction] = autoencoder.validate(&batch).unwrap()[..] else {
        panic!("one value")
    };
    assert!((reconstruction - loss.terms[0]).abs() < 1e-5 * reconstruction);
    assert!(reconstruction < loss.total, "without the divergence");
}

#[test]
fn a_retrinet_learns_a_batch() {
    learns(Architecture::Retrinet, 0.01, 25, 0.2);
}

#[test]
fn a_clip_learns_which_prompt_belongs_to_which_image() {
    let mut trainer = new(Architecture::Clip, 0.01);
    assert_eq!(trainer.loss_terms(), ["contrast", "misses"]);
    let mut examples = examples(4, 1);
    let prompts = ["red hair", "a blue dress", "smile", "at night, boots"];
    for (example, prompt) in examples.iter_mut().zip(prompts) {
        example.prompt = prompt.to_owned();
    }
    let first = step_on(&mut trainer, 1, &examples, 4);
    let last = (2..=80)
        .map(|s| step_on(&mut trainer, s, &examples, 4))
        .last()
        .unwrap();
    assert!(last < 0.3 * first, "{first} -> {last}");
    let names = ["validation", "validation_contrast", "validation_misses"];
    assert_eq!(trainer.validation_terms(), names);
    let found = trainer.validate(&examples).unwrap();
    assert_eq!(found[2], 0.0, "each prompt is nearest to its own image");
    assert!(
        (found[0] - found[1]).abs() < 1e-6,
        "misses are not trained on"
    );
    let refused = trainer.sample(&examples[..1], &options()).unwrap_err();
    assert!(
        refused.to_string().contains("sampling of images"),
        "{refused}"
    );
}

#[test]
fn save_load_step_equals_step() {
    for architecture in Architecture::ALL {
        let mut straight = new(architecture, 0.01);
        let mut resumed = new(architecture, 0.01);
        for s in 1..=2 {
            step(&mut straight, s, s, 4);
        }
        let saved = state(&straight);
        step(&mut straight, 3, 3, 4);
        // Different weights and moments, which the checkpoint must replace.
        step(&mut resumed, 1, 40, 4);
        resumed.load_state(&saved, 2).unwrap();
        assert_eq!(resumed.step(), 2);
        step(&mut resumed, 3, 3, 4);
        assert_eq!(
            digest(&state(&straight)),
            digest(&state(&resumed)),
            "{architecture:?}"
        );
        assert_ne!(digest(&state(&straight)), digest(&saved));
    }
}

#[test]
fn micro_batches_of_a_step_add_up() {
    let mut whole = new(Architecture::Retrinet, 0.01);
    let mut parts = new(Architecture::Retrinet, 0.01);
    for seed in [1, 2] {
        let loss = |trainer: &mut Trainer, micro: usize| -> f64 {
            examples(4, seed)
                .chunks(micro)
                .map(|micro_batch| trainer.forward(micro_batch, 4).unwrap().total)
                .sum()
        };
        let (one, four) = (loss(&mut whole, 4), loss(&mut parts, 1));
        assert!((one - four).abs() < 1e-5 * one, "{one} {four}");
    }
}

#[test]
fn the_reported_terms_add_up_to_the_loss() {
    let mut spec = job(Architecture::TextToImage, 0.01);
    let diffusion = spec.model.architecture.diffusion_mut().unwrap();
    diffusion.objective.face_loss_weight = 3.0;
    diffusion.objective.loss_weighting = LossWeighting::Noise;
    let mut trainer = Trainer::new(&spec, None, Device::Cpu).unwrap();
    let loss = trainer.forward(&examples(4, 1), 8).unwrap();
    assert_eq!(trainer.loss_terms(), ["target", "face"]);
    let [target, face] = loss.terms.as_slice() else {
        panic!("two terms: {loss:?}")
    };
    assert!((loss.total - (target + 3.0 * face)).abs() < 1e-6 * loss.total);
    assert!((loss.total - loss.loss.double_value(&[])).abs() < 1e-9);
    assert!(
        *face > 0.0 && face < target,
        "the face is a part of the image"
    );
    let twice = trainer.forward(&examples(4, 1), 4).unwrap();
    assert!((twice.total - 2.0 * loss.total).abs() < 1e-6 * twice.total);
}

#[test]
fn a_bad_gradient_changes_nothing() {
    let mut trainer = new(Architecture::TextToImage, 0.01);
    step(&mut trainer, 1, 1, 4);
    let before = digest(&state(&trainer));
    let (_, parameter) = &trainer.parameters()[3];
    let _ = parameter.grad().fill_(f64::NAN);
    let error = trainer.update(7).unwrap_err();
    assert!(
        matches!(error, ModelError::NonfiniteGradient { .. }),
        "{error}"
    );
    assert_eq!((digest(&state(&trainer)), trainer.step()), (before, 1));
}

#[test]
fn gradients_are_zeroed_in_place() {
    let mut trainer = new(Architecture::TextToImage, 0.01);
    trainer.zero_gradients();
    let held: Vec<_> = trainer.parameters().iter().map(|(_, p)| p.grad()).collect();
    trainer
        .forward(&examples(4, 1), 4)
        .unwrap()
        .loss
        .f_backward()
        .unwrap();
    let norm = |held: &[tch::Tensor]| held.iter().map(|g| g.norm().double_value(&[])).sum::<f64>();
    assert!(norm(&held) > 0.0);
    trainer.zero_gradients();
    assert_eq!(norm(&held), 0.0);
}

#[test]
fn the_same_seed_gives_the_same_model_and_parameters_are_sorted() {
    let (one, two) = (
        new(Architecture::Retrinet, 0.01),
        new(Architecture::Retrinet, 0.01),
    );
    assert_eq!(digest(&state(&one)), digest(&state(&two)));
    assert!(one.parameters().is_sorted_by_key(|(name, _)| name.clone()));
    let mut spec = job(Architecture::Retrinet, 0.01);
    spec.data.seed = 6;
    let other = Trainer::new(&spec, None, Device::Cpu).unwrap();
    assert_ne!(digest(&state(&one)), digest(&state(&other)));
}

#[test]
fn invalid_input_is_refused_with_its_position() {
    let mut trainer = new(Architecture::Retrinet, 0.01);
    let mut batch = examples(2, 1);
    batch[1].references.pop();
    let message = trainer.forward(&batch, 4).unwrap_err().to_string();
    assert_eq!(
        message,
        "example at position 101: number of references is 1; this job needs 2"
    );
    let mut saved = state(&trainer);
    saved.remove("weights/unet.out.2.bias");
    let message = trainer.load_state(&saved, 30).unwrap_err().to_string();
    let expected = "the checkpoint of step 30: tensor \"weights/unet.out.2.bias\" is missing; \
    expected shape [4]";
    assert_eq!(message, expected);
    let none = std::collections::BTreeMap::new();
    let spec = job(Architecture::Retrinet, 0.01);
    let message = Trainer::new(&spec, Some(&none), Device::Cpu)
        .unwrap_err()
        .to_string();
    let expected = "the base weights have no \"autoencoder\"; a retrinet job needs \
    autoencoder.safetensors, \
                    text_encoder.safetensors and unet.safetensors";
    assert_eq!(message, expected);
}

/// A model whose text encoder outputs NaN for every prompt with the first token of "hair".
fn with_nan_token(on_nonfinite: OnNonfinite) -> Trainer {
    let mut spec = job(Architecture::Retrinet, 0.01);
    spec.train.on_nonfinite = on_nonfinite;
    let trainer = Trainer::new(&spec, None, Device::Cpu).unwrap();
    let token = Prompts::new(77).ids("hair")[1];
    let weights = trainer.export();
    let table = &weights["text_encoder"]["text_model.embeddings.token_embedding.weight"];
    let _ = table.get(token).fill_(f64::NAN);
    trainer
}

#[test]
fn a_nonfinite_loss_reports_its_samples_and_sums_the_others() {
    let mut trainer = with_nan_token(OnNonfinite::Stop);
    // Examples 101 and 103 have a prompt, the others have none.
    let loss = trainer.forward(&examples(4, 1), 4).unwrap();
    assert_eq!(loss.nonfinite, [1, 3]);
    let mut finite = new(Architecture::Retrinet, 0.01);
    let expected: f64 = [0, 2]
        .map(|i| finite.forward(&examples(4, 1)[i..=i], 4).unwrap().total)
        .iter()
        .sum();
    assert!((loss.total - expected).abs() < 1e-5 * expected, "{loss:?}");
    let error = trainer.skip(3).unwrap_err();
    assert!(
        matches!(error, ModelError::NonfiniteLoss { skips: 0 }),
        "{error}"
    );
}

#[test]
fn a_skipped_step_changes_nothing_and_is_counted_across_a_resume() {
    let mut trainer = with_nan_token(OnNonfinite::Skip);
    let finite_step = |trainer: &mut Trainer, number| {
        trainer.zero_gradients();
        trainer.forward(&examples(1, 2), 1).unwrap().loss.backward();
        trainer.update(number).unwrap()
    };
    finite_step(&mut trainer, 1);
    let before = state(&trainer);
    trainer.zero_gradients();
    trainer.forward(&examples(4, 1), 4).unwrap().loss.backward();
    let report = trainer.skip(2).unwrap();
    assert_eq!(
        (report.skipped_steps, report.gradient_norm, trainer.step()),
        (1, 0.0, 2)
    );
    // A nonfinite gradient norm has the same effect.
    assert_eq!(trainer.update(3).unwrap().skipped_steps, 2);
    let saved = state(&trainer);
    let changed: Vec<&str> = saved
        .iter()
        .filter(|(name, tensor)| !tensor.equal(&before[*name]))
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(changed, ["guard/skipped", "guard/skipped_in_a_row"]);
    let mut resumed = with_nan_token(OnNonfinite::Skip);
    resumed.load_state(&saved, 3).unwrap();
    assert_eq!(finite_step(&mut trainer, 4).skipped_steps, 2);
    finite_step(&mut resumed, 4);
    assert_eq!(digest(&state(&trainer)), digest(&state(&resumed)));
    // The moments' bias correction counts two updates, not four steps.
    let mut straight = with_nan_token(OnNonfinite::Skip);
    finite_step(&mut straight, 1);
    finite_step(&mut straight, 2);
    let weights = |trainer: &Trainer| {
        let mut state = state(trainer);
        state.retain(|name, _| name.starts_with("weights/"));
        digest(&state)
    };
    assert_eq!(weights(&trainer), weights(&straight));
}

#[test]
fn the_moving_average_follows_the_weights_and_does_not_change_them() {
    let mut spec = job(Architecture::Retrinet, 0.01);
    let mut plain = Trainer::new(&spec, None, Device::Cpu).unwrap();
    spec.train.ema = Some(0.3);
    let mut averaged = Trainer::new(&spec, None, Device::Cpu).unwrap();
    let name = "unet.out.2.weight";
    let weight = |trainer: &Trainer| state(trainer)[&format!("weights/{name}")].copy();
    let mut expected = weight(&averaged);
    for number in 1..=3 {
        step(&mut plain, number, number, 4);
        step(&mut averaged, number, number, 4);
        let n = number as f64;
        let decay = 0.3f64.min((1.0 + n) / (10.0 + n));
        expected = expected * decay + weight(&averaged) * (1.0 - decay);
    }
    let saved = state(&averaged);
    let difference = (&saved[&format!("ema/{name}")] - &expected).abs().max();
    assert!(difference.double_value(&[]) < 1e-6);
    for (name, tensor) in state(&plain) {
        assert!(tensor.equal(&saved[&name]), "{name}");
    }
    // A resumed average continues bit for bit.
    let mut resumed = Trainer::new(&spec, None, Device::Cpu).unwrap();
    resumed.load_state(&saved, 3).unwrap();
    step(&mut averaged, 4, 4, 4);
    step(&mut resumed, 4, 4, 4);
    assert_eq!(digest(&state(&averaged)), digest(&state(&resumed)));
    // Sampling replaces the weights by the average.
    let average = state(&averaged)[&format!("ema/{name}")].copy();
    assert!(!weight(&averaged).equal(&average));
    averaged.take_averages();
    assert!(weight(&averaged).equal(&average));
    let files = averaged.export();
    assert!(files["unet"]["out.2.weight"].equal(&average));
    plain.take_averages();
    assert_eq!(digest(&state(&plain)), {
        let mut same = saved;
        same.retain(|name, _| !name.starts_with("ema/"));
        digest(&same)
    });
}

#[test]
fn cached_latents_change_no_bit() {
    let mut spec = job(Architecture::Retrinet, 0.01);
    let mut plain = Trainer::new(&spec, None, Device::Cpu).unwrap();
    spec.train.latent_cache_mib = 1;
    let mut caching = Trainer::new(&spec, None, Device::Cpu).unwrap();
    // Targets without padding, which recur in every second step in batches of another size.
    let batch = |number: u64| {
        let mut examples = examples(4, number % 2);
        examples.truncate(if number > 4 { 1 } else { 4 });
        for example in examples.iter_mut().skip(number as usize % 2) {
            example.target_mask = image::GrayImage::from_pixel(32, 32, image::Luma([255]));
        }
        examples
    };
    for number in 1..=6 {
        let losses = [&mut plain, &mut caching].map(|trainer| {
            trainer.zero_gradients();
            let loss = trainer.forward(&batch(number), 4).unwrap();
            loss.loss.f_backward().unwrap();
            trainer.update(number).unwrap();
            loss.total.to_bits()
        });
        assert_eq!(losses[0], losses[1], "step {number}");
    }
    assert_eq!(digest(&state(&plain)), digest(&state(&caching)));
}
