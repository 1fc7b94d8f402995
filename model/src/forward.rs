//! Runs one named component on given tensors, to compare our results with another implementation.
//! Called by `worker forward`.

use crate::architecture::retrinet::{self, Conditions, References, predict};
use crate::device::dtype;
use crate::error::{ModelError, catch_panic};
use crate::mapped::Mapped;
use crate::public::{self, Loaded};
use crate::unet::{UNet, UNetInputs};
use crate::weights::NamedTensors;
use proto::spec::Precision;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// The components that can be run. Inputs and outputs have the names of `diffusers` and
/// `transformers`.
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
    /// `text_embeds` if the weights contain a projection.
    Text,
    /// `pixel_values` [B, 3, H, W], normalized -> `image_embeds` [B, D].
    Image,
    /// The inputs of [`Self::UNet`], and `references` [B, N, C, h, w], clean and scaled, and
    /// `reference_hidden_states` [B, N, T, D] -> `sample`.
    Retrinet,
}

/// The parameters of a run.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub what: Runnable,
    /// A component's folder, or one file.
    pub weights: &'a Path,
    pub inputs: &'a Path,
    pub precision: Precision,
    /// Also outputs `gradient.NAME`, the gradient of the mean square of `sample`, for the U-Net's
    /// float inputs and for every tensor of its file.
    pub gradients: bool,
}

/// Runs the requested component and returns its outputs.
///
/// # Errors
/// Weights or inputs that cannot be read or do not match the component.
pub fn forward(request: Request<'_>, device: Device) -> Result<NamedTensors, ModelError> {
    let inputs = Inputs {
        tensors: Mapped::open(request.inputs)?,
        path: request.inputs,
        dtype: dtype(request.precision),
        device,
    };
    if request.gradients && request.what != Runnable::UNet {
        let (architecture, feature) = ("a component other than the U-Net", "gradients");
        return Err(ModelError::Unsupported {
            architecture,
            feature,
        });
    }
    catch_panic("running the component", || {
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
            inputs.refuse_unknown(&["sample", "timestep", "encoder_hidden_states"])?;
            let unet = public::unet(weights, device)?.network;
            Ok(vec![(
                "sample",
                run_unet(
                    &unet,
                    &inputs.float("sample", 4)?,
                    &inputs.float("encoder_hidden_states", 3)?,
                    inputs,
                )?,
            )])
        }
        Runnable::AutoencoderEncode => {
            inputs.refuse_unknown(&["image"])?;
            let moments = public::autoencoder(weights, device)?.encode(&inputs.float("image", 4)?);
            Ok(vec![
                ("mean", moments.mean),
                ("logvar", moments.log_variance),
            ])
        }
        Runnable::AutoencoderDecode => {
            inputs.refuse_unknown(&["latent"])?;
            let autoencoder = public::autoencoder(weights, device)?;
            Ok(vec![(
                "image",
                autoencoder.decode(&inputs.float("latent", 4)?),
            )])
        }
        Runnable::Text => {
            inputs.refuse_unknown(&["input_ids"])?;
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
            inputs.refuse_unknown(&["pixel_values"])?;
            let image = public::image(weights, device)?;
            Ok(vec![(
                "image_embeds",
                image.forward(&inputs.float("pixel_values", 4)?),
            )])
        }
        Runnable::Retrinet => {
            inputs.refuse_unknown(&[
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
                    per_target: references.size()[1],
                    latents: references.flatten(0, 1),
                    words: inputs.float("reference_hidden_states", 4)?.flatten(0, 1),
                    kept: None,
                    features: None,
                }),
            };
            Ok(vec![(
                "sample",
                predict(&unet, &block, &latents, &conditions),
            )])
        }
    }
}

fn run_unet(
    unet: &UNet,
    sample: &Tensor,
    context: &Tensor,
    inputs: &Inputs<'_>,
) -> Result<Tensor, ModelError> {
    let timesteps = inputs.timesteps(sample.size()[0])?;
    Ok(unet.forward(&UNetInputs::new(sample, &timesteps, context)))
}

fn with_gradients(unet: Loaded<UNet>, inputs: &Inputs<'_>) -> Result<NamedTensors, ModelError> {
    inputs.refuse_unknown(&["sample", "timestep", "encoder_hidden_states"])?;
    let names = ["sample", "encoder_hidden_states"];
    let floats = [inputs.float(names[0], 4)?, inputs.float(names[1], 3)?];
    let named = names
        .map(str::to_owned)
        .into_iter()
        .zip(floats.iter().map(Tensor::shallow_clone));
    let leaves: Vec<(String, Tensor)> = named.chain(unet.parameters).collect();
    for (_, leaf) in &leaves {
        let _ = leaf.set_requires_grad(true);
    }
    let sample = run_unet(&unet.network, &floats[0], &floats[1], inputs)?;
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
    /// The dtype in which the component computes.
    dtype: Kind,
    device: Device,
}

impl Inputs<'_> {
    /// Returns an error if there is a tensor that the component does not use.
    fn refuse_unknown(&self, known: &[&str]) -> Result<(), ModelError> {
        match self.tensors.names().find(|name| !known.contains(name)) {
            None => Ok(()),
            Some(extra) => Err(self.invalid(
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
        Err(self.invalid(
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
        Err(self.invalid(name, &found, "integers [batch, tokens]"))
    }

    /// One time step for the whole batch, or one for each sample.
    fn timesteps(&self, batch: i64) -> Result<Tensor, ModelError> {
        let tensor = self.tensors.read("timestep")?;
        if tensor.numel() == 1 || tensor.size() == [batch] {
            return Ok(tensor
                .to_device(self.device)
                .flatten(0, -1)
                .expand([batch], false));
        }
        Err(self.invalid(
            "timestep",
            &format!("has shape {:?}", tensor.size()),
            &format!("[] or [{batch}]"),
        ))
    }

    fn invalid(&self, tensor: &str, found: &str, expected: &str) -> ModelError {
        ModelError::Input {
            path: self.path.to_owned(),
            tensor: tensor.to_owned(),
            found: found.to_owned(),
            expected: expected.to_owned(),
        }
    }
}
