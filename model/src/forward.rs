//! Runs one named component on given tensors, to compare our results with another implementation.
//! Called by `worker forward`.

use crate::architecture::controlnet::{self, Control};
use crate::architecture::ip_adapter;
use crate::architecture::kandinsky_prior::transformer::PriorText;
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
    /// A folder with `unet` and `controlnet`. The inputs of [`Self::UNet`], and `controlnet_cond`
    /// [B, 3, H, W] in [0, 1] -> `sample`, and the branch's outputs `residual.I`, the middle's
    /// last.
    ControlNet,
    /// A folder with `unet` and a file or folder `ip_adapter`. The inputs of [`Self::UNet`],
    /// `image_embeds` [B, N, E], and `scale` [] -> `sample`.
    IpAdapter,
    /// `hidden_states` [B, E], `timestep` [] or [B], `proj_embedding` [B, E],
    /// `encoder_hidden_states` [B, T, E], `attention_mask` [B, T] -> `predicted_image_embedding`.
    Prior,
    /// Kandinsky's: `sample` [B, C, h, w], `timestep` [] or [B], `image_embeds` [B, E] -> `sample`
    /// [B, 2C, h, w].
    ImageUNet,
    /// `image` [B, 3, H, W] in [-1, 1] -> `latents` [B, c, h, w].
    MovqEncode,
    /// `latent` [B, c, h, w], not quantized -> `image` [B, 3, H, W].
    MovqDecode,
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
        tch::no_grad(|| run(request, &inputs, device))
    })
}

fn run(
    request: Request<'_>,
    inputs: &Inputs<'_>,
    device: Device,
) -> Result<NamedTensors, ModelError> {
    let weights = request.weights;
    let outputs = match request.what {
        Runnable::ControlNet => return run_controlnet(weights, inputs, device),
        Runnable::IpAdapter => return run_ip_adapter(weights, inputs, device),
        Runnable::Prior | Runnable::ImageUNet | Runnable::MovqEncode | Runnable::MovqDecode => {
            return run_kandinsky(request, inputs, device);
        }
        Runnable::UNet => {
            inputs.refuse_unknown(&["sample", "timestep", "encoder_hidden_states"])?;
            let unet = public::unet(weights, device)?.network;
            vec![(
                "sample",
                run_unet(
                    &unet,
                    &inputs.float("sample", 4)?,
                    &inputs.float("encoder_hidden_states", 3)?,
                    inputs,
                )?,
            )]
        }
        Runnable::AutoencoderEncode => {
            inputs.refuse_unknown(&["image"])?;
            let moments = public::autoencoder(weights, device)?.encode(&inputs.float("image", 4)?);
            vec![("mean", moments.mean), ("logvar", moments.log_variance)]
        }
        Runnable::AutoencoderDecode => {
            inputs.refuse_unknown(&["latent"])?;
            let autoencoder = public::autoencoder(weights, device)?;
            vec![("image", autoencoder.decode(&inputs.float("latent", 4)?))]
        }
        Runnable::Text => {
            inputs.refuse_unknown(&["input_ids"])?;
            let (text, ids) = (public::text(weights, device)?, inputs.ids("input_ids")?);
            let states = text.forward(&ids, inputs.dtype);
            let pooled = text.pool(&ids, &states);
            let embeds = text.project(&pooled).map(|embeds| ("text_embeds", embeds));
            [("last_hidden_state", states), ("pooler_output", pooled)]
                .into_iter()
                .chain(embeds)
                .collect()
        }
        Runnable::Image => {
            inputs.refuse_unknown(&["pixel_values"])?;
            let image = public::image(weights, device)?;
            vec![(
                "image_embeds",
                image.forward(&inputs.float("pixel_values", 4)?),
            )]
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
            vec![("sample", predict(&unet, &block, &latents, &conditions))]
        }
    };
    let named = outputs.into_iter();
    Ok(named
        .map(|(name, tensor): (&str, Tensor)| (name.to_owned(), tensor))
        .collect())
}

