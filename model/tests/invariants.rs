//! Invariants of RetriNet that hold for all weights (notes 3.11), and of freezing.
#![allow(clippy::unwrap_used)]

mod scene;

use model::SampleOptions;
use model::trainer::Trainer;
use proto::architecture::Latents;
use proto::sample::SampleMethod;
use proto::spec::{
    Architecture, ArchitectureSpec, Attend, Component, Retrieval, RetrievalTime, TrainWork,
};
use scene::{examples, frozen, job};
use std::collections::BTreeMap;
use tch::{Device, Tensor};

/// The files of a base model that is trained for some steps, because an untrained one outputs zero.
struct Scene {
    _folder: tempfile::TempDir,
    init: BTreeMap<String, std::path::PathBuf>,
}

fn base() -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let mut base = trainer(&job(Architecture::TextToImage, 0.05), None);
    steps(&mut base, 1, 4);
    let mut init = BTreeMap::new();
    for (component, tensors) in base.export() {
        let path = folder.path().join(format!("{component}.safetensors"));
        model::weights::write(&path, &tensors, model::weights::Storage::Float32).unwrap();
        init.insert(component, path);
    }
    Scene {
        _folder: folder,
        init,
    }
}

fn trainer(spec: &TrainWork, scene: Option<&Scene>) -> Trainer {
    // The `init` in the job itself is not used.
    Trainer::new(spec, scene.map(|scene| &scene.init), Device::Cpu).unwrap()
}

fn steps(trainer: &mut Trainer, first: u64, last: u64) {
    for step in first..=last {
        backward(trainer, step);
        trainer.update(step).unwrap();
    }
}

fn backward(trainer: &mut Trainer, seed: u64) -> f64 {
    trainer.zero_gradients();
    let loss = trainer.forward(&examples(4, seed), 4).unwrap();
    loss.loss.f_backward().unwrap();
    loss.total
}

fn gradients(trainer: &Trainer) -> BTreeMap<String, Tensor> {
    trainer
        .parameters()
        .iter()
        .map(|(name, p)| (name.clone(), p.grad().copy()))
        .collect()
}

fn largest(gradients: &BTreeMap<String, Tensor>, prefix: &str) -> f64 {
    let of = gradients
        .iter()
        .filter(|(name, _)| name.starts_with(prefix));
    of.map(|(_, g)| g.abs().max().double_value(&[]))
        .fold(0.0, f64::max)
}

#[test]
fn before_its_first_update_retrinet_is_its_base() {
    let scene = base();
    let mut spec = job(Architecture::TextToImage, 0.01);
    spec.model.freeze = vec![Component::Autoencoder, Component::TextEncoder];
    let mut plain = trainer(&spec, Some(&scene));
    let mut retrinet = trainer(&job(Architecture::Retrinet, 0.01), Some(&scene));
    // 1. the same loss, bit for bit
    assert_eq!(
        backward(&mut plain, 9).to_bits(),
        backward(&mut retrinet, 9).to_bits()
    );
    // 2. the decoder's gradients are the base's; only the zero convolutions depend on references
    let (plain, found) = (gradients(&plain), gradients(&retrinet));
    assert_eq!(largest(&found, "retrieval."), 0.0);
    assert_eq!(largest(&found, "cross_attention."), 0.0);
    assert!(largest(&found, "zero_convs.") > 0.0);
    for (name, gradient) in found
        .iter()
        .filter(|(name, _)| name.starts_with("unet.out"))
    {
        assert!(gradient.equal(&plain[name]), "{name}");
    }
    assert!(largest(&found, "unet.out") > 0.0);
    // 3. encoder, middle, text encoder and autoencoder have no gradients
    let trained = ["retrieval.", "cross_attention.", "zero_convs.", "unet.out"];
    assert!(
        found
            .keys()
            .all(|name| trained.iter().any(|prefix| name.starts_with(prefix)))
    );
}

