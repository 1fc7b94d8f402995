//! Public layouts of weights: a `diffusers` folder and a Stable Diffusion single file give the same
//! network, and mismatches are refused with the tensor's name in the file. golden.rs and, at full
//! size, `make parity` test that the networks compute the same as the public ones.
#![allow(clippy::unwrap_used)]

use model::forward::{Request, Runnable, forward};
use model::parameter::{Parameters, Scope};
use model::weights::{self, NamedTensors, Storage};
use proto::layout::{Frequencies, UNetLayout};
use proto::public::names::{SINGLE_FILE_UNET, diffusers_autoencoder, diffusers_unet};
use proto::spec::Precision;
use proto::spec::Retrieval;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

const CONFIG: &str = r#"{"_class_name": "UNet2DConditionModel", "block_out_channels": [8, 12],
    "layers_per_block": 1, "attention_head_dim": 2, "cross_attention_dim": 6,
    "norm_num_groups": 4, "sample_size": 8,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}"#;

fn layout() -> UNetLayout {
    UNetLayout {
        widths: vec![8, 12],
        res_blocks: 1,
        attends: vec![true, false],
        heads: vec![2, 2],
        context_dim: 6,
        in_channels: 4,
        out_channels: 4,
        norm_groups: 4,
        norm_epsilon: 1e-5,
        frequencies: Frequencies::default(),
    }
}

/// A network's weights without zeros, which would hide errors in the layers before them.
fn filled(build: impl FnOnce(&Scope<'_>)) -> NamedTensors {
    tch::manual_seed(1);
    let parameters = Parameters::seeded(1, Device::Cpu);
    build(&parameters.root());
    for (_, mut tensor) in parameters.tensors() {
        tch::no_grad(|| {
            tensor.copy_(&(Tensor::randn(tensor.size(), (Kind::Float, Device::Cpu)) * 0.2))
        });
    }
    parameters.tensors()
}

fn unet_weights() -> NamedTensors {
    filled(|scope| drop(model::unet::UNet::new(scope, &layout())))
}

fn renamed(tensors: &NamedTensors, name: impl Fn(&str) -> String) -> NamedTensors {
    tensors
        .iter()
        .map(|(ours, tensor)| (name(ours), tensor.shallow_clone()))
        .collect()
}

/// Writes a U-Net as a `diffusers` folder.
fn folder(dir: &Path, tensors: &NamedTensors) -> PathBuf {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("config.json"), CONFIG).unwrap();
    let theirs = renamed(tensors, |name| diffusers_unet(name, &layout()).unwrap());
    weights::write(
        &dir.join("diffusion_pytorch_model.safetensors"),
        &theirs,
        Storage::Float32,
    )
    .unwrap();
    dir.to_owned()
}

fn inputs(dir: &Path) -> PathBuf {
    tch::manual_seed(2);
    let normal = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
    let tensors = NamedTensors::from([
        ("sample".to_owned(), normal(&[2, 4, 6, 5])),
        ("timestep".to_owned(), Tensor::from_slice(&[3f32, 700.])),
        ("encoder_hidden_states".to_owned(), normal(&[2, 3, 6])),
    ]);
    let path = dir.join("inputs.safetensors");
    weights::write(&path, &tensors, Storage::Float32).unwrap();
    path
}

fn run(what: Runnable, weights: &Path, inputs: &Path) -> Result<NamedTensors, String> {
    let request = Request {
        what,
        weights,
        inputs,
        precision: Precision::Fp32,
        gradients: false,
    };
    forward(request, Device::Cpu).map_err(|error| error.to_string())
}