/// A network that only Kandinsky has.
fn run_kandinsky(
    request: Request<'_>,
    inputs: &Inputs<'_>,
    device: Device,
) -> Result<NamedTensors, ModelError> {
    let weights = request.weights;
    let (name, out) = match request.what {
        Runnable::Prior => {
            inputs.refuse_unknown(&[
                "hidden_states",
                "timestep",
                "proj_embedding",
                "encoder_hidden_states",
                "attention_mask",
            ])?;
            let prior = public::prior(weights, device)?.network;
            let noisy = inputs.float("hidden_states", 2)?;
            let timesteps = inputs.timesteps(noisy.size()[0])?;
            let text = PriorText {
                states: &inputs.float("encoder_hidden_states", 3)?,
                embedding: &inputs.float("proj_embedding", 2)?,
                mask: &inputs.float("attention_mask", 2)?,
            };
            let out = prior.forward(&noisy, &timesteps, &text);
            ("predicted_image_embedding", out)
        }
        Runnable::MovqEncode => {
            inputs.refuse_unknown(&["image"])?;
            let movq = public::movq(weights, device)?.network;
            ("latents", movq.encode(&inputs.float("image", 4)?))
        }
        Runnable::MovqDecode => {
            inputs.refuse_unknown(&["latent"])?;
            let movq = public::movq(weights, device)?.network;
            ("image", movq.decode(&inputs.float("latent", 4)?))
        }
        _ => {
            inputs.refuse_unknown(&["sample", "timestep", "image_embeds"])?;
            let unet = public::image_unet(weights, device)?.network;
            let latents = inputs.float("sample", 4)?;
            let timesteps = inputs.timesteps(latents.size()[0])?;
            let embeddings = inputs.float("image_embeds", 2)?;
            ("sample", unet.forward(&latents, &timesteps, &embeddings))
        }
    };
    Ok(NamedTensors::from([(name.to_owned(), out)]))
}

/// The branch's outputs, and the U-Net's prediction with them.
fn run_controlnet(
    weights: &Path,
    inputs: &Inputs<'_>,
    device: Device,
) -> Result<NamedTensors, ModelError> {
    inputs.refuse_unknown(&[
        "sample",
        "timestep",
        "encoder_hidden_states",
        "controlnet_cond",
    ])?;
    let (unet, branch) = controlnet::load(weights, device)?;
    let latents = inputs.float("sample", 4)?;
    let timesteps = inputs.timesteps(latents.size()[0])?;
    let text = inputs.float("encoder_hidden_states", 3)?;
    let unet_inputs = UNetInputs::new(&latents, &timesteps, &text);
    let control = Control {
        hint: &inputs.float("controlnet_cond", 4)?,
        scales: &vec![1.0; branch.outputs()],
        kept: None,
    };
    let residuals = branch.forward(&unet_inputs, &control).into_iter();
    let mut outputs: NamedTensors = residuals
        .enumerate()
        .map(|(i, residual)| (format!("residual.{i}"), residual))
        .collect();
    let sample = controlnet::predict(&unet, &branch, &unet_inputs, &control);
    outputs.insert("sample".to_owned(), sample);
    Ok(outputs)
}

/// The U-Net's prediction with an adapter's context.
fn run_ip_adapter(
    weights: &Path,
    inputs: &Inputs<'_>,
    device: Device,
) -> Result<NamedTensors, ModelError> {
    inputs.refuse_unknown(&[
        "sample",
        "timestep",
        "encoder_hidden_states",
        "image_embeds",
        "scale",
    ])?;
    let unet = public::unet(&weights.join("unet"), device)?.network;
    let folder = weights.join("ip_adapter");
    let file = weights.join("ip_adapter.safetensors");
    let own = if folder.is_dir() { folder } else { file };
    let layout = public::unet_layout(&weights.join("unet"))?;
    let adapter = ip_adapter::load(&own, &layout, device)?;
    let latents = inputs.float("sample", 4)?;
    let timesteps = inputs.timesteps(latents.size()[0])?;
    let text = inputs.float("encoder_hidden_states", 3)?;
    let tokens = adapter.tokens(&inputs.float("image_embeds", 3)?);
    let scale = inputs.float("scale", 0)?.double_value(&[]);
    let sample = unet.forward(&UNetInputs {
        image: &adapter.context(&tokens, scale),
        ..UNetInputs::new(&latents, &timesteps, &text)
    });
    Ok(NamedTensors::from([("sample".to_owned(), sample)]))
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
