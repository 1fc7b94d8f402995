//! What holds for IP-Adapter and FastComposer: their numbers of parameters, what they train, what
//! IP-Adapter is at scale 0, drops, and sampling.
#![allow(clippy::unwrap_used)]

mod scene;

use model::SampleOptions;
use model::fastcomposer::Fusion;
use model::init::InitWeights;
use model::ip_adapter::Adapter;
use model::parameter::Parameters;
use model::trainer::Trainer;
use model::unet::{Columns, UNet, transformer_names, transformer_widths};
use model::vision::ImageEncoder;
use model::weights::{NamedTensors, Storage, write};
use proto::knobs::Knobs;
use proto::layout::{ImageLayout, UNetLayout};
use proto::public::names::{diffusers_autoencoder, diffusers_unet};
use proto::sample::SampleMethod;
use proto::spec::{Architecture, ArchitectureSpec, TrainWork};
use scene::{examples, job};
use std::path::Path;
use tch::{Device, Tensor};

/// The job of a peer at the size of SD 1.5.
fn full(architecture: &str) -> TrainWork {
    let text = format!(
        "name = \"a\"\n[data]\ndataset = \"file:///none\"\nresolution = 256\n[model]\n\
         architecture = \"{architecture}\"\nsize = \"sd15\"\ninit = \"file:///none\"\n[train]\n\
         steps = 4\nglobal_batch = 1\nmicro_batch = 1\n"
    );
    proto::job::parse("job.toml", &text, None)
        .unwrap()
        .training()
        .unwrap()
        .clone()
}

fn sum(parameters: &Parameters, prefix: &str) -> i64 {
    let under = parameters.under(prefix);
    under
        .values()
        .map(|it| it.size().iter().product::<i64>())
        .sum()
}

#[test]
fn ip_adapter_has_the_published_number_of_parameters() {
    let spec = full("ip-adapter");
    let layout = UNetLayout::from(spec.model.architecture.unet().unwrap());
    let image = ImageLayout::from(&spec.model.architecture.image_encoder().unwrap());
    let parameters = Parameters::shapes();
    let _ = Adapter::new(&parameters.root(), &layout, image.projection);
    assert_eq!(sum(&parameters, "image_proj."), 3_150_336);
    assert_eq!(sum(&parameters, "ip_adapter."), 19_169_280);
    assert_eq!(parameters.count(), 22_319_616);
    let parameters = Parameters::shapes();
    let _ = ImageEncoder::new(&parameters.root(), &image);
    assert_eq!(parameters.count(), 632_076_800);
}

#[test]
fn fastcomposer_trains_the_published_number_of_parameters() {
    let spec = full("fastcomposer");
    let layout = UNetLayout::from(spec.model.architecture.unet().unwrap());
    let image = ImageLayout::from(&spec.model.architecture.image_encoder().unwrap());
    let (unet, fusion, tower) = (
        Parameters::shapes(),
        Parameters::shapes(),
        Parameters::shapes(),
    );
    let _ = UNet::new(&unet.root(), &layout);
    let _ = Fusion::new(&fusion.root(), 768);
    let _ = ImageEncoder::new(&tower.root(), &image);
    assert_eq!(fusion.count(), 2_958_336);
    let end = sum(&tower, "vision_model.encoder.layers.22.")
        + sum(&tower, "vision_model.encoder.layers.23.");
    assert_eq!(end, 2 * 12_596_224);
    assert_eq!(unet.count() + fusion.count() + end as u64, 887_671_748);
    // The localisation reads 11 of 16 attentions.
    let columns = Columns::below_first_level(Tensor::from_slice(&[0i64]), &layout);
    assert_eq!(format!("{columns:?}").matches("true").count(), 11);
}

