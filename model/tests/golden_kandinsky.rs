//! Compares Kandinsky's networks and samplers with `diffusers`, within 1e-4 of the largest value.
//! The expected values come from tests/golden/make_peers.py; both sides compute weights from
//! parameter names.
#![allow(clippy::unwrap_used)]

mod golden_file;

use golden_file::{Golden, fill, values};
use model::ancestral::{Ancestral, AncestralSampler};
use model::kandinsky_decoder::ImageUNet;
use model::kandinsky_prior::{Prior, PriorText};
use model::movq::Movq;
use model::parameter::Parameters;
use model::schedule::NoiseSchedule;
use proto::architecture::{KandinskyPrior, Noise, NoiseKind};
use proto::layout::{ImageUNetLayout, MovqLayout, PriorLayout};
use tch::{Device, Kind, Tensor};

fn timesteps() -> Tensor {
    Tensor::from_slice(&[7i64, 801])
}

fn trainable(parameters: &Parameters) {
    for tensor in parameters.tensors().values() {
        let _ = tensor.set_requires_grad(true);
    }
}

#[test]
fn the_prior_forward_and_gradients() {
    let golden = Golden::read("peers");
    let parameters = Parameters::seeded(0, Device::Cpu);
    let layout = PriorLayout {
        width: 16,
        layers: 2,
        heads: 2,
        tokens: 5,
        embedding: 12,
    };
    let prior = Prior::new(&parameters.root().sub("prior"), &layout);
    fill(&parameters);
    trainable(&parameters);
    let mask = Tensor::from_slice(&[1i64, 1, 1, 0, 0, 1, 1, 1, 1, 1]).view([2, 5]);
    let text = PriorText {
        states: &values("unet.context", &[2, 5, 12]),
        embedding: &values("prior.embedding", &[2, 12]),
        mask: &mask.to_kind(Kind::Bool),
    };
    let out = prior.forward(&values("prior.noisy", &[2, 12]), &timesteps(), &text);
    golden.check("prior.out", &out.detach());
    out.square().mean(Kind::Float).backward();
    let named = parameters.under("prior.");
    let query = &named["transformer_blocks.0.attn1.to_q.weight"];
    golden.check("prior.query.grad", &query.grad());
    golden.check("prior.in.grad", &named["proj_in.weight"].grad());
}

#[test]
fn the_decoder_s_unet_forward_and_gradients() {
    let golden = Golden::read("peers");
    let parameters = Parameters::seeded(0, Device::Cpu);
    let layout = ImageUNetLayout {
        widths: vec![8, 16, 24],
        res_blocks: 2,
        head_channels: 8,
        context_dim: 12,
        tokens: 32,
        embedding: 24,
        latent_channels: 4,
        norm_groups: 4,
    };
    let unet = ImageUNet::new(&parameters.root().sub("image_unet"), &layout);
    fill(&parameters);
    trainable(&parameters);
    let embeddings = values("image.embeds", &[2, 24]) * 4;
    let out = unet.forward(&values("unet.x", &[2, 4, 8, 8]), &timesteps(), &embeddings);
    golden.check("image_unet.out", &out.detach());
    out.square().mean(Kind::Float).backward();
    let named = parameters.under("image_unet.");
    for (name, parameter) in [
        ("key", "mid_block.attentions.0.add_k_proj.weight"),
        ("down", "down_blocks.0.downsamplers.0.conv1.weight"),
        ("tokens", "encoder_hid_proj.image_embeds.weight"),
    ] {
        golden.check(&format!("image_unet.{name}.grad"), &named[parameter].grad());
    }
}

#[test]
fn movq_without_quantization() {
    let golden = Golden::read("peers");
    let parameters = Parameters::seeded(0, Device::Cpu);
    let layout = MovqLayout {
        widths: vec![32, 32, 64],
        res_blocks: 1,
        latent_channels: 4,
        codes: 16,
        norm_groups: 32,
    };
    let movq = Movq::new(&parameters.root().sub("movq"), &layout);
    fill(&parameters);
    let latents = movq.encode(&(values("movq.image", &[2, 3, 16, 16]) * 2));
    golden.check("movq.latents", &latents);
    golden.check("movq.image", &movq.decode(&latents));
}

#[test]
fn unclip_s_and_ddpm_s_steps() {
    let golden = Golden::read("peers");
    let (sample, noise) = (values("step.sample", &[1, 12]), golden.get("step.noise"));
    let predicted = values("step.predicted", &[1, 12]) * 30;
    let linear = Noise {
        kind: NoiseKind::Linear,
        ..Noise::default()
    };
    for (name, noise_schedule, method, steps, checked) in [
        (
            "unclip",
            KandinskyPrior::NOISE,
            Ancestral::Unclip { clip: 10.0 },
            25,
            [0, 12, 23, 24],
        ),
        ("ddpm", linear, Ancestral::Ddpm, 100, [0, 50, 98, 99]),
    ] {
        let schedule = NoiseSchedule::new(&noise_schedule);
        let sampler = AncestralSampler::new(schedule, method, steps).unwrap();
        let timesteps = sampler.timesteps();
        let found: Vec<f32> = timesteps.iter().map(|it| *it as f32).collect();
        golden.check(&format!("{name}.timesteps"), &Tensor::from_slice(&found));
        for i in checked {
            let next = sampler.advance(i, &sample, &predicted, noise);
            // Next to the clean sample, diffusers' coefficients in fp32 are less exact than ours.
            let bound = if timesteps[i] == 0 { 1e-3 } else { 1e-4 };
            golden.check_within(&format!("{name}.{i}"), &next, bound);
        }
    }
}
