//! `worker forward`: runs one component on the tensors of a file. The computation is in
//! [`model::forward`]; this module has the options.

use crate::collective::precision::full_fp32;
use crate::device;
use clap::ValueEnum;
use model::forward::{Request, Runnable, forward};
use model::weights::{self, Storage};
use proto::spec::{DeviceKind, Precision};
use std::path::PathBuf;

/// Run one component on given tensors, to compare with another implementation.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long, value_enum)]
    component: Component,
    /// The component's folder with config.json, as diffusers and transformers write it, or one
    /// safetensors file of Stable Diffusion 1.5
    #[arg(long, value_name = "PATH")]
    weights: PathBuf,
    /// Safetensors file with the component's inputs
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// Safetensors file to write, fp32
    #[arg(long, value_name = "FILE")]
    outputs: PathBuf,
    /// Dtype of convolutions and matrix products
    #[arg(long, value_enum, default_value = "fp32")]
    precision: Dtype,
    #[arg(long, value_enum, default_value = "cpu")]
    device: DeviceChoice,
    /// Number of libtorch threads [default: all cores]
    #[arg(long, value_name = "COUNT")]
    threads: Option<u16>,
    /// U-Net only: also the gradients of the mean square of its output, by input and by weight
    #[arg(long)]
    gradients: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Component {
    /// sample, timestep, encoder_hidden_states -> sample
    Unet,
    /// image -> mean, logvar
    VaeEncode,
    /// latent -> image
    VaeDecode,
    /// input_ids -> last_hidden_state, pooler_output
    Text,
    /// pixel_values -> image_embeds
    Image,
    /// sample, timestep, encoder_hidden_states, references, reference_hidden_states -> sample
    Retrinet,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dtype {
    Fp32,
    Fp16,
    Bf16,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DeviceChoice {
    Cpu,
    Cuda,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let kind = match options.device {
        DeviceChoice::Cpu => DeviceKind::Cpu,
        DeviceChoice::Cuda => DeviceKind::Cuda,
    };
    let precision = match options.precision {
        Dtype::Fp32 => Precision::Fp32,
        Dtype::Fp16 => Precision::Fp16,
        Dtype::Bf16 => Precision::Bf16,
    };
    let device = device::choose(kind, 0, precision)?;
    if let Some(threads) = options.threads {
        tch::set_num_threads(threads.max(1).into());
    }
    full_fp32();
    let request = Request {
        what: match options.component {
            Component::Unet => Runnable::UNet,
            Component::VaeEncode => Runnable::AutoencoderEncode,
            Component::VaeDecode => Runnable::AutoencoderDecode,
            Component::Text => Runnable::Text,
            Component::Image => Runnable::Image,
            Component::Retrinet => Runnable::Retrinet,
        },
        weights: &options.weights,
        inputs: &options.inputs,
        precision,
        gradients: options.gradients,
    };
    let outputs = forward(request, device)?;
    weights::write(&options.outputs, &outputs, Storage::Float32)?;
    for (name, tensor) in outputs
        .iter()
        .filter(|(name, _)| !name.starts_with("gradient."))
    {
        shell::outln!("{name} {:?}", tensor.size());
    }
    Ok(())
}
