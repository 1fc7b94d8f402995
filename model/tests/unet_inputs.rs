//! The extension inputs of the U-Net: residuals, added embeddings and image context.
#![allow(clippy::unwrap_used)]

use model::parameter::Parameters;
use model::unet::{ImageContext, UNet, UNetInputs, transformer_widths};
use proto::layout::UNetLayout;
use tch::{Device, Kind, Tensor};

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

/// The tiny U-Net without zero weights, and its layout.
fn unet() -> (UNet, UNetLayout) {
    tch::set_num_threads(1);
    let (config, _, _) = proto::size::named("tiny").unwrap();
    let layout = UNetLayout::from(&config);
    let parameters = Parameters::seeded(1, Device::Cpu);
    let unet = UNet::new(&parameters.root(), &layout);
    for (_, mut weight) in parameters.tensors() {
        if weight.count_nonzero(None).int64_value(&[]) == 0 {
            let values = wave(&weight.size(), 0.3) * 0.1;
            tch::no_grad(|| weight.copy_(&values));
        }
    }
    (unet, layout)
}

/// Varying values in [-1, 1].
fn wave(shape: &[i64], step: f64) -> Tensor {
    let count: i64 = shape.iter().product();
    (Tensor::arange(count, FLOAT) * step).sin().view(shape)
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

#[test]
fn zero_inputs_change_no_bit_and_nonzero_inputs_have_an_effect() {
    let (unet, layout) = unet();
    let (latents, timesteps) = (wave(&[2, 4, 8, 8], 0.7), Tensor::from_slice(&[7i64, 700]));
    let text = wave(&[2, 5, layout.context_dim], 0.9);
    let inputs = UNetInputs::new(&latents, &timesteps, &text);
    let plain = unet.forward(&inputs);
    let encoded = unet.encode(&inputs, unet.embed(&inputs));
    let widths = transformer_widths(&layout);
    let run = |size: f64| {
        let skip = |skip: &Tensor| Some(wave(&skip.size(), 0.2) * size);
        let skips: Vec<Option<Tensor>> = encoded.skips.iter().map(skip).collect();
        let last = encoded.skips.last().unwrap();
        let (middle, added) = (
            wave(&last.size(), 0.4),
            wave(&[2, 4 * layout.widths[0]], 0.5),
        );
        let image: Vec<ImageContext> = widths
            .iter()
            .map(|width| ImageContext {
                keys: wave(&[2, 3, *width], 0.6),
                values: wave(&[2, 3, *width], 0.8) * size,
            })
            .collect();
        let (middle, added) = (middle * size, added * size);
        [
            unet.forward(&UNetInputs {
                skips: &skips,
                ..inputs
            }),
            unet.forward(&UNetInputs {
                middle: Some(&middle),
                ..inputs
            }),
            unet.forward(&UNetInputs {
                added: Some(&added),
                ..inputs
            }),
            unet.forward(&UNetInputs {
                image: &image,
                ..inputs
            }),
        ]
    };
    for (input, out) in run(0.0).iter().enumerate() {
        assert!(out.equal(&plain), "input {input} at zero");
    }
    for (input, out) in run(1.0).iter().enumerate() {
        assert!(
            largest_difference(out, &plain) > 1e-4,
            "input {input} has no effect"
        );
    }
}

#[test]
fn a_residual_is_added_to_its_own_skip_connection() {
    let (unet, layout) = unet();
    let (latents, timesteps) = (wave(&[1, 4, 8, 8], 0.7), Tensor::from_slice(&[70i64]));
    let text = wave(&[1, 5, layout.context_dim], 0.9);
    let inputs = UNetInputs::new(&latents, &timesteps, &text);
    let mut encoded = unet.encode(&inputs, unet.embed(&inputs));
    let residual = wave(&encoded.skips[1].size(), 0.2);
    let mut skips: Vec<Option<Tensor>> = encoded.skips.iter().map(|_| None).collect();
    skips[1] = Some(residual.shallow_clone());
    let with_residual = unet.forward(&UNetInputs {
        skips: &skips,
        ..inputs
    });
    encoded.skips[1] = &encoded.skips[1] + residual;
    assert!(unet.decode(encoded, &inputs).equal(&with_residual));
}

#[test]
fn image_context_has_gradients_through_checkpointed_blocks() {
    let (config, _, _) = proto::size::named("tiny").unwrap();
    let layout = UNetLayout::from(&config);
    let gradients = |checkpointing: bool| {
        use proto::spec::Component::{Decoder, Encoder, Middle};
        let components: &[_] = if checkpointing {
            &[Encoder, Middle, Decoder]
        } else {
            &[]
        };
        let prefixes = model::component::Prefixes(&[
            ("time_embed.", Encoder),
            ("input_blocks.", Encoder),
            ("middle_block.", Middle),
            ("out", Decoder),
        ]);
        let parameters = Parameters::seeded(1, Device::Cpu).checkpointing(components, prefixes);
        let unet = UNet::new(&parameters.root(), &layout);
        for (_, mut weight) in parameters.tensors() {
            let values = wave(&weight.size(), 0.3) * 0.1;
            tch::no_grad(|| weight.copy_(&(&weight + values)));
        }
        let image: Vec<ImageContext> = transformer_widths(&layout)
            .into_iter()
            .map(|width| ImageContext {
                keys: wave(&[1, 3, width], 0.6).set_requires_grad(true),
                values: wave(&[1, 3, width], 0.8).set_requires_grad(true),
            })
            .collect();
        let (latents, timesteps) = (wave(&[1, 4, 8, 8], 0.7), Tensor::from_slice(&[70i64]));
        let text = wave(&[1, 5, layout.context_dim], 0.9);
        let inputs = UNetInputs::new(&latents, &timesteps, &text);
        let out = unet.forward(&UNetInputs {
            image: &image,
            ..inputs
        });
        out.square().mean(Kind::Float).backward();
        let both = image
            .iter()
            .flat_map(|it| [it.keys.grad(), it.values.grad()]);
        both.collect::<Vec<_>>()
    };
    let (plain, checkpointed) = (gradients(false), gradients(true));
    assert_eq!(plain.len(), 2 * transformer_widths(&layout).len());
    for (plain, checkpointed) in plain.iter().zip(&checkpointed) {
        assert!(plain.equal(checkpointed));
        assert!(plain.abs().max().double_value(&[]) > 0.0);
    }
}
