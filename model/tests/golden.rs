//! Compares our results with those of the Python libraries `diffusers`, `transformers` and PyTorch,
//! within 1e-4 of the largest value. The expected values come from tests/golden/make_golden.py;
//! both sides compute weights from parameter names.
#![allow(clippy::unwrap_used)]

mod golden_file;

use golden_file::{Golden, fill, values};
use model::attention::{ReferenceAttention, SpatialTransformer};
use model::autoencoder::Autoencoder;
use model::component::Prefixes;
use model::layer::GroupNormOptions;
use model::optimizer::{AdamW, UpdateStep};
use model::parameter::Parameters;
use model::resnet::ResBlock;
use model::sampler::Sampler;
use model::schedule::NoiseSchedule;
use model::text::{TextEncoder, token_ids};
use model::unet::{UNet, UNetInputs};
use model_data::prompt::Prompts;
use proto::sample::SampleMethod;
use proto::spec::{AutoencoderConfig, Component, Optimizer, TextEncoderConfig, UNetConfig};
use tch::{Device, Kind, Tensor};

#[test]
fn schedule_and_samplers() {
    let golden = Golden::read("golden");
    let schedule = NoiseSchedule::default();
    let alphas_cumprod: Vec<f32> = (0..1000)
        .map(|t| schedule.alphas_cumprod(t) as f32)
        .collect();
    golden.check("schedule.kept", &Tensor::from_slice(&alphas_cumprod));
    for (name, method) in [
        ("ddim", SampleMethod::Ddim),
        ("pndm", SampleMethod::Pndm),
        ("dpm_solver", SampleMethod::DpmSolver),
    ] {
        for steps in [10, 20, 25, 50] {
            let mut sampler = Sampler::new(NoiseSchedule::default(), method, steps).unwrap();
            let timesteps: Vec<f32> = sampler.timesteps().iter().map(|t| *t as f32).collect();
            golden.check(
                &format!("sampler.{name}.{steps}.timesteps"),
                &Tensor::from_slice(&timesteps),
            );
            let mut x = values("sampler.start", &[8]) * 4;
            let mut trail = Vec::new();
            for (i, timestep) in timesteps.into_iter().enumerate() {
                let noise = &x * 0.3 + 0.1 * f64::from(timestep) / 1000.0;
                x = sampler.advance(i, &x, &noise);
                trail.push(x.copy());
            }
            golden.check(
                &format!("sampler.{name}.{steps}.trail"),
                &Tensor::stack(&trail, 0),
            );
        }
    }
}

#[test]
fn residual_block_and_spatial_transformer() {
    let golden = Golden::read("golden");
    let parameters = Parameters::seeded(0, Device::Cpu);
    let (groups, epsilon) = (8, 1e-5);
    let norm = GroupNormOptions { groups, epsilon };
    let res = ResBlock::unet(&parameters.root().sub("res"), 16, 24, 32, norm);
    let transformer = SpatialTransformer::new(&parameters.root().sub("transformer"), 16, 12, 2, 8);
    fill(&parameters);
    // The library's block applies SiLU to the time embedding; ours takes the result.
    let time = values("res.time", &[2, 32]).silu();
    golden.check(
        "res.out",
        &res.forward(&values("res.x", &[2, 16, 6, 6]), Some(&time)),
    );
    let context = values("transformer.context", &[2, 5, 12]);
    golden.check(
        "transformer.out",
        &transformer.forward(&values("transformer.x", &[2, 16, 4, 6]), &context, None),
    );
}

#[test]
fn attention_to_references() {
    let golden = Golden::read("golden");
    let parameters = Parameters::seeded(0, Device::Cpu);
    let scope = parameters.root().sub("reference");
    let attention = ReferenceAttention::new(&scope, &scope.sub("zero"), 16, 4);
    fill(&parameters);
    let (target, references) = (
        values("reference.h", &[2, 16, 4, 4]),
        values("reference.g", &[6, 16, 4, 4]),
    );
    golden.check("reference.out", &attention.forward(&target, &references));
}

