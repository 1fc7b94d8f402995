//! Faces of people: where they are (MTCNN) and whose (FaceNet), with the weights of
//! `facenet-pytorch`. FastComposer's evaluation compares them so, and the paper's figure 7 shows
//! people. Drawn faces are seldom found.

mod detect;
mod embed;
mod nets;

use super::values;
use crate::error::{ModelError, catch_panic};
use crate::parameter::{Parameters, Scope};
use crate::public::Source;
use detect::Detector;
pub use detect::FaceBox;
use embed::InceptionResnet;
use image::RgbImage;
use image::imageops::crop_imm;
use model_data::resample::resize_bilinear;
use nets::{Proposal, Refinement};
use proto::evaluate::FACES_FILES;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Side of the faces that are embedded, in pixels.
const SIDE: u32 = 160;

/// Finds and embeds faces. Computes in fp32.
#[derive(Debug)]
pub struct Faces {
    detector: Detector,
    embedder: InceptionResnet,
    device: Device,
}

impl Faces {
    /// Opens a folder with [`FACES_FILES`].
    ///
    /// # Errors
    /// A missing file, or a tensor that is missing, unexpected, of the wrong shape or not finite.
    pub fn open(folder: &Path, device: Device) -> Result<Self, ModelError> {
        let [proposal, small, large, embedder] = FACES_FILES;
        Ok(Self {
            detector: Detector {
                proposal: load(folder, proposal, device, Proposal::new)?,
                small: load(folder, small, device, Refinement::small)?,
                large: load(folder, large, device, Refinement::large)?,
            },
            embedder: load(folder, embedder, device, InceptionResnet::new)?,
            device,
        })
    }

    /// The faces in an image, the largest first.
    ///
    /// # Errors
    /// libtorch fails.
    pub fn detect(&self, image: &RgbImage) -> Result<Vec<FaceBox>, ModelError> {
        catch_panic("looking for faces", || {
            tch::no_grad(|| Ok(self.detector.detect(&self.pixels(image))))
        })
    }

    /// The largest face as a vector of length 1 with 512 values; None: there is no face.
    ///
    /// # Errors
    /// libtorch fails.
    pub fn embed(&self, image: &RgbImage) -> Result<Option<Vec<f32>>, ModelError> {
        let faces = self.detect(image)?;
        let Some(face) = faces.first().and_then(|it| cut(image, it)) else {
            return Ok(None);
        };
        self.embed_face(&face).map(Some)
    }

    /// A face that fills the image.
    ///
    /// # Errors
    /// libtorch fails.
    pub fn embed_face(&self, face: &RgbImage) -> Result<Vec<f32>, ModelError> {
        let face = resize_bilinear(face, SIDE, SIDE);
        catch_panic("embedding a face", || {
            let pixels = (self.pixels(&face) - 127.5) / 128.0;
            tch::no_grad(|| Ok(values(&self.embedder.forward(&pixels))))
        })
    }

    /// [1, 3, height, width], 0 to 255.
    fn pixels(&self, image: &RgbImage) -> Tensor {
        let (width, height) = image.dimensions();
        Tensor::from_slice(image.as_raw().as_slice())
            .view([1, i64::from(height), i64::from(width), 3])
            .to_device(self.device)
            .permute([0, 3, 1, 2])
            .contiguous()
            .to_kind(Kind::Float)
    }
}

/// The part of the image that a face fills; None: it lies outside.
fn cut(image: &RgbImage, face: &FaceBox) -> Option<RgbImage> {
    let [left, top, right, bottom] = face.sides.map(|it| it.max(0.0) as u32);
    let (right, bottom) = (right.min(image.width()), bottom.min(image.height()));
    let (width, height) = (right.checked_sub(left)?, bottom.checked_sub(top)?);
    (0 < width && 0 < height).then(|| crop_imm(image, left, top, width, height).to_image())
}

fn load<T>(
    folder: &Path,
    file: &str,
    device: Device,
    network: impl FnOnce(&Scope<'_>) -> T,
) -> Result<T, ModelError> {
    let parameters = Parameters::seeded(0, device).skip_init(String::new());
    let network = network(&parameters.root());
    let source = Source::open(&folder.join(file))?;
    let named = |name: &str| vec![name.to_owned()];
    // Those are of the classifier, and of training.
    let is_used = |name: &str| !name.starts_with("logits.") && !name.ends_with("batches_tracked");
    source.load(&parameters.tensors(), named, is_used)?;
    Ok(network)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use image::Rgb;

    /// Random weights. Agreement with `facenet-pytorch` is in `make parity`.
    fn faces() -> Faces {
        let parameters = [1, 2, 3, 4].map(|seed| Parameters::seeded(seed, Device::Cpu));
        let [first, second, third, fourth] = &parameters;
        Faces {
            detector: Detector {
                proposal: Proposal::new(&first.root()),
                small: Refinement::small(&second.root()),
                large: Refinement::large(&third.root()),
            },
            embedder: InceptionResnet::new(&fourth.root()),
            device: Device::Cpu,
        }
    }

    #[test]
    fn a_face_is_a_vector_of_length_1_and_another_face_is_another() {
        tch::set_num_threads(1);
        let faces = faces();
        let flat = RgbImage::from_pixel(40, 50, Rgb([200, 150, 120]));
        let striped = RgbImage::from_fn(40, 50, |x, _| Rgb([if x % 8 < 4 { 255 } else { 0 }; 3]));
        let vectors = [&flat, &striped, &flat].map(|it| faces.embed_face(it).unwrap());
        assert_eq!(vectors[0].len(), 512);
        assert_eq!(vectors[0], vectors[2]);
        assert_ne!(vectors[0], vectors[1]);
        let square: f32 = vectors[0].iter().map(|it| it * it).sum();
        assert!((square - 1.0).abs() < 1e-5, "{square}");
        // Smaller than the smallest face.
        assert_eq!(faces.detect(&RgbImage::new(19, 40)).unwrap(), []);
    }

    #[test]
    fn a_face_at_the_edge_is_cut_and_one_outside_is_none() {
        let image = RgbImage::new(100, 80);
        let cut_at = |sides| {
            let face = FaceBox {
                sides,
                probability: 1.0,
            };
            cut(&image, &face).map(|it| it.dimensions())
        };
        assert_eq!(cut_at([-10.0, 5.9, 30.0, 45.0]), Some((30, 40)));
        assert_eq!(cut_at([90.0, 70.0, 130.0, 99.0]), Some((10, 10)));
        assert_eq!(cut_at([101.0, 0.0, 130.0, 40.0]), None);
    }

    #[test]
    fn a_folder_without_a_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = Faces::open(folder.path(), Device::Cpu).unwrap_err();
        assert!(error.to_string().contains("pnet.safetensors"), "{error}");
    }
}
