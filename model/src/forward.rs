//! One named component on given tensors: how anyone can hold our arithmetic against another
//! implementation's. Called by `worker forward`.

use crate::architecture::retrinet::{self, Conditions, References, predict};
use crate::device::dtype;
use crate::error::{ModelError, guarded};
use crate::mapped::Mapped;
use crate::public::{self, Loaded};
use crate::unet::{UNet, UNetInputs};
use crate::weights::NamedTensors;
use proto::spec::Precision;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// What can be run. Inputs and outputs are named as `diffusers` and `transformers` name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runnable {
    /// `sample` [B, C, h, w], `timestep` [] or [B], `encoder_hidden_states` [B, T, D] -> `sample`
    /// [B, C, h, w].
    UNet,
    /// `image` [B, 3, H, W] in [-1, 1] -> `mean`, `logvar` [B, c, h, w].
    AutoencoderEncode,
    /// `latent` [B, c, h, w], without the scaling factor -> `image` [B, 3, H, W].
    AutoencoderDecode,
    /// `input_ids` [B, T] -> `last_hidden_state` [B, T, D], `pooler_output` [B, D], and
    /// `text_embeds` where the weights hold a projection.
    Text,
    /// `pixel_values` [B, 3, H, W], normalised -> `image_embeds` [B, D].
    Image,
    /// The U-Net's, with `references` [B, N, C, h, w], clean and scaled, and
    /// `reference_hidden_states` [B, N, T, D] -> `sample`.
    Retrinet,
}

/// What a run is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub what: Runnable,
    /// A component's folder, or one file.
    pub weights: &'a Path,
    pub inputs: &'a Path,
    pub precision: Precision,
    /// Also `gradient.NAME` for the U-Net's float inputs and every tensor of its file, of the mean
    /// square of `sample`.
    pub gradients: bool,
}

/// Runs it.
///
/// # Errors
/// Weights or inputs that cannot be read or do not fit.
pub fn forward(request: Request<'_>, device: Device) -> Result<NamedTensors, ModelError> {
    let inputs = Inputs {
        tensors: Mapped::open(request.inputs)?,
        path: request.inputs,
        dtype: dtype(request.precision),
        device,
    };
    if request.gradients && request.what != Runnable::UNet {
        let (architecture, request) = ("component other than the U-Net", "give gradients");
        return Err(ModelError::Unsupported {
            architecture,
            request,
        });
    }
    guarded("running the component", || {
        if request.gradients {
            return with_gradients(public::unet(request.weights, device)?, &inputs);
        }
        let outputs = tch::no_grad(|| run(request, &inputs, device))?;
        Ok(outputs
            .into_iter()
            .map(|(name, tensor)| (name.to_owned(), tensor))
            .collect())
    })
}

fn run(
    request: Request<'_>,
    inputs: &Inputs<'_>,
    device: Device,
) -> Result<Vec<(&'static str, Tensor)>, ModelError> {
    let weights = request.weights;
    match request.what {
        Runnable::UNet => {
            inputs.only(&["sample", "timestep", "encoder_hidden_states"])?;
            let unet = public::unet(weights, device)?.network;
            Ok(vec![(
                "sample",
                unet_on(
                    &unet,
                    &inputs.float("sample", 4)?,
                    &inputs.float("encoder_hidden_states", 3)?,
                    inputs,
                )?,
            )])
        }
        Runnable::AutoencoderEncode => {
            inputs.only(&["image"])?;
            let moments = public::autoencoder(weights, device)?.encode(&inputs.float("image", 4)?);
            Ok(vec![
                ("mean", moments.mean),
                ("logvar", moments.log_variance),
            ])
        }
        Runnable::AutoencoderDecode => {
            inputs.only(&["latent"])?;
            let autoencoder = public::autoencoder(weights, device)?;
            Ok(vec![(
                "image",
                autoencoder.decode(&inputs.float("latent", 4)?),
            )])
        }
        Runnable::Text => {
            inputs.only(&["input_ids"])?;
            let (text, ids) = (public::text(weights, device)?, inputs.ids("input_ids")?);
            let states = text.forward(&ids, inputs.dtype);
            let pooled = text.pool(&ids, &states);
            let embeds = text.project(&pooled).map(|embeds| ("text_embeds", embeds));
            Ok([("last_hidden_state", states), ("pooler_output", pooled)]
                .into_iter()
                .chain(embeds)
                .collect())
        }
        Runnable::Image => {
            inputs.only(&["pixel_values"])?;
            let image = public::image(weights, device)?;
            Ok(vec![(
                "image_embeds",
                image.forward(&inputs.float("pixel_values", 4)?),
            )])
        }
        Runnable::Retrinet => {
            inputs.only(&[
                "sample",
                "timestep",
                "encoder_hidden_states",
                "references",
                "reference_hidden_states",
            ])?;
            let (unet, block) = retrinet::load(weights, device)?;
            let latents = inputs.float("sample", 4)?;
            let references = inputs.float("references", 5)?;
            let conditions = Conditions {
                timesteps: inputs.timesteps(latents.size()[0])?,
                text: inputs.float("encoder_hidden_states", 3)?,
                references: Some(References {
                    each: references.size()[1],
                    latents: references.flatten(0, 1),
                    words: inputs.float("reference_hidden_states", 4)?.flatten(0, 1),
                }),
            };
            Ok(vec![(
                "sample",
                predict(&unet, &block, &latents, &conditions),
            )])
        }
    }
}

