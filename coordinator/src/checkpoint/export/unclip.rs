//! `pipeline/`: a decoder of the variant `unclip-sd15` as the pipeline of Kandinsky 2.2 in
//! `diffusers`, which has no other that draws image embeddings alone. Two networks are written as
//! what that pipeline expects, with the same results:
//!
//! - the U-Net with the image embedding's projections in it, and with channels for a variance,
//!   which are zero and which the pipeline drops;
//! - the autoencoder as a `VQModel` that is not quantized: its posterior's mean and the scaling of
//!   latents are part of the convolutions around them.

use super::super::CheckpointError;
use super::super::component::Weights;
use super::Export;
use proto::architecture::UNCLIP;
use proto::public::base::{CONFIG_FILE, part};
use proto::public::pipeline;
use proto::public::write;
use safetensors::Dtype;
use std::collections::BTreeMap;

/// The pipeline's folder in the export.
const FOLDER: &str = "pipeline";
const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

impl Export<'_> {
    /// Writes the pipeline.
    pub(super) async fn write_unclip(
        &self,
        files: &mut BTreeMap<String, String>,
    ) -> Result<(), CheckpointError> {
        let (model, resolution) = (&self.spec.model, self.spec.data.resolution);
        let Some([unet_config, movq_config]) = write::unclip(model, resolution) else {
            return Ok(());
        };
        let load = async |name: &str| {
            let part = part(name).expect("it is a part of this architecture");
            let mut weights = self.weights(part).await?;
            weights.values_mut().for_each(Weights::convert_to_f32);
            Ok::<_, CheckpointError>(weights)
        };
        let mut unet = load("unet").await?;
        unet.extend(load(UNCLIP).await?);
        add_variance(&mut unet)?;
        let mut movq = load("autoencoder").await?;
        let scale = model.architecture.autoencoder();
        as_vq_model(&mut movq, scale.map_or(1.0, |it| it.scaling_factor))?;
        for (folder, config, weights) in [("unet", unet_config, unet), ("movq", movq_config, movq)]
        {
            let name = format!("{FOLDER}/{folder}/{WEIGHTS}");
            self.write_text(&format!("{FOLDER}/{folder}/{CONFIG_FILE}"), &config, files)?;
            files.insert(name.clone(), self.write_weights(&name, weights)?);
        }
        for (name, text) in pipeline::unclip_files(model).unwrap_or_default() {
            self.write_text(&format!("{FOLDER}/{name}"), &text, files)?;
        }
        Ok(())
    }
}

fn floats(weights: &Weights) -> Vec<f32> {
    let chunks = weights.bytes.chunks_exact(4);
    let value = |it: &[u8]| f32::from_le_bytes(it.try_into().expect("the chunks have four bytes"));
    chunks.map(value).collect()
}

fn of_floats(shape: &[usize], values: impl IntoIterator<Item = f32>) -> Weights {
    let bytes = values.into_iter().flat_map(f32::to_le_bytes).collect();
    Weights::new(Dtype::F32, shape, bytes)
}

fn take(weights: &mut BTreeMap<String, Weights>, name: &str) -> Result<Weights, CheckpointError> {
    weights
        .remove(name)
        .ok_or_else(|| CheckpointError::Refused(format!("the model has no tensor {name}")))
}

/// Doubles the outputs of the U-Net; the further ones are zero.
fn add_variance(unet: &mut BTreeMap<String, Weights>) -> Result<(), CheckpointError> {
    for name in ["conv_out.weight", "conv_out.bias"] {
        let mut it = take(unet, name)?;
        it.bytes.resize(2 * it.bytes.len(), 0);
        it.shape[0] *= 2;
        unet.insert(name.to_owned(), it);
    }
    Ok(())
}

