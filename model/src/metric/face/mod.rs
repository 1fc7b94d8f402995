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
