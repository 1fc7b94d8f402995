//! A sample with its pixels, as prepare, sampling and the verifier use it.

use image::{GrayImage, RgbImage};

use crate::decode::{self, Expect, MaskSource, Origin};
use crate::image_file::{ImageError, Region, face_region};
use crate::sample::{Metadata, Sample};

/// A sample with decoded image and mask.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    pub position: u64,
    pub metadata: Metadata,
    pub image: RgbImage,
    /// Same size; 255 on the figure.
    pub mask: GrayImage,
}

impl Decoded {
    /// Memory of the pixels.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.image.as_raw().len() + self.mask.as_raw().len()
    }

    /// False for a user's image whose face box is not known; samples of a data set have one.
    #[must_use]
    pub fn has_face(&self) -> bool {
        let [_, _, width, height] = self.metadata.bbox;
        width > 0.0 && height > 0.0
    }

    /// The face as a pixel box, enlarged around its centre and clipped to the image.
    #[must_use]
    pub fn face(&self, enlargement: f64) -> Region {
        face_region(
            self.metadata.bbox,
            enlargement,
            self.image.width(),
            self.image.height(),
        )
    }
}

/// Decodes image and mask of a row and checks their sizes against the row.
///
/// # Errors
/// The bytes are not an image, or the image has another size than the row says.
pub fn decode(sample: &Sample, position: u64) -> Result<Decoded, ImageError> {
    let row = &sample.metadata;
    let expect = Expect {
        what: "image",
        origin: Origin::Stored,
        size: Some((row.width, row.height)),
        face: None,
        check: false,
    };
    let mask = MaskSource::File(&sample.mask);
    let pixels = decode::decode(&sample.image, mask, &expect, &mut Vec::new())?;
    Ok(Decoded {
        position,
        metadata: row.clone(),
        image: pixels.image,
        mask: pixels.mask,
    })
}
