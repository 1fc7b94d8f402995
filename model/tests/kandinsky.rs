//! What holds for Kandinsky: its numbers of parameters, what it trains, that its variant of the
//! shape of SD 1.5 begins with its base's U-Net, drops, and sampling with and without a prior.
#![allow(clippy::unwrap_used)]

mod scene;

use model::SampleOptions;
use model::init::InitWeights;
use model::kandinsky_decoder::ImageUNet;
use model::kandinsky_prior::Prior;
use model::movq::Movq;
use model::parameter::Parameters;
use model::text::TextEncoder;
use model::trainer::Trainer;
use model::vision::ImageEncoder;
use model::weights::{Storage, write};
use proto::knobs::Knobs;
use proto::layout::ImageLayout;
use proto::sample::SampleMethod;
use proto::spec::{Architecture, TrainWork};
use scene::{examples, job};
use std::path::Path;
use tch::Device;

/// The job at the published size.
fn full(architecture: &str) -> TrainWork {
    let text = format!(
        "name = \"a\"\n[data]\ndataset = \"file:///none\"\nresolution = 256\n[model]\n\
         architecture = \"{architecture}\"\nsize = \"kandinsky-2.2\"\ninit = \"file:///none\"\n\
         [train]\nsteps = 4\nglobal_batch = 1\nmicro_batch = 1\n"
    );
    proto::job::parse_training("job.toml", &text).unwrap()
}

fn sum(parameters: &Parameters, prefix: &str) -> i64 {
    let under = parameters.under(prefix);
    under
        .values()
        .map(|it| it.size().iter().product::<i64>())
        .sum()
}

#[test]
fn the_networks_have_the_published_numbers_of_parameters() {
    let spec = full("kandinsky-prior");
    let job = &spec.model.architecture;
    let (text, image) = (job.text_encoder().unwrap(), job.image_encoder().unwrap());
    let parameters = Parameters::shapes();
    let _ = Prior::new(
        &parameters.root(),
        &job.prior().unwrap().layout(text, &image),
    );
    let statistics = sum(&parameters, "clip_mean") + sum(&parameters, "clip_std");
    assert_eq!(statistics, 2_560);
    assert_eq!(parameters.count() as i64 - statistics, 1_026_223_360);
    let parameters = Parameters::shapes();
    let _ = ImageEncoder::new(&parameters.root(), &ImageLayout::from(&image));
    assert_eq!(parameters.count(), 1_844_907_264);
    let parameters = Parameters::shapes();
    let layout = job.prior().unwrap().text_layout(text, &image);
    let _ = TextEncoder::new(&parameters.root(), &layout);
    assert_eq!(parameters.count(), 694_659_840);
    // The decoder.
    let spec = full("kandinsky-decoder");
    let job = spec.model.architecture.kandinsky().unwrap();
    let parameters = Parameters::shapes();
    let _ = ImageUNet::new(&parameters.root(), &job.unet_layout());
    assert_eq!(parameters.count(), 1_253_057_288);
    let under = |prefix| sum(&parameters, prefix);
    assert_eq!(under("down_blocks."), 376_944_768);
    assert_eq!(under("mid_block."), 106_205_184);
    assert_eq!(under("up_blocks."), 733_458_432);
    assert_eq!(under("encoder_hid_proj."), 31_483_392);
    assert_eq!(under("add_embedding."), 1_970_688);
    let parameters = Parameters::shapes();
    let _ = Movq::new(&parameters.root(), &job.movq_layout());
    let size = |name: &str| parameters.tensors()[name].size();
    assert_eq!(size("quantize.embedding.weight"), [16_384, 4]);
    assert_eq!(
        size("decoder.up_blocks.0.attentions.2.spatial_norm.conv_y.weight"),
        [512, 4, 1, 1]
    );
}

fn trainer(spec: &TrainWork, init: Option<&InitWeights>) -> Trainer {
    Trainer::new(spec, init, Device::Cpu).unwrap()
}

fn save(folder: &Path, trainer: &Trainer, init: &mut InitWeights) {
    for (component, tensors) in trainer.export() {
        let path = folder.join(format!("{component}.safetensors"));
        write(&path, &tensors, Storage::Float32).unwrap();
        init.insert(component, path);
    }
}