#[test]
fn transformers_have_one_name_each() {
    let layout = UNetLayout::from(&proto::size::named("sd15").unwrap().0);
    let names = transformer_names(&layout);
    assert_eq!(names.len(), transformer_widths(&layout).len());
    assert_eq!(names[0], "input_blocks.1.1.");
    assert_eq!(
        names[5..8],
        ["input_blocks.8.1.", "middle_block.1.", "output_blocks.3.1."]
    );
    assert_eq!(names[15], "output_blocks.11.1.");
}

fn backward(trainer: &mut Trainer, seed: u64) -> u64 {
    trainer.zero_gradients();
    let loss = trainer.forward(&examples(4, seed), 4).unwrap();
    loss.loss.f_backward().unwrap();
    loss.total.to_bits()
}

/// A base model that is trained for some steps, with an image encoder.
fn base(folder: &Path, architecture: Architecture) -> InitWeights {
    let mut base = Trainer::new(&job(Architecture::TextToImage, 0.05), None, Device::Cpu).unwrap();
    for step in 1..=3 {
        backward(&mut base, step);
        base.update(step).unwrap();
    }
    let mut parts = base.export();
    let mut peer = Trainer::new(&job(architecture, 0.05), None, Device::Cpu)
        .unwrap()
        .export();
    parts.insert(
        "image_encoder".into(),
        peer.remove("image_encoder").unwrap(),
    );
    let mut init = InitWeights::new();
    for (component, tensors) in parts {
        let path = folder.join(format!("{component}.safetensors"));
        write(&path, &tensors, Storage::Float32).unwrap();
        init.insert(component, path);
    }
    init
}

fn options(knobs: Knobs) -> SampleOptions {
    SampleOptions {
        method: SampleMethod::Ddim,
        steps: 4,
        guidance: 2.0,
        reference_guidance: 1.0,
        negative_prompt: String::new(),
        knobs,
        seed: 3,
    }
}

fn scale(scale: f64) -> Knobs {
    Knobs {
        image_scale: Some(scale),
        ..Knobs::default()
    }
}

#[test]
fn an_ip_adapter_at_scale_0_is_its_base_bit_for_bit_and_only_the_adapter_trains() {
    let folder = tempfile::tempdir().unwrap();
    let init = base(folder.path(), Architecture::IpAdapter);
    let spec = job(Architecture::IpAdapter, 0.05);
    let mut adapter = Trainer::new(&spec, Some(&init), Device::Cpu).unwrap();
    // Keys and values begin as those of the text.
    let parts = adapter.export();
    let layout = UNetLayout::from(spec.model.architecture.unet().unwrap());
    for (transformer, name) in transformer_names(&layout).iter().enumerate() {
        let number = proto::public::names::ip_adapter_number(transformer, &layout);
        let text = &parts["unet"][&format!("{name}transformer_blocks.0.attn2.to_k.weight")];
        let own = &parts["ip_adapter"][&format!("ip_adapter.{number}.to_k_ip.weight")];
        assert!(text.equal(own), "{name}");
    }
    for step in 1..=3 {
        backward(&mut adapter, step);
        adapter.update(step).unwrap();
    }
    let mut trained = adapter.parameters().iter();
    assert!(trained.all(|(name, _)| name.starts_with("ip_adapter.")));
    for (name, parameter) in adapter.parameters() {
        assert!(
            parameter.grad().abs().max().double_value(&[]) > 0.0,
            "{name}"
        );
    }
    let mut plain = Trainer::new(
        &job(Architecture::TextToImage, 0.05),
        Some(&init),
        Device::Cpu,
    )
    .unwrap();
    let example = examples(1, 5);
    let expected = plain.sample(&example, &options(Knobs::default())).unwrap();
    assert_eq!(
        adapter.sample(&example, &options(scale(0.0))).unwrap(),
        expected
    );
    let full = adapter
        .sample(&example, &options(Knobs::default()))
        .unwrap();
    assert_ne!(full, expected);
    assert_eq!(
        adapter.sample(&example, &options(scale(1.0))).unwrap(),
        full
    );
    // An image does not depend on the others of its call.
    let mut shuffled = examples(2, 40);
    shuffled.push(example[0].clone());
    let all = adapter
        .sample(&shuffled, &options(Knobs::default()))
        .unwrap();
    assert_eq!(all[2], full[0]);
    // More references are more tokens; other references give another image.
    let mut one = example.clone();
    one[0].references.truncate(1);
    assert_ne!(
        adapter.sample(&one, &options(Knobs::default())).unwrap(),
        full
    );
    let mut other = example.clone();
    other[0].references = examples(1, 77)[0].references.clone();
    assert_ne!(
        adapter.sample(&other, &options(Knobs::default())).unwrap(),
        full
    );
}