#[test]
fn u_net_forward_and_gradients() {
    let golden = Golden::read("golden");
    let parameters = Parameters::seeded(0, Device::Cpu);
    let config = UNetConfig {
        channels: 8,
        channel_mult: vec![1, 2, 2],
        res_blocks: 2,
        attention_levels: vec![0, 1],
        heads: 2,
        context_dim: 12,
        latent_channels: 4,
        norm_groups: 4,
    };
    let unet = UNet::new(&parameters.root().sub("unet"), &(&config).into());
    fill(&parameters);
    let named = parameters.tensors();
    named
        .values()
        .for_each(|tensor| drop(tensor.set_requires_grad(true)));
    let x = values("unet.x", &[2, 4, 8, 8]).set_requires_grad(true);
    let context = values("unet.context", &[2, 5, 12]);
    let timesteps = Tensor::from_slice(&[7i64, 801]);
    let out = unet.forward(&UNetInputs::new(&x, &timesteps, &context));
    golden.check("unet.out", &out.detach());
    out.square().mean(Kind::Float).backward();
    golden.check("unet.x.grad", &x.grad());
    golden.check(
        "unet.down.grad",
        &named["unet.input_blocks.3.0.op.weight"].grad(),
    );
    golden.check("unet.time.grad", &named["unet.time_embed.0.weight"].grad());
}

#[test]
fn autoencoder_both_ways() {
    let golden = Golden::read("golden");
    let parameters = Parameters::seeded(0, Device::Cpu);
    let config = AutoencoderConfig {
        channels: 8,
        channel_mult: vec![1, 2, 2],
        res_blocks: 1,
        latent_channels: 4,
        scaling_factor: 1.0,
        norm_groups: 4,
    };
    let autoencoder = Autoencoder::new(&parameters.root().sub("autoencoder"), &(&config).into());
    fill(&parameters);
    let moments = autoencoder.encode(&(values("autoencoder.x", &[2, 3, 16, 16]) * 2));
    golden.check("autoencoder.mean", &moments.mean);
    golden.check("autoencoder.log_variance", &moments.log_variance);
    golden.check(
        "autoencoder.decoded",
        &autoencoder.decode(&(values("autoencoder.z", &[2, 4, 4, 4]) * 4)),
    );
}

#[test]
fn text_encoder_on_concept_words() {
    let golden = Golden::read("golden");
    let parameters = Parameters::seeded(0, Device::Cpu);
    let config = TextEncoderConfig {
        width: 16,
        layers: 2,
        heads: 2,
        tokens: 77,
    };
    let text = TextEncoder::new(&parameters.root().sub("text"), &(&config).into());
    fill(&parameters);
    let ids = token_ids(&Prompts::new(77), &["", "face", "clothes"], Device::Cpu);
    golden.check(
        "text.out",
        &text.forward(&ids, Kind::Float).narrow(1, 0, 12),
    );
}

#[test]
fn adamw_with_clipping() {
    let golden = Golden::read("golden");
    let text = "name = \"a\"\n[data]\ndataset = \"file:///none\"\nresolution = 32\n\
                [model]\narchitecture = \"autoencoder\"\nsize = \"tiny\"\n\
                [train]\nsteps = 4\nglobal_batch = 1\nmicro_batch = 1\n";
    let mut train = proto::job::parse_training("adamw.toml", text)
        .unwrap()
        .train;
    train.optimizer = Optimizer::AdamW {
        beta1: 0.8,
        beta2: 0.95,
        epsilon: 1e-6,
        weight_decay: 0.3,
    };
    (train.learning_rate, train.warmup, train.clip) = (0.1, 0, Some(2.0));
    train.decay = proto::spec::Decay::Constant;
    let parameter = values("adamw.start", &[10]).set_requires_grad(true);
    let mut optimizer = AdamW::new(
        &[("unet.out.0.bias".to_owned(), parameter.shallow_clone())],
        Prefixes(&[("unet.out", Component::Decoder)]),
        &train,
    );
    let mut trail = Vec::new();
    for step in 1..=4u64 {
        // The gradient of the product with a constant is the constant.
        let gradient = values(&format!("adamw.gradient.{step}"), &[10]) * 3;
        if step > 1 {
            let _ = parameter.grad().zero_();
        }
        (&parameter * &gradient).sum(Kind::Float).backward();
        let gradient_norm = optimizer.norm(step).unwrap();
        let update = UpdateStep {
            step,
            count: step,
            gradient_norm,
            loss_scale: 1.0,
        };
        optimizer.update(update).unwrap();
        assert!((gradient_norm - gradient.norm().double_value(&[])).abs() < 1e-5);
        trail.push(parameter.detach().copy());
    }
    golden.check("adamw.trail", &Tensor::stack(&trail, 0));
}