fn backward(trainer: &mut Trainer, seed: u64) -> f64 {
    trainer.zero_gradients();
    let loss = trainer.forward(&examples(4, seed), 4).unwrap();
    loss.loss.f_backward().unwrap();
    loss.total
}

#[test]
fn a_prior_learns_its_targets_embeddings_and_never_reads_a_reference() {
    let spec = job(Architecture::KandinskyPrior, 0.005);
    let mut prior = trainer(&spec, None);
    let first = backward(&mut prior, 3);
    for (name, parameter) in prior.parameters() {
        assert!(
            name.starts_with("prior.") && !name.starts_with("prior.clip_"),
            "{name}"
        );
        let largest = parameter.grad().abs().max().double_value(&[]);
        assert!(largest > 0.0, "{name}: {largest}");
    }
    let mut others = examples(4, 3);
    for (example, other) in others.iter_mut().zip(examples(4, 77)) {
        example.references = other.references;
    }
    let loss = prior.forward(&others, 4).unwrap().total;
    assert_eq!(loss.to_bits(), first.to_bits());
    for step in 1..=30 {
        backward(&mut prior, 3);
        prior.update(step).unwrap();
    }
    let last = prior.forward(&examples(4, 3), 4).unwrap().total;
    assert!(last < 0.7 * first, "{first} to {last}");
    let error = prior.sample(&examples(1, 3), &options(Knobs::default()));
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("a kandinsky-decoder draws its embeddings"),
        "{error}"
    );
}

fn options(knobs: Knobs) -> SampleOptions {
    SampleOptions {
        method: SampleMethod::Ddpm,
        steps: 4,
        guidance: 2.0,
        reference_guidance: 1.0,
        negative_prompt: String::new(),
        knobs,
        seed: 3,
    }
}

fn strength(strength: f64) -> Knobs {
    Knobs {
        prior_strength: Some(strength),
        ..Knobs::default()
    }
}

/// A job of the variant of SD 1.5's shape.
fn unclip(learning_rate: f64) -> TrainWork {
    let text = format!(
        "name = \"a\"\n[data]\ndataset = \"file:///none\"\nresolution = 32\nseed = 5\n[model]\n\
         architecture = \"kandinsky-decoder\"\nsize = \"tiny\"\nvariant = \"unclip-sd15\"\n\
         init = \"file:///none\"\n[train]\nsteps = 100\nglobal_batch = 4\nmicro_batch = 4\n\
         learning_rate = {learning_rate}\nwarmup = 0\n"
    );
    proto::job::parse_training("job.toml", &text).unwrap()
}

#[test]
fn a_decoder_draws_its_reference_and_trains_all_of_its_unet() {
    for spec in [job(Architecture::KandinskyDecoder, 0.01), unclip(0.01)] {
        let mut decoder = trainer(&spec, None);
        backward(&mut decoder, 3);
        for (name, parameter) in decoder.parameters() {
            assert!(
                name.starts_with("unet.") || name.starts_with("unclip."),
                "{name}"
            );
            assert!(parameter.grad().defined(), "{name}");
        }
        for step in 1..=4 {
            backward(&mut decoder, step);
            decoder.update(step).unwrap();
        }
        let example = examples(1, 5);
        let mut other = example.clone();
        other[0].references = examples(1, 77)[0].references.clone();
        let mut sample = |example: &[_]| decoder.sample(example, &options(Knobs::default()));
        let image = sample(&example).unwrap().remove(0);
        assert_ne!(sample(&other).unwrap()[0], image);
        // The prompt has no effect without a prior.
        let mut prompted = example.clone();
        prompted[0].prompt = "1girl, red_hair".to_owned();
        assert_eq!(sample(&prompted).unwrap()[0], image);
        // An image does not depend on the others of its call.
        let both = sample(&[other[0].clone(), example[0].clone()]).unwrap();
        assert_eq!(both[1], image);
        // A dropped reference is the embedding of nothing.
        let mut dropped = examples(2, 9);
        dropped
            .iter_mut()
            .for_each(|it| it.references_dropped = true);
        let loss = decoder.forward(&dropped, 2).unwrap().total;
        for (example, of) in dropped.iter_mut().zip(examples(2, 80)) {
            example.references = of.references;
        }
        let again = decoder.forward(&dropped, 2).unwrap().total;
        assert_eq!(loss.to_bits(), again.to_bits());
    }
}