#[test]
fn a_dropped_reference_of_an_ip_adapter_is_a_zero_embedding() {
    let folder = tempfile::tempdir().unwrap();
    let init = base(folder.path(), Architecture::IpAdapter);
    let spec = job(Architecture::IpAdapter, 0.05);
    let mut adapter = Trainer::new(&spec, Some(&init), Device::Cpu).unwrap();
    let mut loss = |seed: u64, dropped: bool| {
        let mut batch = examples(2, 5);
        for example in &mut batch {
            example.references = examples(1, seed)[0].references.clone();
            example.references_dropped = dropped;
        }
        adapter.forward(&batch, 2).unwrap().total
    };
    assert_ne!(loss(1, false), loss(2, false));
    assert_eq!(loss(1, true), loss(2, true));
    assert_ne!(loss(1, false), loss(1, true));
}

#[test]
fn published_adapters_load_and_other_kinds_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut init = base(folder.path(), Architecture::IpAdapter);
    let spec = job(Architecture::IpAdapter, 0.05);
    let mut adapter = Trainer::new(&spec, Some(&init), Device::Cpu).unwrap();
    backward(&mut adapter, 1);
    adapter.update(1).unwrap();
    let expected = backward(&mut adapter, 9);
    let own = adapter.export().remove("ip_adapter").unwrap();
    let file = folder.path().join("own.safetensors");
    init.insert("ip_adapter".to_owned(), file.clone());
    let renamed = |name: &dyn Fn(&str) -> String| -> NamedTensors {
        let all = own.iter();
        all.map(|(ours, tensor)| (name(ours), tensor.shallow_clone()))
            .collect()
    };
    let training = |name: &str| match name.split_once('.').unwrap() {
        ("image_proj", rest) => format!("image_proj_model.{rest}"),
        (_, rest) => format!("adapter_modules.{rest}"),
    };
    let mut checkpoint = renamed(&training);
    checkpoint.insert("unet.conv_in.bias".to_owned(), Tensor::from_slice(&[1f32]));
    for tensors in [renamed(&|name| name.to_owned()), checkpoint] {
        write(&file, &tensors, Storage::Float32).unwrap();
        let mut again = Trainer::new(&spec, Some(&init), Device::Cpu).unwrap();
        assert_eq!(backward(&mut again, 9), expected);
    }
    let mut plus = renamed(&|name| name.to_owned());
    plus.insert("image_proj.latents".to_owned(), Tensor::from_slice(&[1f32]));
    write(&file, &plus, Storage::Float32).unwrap();
    let error = Trainer::new(&spec, Some(&init), Device::Cpu)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("own.safetensors: it is an IP-Adapter of the kind \"plus\""),
        "{error}"
    );
}

