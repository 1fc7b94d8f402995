//! Counts the images that a model cannot be shown as they are: those that are smaller than the
//! square that it sees, and those that leave most of it empty. Pure. Used by the import,
//! `describe`, `verify` and `submit`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::prompt_length::short;

/// Sides of the square, in pixels, that are counted where no job says which one it uses.
pub const COMMON: [u32; 4] = [256, 384, 512, 768];

/// An image whose longer side is more than this many times its shorter one leaves more than three
/// quarters of the square empty.
const NARROW: u64 = 4;

/// Sizes of a set of images.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSizes {
    pub samples: u64,
    /// Side of a square in pixels -> samples whose longer side is shorter, so that a job with this
    /// `data.resolution` enlarges them.
    pub smaller: BTreeMap<u32, u64>,
    /// Id and longer side of the smallest.
    pub smallest: Option<(String, u32)>,
    /// Samples that leave more than three quarters of a square empty.
    pub narrow: u64,
    /// Id, width and height of the one that leaves most of it empty.
    pub narrowest: Option<(String, u32, u32)>,
}

impl ImageSizes {
    /// Counts for squares of these sides.
    #[must_use]
    pub fn new(sides: &[u32]) -> Self {
        Self {
            smaller: sides.iter().map(|side| (*side, 0)).collect(),
            ..Self::default()
        }
    }

    pub fn add(&mut self, id: &str, width: u32, height: u32) {
        let (long, short) = (width.max(height), width.min(height));
        self.samples += 1;
        for (_, count) in self.smaller.range_mut(long + 1..) {
            *count += 1;
        }
        if self
            .smallest
            .as_ref()
            .is_none_or(|(_, least)| long < *least)
        {
            self.smallest = Some((id.to_owned(), long));
        }
        if u64::from(long) <= NARROW * u64::from(short) {
            return;
        }
        self.narrow += 1;
        let emptier = |(_, width, height): &(String, u32, u32)| {
            let (other_long, other_short) = (width.max(height), width.min(height));
            u64::from(*other_short) * u64::from(long) > u64::from(short) * u64::from(*other_long)
        };
        if self.narrowest.as_ref().is_none_or(emptier) {
            self.narrowest = Some((id.to_owned(), width, height));
        }
    }

    /// How many images are enlarged to squares of this side, as a sentence. None: no image is.
    #[must_use]
    pub fn enlarged(&self, resolution: u32) -> Option<String> {
        let count = self.smaller.get(&resolution).filter(|count| 0 < **count)?;
        let (id, side) = self.smallest.as_ref()?;
        Some(format!(
            "{count} of {} images are smaller than the {resolution} pixels of data.resolution, and \
             are enlarged (the smallest, {}, has {side})",
            self.samples,
            short(id)
        ))
    }

    /// How many images leave most of the square empty, as a sentence. None: no image does.
    #[must_use]
    pub fn padded(&self) -> Option<String> {
        let (id, width, height) = self.narrowest.as_ref()?;
        Some(format!(
            "{} of {} images are more than {NARROW} times as long as they are wide or high, so \
             that more than three quarters of what the model sees is padding (the narrowest, {}, \
             has {width} x {height} pixels)",
            self.narrow,
            self.samples,
            short(id)
        ))
    }

    /// The sizes that are counted, as a sentence, without those that no image is smaller than.
    #[must_use]
    pub fn small_line(&self) -> String {
        let some = self.smaller.iter().filter(|(_, count)| 0 < **count);
        let some: Vec<String> = some
            .map(|(side, count)| format!("{count} than {side}"))
            .collect();
        match (&self.smallest, some.as_slice()) {
            (Some((id, side)), [_, ..]) => format!(
                "of {} images are smaller in pixels: {}; a job with a larger data.resolution \
                 enlarges them (the smallest, {}, has {side})",
                self.samples,
                some.join(", "),
                short(id)
            ),
            _ => {
                let side = self.smaller.keys().next_back().copied().unwrap_or(0);
                format!("no image is smaller than {side} pixels")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_and_narrow_images_are_counted_with_the_worst_of_them() {
        let mut sizes = ImageSizes::new(&[64, 384]);
        for (id, width, height) in [
            ("fits", 384, 10_000),
            ("just", 300, 383),
            ("tiny", 20, 30),
            ("four", 400, 100),
            ("strip", 2_000, 100),
        ] {
            sizes.add(id, width, height);
        }
        assert_eq!(sizes.smaller, BTreeMap::from([(64, 1), (384, 2)]));
        assert_eq!(
            sizes.enlarged(384).as_deref(),
            Some(
                "2 of 5 images are smaller than the 384 pixels of data.resolution, and are \
                 enlarged (the smallest, tiny, has 30)"
            )
        );
        let padded = sizes.padded().unwrap_or_default();
        assert!(
            padded.starts_with("2 of 5 images are more than 4"),
            "{padded}"
        );
        assert!(
            padded.ends_with("fits, has 384 x 10000 pixels)"),
            "{padded}"
        );
        assert_eq!(
            sizes.small_line(),
            "of 5 images are smaller in pixels: 1 than 64, 2 than 384; a job with a larger \
             data.resolution enlarges them (the smallest, tiny, has 30)"
        );
    }

    #[test]
    fn where_all_images_fit_there_is_nothing_to_say() {
        let mut sizes = ImageSizes::new(&[32]);
        sizes.add("a", 32, 8);
        assert_eq!((sizes.enlarged(32), sizes.padded()), (None, None));
        assert_eq!(sizes.small_line(), "no image is smaller than 32 pixels");
        assert_eq!(ImageSizes::new(&[32]).padded(), None);
    }

    proptest! {
        #[test]
        fn an_image_is_counted_exactly_if_fitting_it_enlarges_it(
            width in 1u32..2_000, height in 1u32..2_000, side in 1u32..1_000,
        ) {
            let mut sizes = ImageSizes::new(&[side]);
            sizes.add("x", width, height);
            let along = crate::image_file::Along::MIDDLE;
            let placed = crate::image_file::place(width, height, side, 1.0, along);
            let longest = placed.width.max(placed.height);
            prop_assert_eq!(sizes.smaller[&side] == 1, width.max(height) < longest);
        }
    }
}