#[test]
fn other_retrieval_settings_start_as_the_base_and_then_differ() {
    let scene = base();
    let spec = |attend, time| {
        let mut spec = job(Architecture::Retrinet, 0.05);
        let ArchitectureSpec::Retrinet(retrinet) = &mut spec.model.architecture else {
            panic!("the job trains a retrinet")
        };
        retrinet.retrieval = Retrieval { attend, time };
        spec
    };
    let losses = |spec: &TrainWork| {
        let mut retrinet = trainer(spec, Some(&scene));
        let first = backward(&mut retrinet, 9);
        steps(&mut retrinet, 1, 3);
        (first, backward(&mut retrinet, 9))
    };
    let (plain, trained) = losses(&spec(Attend::EveryBlock, RetrievalTime::Target));
    for (attend, time) in [
        (Attend::EveryLevel, RetrievalTime::Target),
        (Attend::EveryBlock, RetrievalTime::Zero),
    ] {
        let (first, later) = losses(&spec(attend, time));
        assert_eq!(first, plain);
        assert_ne!(later, trained, "{attend:?} {time:?}");
    }
    let every_level = trainer(
        &spec(Attend::EveryLevel, RetrievalTime::Target),
        Some(&scene),
    );
    let blocks = every_level
        .parameters()
        .iter()
        .filter(|(name, _)| name.starts_with("zero_convs."));
    assert_eq!(
        blocks.count(),
        2 * 2,
        "weight and bias for each of two levels"
    );
}

#[test]
fn after_one_update_the_retrieval_encoder_learns() {
    let scene = base();
    let mut retrinet = trainer(&job(Architecture::Retrinet, 0.01), Some(&scene));
    steps(&mut retrinet, 1, 1);
    backward(&mut retrinet, 2);
    let found = gradients(&retrinet);
    for prefix in ["retrieval.", "cross_attention.", "zero_convs.", "unet.out"] {
        assert!(largest(&found, prefix) > 0.0, "{prefix}");
    }
}

#[test]
fn the_order_of_references_does_not_matter_but_what_they_show_does() {
    let scene = base();
    let mut retrinet = trainer(&job(Architecture::Retrinet, 0.05), Some(&scene));
    steps(&mut retrinet, 1, 4);
    let batch = examples(4, 50);
    let mut reversed = batch.clone();
    reversed
        .iter_mut()
        .for_each(|example| example.references.reverse());
    let mut others = batch.clone();
    others
        .iter_mut()
        .for_each(|example| example.references = examples(1, 77)[0].references.clone());
    let mut loss = |batch: &[_]| retrinet.forward(batch, 4).unwrap().total;
    let (first, second, third) = (loss(&batch), loss(&reversed), loss(&others));
    assert!((first - second).abs() < 1e-6 * first, "{first} {second}");
    assert!((first - third).abs() > 1e-4 * first, "{first} {third}");
}

