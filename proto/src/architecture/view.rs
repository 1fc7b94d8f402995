//! How an image encoder sees a reference, apart from the reference on its pad.

use serde::{Deserialize, Serialize};

/// How a reference becomes the square image of CLIP; `data.image_view`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageView {
    /// Its shorter side is resized and its middle is cropped: CLIP's own preprocessing, which
    /// IP-Adapter's training uses.
    #[default]
    Crop,
    /// Both sides are resized: what IP-Adapter's authors advise for images that are not square.
    Squash,
}

/// What a model's image encoder reads of a reference, or of the target.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ViewConfig {
    pub kind: ViewKind,
    /// Side of the square in pixels.
    pub side: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ViewKind {
    /// The reference before it is placed on its pad.
    Whole(ImageView),
    /// The target instead of its references.
    Target(ImageView),
    /// The figure alone on noise, padded to a square; `augment`: under FastComposer's random
    /// augmentations. The target then comes with the mask of its figure. `keep`: probability that
    /// training keeps a sample's object.
    Object { augment: bool, keep: f64 },
}