#[test]
fn fastcomposer_trains_what_its_authors_train_and_its_terms_count() {
    let folder = tempfile::tempdir().unwrap();
    let init = base(folder.path(), Architecture::FastComposer);
    let spec = job(Architecture::FastComposer, 0.01);
    let mut trainer = Trainer::new(&spec, Some(&init), Device::Cpu).unwrap();
    backward(&mut trainer, 1);
    let prefixes = [
        "image_encoder.vision_model.encoder.layers.1.",
        "image_encoder.vision_model.encoder.layers.2.",
        "postfuse_module.",
        "unet.",
    ];
    for prefix in prefixes {
        let mut of = trainer
            .parameters()
            .iter()
            .filter(|(name, _)| name.starts_with(prefix));
        let moved = of.any(|(_, p)| p.grad().abs().max().double_value(&[]) > 0.0);
        assert!(moved, "{prefix}");
    }
    for (name, _) in trainer.parameters() {
        assert!(
            prefixes.iter().any(|prefix| name.starts_with(prefix)),
            "{name}"
        );
    }
    // Localisation has its weight, and a mask its effect.
    let with = |change: &dyn Fn(&mut proto::architecture::FastComposer)| {
        let mut spec = spec.clone();
        let ArchitectureSpec::FastComposer(it) = &mut spec.model.architecture else {
            panic!("the job trains a fastcomposer")
        };
        change(it);
        let mut trainer = Trainer::new(&spec, Some(&init), Device::Cpu).unwrap();
        let loss = trainer.forward(&examples(4, 1), 4).unwrap();
        (loss.total, loss.terms)
    };
    let (plain, terms) = with(&|it| (it.mask_loss, it.localization) = (0.0, 0.0));
    assert!((plain - terms[0]).abs() < 1e-7 && terms[1] != 0.0);
    let (heavy, _) = with(&|it| (it.mask_loss, it.localization) = (0.0, 0.5));
    assert!((heavy - plain - 0.5 * terms[1]).abs() < 1e-5);
    let (masked, masked_terms) = with(&|it| (it.mask_loss, it.localization) = (1.0, 0.0));
    assert!(masked < plain && masked_terms[1] == terms[1]);
}

#[test]
fn fastcomposer_shows_the_subject_after_alpha_and_needs_its_word() {
    let folder = tempfile::tempdir().unwrap();
    let init = base(folder.path(), Architecture::FastComposer);
    let spec = job(Architecture::FastComposer, 0.05);
    let mut trainer = Trainer::new(&spec, Some(&init), Device::Cpu).unwrap();
    for step in 1..=3 {
        backward(&mut trainer, step);
        trainer.update(step).unwrap();
    }
    let alpha = |alpha: f64| Knobs {
        alpha: Some(alpha),
        ..Knobs::default()
    };
    let mut example = examples(1, 5);
    example[0].prompt = "1girl, hair_1".to_owned();
    let mut other = example.clone();
    other[0].references = examples(1, 77)[0].references.clone();
    // After so few steps the text has hardly any effect yet; guidance makes it visible.
    let mut sample = |example: &[_], knobs| {
        let options = SampleOptions {
            guidance: 1000.0,
            ..options(knobs)
        };
        trainer.sample(example, &options)
    };
    // At alpha 0 all steps see the plain prompt; of 4 steps at 0.75 two see the subject.
    assert_eq!(
        sample(&example, alpha(0.0)).unwrap(),
        sample(&other, alpha(0.0)).unwrap()
    );
    let some = sample(&example, alpha(0.75)).unwrap();
    assert_ne!(some, sample(&other, alpha(0.75)).unwrap());
    assert_ne!(some, sample(&example, alpha(1.0)).unwrap());
    for prompt in ["solo, hair_1", "", &format!("{}1girl", "solo, ".repeat(60))] {
        example[0].prompt = prompt.to_owned();
        let error = sample(&example, alpha(0.5)).unwrap_err().to_string();
        assert!(
            error.contains("must be one of the tags 1girl, 1boy"),
            "{error}"
        );
    }
}

