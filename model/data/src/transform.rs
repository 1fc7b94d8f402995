//! The random transforms of pairing a, where target and references are the same image: a random
//! resized crop and a horizontal flip. The paper applies "two different transforms" (section 4.1)
//! and names none, so these are ours. Prompts are not changed by a flip: the tags of the data set
//! name no sides. Called by [`crate::prepare`].

use image::RgbImage;
use proto::spec::Transform;
use rand::Rng;

use crate::image_file::{Region, crop};

/// A random part of an image, flipped or not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct View {
    crop: Region,
    flip: bool,
}

impl View {
    /// Always takes four random numbers, so that one image's view does not change the next one's.
    pub(crate) fn random(
        transform: &Transform,
        (width, height): (u32, u32),
        rng: &mut impl Rng,
    ) -> Self {
        let [least, most] = transform.crop;
        let kept = rng.random_range(least..=most);
        let (x, y): (f64, f64) = (rng.random_range(0.0..=1.0), rng.random_range(0.0..=1.0));
        let (w, h) = (f64::from(width), f64::from(height));
        let (left, top) = (w * (1.0 - kept) * x, h * (1.0 - kept) * y);
        let (right, bottom) = (left + w * kept, top + h * kept);
        Self {
            crop: Region::clipped(left, top, right, bottom, width, height),
            flip: rng.random_bool(transform.flip.clamp(0.0, 1.0)),
        }
    }

    pub(crate) fn apply(&self, image: &RgbImage) -> RgbImage {
        let mut image = crop(image, self.crop);
        if self.flip {
            image::imageops::flip_horizontal_in_place(&mut image);
        }
        image
    }

    /// A box (centre x, centre y, width, height, as fractions of an image of this size) in the
    /// view, cut at its edges. None if the view does not show it.
    pub(crate) fn bbox(&self, bbox: [f64; 4], (width, height): (u32, u32)) -> Option<[f64; 4]> {
        let [cx, cy, w, h] = bbox;
        let along = |centre: f64, length: f64, side: u32, start: u32, kept: u32| {
            let inside = |edge: f64| {
                let pixels = edge * f64::from(side) - f64::from(start);
                (pixels / f64::from(kept)).clamp(0.0, 1.0)
            };
            (inside(centre - length / 2.0), inside(centre + length / 2.0))
        };
        let (left, right) = along(cx, w, width, self.crop.x, self.crop.width);
        let (top, bottom) = along(cy, h, height, self.crop.y, self.crop.height);
        let (left, right) = if self.flip {
            (1.0 - right, 1.0 - left)
        } else {
            (left, right)
        };
        let shown = left < right && top < bottom;
        shown.then(|| {
            [
                f64::midpoint(left, right),
                f64::midpoint(top, bottom),
                right - left,
                bottom - top,
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    fn view(x: u32, y: u32, width: u32, height: u32, flip: bool) -> View {
        let crop = Region {
            x,
            y,
            width,
            height,
        };
        View { crop, flip }
    }

    #[test]
    fn a_box_follows_its_image() {
        let close = |a: Option<[f64; 4]>, b: [f64; 4]| {
            let a = a.expect("the box is in the view");
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12), "{a:?}");
        };
        let bbox = [0.25, 0.5, 0.1, 0.2];
        close(view(0, 0, 100, 200, false).bbox(bbox, (100, 200)), bbox);
        close(
            view(0, 0, 100, 200, true).bbox(bbox, (100, 200)),
            [0.75, 0.5, 0.1, 0.2],
        );
        // From 20 to 30 of 100 pixels; the view begins at 25 and shows 50.
        close(
            view(25, 0, 50, 200, false).bbox(bbox, (100, 200)),
            [0.05, 0.5, 0.1, 0.2],
        );
        close(
            view(25, 0, 50, 200, true).bbox(bbox, (100, 200)),
            [0.95, 0.5, 0.1, 0.2],
        );
        assert_eq!(view(30, 0, 50, 200, false).bbox(bbox, (100, 200)), None);
        assert_eq!(view(0, 0, 100, 80, true).bbox(bbox, (100, 200)), None);
    }

    #[test]
    fn views_stay_in_their_range_and_reach_all_of_it() {
        use rand::SeedableRng;
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let transform = Transform {
            crop: [0.5, 0.9],
            flip: 0.25,
            ..Transform::default()
        };
        let (mut flips, mut sides) = (0, std::collections::BTreeSet::new());
        for _ in 0..2000 {
            let view = View::random(&transform, (100, 200), &mut rng);
            let crop = view.crop;
            assert!(
                crop.x + crop.width <= 100 && crop.bottom() <= 200,
                "{crop:?}"
            );
            // One fraction for both sides, up to rounding.
            assert!(crop.height.abs_diff(2 * crop.width) <= 3, "{crop:?}");
            sides.insert(crop.width);
            flips += u32::from(view.flip);
        }
        assert_eq!((sides.first(), sides.last()), (Some(&50), Some(&90)));
        assert!((400..600).contains(&flips), "{flips}");
    }

    #[test]
    fn a_view_shows_its_part_of_the_image() {
        let image = RgbImage::from_fn(4, 2, |x, y| Rgb([x as u8, y as u8, 0]));
        let shown = view(1, 1, 3, 1, true).apply(&image);
        assert_eq!(shown.as_raw()[..], [3, 1, 0, 2, 1, 0, 1, 1, 0]);
    }
}