/// An autoencoder's weights as those of a `VQModel` that maps images to the mean of the posterior,
/// scaled, and back.
fn as_vq_model(vae: &mut BTreeMap<String, Weights>, scale: f64) -> Result<(), CheckpointError> {
    let quant = take(vae, "quant_conv.weight")?;
    let quant_bias = floats(&take(vae, "quant_conv.bias")?);
    let last = take(vae, "encoder.conv_out.weight")?;
    let last_bias = floats(&take(vae, "encoder.conv_out.bias")?);
    // The first half of the moments is the mean.
    let (moments, channels) = (quant_bias.len(), quant_bias.len() / 2);
    let (mixing, kernel) = (floats(&quant), floats(&last));
    let width = kernel.len() / moments;
    let (mut weight, mut bias) = (vec![0.0; channels * width], vec![0.0; channels]);
    for out in 0..channels {
        bias[out] = quant_bias[out];
        for moment in 0..moments {
            let factor = mixing[out * moments + moment];
            bias[out] += factor * last_bias[moment];
            let from = &kernel[moment * width..(moment + 1) * width];
            let into = &mut weight[out * width..(out + 1) * width];
            for (into, from) in into.iter_mut().zip(from) {
                *into += factor * from;
            }
        }
    }
    let mut shape = last.shape;
    shape[0] = channels;
    let scaled = |row: usize, column: usize| if row == column { scale as f32 } else { 0.0 };
    let scaling = (0..channels * channels).map(|at| scaled(at / channels, at % channels));
    let decode = take(vae, "post_quant_conv.weight")?;
    let unscaled = floats(&decode).into_iter().map(|it| it / scale as f32);
    let square = [channels, channels, 1, 1];
    for (name, it) in [
        ("encoder.conv_out.weight", of_floats(&shape, weight)),
        ("encoder.conv_out.bias", of_floats(&[channels], bias)),
        ("quant_conv.weight", of_floats(&square, scaling)),
        (
            "quant_conv.bias",
            of_floats(&[channels], vec![0.0; channels]),
        ),
        ("post_quant_conv.weight", of_floats(&decode.shape, unscaled)),
        // A codebook is never looked up.
        (
            "quantize.embedding.weight",
            of_floats(&[1, channels], vec![0.0; channels]),
        ),
    ] {
        vae.insert(name.to_owned(), it);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_mean_and_the_scale_are_folded_into_the_convolutions_around_them() {
        // One latent channel, one channel before the last convolution, kernels of one pixel.
        let weights = |shape: &[usize], values: &[f32]| of_floats(shape, values.iter().copied());
        let mut vae = BTreeMap::from([
            (
                "encoder.conv_out.weight".to_owned(),
                weights(&[2, 1, 1, 1], &[2.0, 3.0]),
            ),
            (
                "encoder.conv_out.bias".to_owned(),
                weights(&[2], &[0.5, -1.0]),
            ),
            (
                "quant_conv.weight".to_owned(),
                weights(&[2, 2, 1, 1], &[1.0, 2.0, 7.0, 7.0]),
            ),
            ("quant_conv.bias".to_owned(), weights(&[2], &[0.25, 7.0])),
            (
                "post_quant_conv.weight".to_owned(),
                weights(&[1, 1, 1, 1], &[3.0]),
            ),
            ("post_quant_conv.bias".to_owned(), weights(&[1], &[0.125])),
        ]);
        as_vq_model(&mut vae, 0.5).unwrap();
        let value = |name: &str| floats(&vae[name]);
        // mean = 1 * (2x + 0.5) + 2 * (3x - 1) + 0.25
        assert_eq!(value("encoder.conv_out.weight"), [8.0]);
        assert_eq!(value("encoder.conv_out.bias"), [-1.25]);
        assert_eq!(vae["encoder.conv_out.weight"].shape, [1, 1, 1, 1]);
        assert_eq!(value("quant_conv.weight"), [0.5]);
        assert_eq!(value("post_quant_conv.weight"), [6.0]);
        assert_eq!(value("post_quant_conv.bias"), [0.125]);
        assert!(as_vq_model(&mut BTreeMap::new(), 1.0).is_err());
    }

    #[test]
    fn the_variance_is_zero() {
        let mut unet = BTreeMap::from([
            (
                "conv_out.weight".to_owned(),
                of_floats(&[1, 2, 1, 1], [1.0, 2.0]),
            ),
            ("conv_out.bias".to_owned(), of_floats(&[1], [3.0])),
        ]);
        add_variance(&mut unet).unwrap();
        assert_eq!(unet["conv_out.weight"].shape, [2, 2, 1, 1]);
        assert_eq!(floats(&unet["conv_out.weight"]), [1.0, 2.0, 0.0, 0.0]);
        assert_eq!(floats(&unet["conv_out.bias"]), [3.0, 0.0]);
    }
}