/// FastComposer's published file: names of `diffusers` and `transformers` of its time under
/// prefixes of its own, with buffers that are no weights.
#[test]
fn fastcomposer_s_published_file_loads_whole() {
    let folder = tempfile::tempdir().unwrap();
    let init = base(folder.path(), Architecture::FastComposer);
    let spec = job(Architecture::FastComposer, 0.05);
    let mut trainer = Trainer::new(&spec, Some(&init), Device::Cpu).unwrap();
    let expected = backward(&mut trainer, 9);
    let layout = UNetLayout::from(spec.model.architecture.unet().unwrap());
    let mut file = NamedTensors::new();
    for (component, tensors) in trainer.export() {
        for (ours, tensor) in tensors {
            let name = match component.as_str() {
                "unet" => format!("unet.{}", diffusers_unet(&ours, &layout).unwrap()),
                "autoencoder" => format!("vae.{}", diffusers_autoencoder(&ours, 3).pop().unwrap()),
                "text_encoder" => {
                    let short = ours.strip_prefix("text_model.").unwrap();
                    format!("text_encoder.{short}")
                }
                _ => format!("{component}.{ours}"),
            };
            file.insert(name, tensor);
        }
    }
    for name in [
        "text_encoder.embeddings",
        "image_encoder.vision_model.embeddings",
    ] {
        file.insert(format!("{name}.position_ids"), Tensor::from_slice(&[0i64]));
    }
    let path = folder.path().join("fastcomposer.safetensors");
    write(&path, &file, Storage::Float32).unwrap();
    let components = [
        "autoencoder",
        "text_encoder",
        "unet",
        "image_encoder",
        "postfuse_module",
    ];
    let init: InitWeights = components
        .map(|component| (component.to_owned(), path.clone()))
        .into();
    let mut again = Trainer::new(&spec, Some(&init), Device::Cpu).unwrap();
    assert_eq!(backward(&mut again, 9), expected);
}

/// A small peer begins from the image tower of a CLIP that was trained here, in the folder that
/// `checkpoint export` writes.
#[test]
fn a_peer_takes_the_image_tower_of_an_exported_clip() {
    tch::set_num_threads(1);
    let folder = tempfile::tempdir().unwrap();
    let text = include_str!("../../deploy/jobs/clip.toml");
    let text = text.replace("../../.demo", "file:///demo");
    let clip = proto::job::parse_training("clip.toml", &text).unwrap();
    let towers = Trainer::new(&clip, None, Device::Cpu).unwrap().export();
    let towers = &towers["clip"];
    std::fs::create_dir(folder.path().join("clip")).unwrap();
    let file = folder.path().join("clip/model.safetensors");
    write(&file, towers, Storage::Float32).unwrap();
    let config = proto::public::write::config("clip", &clip.model, 64).unwrap();
    std::fs::write(folder.path().join("clip/config.json"), config).unwrap();
    let small = |architecture: &str| {
        let text = format!(
            "name = \"a\"\n[data]\ndataset = \"file:///none\"\nresolution = 64\n[model]\n\
             architecture = \"{architecture}\"\nsize = \"small\"\ninit = \"file:///none\"\n\
             [train]\nsteps = 4\nglobal_batch = 1\nmicro_batch = 1\n"
        );
        proto::job::parse_training("job.toml", &text).unwrap()
    };
    let mut init = InitWeights::new();
    let base = Trainer::new(&small("text-to-image"), None, Device::Cpu).unwrap();
    for (component, tensors) in base.export() {
        let path = folder.path().join(format!("{component}.safetensors"));
        write(&path, &tensors, Storage::Float32).unwrap();
        init.insert(component, path);
    }
    init.insert("image_encoder".to_owned(), folder.path().join("clip"));
    for architecture in ["ip-adapter", "fastcomposer"] {
        let peer = Trainer::new(&small(architecture), Some(&init), Device::Cpu).unwrap();
        let found = &peer.export()["image_encoder"];
        assert!(found.len() > 50, "{}", found.len());
        for (name, tensor) in found {
            assert!(tensor.equal(&towers[name]), "{architecture}: {name}");
        }
    }
}