#[test]
fn lock_d_and_lock_b_train_what_the_paper_says() {
    use Component::*;
    let scene = base();
    let trained = |freeze: &[Component]| {
        let mut retrinet = trainer(
            &frozen(job(Architecture::Retrinet, 0.01), freeze),
            Some(&scene),
        );
        backward(&mut retrinet, 1);
        let names = retrinet
            .parameters()
            .iter()
            .map(|(name, _)| name.split('.').next().unwrap().to_owned());
        let mut names: Vec<String> = names.collect();
        names.dedup();
        names
    };
    let rest = [Autoencoder, TextEncoder, Encoder, Middle];
    let lock_d: Vec<Component> = rest.into_iter().chain([Decoder]).collect();
    assert_eq!(
        trained(&lock_d),
        ["cross_attention", "retrieval", "zero_convs"]
    );
    let lock_b: Vec<Component> = lock_d.into_iter().chain([RetrievalEncoder]).collect();
    assert_eq!(trained(&lock_b), ["cross_attention", "zero_convs"]);
    let error = Trainer::new(
        &frozen(job(Architecture::Retrinet, 0.1), &[Encoder]),
        None,
        Device::Cpu,
    )
    .unwrap_err();
    let expected =
        "model.freeze is [Encoder]; the noise loss cannot train the autoencoder: freeze it";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn guided_sampling_depends_on_prompt_and_seed_and_not_on_the_target() {
    let scene = base();
    let mut retrinet = trainer(&job(Architecture::Retrinet, 0.01), Some(&scene));
    steps(&mut retrinet, 1, 3);
    let mut batch = examples(1, 3);
    batch[0].prompt = "1girl, blue_hair".into();
    let sample = |trainer: &mut Trainer, batch: &[_], guidance, seed| {
        trainer
            .sample(
                batch,
                &SampleOptions {
                    method: SampleMethod::Ddim,
                    steps: 3,
                    guidance,
                    reference_guidance: 1.0,
                    negative_prompt: String::new(),
                    knobs: proto::knobs::Knobs::default(),
                    seed,
                },
            )
            .unwrap()
    };
    let first = sample(&mut retrinet, &batch, 3.0, 1);
    assert_eq!(
        first,
        sample(&mut retrinet, &batch, 3.0, 1),
        "the same seed gives the same image"
    );
    assert_ne!(first, sample(&mut retrinet, &batch, 3.0, 2), "another seed");
    assert_ne!(
        first,
        sample(&mut retrinet, &batch, 7.0, 1),
        "another guidance"
    );
    let mut target = batch.clone();
    target[0].target = examples(1, 8)[0].target.clone();
    assert_eq!(
        first,
        sample(&mut retrinet, &target, 3.0, 1),
        "the target is not used"
    );
    let mut empty = batch.clone();
    empty[0].prompt = String::new();
    // With an empty prompt both branches are the same, so guidance changes only the rounding.
    let (plain, guided) = (
        sample(&mut retrinet, &empty, 1.0, 1),
        sample(&mut retrinet, &empty, 5.0, 1),
    );
    assert!(largest_difference(&plain[0], &guided[0]) <= 1);
}

fn largest_difference(a: &image::RgbImage, b: &image::RgbImage) -> u8 {
    let pairs = a.as_raw().iter().zip(b.as_raw());
    pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn guidance_by_references_does_nothing_until_they_are_used() {
    let scene = base();
    let mut retrinet = trainer(&job(Architecture::Retrinet, 0.05), Some(&scene));
    let mut batch = examples(1, 3);
    batch[0].prompt = "1girl, blue_hair".into();
    let sample = |trainer: &mut Trainer, reference_guidance| {
        let options = SampleOptions {
            method: SampleMethod::Ddim,
            steps: 3,
            guidance: 2.0,
            reference_guidance,
            negative_prompt: String::new(),
            knobs: proto::knobs::Knobs::default(),
            seed: 1,
        };
        trainer.sample(&batch, &options).unwrap().swap_remove(0)
    };
    // While zero convolutions are zero, references do not change the prediction.
    let (plain, guided) = (sample(&mut retrinet, 1.0), sample(&mut retrinet, 50.0));
    assert!(largest_difference(&plain, &guided) <= 1);
    steps(&mut retrinet, 1, 3);
    let (plain, guided) = (sample(&mut retrinet, 1.0), sample(&mut retrinet, 50.0));
    assert!(largest_difference(&plain, &guided) > 1);
}

#[test]
fn a_retrinet_continues_from_its_own_export() {
    let scene = base();
    let spec = job(Architecture::Retrinet, 0.05);
    let mut trained = trainer(&spec, Some(&scene));
    steps(&mut trained, 1, 3);
    let folder = tempfile::tempdir().unwrap();
    // The files of `coordinator checkpoint export`: three components, and the rest by full name.
    let (mut init, mut rest) = (BTreeMap::new(), BTreeMap::new());
    for (component, tensors) in trained.export() {
        if scene.init.contains_key(&component) {
            let path = folder.path().join(format!("{component}.safetensors"));
            model::weights::write(&path, &tensors, model::weights::Storage::Float32).unwrap();
            init.insert(component, path);
        } else {
            rest.extend(
                tensors
                    .into_iter()
                    .map(|(name, tensor)| (format!("{component}.{name}"), tensor)),
            );
        }
    }
    let path = folder.path().join("retrinet.safetensors");
    model::weights::write(&path, &rest, model::weights::Storage::Float32).unwrap();
    init.insert("retrinet".to_owned(), path);
    let export = Scene {
        _folder: folder,
        init,
    };
    let mut continued = trainer(&spec, Some(&export));
    let expected = backward(&mut trained, 9);
    assert_eq!(backward(&mut continued, 9), expected);
    let mut fresh = trainer(&spec, Some(&scene));
    assert_ne!(backward(&mut fresh, 9), expected);
}

#[test]
fn activation_checkpointing_gives_the_same_bits() {
    use Component::*;
    let scene = base();
    let lock_d = [Autoencoder, TextEncoder, Encoder, Middle, Decoder];
    let all = [
        Encoder,
        Middle,
        Decoder,
        RetrievalEncoder,
        CrossAttention,
        TextEncoder,
    ];
    let default = Architecture::Retrinet.frozen_by_default();
    let cases: [(Architecture, &[Component], &[Component]); 4] = [
        (
            Architecture::Retrinet,
            default,
            &[Decoder, RetrievalEncoder, CrossAttention],
        ),
        (
            Architecture::Retrinet,
            &lock_d,
            &[Decoder, RetrievalEncoder],
        ),
        (Architecture::TextToImage, &[Autoencoder], &all[..3]),
        (Architecture::TextToImage, &[Autoencoder], &all[5..]),
    ];
    for (architecture, freeze, components) in cases {
        let mut spec = frozen(job(architecture, 0.05), freeze);
        let mut plain = trainer(&spec, Some(&scene));
        spec.model.activation_checkpointing = components.to_vec();
        let mut checkpointed = trainer(&spec, Some(&scene));
        for step in 1..=3 {
            // Two micro-batches, to test gradient accumulation.
            let losses = [&mut plain, &mut checkpointed].map(|trainer| {
                trainer.zero_gradients();
                let mut loss = |micro_batch: &[_]| {
                    let loss = trainer.forward(micro_batch, 4).unwrap();
                    loss.loss.f_backward().unwrap();
                    loss.total.to_bits()
                };
                let batch = examples(4, step);
                (loss(&batch[..2]), loss(&batch[2..]))
            });
            assert_eq!(losses[0], losses[1], "{components:?} at step {step}");
            let (expected, found) = (gradients(&plain), gradients(&checkpointed));
            for (name, gradient) in &found {
                assert!(
                    gradient.equal(&expected[name]),
                    "{components:?} at step {step}: {name}"
                );
            }
            assert!(
                found
                    .values()
                    .any(|gradient| gradient.abs().max().double_value(&[]) > 0.0)
            );
            plain.update(step).unwrap();
            checkpointed.update(step).unwrap();
        }
    }
}

#[test]
fn activation_checkpointing_of_an_autoencoder_gives_the_same_bits() {
    let mut spec = job(Architecture::Autoencoder, 0.01);
    let mut plain = trainer(&spec, None);
    spec.model.activation_checkpointing = vec![Component::Autoencoder, Component::Encoder];
    let mut checkpointed = trainer(&spec, None);
    assert_eq!(
        backward(&mut plain, 1).to_bits(),
        backward(&mut checkpointed, 1).to_bits()
    );
    let (expected, found) = (gradients(&plain), gradients(&checkpointed));
    assert!(
        found
            .iter()
            .all(|(name, gradient)| gradient.equal(&expected[name]))
    );
}

#[test]
fn a_frozen_encoder_keeps_latents_while_the_decoder_learns() {
    let mut spec = job(Architecture::Autoencoder, 0.01);
    spec.model.freeze = vec![Component::Encoder];
    let mut trainer = trainer(&spec, None);
    let weights = |trainer: &Trainer| -> BTreeMap<String, Tensor> {
        let all = trainer.export().into_values().flatten();
        all.map(|(name, tensor)| (name, tensor.copy())).collect()
    };
    let before = weights(&trainer);
    steps(&mut trainer, 1, 2);
    for (name, weight) in weights(&trainer) {
        let makes_latents = name.starts_with("encoder.") || name.starts_with("quant_conv.");
        assert_eq!(weight.equal(&before[&name]), makes_latents, "{name}");
    }
}

#[test]
fn dropped_references_train_what_guidance_by_references_subtracts() {
    let scene = base();
    // The decoder is frozen, so that without references the trained RetriNet is still its base.
    let mut spec = job(Architecture::Retrinet, 0.05);
    spec.model.freeze.push(Component::Decoder);
    let mut retrinet = trainer(&spec, Some(&scene));
    steps(&mut retrinet, 1, 4);
    let mut plain_spec = job(Architecture::TextToImage, 0.01);
    plain_spec.model.freeze = vec![Component::Autoencoder, Component::TextEncoder];
    let mut plain = trainer(&plain_spec, Some(&scene));
    let loss = |trainer: &mut Trainer, batch: &[_]| trainer.forward(batch, 4).unwrap().total;
    let batch = examples(4, 50);
    let mut dropped = batch.clone();
    dropped
        .iter_mut()
        .for_each(|example| example.references_dropped = true);
    let base = loss(&mut plain, &batch);
    assert_eq!(
        loss(&mut retrinet, &dropped).to_bits(),
        base.to_bits(),
        "all are dropped"
    );
    let with = loss(&mut retrinet, &batch);
    assert!((with - base).abs() > 1e-4 * base, "{with} {base}");
    // Dropped references teach the retrieval block nothing, but every parameter has a gradient.
    retrinet.zero_gradients();
    let loss = retrinet.forward(&dropped, 4).unwrap();
    loss.loss.f_backward().unwrap();
    for (name, gradient) in gradients(&retrinet) {
        assert!(gradient.defined(), "{name}");
        assert_eq!(gradient.abs().max().double_value(&[]), 0.0, "{name}");
    }
    // Sampling shows references whether or not training would drop them.
    let sample = |trainer: &mut Trainer, batch: &[_]| trainer.sample(batch, &options()).unwrap();
    assert_eq!(
        sample(&mut retrinet, &batch[..1]),
        sample(&mut retrinet, &dropped[..1])
    );
}

fn options() -> SampleOptions {
    SampleOptions {
        method: SampleMethod::Ddim,
        steps: 3,
        guidance: 3.0,
        reference_guidance: 1.0,
        negative_prompt: String::new(),
        knobs: proto::knobs::Knobs::default(),
        seed: 1,
    }
}

#[test]
fn a_negative_prompt_is_what_guidance_leads_away_from() {
    let scene = base();
    for architecture in [Architecture::Retrinet, Architecture::TextToImage] {
        let mut spec = job(architecture, 0.05);
        spec.model.freeze = vec![Component::Autoencoder];
        let mut trainer = trainer(&spec, Some(&scene));
        steps(&mut trainer, 1, 3);
        let mut batch = examples(1, 3);
        batch[0].prompt = "1girl, blue_hair".into();
        let mut sample = |negative: &str, options: SampleOptions| {
            let options = SampleOptions {
                negative_prompt: negative.to_owned(),
                knobs: proto::knobs::Knobs::default(),
                ..options
            };
            trainer.sample(&batch, &options).unwrap().swap_remove(0)
        };
        let strong = SampleOptions {
            // The words of this barely trained model matter little.
            guidance: 2000.0,
            ..options()
        };
        let empty = sample("", strong.clone());
        let hat = sample("hat, 1boy", strong);
        // Away from the prompt itself there is no guidance.
        let unguided = SampleOptions {
            guidance: 1.0,
            ..options()
        };
        let plain = sample("", unguided);
        let same = sample("1girl, blue_hair", options());
        assert!(largest_difference(&plain, &same) <= 1, "{architecture:?}");
        for other in [&plain, &empty] {
            assert!(largest_difference(other, &hat) > 1, "{architecture:?}");
        }
    }
}

#[test]
fn latents_are_sampled_from_the_posterior_only_where_the_job_says_so() {
    let scene = base();
    let with = |latents| {
        let mut spec = job(Architecture::Retrinet, 0.01);
        spec.model.architecture.diffusion_mut().unwrap().latents = latents;
        trainer(&spec, Some(&scene))
    };
    let mut mean = with(Latents::Mean);
    let mut sampled = with(Latents::Sample);
    let loss = |trainer: &mut Trainer, batch: &[_]| trainer.forward(batch, 4).unwrap().total;
    let batch = examples(4, 9);
    let (first, second) = (loss(&mut mean, &batch), loss(&mut sampled, &batch));
    assert!((first - second).abs() > 1e-6 * first, "{first} {second}");
    assert_eq!(second.to_bits(), loss(&mut sampled, &batch).to_bits());
    // A sample of latents depends on its example alone.
    let alone: f64 = (0..4).map(|i| loss(&mut sampled, &batch[i..=i])).sum();
    assert!((alone - second).abs() < 1e-5 * second, "{alone} {second}");
    // Images are sampled from the means of their references.
    let image = |trainer: &mut Trainer| trainer.sample(&batch[..1], &options()).unwrap();
    assert_eq!(image(&mut mean), image(&mut sampled));
}

#[test]
fn cached_posteriors_change_no_bit() {
    let scene = base();
    let with = |cache| {
        let mut spec = job(Architecture::Retrinet, 0.01);
        spec.model.architecture.diffusion_mut().unwrap().latents = Latents::Sample;
        spec.train.latent_cache_mib = cache;
        trainer(&spec, Some(&scene))
    };
    let (mut plain, mut caching) = (with(0), with(1));
    let mut batch = examples(4, 9);
    for example in &mut batch {
        example.target_mask = image::GrayImage::from_pixel(32, 32, image::Luma([255]));
    }
    for epoch in 0..3 {
        for example in &mut batch {
            example.noise_seed += epoch;
        }
        let [a, b] = [&mut plain, &mut caching].map(|it| it.forward(&batch, 4).unwrap().total);
        assert_eq!(a.to_bits(), b.to_bits(), "epoch {epoch}");
    }
}
