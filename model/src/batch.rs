//! Converts the examples of a micro-batch to tensors: images in [-1, 1], masks, words and seeds.
//! Every example is validated here, so that later code may rely on the shapes.

use crate::error::ModelError;
use crate::latent::{ImageKey, image_key};
use crate::noise::{self, Purpose};
use model_data::example::{Concept, Example};
use tch::{Device, Kind, Tensor};

/// The required shape of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchShape {
    /// Side of every image, in pixels.
    pub(crate) resolution: u32,
    /// References per example; None: as many as the first example has.
    pub(crate) references: Option<usize>,
    /// The number of time steps of the schedule.
    pub(crate) timesteps: usize,
}

/// One micro-batch of B examples with N references each.
#[derive(Debug)]
pub(crate) struct Batch {
    /// [B * (1 + N), 3, S, S] in [-1, 1]: all targets, then all references; the references of one
    /// target are adjacent.
    pub(crate) images: Tensor,
    /// Cache keys, for images that recur unchanged: targets without padding.
    pub(crate) keys: Vec<Option<ImageKey>>,
    /// B
    pub(crate) count: i64,
    /// N
    pub(crate) references: i64,
    pub(crate) prompts: Vec<String>,
    /// B * N concepts, in the order of the references.
    pub(crate) concepts: Vec<Concept>,
    pub(crate) timesteps: Vec<i64>,
    pub(crate) noise_seeds: Vec<u64>,
    /// B flags: whether training drops the example's references.
    pub(crate) references_dropped: Vec<bool>,
}

impl Batch {
    pub(crate) fn new(
        examples: &[Example],
        shape: BatchShape,
        device: Device,
    ) -> Result<Self, ModelError> {
        let references = shape
            .references
            .unwrap_or_else(|| examples.first().map_or(0, |e| e.references.len()));
        for example in examples {
            validate(example, shape, references)?;
        }
        let targets = examples.iter().map(|example| &example.target);
        let used_references = || {
            examples
                .iter()
                .flat_map(|example| example.references.iter().take(references))
        };
        let images = targets.chain(used_references().map(|reference| &reference.image));
        let bytes: Vec<u8> = images
            .flat_map(|image| image.as_raw().iter().copied())
            .collect();
        let unpadded = |example: &&Example| example.target_mask.iter().all(|it| *it == 255);
        let keys = examples
            .iter()
            .map(|it| Some(it).filter(unpadded).map(|it| image_key(&it.target)));
        let keys = keys.chain(used_references().map(|_| None)).collect();
        let side = i64::from(shape.resolution);
        let images = Tensor::from_slice(&bytes)
            .view([-1, side, side, 3])
            .to_device(device);
        let images = images
            .permute([0, 3, 1, 2])
            .contiguous()
            .to_kind(Kind::Float)
            / 127.5
            - 1.0;
        Ok(Self {
            images,
            keys,
            count: examples.len() as i64,
            references: references as i64,
            prompts: examples
                .iter()
                .map(|example| example.prompt.clone())
                .collect(),
            concepts: used_references()
                .map(|reference| reference.concept)
                .collect(),
            timesteps: examples
                .iter()
                .map(|example| i64::from(example.timestep))
                .collect(),
            noise_seeds: examples.iter().map(|example| example.noise_seed).collect(),
            references_dropped: examples.iter().map(|it| it.references_dropped).collect(),
        })
    }

    /// Takes the references out of a batch whose model does not encode them: [B * N, 3, S, S] in
    /// [-1, 1].
    pub(crate) fn split_references(mut self) -> (Self, Tensor) {
        let count = self.count * self.references;
        let references = self.images.narrow(0, self.count, count);
        self.images = self.images.narrow(0, 0, self.count);
        self.keys.truncate(self.count as usize);
        self.references = 0;
        (self, references)
    }

    /// Noise for samples from the posteriors of all images, of the shape of their latents [B * (1 +
    /// N), c, h, w]. One random stream for each example, split among its images.
    pub(crate) fn posterior_noise(&self, latents: &[i64], device: Device) -> Tensor {
        let shape = [1 + self.references, latents[1], latents[2], latents[3]];
        let noise = noise::normal(&self.noise_seeds, Purpose::Posterior, &shape, device);
        let noise = noise.transpose(0, 1);
        let target = noise.get(0);
        let references = noise
            .narrow(0, 1, self.references)
            .transpose(0, 1)
            .flatten(0, 1);
        Tensor::cat(&[target, references], 0)
    }
}