#[test]
fn a_folder_and_a_single_file_are_the_same_network() {
    let dir = tempfile::tempdir().unwrap();
    let (tensors, inputs) = (unet_weights(), inputs(dir.path()));
    let folder = folder(&dir.path().join("unet"), &tensors);
    let expected = run(Runnable::UNet, &folder, &inputs).unwrap();
    assert_eq!(
        expected["sample"].size(),
        [2, 4, 6, 5],
        "odd sides keep their size"
    );
    // Other tensors of a single file are ignored. Its config is beside it here; without one the
    // layout would be Stable Diffusion's.
    let single = dir.path().join("single");
    std::fs::create_dir(&single).unwrap();
    std::fs::write(single.join("config.json"), CONFIG).unwrap();
    let mut all = renamed(&tensors, |name| format!("{SINGLE_FILE_UNET}{name}"));
    for other in [
        "model_ema.decay",
        "betas",
        "first_stage_model.quant_conv.bias",
    ] {
        all.insert(other.to_owned(), Tensor::from_slice(&[f32::NAN]));
    }
    let file = single.join("v1-5.safetensors");
    weights::write(&file, &all, Storage::Float32).unwrap();
    let found = run(Runnable::UNet, &file, &inputs).unwrap();
    assert_eq!(weights::digest(&found), weights::digest(&expected));
    // Weights from fp16 files differ only by rounding.
    weights::write(&file, &all, Storage::Float16).unwrap();
    let half = run(Runnable::UNet, &file, &inputs).unwrap();
    let difference = (&half["sample"] - &expected["sample"]).norm() / expected["sample"].norm();
    assert!(
        (1e-7..1e-2).contains(&difference.double_value(&[])),
        "{difference}"
    );
}

#[test]
fn a_retrinet_equals_its_unet_without_a_file_of_its_own_weights() {
    let dir = tempfile::tempdir().unwrap();
    let inputs = inputs(dir.path());
    let folder = folder(&dir.path().join("unet"), &unet_weights());
    let plain = run(Runnable::UNet, &folder, &inputs).unwrap();
    let mut more = weights::read(&inputs).unwrap();
    more.insert(
        "references".into(),
        Tensor::randn([2, 3, 4, 6, 5], (Kind::Float, Device::Cpu)),
    );
    more.insert(
        "reference_hidden_states".into(),
        Tensor::randn([2, 3, 3, 6], (Kind::Float, Device::Cpu)),
    );
    weights::write(&inputs, &more, Storage::Float32).unwrap();
    let found = run(Runnable::Retrinet, &folder, &inputs).unwrap();
    assert_eq!(weights::digest(&found), weights::digest(&plain));
    // With the file that `coordinator checkpoint export` writes beside the U-Net, outputs differ.
    let mut own = filled(|scope| {
        drop(model::retrinet::RetrievalBlock::new(
            scope,
            &layout(),
            Retrieval::default(),
        ))
    });
    let file = folder.join("retrinet.safetensors");
    weights::write(&file, &own, Storage::Float32).unwrap();
    let trained = run(Runnable::Retrinet, &folder, &inputs).unwrap();
    assert_ne!(weights::digest(&trained), weights::digest(&plain));
    drop(own.remove("zero_convs.0.bias"));
    weights::write(&file, &own, Storage::Float32).unwrap();
    let error = run(Runnable::Retrinet, &folder, &inputs).unwrap_err();
    assert!(
        error.contains("retrinet.safetensors: tensor \"zero_convs.0.bias\" is missing"),
        "{error}"
    );
    let error = run(Runnable::UNet, &folder, &inputs).unwrap_err();
    assert!(
        error.contains("\"reference_hidden_states\" is not an input"),
        "{error}"
    );
}