#[test]
fn the_variant_of_sd_15_s_shape_begins_with_its_base_s_unet() {
    let folder = tempfile::tempdir().unwrap();
    let mut init = InitWeights::new();
    let base = trainer(&job(Architecture::TextToImage, 0.05), None);
    save(folder.path(), &base, &mut init);
    let tower = trainer(&unclip(0.01), None).export();
    let path = folder.path().join("image_encoder.safetensors");
    write(&path, &tower["image_encoder"], Storage::Float32).unwrap();
    init.insert("image_encoder".to_owned(), path);
    let decoder = trainer(&unclip(0.01), Some(&init)).export();
    for (name, tensor) in &base.export()["unet"] {
        assert!(decoder["unet"][name].equal(tensor), "{name}");
    }
    let norm = &decoder["unclip"]["add_embedding.image_norm.weight"];
    assert_eq!(norm.abs().max().double_value(&[]), 0.0);
}

#[test]
fn a_prior_moves_the_reference_s_embedding_towards_the_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let mut init = InitWeights::new();
    let mut decoder = trainer(&job(Architecture::KandinskyDecoder, 0.05), None);
    for step in 1..=4 {
        backward(&mut decoder, step);
        decoder.update(step).unwrap();
    }
    save(folder.path(), &decoder, &mut init);
    let mut with_prior = job(Architecture::KandinskyDecoder, 0.05);
    with_prior
        .model
        .architecture
        .prepare_for_sampling(&strength(0.2));
    // 1. without a prior among the base weights
    let error = Trainer::new(&with_prior, Some(&init), Device::Cpu).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("text_encoder") || error.contains("prior"),
        "{error}"
    );
    // 2. with one, whose embeddings have a mean
    let prior = trainer(&job(Architecture::KandinskyPrior, 0.05), None);
    let mut parts = prior.export();
    let mut mean = parts["prior"]["clip_mean"].shallow_clone();
    let _ = mean.fill_(0.5);
    for component in ["prior", "text_encoder"] {
        let path = folder.path().join(format!("{component}.safetensors"));
        write(&path, &parts.remove(component).unwrap(), Storage::Float32).unwrap();
        init.insert(component.to_owned(), path);
    }
    let mut plain = trainer(&job(Architecture::KandinskyDecoder, 0.05), Some(&init));
    let mut decoder = trainer(&with_prior, Some(&init));
    // The digest of base weights is the same for training and for images.
    assert_eq!(decoder.init_digest(), plain.init_digest());
    assert_eq!(decoder.parameters().len(), plain.parameters().len());
    let mut example = examples(1, 5);
    example[0].prompt = "1girl, red_hair".to_owned();
    let unmoved = decoder
        .sample(&example, &options(Knobs::default()))
        .unwrap();
    assert_eq!(
        plain.sample(&example, &options(Knobs::default())).unwrap(),
        unmoved
    );
    let tenth = decoder.sample(&example, &options(strength(0.1))).unwrap();
    let fifth = decoder.sample(&example, &options(strength(0.2))).unwrap();
    assert!(tenth != unmoved && fifth != tenth);
    let whitened = Knobs {
        prior_whitened: Some(true),
        ..strength(0.2)
    };
    assert_ne!(decoder.sample(&example, &options(whitened)).unwrap(), fifth);
    let again = decoder.sample(&example, &options(strength(0.2))).unwrap();
    assert_eq!(again, fifth, "the same seed gives the same image");
    let mut other = example.clone();
    other[0].prompt = "1boy, hat".to_owned();
    let moved = decoder.sample(&other, &options(strength(1.0))).unwrap();
    assert_ne!(
        decoder.sample(&example, &options(strength(1.0))).unwrap(),
        moved
    );
}
