//! Jobs that start from base weights in public layouts. A `diffusers` folder and a single file give
//! the same weights as our own files, a RetriNet on either initially equals the base model bit for
//! bit, and mismatches are refused with the tensor's name.
#![allow(clippy::unwrap_used)]

mod scene;

use model::init::InitWeights;
use model::trainer::Trainer;
use model::weights::{NamedTensors, Storage, digest, read, write};
use proto::layout::UNetLayout;
use proto::public::base::PARTS;
use proto::public::names::{diffusers_autoencoder, diffusers_unet};
use proto::spec::{Architecture, Component, TrainWork};
use scene::{examples, job};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Tensor};

/// The `config.json` files of size "tiny" as `diffusers` and `transformers` write them.
const UNET: &str = r#"{"_class_name": "UNet2DConditionModel", "block_out_channels": [16, 32],
    "layers_per_block": 1, "attention_head_dim": 2, "cross_attention_dim": 16,
    "norm_num_groups": 8, "in_channels": 4, "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}"#;
const VAE: &str = r#"{"_class_name": "AutoencoderKL", "block_out_channels": [8, 16, 16],
    "layers_per_block": 1, "norm_num_groups": 8, "scaling_factor": 20.0,
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]}"#;
const TEXT: &str = r#"{"model_type": "clip_text_model", "hidden_size": 16,
    "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}"#;

/// The weights by component of a base model that is trained for some steps, because an untrained
/// one outputs zero.
fn base() -> BTreeMap<String, NamedTensors> {
    let mut base = Trainer::new(&job(Architecture::TextToImage, 0.05), None, Device::Cpu).unwrap();
    for step in 1..=3 {
        loss(&mut base, step);
        base.update(step).unwrap();
    }
    base.export()
}

fn loss(trainer: &mut Trainer, seed: u64) -> u64 {
    trainer.zero_gradients();
    let loss = trainer.forward(&examples(4, seed), 4).unwrap();
    loss.loss.f_backward().unwrap();
    loss.total.to_bits()
}

fn renamed(tensors: &NamedTensors, name: impl Fn(&str) -> String) -> NamedTensors {
    let named = tensors.iter();
    named
        .map(|(ours, tensor)| (name(ours), tensor.shallow_clone()))
        .collect()
}

/// Writes the base model as a `diffusers` folder.
fn folder(dir: &Path, base: &BTreeMap<String, NamedTensors>, spec: &TrainWork) -> InitWeights {
    let unet = UNetLayout::from(spec.model.architecture.unet().unwrap());
    let mut init = InitWeights::new();
    for part in PARTS {
        let (config, file) = match part.name {
            "unet" => (UNET, "diffusion_pytorch_model.safetensors"),
            "autoencoder" => (VAE, "diffusion_pytorch_model.safetensors"),
            _ => (TEXT, "model.safetensors"),
        };
        let tensors = renamed(&base[part.name], |name| match part.name {
            "unet" => diffusers_unet(name, &unet).unwrap(),
            "autoencoder" => diffusers_autoencoder(name, 3).remove(0),
            _ => name.to_owned(),
        });
        let folder = dir.join(part.folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("config.json"), config).unwrap();
        write(&folder.join(file), &tensors, Storage::Float32).unwrap();
        init.insert(part.name.to_owned(), folder);
    }
    init
}

/// Writes the base model as a single file, with unrelated tensors that such files contain.
fn single_file(dir: &Path, base: &BTreeMap<String, NamedTensors>, storage: Storage) -> InitWeights {
    let mut all = NamedTensors::new();
    for part in PARTS {
        all.extend(renamed(&base[part.name], |name| {
            format!("{}{name}", part.prefix)
        }));
    }
    for other in [
        "alphas_cumprod",
        "model_ema.diffusion_modelout2bias",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
    ] {
        all.insert(other.to_owned(), Tensor::from_slice(&[1f32]));
    }
    let file = dir.join("v1.safetensors");
    write(&file, &all, storage).unwrap();
    PARTS
        .map(|part| (part.name.to_owned(), file.clone()))
        .into_iter()
        .collect()
}

fn trainer(spec: &TrainWork, init: &InitWeights) -> Trainer {
    Trainer::new(spec, Some(init), Device::Cpu).unwrap()
}

