//! Compares the paper's four peers with the Python libraries `diffusers` and `transformers`, within
//! 1e-4 of the largest value (gradients 1e-3). The expected values come from
//! tests/golden/make_peers.py; both sides compute weights from parameter names.
#![allow(clippy::unwrap_used)]

mod golden_file;

use golden_file::{Golden, fill, values};
use model::controlnet::{self, Control, ControlBranch};
use model::fastcomposer::{Fusion, latent_mask, localization};
use model::ip_adapter::Adapter;
use model::parameter::Parameters;
use model::unet::{Columns, UNet, UNetInputs};
use model::vision::ImageEncoder;
use proto::layout::{Activation, ImageLayout, TransformerLayout, UNetLayout, hint_widths};
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
    let branch = ControlBranch::new(
        &parameters.root().sub("controlnet"),
        &layout,
        &hint_widths(4),
    );
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

/// The image tower of the Python script's `vision`.
fn vision(projection: i64, activation: Activation) -> ImageLayout {
    ImageLayout {
        transformer: TransformerLayout {
            width: 16,
            mlp_width: 32,
            layers: 3,
            heads: 2,
            activation,
            norm_epsilon: 1e-5,
        },
        side: 28,
        patch: 7,
        projection,
    }
}

#[test]
fn ip_adapter_at_three_scales_with_one_and_four_references() {
    let golden = Golden::read("peers");
    let (parameters, layout) = (Parameters::seeded(0, Device::Cpu), small_layout());
    let scope = parameters.root();
    let unet = UNet::new(&scope.sub("unet"), &layout);
    let adapter = Adapter::new(&scope.sub("adapter"), &layout, 24);
    let encoder = ImageEncoder::new(&scope.sub("vit"), &vision(24, Activation::Gelu));
    fill(&parameters);
    let embeddings = encoder.forward(&(values("adapter.pixels", &[5, 3, 28, 28]) * 4));
    golden.check("adapter.embeddings", &embeddings);
    let named = parameters.under("adapter.");
    named
        .values()
        .for_each(|tensor| drop(tensor.set_requires_grad(true)));
    let (x, timesteps) = (
        values("unet.x", &[2, 4, 8, 8]),
        Tensor::from_slice(&[7i64, 801]),
    );
    let text = values("unet.context", &[2, 5, 12]);
    let predict = |references: &[i64], scale: f64| {
        let chosen = embeddings.index_select(0, &Tensor::from_slice(references));
        let chosen = chosen.reshape([2, -1, 24]);
        let image = adapter.context(&adapter.tokens(&chosen), scale);
        unet.forward(&UNetInputs {
            image: &image,
            ..UNetInputs::new(&x, &timesteps, &text)
        })
    };
    let four = [0i64, 1, 2, 3, 4, 3, 2, 1];
    for scale in ["0.0", "0.5", "1.0"] {
        let value: f64 = scale.parse().unwrap();
        for (count, references) in [(1, &four[..2]), (4, &four[..])] {
            let out = predict(references, value).detach();
            golden.check(&format!("adapter.{scale}.{count}.out"), &out);
        }
    }
    let base = unet.forward(&UNetInputs::new(&x, &timesteps, &text));
    assert!(predict(&four, 0.0).equal(&base), "scale 0 is the base");
    predict(&four, 1.0).square().mean(Kind::Float).backward();
    // The middle's number follows those of the 10 other transformers.
    let middle = &named["ip_adapter.21.to_k_ip.weight"];
    golden.check("adapter.key.grad", &middle.grad());
    golden.check(
        "adapter.projection.grad",
        &named["image_proj.proj.weight"].grad(),
    );
}

#[test]
fn fastcomposer_fusion_and_losses() {
    let golden = Golden::read("peers");
    let (parameters, layout) = (Parameters::seeded(0, Device::Cpu), small_layout());
    let scope = parameters.root();
    let unet = UNet::new(&scope.sub("unet"), &layout);
    let fusion = Fusion::new(&scope.sub("postfuse_module"), 12);
    let encoder = ImageEncoder::new(&scope.sub("vit"), &vision(12, Activation::QuickGelu));
    fill(&parameters);
    let embeddings = encoder.forward(&(values("fast.pixels", &[2, 3, 28, 28]) * 4));
    golden.check("fast.embeddings", &embeddings);
    let text = values("unet.context", &[2, 5, 12]);
    let context = fusion.forward(&text, &embeddings, &[Some(2), None]);
    golden.check("fast.context", &context);
    let named = parameters.under("unet.");
    named
        .values()
        .for_each(|tensor| drop(tensor.set_requires_grad(true)));
    let (x, timesteps) = (
        values("unet.x", &[2, 4, 8, 8]),
        Tensor::from_slice(&[7i64, 801]),
    );
    let columns = Columns::below_first_level(Tensor::from_slice(&[2i64, 0]), &layout);
    let out = unet.forward(&UNetInputs {
        columns: Some(&columns),
        ..UNetInputs::new(&x, &timesteps, &context)
    });
    golden.check("fast.out", &out.detach());
    let plain = unet.forward(&UNetInputs::new(&x, &timesteps, &context));
    assert!(plain.equal(&out), "collecting probabilities changes no bit");
    let has = Tensor::from_slice(&[1f32, 0.0]);
    let figures = values("fast.figures", &[2, 1, 32, 32]).gt(0.0);
    let figures = figures.to_kind(Kind::Float) * has.view([2, 1, 1, 1]);
    let difference = (out - values("fast.noise", &[2, 4, 8, 8])) * latent_mask(&figures, &x);
    let noise = difference.square().mean(Kind::Float);
    golden.check("fast.noise_loss", &noise.detach());
    let found = columns.into_found();
    assert_eq!(found.len(), 6);
    let localization = localization(&found, &figures, &has).mean(Kind::Float);
    golden.check("fast.localization", &localization.detach());
    (noise + localization).backward();
    let query = &named["middle_block.1.transformer_blocks.0.attn2.to_q.weight"];
    golden.check("fast.query.grad", &query.grad());
    golden.check("fast.conv.grad", &named["input_blocks.0.0.weight"].grad());
}
