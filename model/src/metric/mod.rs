//! The networks behind the scores of images: CLIP for CLIP-I and CLIP-T, and a sentence encoder for
//! the answers of the VQA score, which turn images and texts into vectors of length 1; FaceNet,
//! which does so with faces; and LPIPS, which compares two images. What is computed of vectors is
//! in the crate `metric`.
//!
//! Images and texts are embedded one by one, so that a vector does not depend on its neighbours and
//! scores have the same bits whoever computes them, in whatever order.

pub(crate) mod bert;
mod clip;
mod face;
mod lpips;
mod sentence;

pub use clip::{Clip, LongText};
pub use face::{FaceBox, Faces};
pub use lpips::Lpips;
pub use sentence::SentenceEncoder;

use tch::Tensor;

/// The embedding of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct TextEmbedding {
    /// Of length 1.
    pub embedding: Vec<f32>,
    /// Tokens of the whole text, those at its beginning and end included.
    pub tokens: usize,
    /// The text has more tokens than the encoder reads; the rest was left out.
    pub cut: bool,
}

/// The values of a vector [1, width] or [width].
fn values(vector: &Tensor) -> Vec<f32> {
    let vector = vector.flatten(0, -1).to_device(tch::Device::Cpu);
    Vec::try_from(&vector).expect("an embedding is a vector of fp32")
}