#[test]
fn mismatches_are_refused_with_the_file_s_own_names() {
    let dir = tempfile::tempdir().unwrap();
    let (tensors, inputs) = (unet_weights(), inputs(dir.path()));
    let broken = |change: &dyn Fn(&mut NamedTensors)| {
        let mut tensors = renamed(&tensors, ToOwned::to_owned);
        change(&mut tensors);
        let folder = folder(&dir.path().join("broken"), &tensors);
        run(Runnable::UNet, &folder, &inputs).unwrap_err()
    };
    let name = "out.0.weight";
    let error = broken(&|all| drop(all.remove(name)));
    assert!(
        error.contains("tensor \"conv_norm_out.weight\" is missing; expected shape [8]"),
        "{error}"
    );
    assert!(
        error.contains("diffusion_pytorch_model.safetensors"),
        "{error}"
    );
    let error = broken(&|all| drop(all.insert(name.into(), Tensor::from_slice(&[1f32, 2.]))));
    assert!(
        error.contains("\"conv_norm_out.weight\" has shape [2]; expected [8]"),
        "{error}"
    );
    let error = broken(&|all| {
        drop(all.insert(
            name.into(),
            Tensor::full([8], f64::NAN, (Kind::Float, Device::Cpu)),
        ))
    });
    assert!(
        error.contains("\"conv_norm_out.weight\" holds a value that is not finite"),
        "{error}"
    );
    let extra = "input_blocks.9.0.in_layers.0.bias";
    let error = broken(&|all| drop(all.insert(extra.into(), Tensor::from_slice(&[1f32]))));
    assert!(
        error.contains("\"down_blocks.4.resnets.0.norm1.bias\" does not belong to this model"),
        "{error}"
    );
    let error = run(Runnable::UNet, &dir.path().join("none"), &inputs).unwrap_err();
    assert!(
        error.contains("none: cannot be read as a weights file"),
        "{error}"
    );
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    let error = run(Runnable::UNet, &dir.path().join("empty"), &inputs).unwrap_err();
    assert!(
        error.contains("empty: no weights found; expected: diffusion_pytorch_model.safetensors or"),
        "{error}"
    );
    let whole = folder(&dir.path().join("whole"), &tensors);
    std::fs::write(
        whole.join("config.json"),
        CONFIG.replace("\"sample_size\": 8", "\"act_fn\": \"mish\""),
    )
    .unwrap();
    let error = run(Runnable::UNet, &whole, &inputs).unwrap_err();
    assert!(error.contains("config.json: act_fn is \"mish\""), "{error}");
}

#[test]
fn an_autoencoder_of_an_older_diffusers_version_loads() {
    let dir = tempfile::tempdir().unwrap();
    let layout = proto::layout::AutoencoderLayout {
        widths: vec![8, 12],
        res_blocks: 1,
        latent_channels: 4,
        norm_groups: 4,
    };
    let tensors = filled(|scope| drop(model::autoencoder::Autoencoder::new(scope, &layout)));
    let config = r#"{"block_out_channels": [8, 12], "norm_num_groups": 4, "scaling_factor": 0.5,
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"]}"#;
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let inputs = dir.path().join("in.safetensors");
    let image = Tensor::rand([1, 3, 8, 8], (Kind::Float, Device::Cpu)) * 2 - 1;
    weights::write(
        &inputs,
        &NamedTensors::from([("image".to_owned(), image)]),
        Storage::Float32,
    )
    .unwrap();
    let file = dir.path().join("diffusion_pytorch_model.safetensors");
    // The first of a tensor's names is the current one. Attention weights are linear in one version
    // and convolutions in the other.
    let digests = [false, true].map(|old| {
        let theirs = renamed(&tensors, |name| {
            let mut names = diffusers_autoencoder(name, 2);
            if old {
                names.pop().unwrap()
            } else {
                names.remove(0)
            }
        });
        let linear = |tensor: &Tensor| match tensor.size().as_slice() {
            [_, _, 1, 1] if old => tensor.flatten(1, 3),
            _ => tensor.shallow_clone(),
        };
        let theirs = theirs
            .iter()
            .map(|(name, tensor)| (name.clone(), linear(tensor)))
            .collect();
        weights::write(&file, &theirs, Storage::Float32).unwrap();
        weights::digest(&run(Runnable::AutoencoderEncode, dir.path(), &inputs).unwrap())
    });
    assert_eq!(digests[0], digests[1]);
}
