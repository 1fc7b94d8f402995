//! Normalises an autoencoder: its latents get mean 0 and standard deviation 1 in every channel, so
//! that no channel is lost in noise that another survives. The scaling moves into the pointwise
//! convolutions beside the latents, `quant_conv` and `post_quant_conv`; the autoencoder's
//! reconstructions stay the same. Ours: Stable Diffusion scales all channels by one factor.

use crate::autoencoder::Autoencoder;
use crate::error::ModelError;
use crate::weights::NamedTensors;
use image::RgbImage;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// The mean and the standard deviation of each latent channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Channels {
    pub means: Vec<f64>,
    pub deviations: Vec<f64>,
}

/// Sums over latents, in f64.
#[derive(Debug, Default)]
pub struct LatentStatistics {
    sums: Option<[Tensor; 2]>,
    values: f64,
}

impl LatentStatistics {
    /// Adds the posterior means of images of one size.
    pub fn add(&mut self, autoencoder: &Autoencoder, images: &[RgbImage]) {
        let Some(first) = images.first() else { return };
        let (width, height) = (i64::from(first.width()), i64::from(first.height()));
        let bytes: Vec<u8> = images
            .iter()
            .flat_map(|image| image.as_raw().clone())
            .collect();
        let pixels = Tensor::from_slice(&bytes).view([-1, height, width, 3]);
        let pixels = pixels
            .permute([0, 3, 1, 2])
            .contiguous()
            .to_kind(Kind::Float)
            / 127.5
            - 1.0;
        let latents = tch::no_grad(|| autoencoder.encode(&pixels).mean).to_kind(Kind::Double);
        let sum = |values: &Tensor| values.sum_dim_intlist([0i64, 2, 3].as_slice(), false, None);
        let added = [sum(&latents), sum(&latents.square())];
        self.values += (latents.numel() as i64 / latents.size()[1]) as f64;
        self.sums = Some(match self.sums.take() {
            None => added,
            Some([sums, squares]) => [sums + &added[0], squares + &added[1]],
        });
    }

    /// None before the first image.
    #[must_use]
    pub fn channels(&self) -> Option<Channels> {
        let [sums, squares] = self.sums.as_ref()?;
        let means = sums / self.values;
        let variances = squares / self.values - means.square();
        let values = |tensor: Tensor| Vec::try_from(tensor).expect("one value for each channel");
        Some(Channels {
            means: values(means),
            deviations: values(variances.clamp_min(0.0).sqrt()),
        })
    }
}