fn unet_on(
    unet: &UNet,
    sample: &Tensor,
    context: &Tensor,
    inputs: &Inputs<'_>,
) -> Result<Tensor, ModelError> {
    let timesteps = inputs.timesteps(sample.size()[0])?;
    Ok(unet.forward(&UNetInputs::new(sample, &timesteps, context)))
}

fn with_gradients(unet: Loaded<UNet>, inputs: &Inputs<'_>) -> Result<NamedTensors, ModelError> {
    inputs.only(&["sample", "timestep", "encoder_hidden_states"])?;
    let given = ["sample", "encoder_hidden_states"];
    let floats = [inputs.float(given[0], 4)?, inputs.float(given[1], 3)?];
    let named = given
        .map(str::to_owned)
        .into_iter()
        .zip(floats.iter().map(Tensor::shallow_clone));
    let leaves: Vec<(String, Tensor)> = named.chain(unet.parameters).collect();
    for (_, leaf) in &leaves {
        let _ = leaf.set_requires_grad(true);
    }
    let sample = unet_on(&unet.network, &floats[0], &floats[1], inputs)?;
    sample.square().mean(Kind::Float).backward();
    let gradients = leaves
        .iter()
        .map(|(name, leaf)| (format!("gradient.{name}"), leaf.grad()));
    Ok(std::iter::once(("sample".to_owned(), sample.detach()))
        .chain(gradients)
        .collect())
}

struct Inputs<'a> {
    tensors: Mapped,
    path: &'a Path,
    /// What the component computes in.
    dtype: Kind,
    device: Device,
}

impl Inputs<'_> {
    /// Refuses a tensor that would not be looked at.
    fn only(&self, known: &[&str]) -> Result<(), ModelError> {
        match self.tensors.names().find(|name| !known.contains(name)) {
            None => Ok(()),
            Some(extra) => Err(self.fault(
                extra,
                "is not an input of this component",
                &known.join(", "),
            )),
        }
    }

    fn float(&self, name: &str, dimensions: usize) -> Result<Tensor, ModelError> {
        let tensor = self
            .tensors
            .read(name)?
            .to_kind(self.dtype)
            .to_device(self.device);
        if tensor.dim() == dimensions {
            return Ok(tensor);
        }
        Err(self.fault(
            name,
            &format!("has shape {:?}", tensor.size()),
            &format!("{dimensions} dimensions"),
        ))
    }

    fn ids(&self, name: &str) -> Result<Tensor, ModelError> {
        let tensor = self.tensors.read(name)?;
        if tensor.dim() == 2 && matches!(tensor.kind(), Kind::Int64 | Kind::Int) {
            return Ok(tensor.to_kind(Kind::Int64).to_device(self.device));
        }
        let found = format!("is {:?} of shape {:?}", tensor.kind(), tensor.size());
        Err(self.fault(name, &found, "whole numbers [batch, tokens]"))
    }

    /// One time step for all, or one for each.
    fn timesteps(&self, batch: i64) -> Result<Tensor, ModelError> {
        let tensor = self.tensors.read("timestep")?;
        if tensor.numel() == 1 || tensor.size() == [batch] {
            return Ok(tensor
                .to_device(self.device)
                .flatten(0, -1)
                .expand([batch], false));
        }
        Err(self.fault(
            "timestep",
            &format!("has shape {:?}", tensor.size()),
            &format!("[] or [{batch}]"),
        ))
    }

    fn fault(&self, tensor: &str, found: &str, expected: &str) -> ModelError {
        ModelError::Input {
            path: self.path.to_owned(),
            tensor: tensor.to_owned(),
            found: found.to_owned(),
            expected: expected.to_owned(),
        }
    }
}
