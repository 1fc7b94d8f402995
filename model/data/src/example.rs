//! One training example for the model: pixels, masks, prompt, and all random numbers that the
//! sample needs (law 2). Plain data, created by [`crate::prepare`] and consumed by the `model`
//! crate. No libtorch, no I/O.

use image::{GrayImage, RgbImage};
pub use proto::sample::Concept;

/// A target with its references, all at the job's resolution (square).
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Position of the target in the data set.
    pub position: u64,
    /// The target image, padded to a square with a random solid colour.
    pub target: RgbImage,
    /// 255 where `target` has image content, 0 on the padding (M_tgt of equation 3).
    pub target_mask: GrayImage,
    /// 255 inside the face box, 0 elsewhere (M_face of equation 3). All 0 if the target's random
    /// crop does not show the face (pairing a).
    pub face_mask: GrayImage,
    /// 255 on the figure, 0 elsewhere; only for architectures whose image encoder reads the figure
    /// alone.
    pub figure_mask: Option<GrayImage>,
    /// What an image encoder reads of the target; only for architectures that train on its
    /// embedding.
    pub target_view: Option<RgbImage>,
    /// N references; empty for architectures without references.
    pub references: Vec<Reference>,
    /// True if training drops the references of this sample: the model predicts without them.
    /// Sampling ignores it.
    pub references_dropped: bool,
    /// Tags, or "" if the prompt was dropped.
    pub prompt: String,
    /// Uniform in 0..1000.
    pub timestep: u32,
    /// Seeds the target's noise; a pure function of (job seed, epoch, sample).
    pub noise_seed: u64,
}

/// One reference image of the target.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    pub image: RgbImage,
    /// What the model's image encoder reads, a square of its own side; None without one.
    pub view: Option<RgbImage>,
    pub concept: Concept,
    /// Position of the sample from which it was cropped.
    pub position: u64,
}