/// Changes the weights of an autoencoder, under the names of `diffusers` or of this program's own
/// layout, so that latents of these channels become normalised.
///
/// # Errors
/// A tensor that is missing or of another number of channels; a channel that does not vary.
pub fn normalize(
    origin: &Path,
    weights: &mut NamedTensors,
    channels: &Channels,
) -> Result<(), ModelError> {
    let count = channels.means.len() as i64;
    let tensor = |name: &str, expected: Vec<i64>| {
        let origin = origin.display().to_string();
        let tensor = name.to_owned();
        match weights.get(name) {
            None => Err(ModelError::MissingTensor {
                origin,
                tensor,
                expected,
            }),
            Some(found) if found.size() != expected => Err(ModelError::TensorShape {
                origin,
                tensor,
                found: found.size(),
                expected,
            }),
            Some(found) => Ok(found.to_kind(Kind::Double)),
        }
    };
    let names = [
        "quant_conv.weight",
        "quant_conv.bias",
        "post_quant_conv.weight",
        "post_quant_conv.bias",
    ];
    let to = tensor(names[0], vec![2 * count, 2 * count, 1, 1])?;
    let to_bias = tensor(names[1], vec![2 * count])?;
    let from = tensor(names[2], vec![count, count, 1, 1])?;
    let from_bias = tensor(names[3], vec![count])?;
    if let Some(channel) = channels.deviations.iter().position(|it| *it <= 1e-6) {
        return Err(ModelError::ConstantLatent {
            path: origin.to_owned(),
            channel,
        });
    }
    let means = Tensor::from_slice(&channels.means);
    let deviations = Tensor::from_slice(&channels.deviations);
    // Rows of the mean, then rows of the log variance.
    let ones = Tensor::ones([count], (Kind::Double, Device::Cpu));
    let scale = Tensor::cat(&[deviations.reciprocal(), ones], 0);
    let shift = Tensor::cat(&[-(&means / &deviations), deviations.log() * -2.0], 0);
    let moved = from.view([count, count]).matmul(&means);
    let changed = [
        to * scale.view([-1, 1, 1, 1]),
        to_bias * &scale + shift,
        from * deviations.view([1, -1, 1, 1]),
        from_bias + moved,
    ];
    for (name, tensor) in names.into_iter().zip(changed) {
        weights.insert(name.to_owned(), tensor.to_kind(Kind::Float));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::parameter::Parameters;
    use proto::layout::AutoencoderLayout;

    fn layout() -> AutoencoderLayout {
        (&proto::size::named("tiny").unwrap().1).into()
    }

    fn images() -> Vec<RgbImage> {
        let pixel = |image: u32, x: u32, y: u32| {
            let value = |k: u32| ((image * 71 + x * 37 + y * 23 + k * 59) % 256) as u8;
            image::Rgb([value(1), value(2), value(3)])
        };
        (0..4)
            .map(|image| RgbImage::from_fn(32, 32, |x, y| pixel(image, x, y)))
            .collect()
    }

    fn loaded(weights: &NamedTensors) -> Autoencoder {
        let parameters = Parameters::seeded(1, Device::Cpu);
        let autoencoder = Autoencoder::new(&parameters.root(), &layout());
        crate::weights::load("test", weights, &parameters.tensors()).unwrap();
        autoencoder
    }

    #[test]
    fn latents_are_normalised_and_images_stay() {
        let parameters = Parameters::seeded(3, Device::Cpu);
        let first = Autoencoder::new(&parameters.root(), &layout());
        let mut weights: NamedTensors = parameters
            .tensors()
            .into_iter()
            .map(|(name, tensor)| (name, tensor.copy()))
            .collect();
        let mut statistics = LatentStatistics::default();
        assert_eq!(statistics.channels(), None);
        // In two parts, which must count alike.
        statistics.add(&first, &images()[..1]);
        statistics.add(&first, &images()[1..]);
        let channels = statistics.channels().unwrap();
        normalize(Path::new("test"), &mut weights, &channels).unwrap();
        let second = loaded(&weights);
        let mut statistics = LatentStatistics::default();
        statistics.add(&second, &images());
        let normalised = statistics.channels().unwrap();
        let close = |values: &[f64], to: f64| values.iter().all(|it| (it - to).abs() < 1e-3);
        assert!(close(&normalised.means, 0.0), "{normalised:?}");
        assert!(close(&normalised.deviations, 1.0), "{normalised:?}");
        let noise = Tensor::ones([1, 3, 32, 32], (Kind::Float, Device::Cpu)) * 0.3;
        let (before, after) = (first.encode(&noise), second.encode(&noise));
        let decoded = [first.decode(&before.mean), second.decode(&after.mean)];
        let difference = (&decoded[0] - &decoded[1]).abs().max().double_value(&[]);
        assert!(difference < 1e-4, "{difference}");
        // One standard deviation of the posterior is as far in the image.
        let sampled = [(&first, &before), (&second, &after)].map(|(autoencoder, moments)| {
            autoencoder.decode(&moments.sample(&moments.mean.ones_like()))
        });
        let difference = (&sampled[0] - &sampled[1]).abs().max().double_value(&[]);
        assert!(difference < 1e-4, "{difference}");
    }

    #[test]
    fn what_is_no_such_autoencoder_is_refused_by_name() {
        let channels = |deviation| Channels {
            means: vec![0.0; 4],
            deviations: vec![1.0, 1.0, deviation, 1.0],
        };
        let mut weights = NamedTensors::new();
        let error = normalize(Path::new("f"), &mut weights, &channels(1.0)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "f: tensor \"quant_conv.weight\" is missing; expected shape [8, 8, 1, 1]"
        );
        let parameters = Parameters::seeded(3, Device::Cpu);
        let _ = Autoencoder::new(&parameters.root(), &layout());
        let mut weights = parameters.tensors();
        let error = normalize(Path::new("f"), &mut weights, &channels(0.0)).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("f: latent channel 2 does not vary"),
            "{error}"
        );
    }
}