/// [B, 1, 1, 1]: 0 where training drops the references. None if it drops none.
pub(crate) fn kept(batch: &Batch, device: Device) -> Option<Tensor> {
    let dropped = &batch.references_dropped;
    dropped.contains(&true).then(|| {
        let kept: Vec<f32> = dropped.iter().map(|it| f32::from(u8::from(!it))).collect();
        Tensor::from_slice(&kept)
            .view([-1, 1, 1, 1])
            .to_device(device)
    })
}

/// Masks M_tgt and M_face at image resolution, both [B, 1, S, S] in [0, 1]. The examples must be
/// validated.
pub(crate) fn masks(examples: &[Example], device: Device) -> (Tensor, Tensor) {
    let stack = |mask: fn(&Example) -> &image::GrayImage| {
        let side = i64::from(examples.first().map_or(0, |example| example.target.width()));
        let bytes: Vec<u8> = examples
            .iter()
            .flat_map(|example| mask(example).as_raw().iter().copied())
            .collect();
        Tensor::from_slice(&bytes)
            .view([-1, 1, side, side])
            .to_device(device)
            .to_kind(Kind::Float)
            / 255.0
    };
    (
        stack(|example| &example.target_mask),
        stack(|example| &example.face_mask),
    )
}

fn validate(example: &Example, shape: BatchShape, references: usize) -> Result<(), ModelError> {
    let resolution = shape.resolution;
    let invalid = |field, found: String, expected: String| {
        Err(ModelError::Example {
            position: example.position,
            field,
            found,
            expected,
        })
    };
    let mut sizes = vec![
        ("target", example.target.dimensions()),
        ("target_mask", example.target_mask.dimensions()),
        ("face_mask", example.face_mask.dimensions()),
    ];
    sizes.extend(
        example
            .references
            .iter()
            .map(|reference| ("reference", reference.image.dimensions())),
    );
    for (field, (width, height)) in sizes {
        if (width, height) != (resolution, resolution) {
            let expected = format!("this job works at {resolution}x{resolution} pixels");
            return invalid(field, format!("{width}x{height} pixels"), expected);
        }
    }
    if example.references.len() < references {
        let found = example.references.len().to_string();
        let expected = format!("this job needs {references}");
        return invalid("number of references", found, expected);
    }
    if example.timestep as usize >= shape.timesteps {
        return invalid(
            "timestep",
            example.timestep.to_string(),
            format!("it must be below {}", shape.timesteps),
        );
    }
    Ok(())
}

/// Converts tensors [batch, 3, S, S] in [-1, 1] to 8-bit images; values out of range are clamped.
pub(crate) fn to_images(images: &Tensor) -> Vec<image::RgbImage> {
    let bytes = ((images.clamp(-1.0, 1.0) + 1.0) * 127.5)
        .round()
        .permute([0, 2, 3, 1]);
    let bytes = bytes
        .to_kind(Kind::Uint8)
        .to_device(Device::Cpu)
        .contiguous();
    let size = bytes.size();
    let (height, width) = (size[1] as u32, size[2] as u32);
    let image_bytes = (height * width * 3) as usize;
    let mut values = vec![0u8; bytes.numel()];
    let count = values.len();
    bytes.copy_data(&mut values, count);
    let images = values.chunks_exact(image_bytes).map(|chunk| {
        image::RgbImage::from_raw(width, height, chunk.to_vec())
            .expect("a chunk has the size of an image")
    });
    images.collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn images_round_trip() {
        let image =
            image::RgbImage::from_fn(4, 4, |x, y| image::Rgb([x as u8 * 60, y as u8 * 60, 255]));
        let mask = image::GrayImage::new(4, 4);
        let example = Example {
            position: 9,
            target: image.clone(),
            target_mask: mask.clone(),
            face_mask: mask,
            references: Vec::new(),
            figure_mask: None,
            target_view: None,
            references_dropped: false,
            prompt: String::new(),
            timestep: 3,
            noise_seed: 1,
        };
        let shape = BatchShape {
            resolution: 4,
            references: Some(0),
            timesteps: 1000,
        };
        let batch = Batch::new(std::slice::from_ref(&example), shape, Device::Cpu).unwrap();
        assert_eq!(batch.images.size(), [1, 3, 4, 4]);
        assert_eq!(batch.images.double_value(&[0, 2, 0, 0]), 1.0);
        assert_eq!(to_images(&batch.images), [image]);
        let shape = BatchShape {
            resolution: 8,
            references: Some(0),
            timesteps: 1000,
        };
        let error = Batch::new(&[example], shape, Device::Cpu)
            .unwrap_err()
            .to_string();
        let expected = "example at position 9: target is 4x4 pixels; this job works at 8x8 pixels";
        assert_eq!(error, expected);
    }
}
