//! Compares the paper's four peers with the Python libraries `diffusers` and `transformers`, within
//! 1e-4 of the largest value (gradients 1e-3). The expected values come from
//! tests/golden/make_peers.py; both sides compute weights from parameter names.
#![allow(clippy::unwrap_used)]

mod golden_file;

use golden_file::{Golden, fill, values};
use model::controlnet::{self, Control, ControlBranch};
use model::parameter::Parameters;
use model::unet::{UNet, UNetInputs};
use proto::layout::{UNetLayout, hint_widths};
use proto::spec::UNetConfig;
use tch::{Device, Kind, Tensor};

/// The U-Net of the Python script's `SMALL`.
fn small_layout() -> UNetLayout {
    UNetLayout::from(&UNetConfig {
        channels: 8,
        channel_mult: vec![1, 2, 2],
        res_blocks: 2,
        attention_levels: vec![0, 1],
        heads: 2,
        context_dim: 12,
        latent_channels: 4,
        norm_groups: 4,
    })
}

#[test]
fn controlnet_forward_and_gradients() {
    let golden = Golden::read("peers");
    let (parameters, layout) = (Parameters::seeded(0, Device::Cpu), small_layout());
    let unet = UNet::new(&parameters.root().sub("unet"), &layout);
    let branch = ControlBranch::new(&parameters.root().sub("controlnet"), &layout, &hint_widths(4));
    fill(&parameters);
    let named = parameters.tensors();
    named
        .values()
        .for_each(|tensor| drop(tensor.set_requires_grad(true)));
    let (x, timesteps) = (
        values("unet.x", &[2, 4, 8, 8]),
        Tensor::from_slice(&[7i64, 801]),
    );
    let text = values("unet.context", &[2, 5, 12]);
    let hint = values("control.hint", &[2, 3, 32, 32]) + 0.5;
    let inputs = UNetInputs::new(&x, &timesteps, &text);
    let control = Control {
        hint: &hint,
        scales: &vec![1.0; branch.outputs()],
        kept: None,
    };
    for (i, residual) in branch.forward(&inputs, &control).iter().enumerate() {
        golden.check(&format!("control.residual.{i}"), &residual.detach());
    }
    let out = controlnet::predict(&unet, &branch, &inputs, &control);
    golden.check("control.out", &out.detach());
    out.square().mean(Kind::Float).backward();
    for (name, parameter) in [
        ("hint", "input_hint_block.0.weight"),
        ("zero", "zero_convs.3.0.weight"),
        ("time", "time_embed.0.weight"),
    ] {
        let parameter = &named[&format!("controlnet.{parameter}")];
        golden.check(&format!("control.{name}.grad"), &parameter.grad());
    }
    let faded: Vec<f64> = (0..branch.outputs())
        .map(|i| 0.5 * 10f64.powf(i as f64 / (branch.outputs() - 1) as f64 - 1.0))
        .collect();
    let control = Control {
        scales: &faded,
        ..control
    };
    let guessed = branch.forward(&inputs, &control);
    golden.check("control.guess.first", &guessed[0].detach());
    golden.check("control.guess.middle", &guessed[guessed.len() - 1].detach());
}