fn plain_job() -> TrainWork {
    let mut spec = job(Architecture::TextToImage, 0.01);
    spec.model.freeze = vec![Component::Autoencoder, Component::TextEncoder];
    spec
}

#[test]
fn a_retrinet_on_public_weights_equals_the_plain_base() {
    let (dir, base) = (tempfile::tempdir().unwrap(), base());
    let spec = job(Architecture::Retrinet, 0.01);
    let folder = folder(dir.path(), &base, &spec);
    let file = single_file(dir.path(), &base, Storage::Float32);
    let mut plain = trainer(&plain_job(), &folder);
    let expected = loss(&mut plain, 9);
    for init in [&folder, &file] {
        let mut retrinet = trainer(&spec, init);
        assert_eq!(loss(&mut retrinet, 9), expected);
        // All weights are those of the base; the retrieval encoder is a copy of the U-Net's.
        let mut weights = retrinet.export();
        for (component, tensors) in &base {
            assert_eq!(digest(&weights[component]), digest(tensors), "{component}");
        }
        let copy = weights.remove("retrieval").unwrap();
        let mut encoder = weights.remove("unet").unwrap();
        encoder.retain(|name, _| copy.contains_key(name));
        assert!(!encoder.is_empty());
        assert_eq!(digest(&copy), digest(&encoder));
    }
    // Weights from fp16 files differ only by rounding.
    let half = trainer(&spec, &single_file(dir.path(), &base, Storage::Float16)).export();
    let (found, exact) = (&half["unet"]["out.2.weight"], &base["unet"]["out.2.weight"]);
    assert!(found.equal(&exact.to_kind(tch::Kind::Half).to_kind(tch::Kind::Float)));
}

#[test]
fn a_base_that_does_not_match_is_refused_with_file_and_shape() {
    let (dir, base) = (tempfile::tempdir().unwrap(), base());
    let spec = job(Architecture::Retrinet, 0.01);
    let init = folder(dir.path(), &base, &spec);
    let refusal = |spec: &TrainWork| {
        Trainer::new(spec, Some(&init), Device::Cpu)
            .unwrap_err()
            .to_string()
    };
    // 1. a config that does not agree with the job
    let mut other = spec.clone();
    other.model.architecture.diffusion_mut().unwrap().unet.heads = 4;
    let error = refusal(&other);
    assert!(
        error.contains(
            "unet/config.json: attention_head_dim, by level, is [2, 2], but the job \
        has model.unet.heads = [4, 4]"
        ),
        "{error}"
    );
    // 2. tensors that do not match
    let file = init["unet"].join("diffusion_pytorch_model.safetensors");
    let whole = read(&file).unwrap();
    let broken = |change: &dyn Fn(&mut NamedTensors)| {
        let mut tensors = renamed(&whole, ToOwned::to_owned);
        change(&mut tensors);
        write(&file, &tensors, Storage::Float32).unwrap();
        let error = refusal(&spec);
        assert!(
            error.contains("unet/diffusion_pytorch_model.safetensors: "),
            "{error}"
        );
        error
    };
    let name = "down_blocks.1.attentions.0.proj_in.weight";
    let error = broken(&|all| drop(all.remove(name)));
    assert!(
        error.ends_with(&format!(
            "tensor {name:?} is missing; expected shape [32, 32, 1, 1]"
        )),
        "{error}"
    );
    let error = broken(&|all| drop(all.insert(name.into(), Tensor::from_slice(&[1f32]))));
    assert!(
        error.ends_with(&format!(
            "tensor {name:?} has shape [1]; expected [32, 32, 1, 1]"
        )),
        "{error}"
    );
    let extra = "add_embedding.linear_1.bias";
    let error = broken(&|all| drop(all.insert(extra.into(), Tensor::from_slice(&[1f32]))));
    assert!(
        error.ends_with(&format!("tensor {extra:?} does not belong to this model")),
        "{error}"
    );
    // 3. a file with only one component
    let one = BTreeMap::from(PARTS.map(|part| (part.name.to_owned(), file.clone())));
    let error = Trainer::new(&spec, Some(&one), Device::Cpu)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("tensor \"decoder.conv_in.bias\" is missing; expected shape [16]"),
        "{error}"
    );
}
