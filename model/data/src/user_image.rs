//! A user's image as a reference. With a face box or a mask it is prepared as a sample of the data
//! set is. Pure: the caller reads the files. Used by the command line, to check files before they
//! are stored, and by ranks.

use crate::decode::{Change, Expect, MaskSource, Origin, decode};
use crate::decoded::Decoded;
use crate::image_file::ImageError;
use crate::sample::Metadata;
use crate::verify::check_box;

/// What a user's image is called in errors.
const REFERENCE: &str = "reference";

/// A reference that is not a sample of the data set.
pub const NO_POSITION: u64 = u64::MAX;

#[derive(Debug, thiserror::Error)]
pub enum UserImageError {
    #[error("{name}")]
    Image { name: String, source: ImageError },
    #[error("{mask}, the mask of {name}")]
    Mask {
        name: String,
        mask: String,
        source: ImageError,
    },
    #[error(
        "{name}: the face box {face_box} leaves the image of {width}x{height} pixels or is empty; \
         it must be the face's centre x, centre y, width and height, as fractions of the image's \
         width and height{hint}"
    )]
    FaceBox {
        name: String,
        /// As the command line writes it.
        face_box: String,
        width: u32,
        height: u32,
        /// The box in fractions, if it was probably meant in pixels.
        hint: String,
    },
}

/// A user's image and what is known about it.
#[derive(Debug, Clone, Copy)]
pub struct UserImage<'a> {
    /// For messages.
    pub name: &'a str,
    /// PNG, JPEG or WebP.
    pub bytes: &'a [u8],
    /// Centre x, centre y, width and height of the face, as fractions. None: no face is shown.
    pub face_box: Option<[f64; 4]>,
    /// Name and bytes of the mask. None: everything belongs to the figure.
    pub mask: Option<(&'a str, &'a [u8])>,
}

impl UserImage<'_> {
    /// Decodes the image as the import does: upright, in sRGB, on white where it is transparent.
    /// What was changed or guessed is appended to `changes`.
    ///
    /// # Errors
    /// A file that is no image, a face box outside the image, or a mask that does not fit it.
    pub fn decode(&self, changes: &mut Vec<Change>) -> Result<Decoded, UserImageError> {
        let face = self.face_box.filter(|it| check_box(*it).is_ok());
        let expect = Expect {
            what: REFERENCE,
            origin: Origin::File,
            size: None,
            face,
            check: true,
        };
        let mask = self
            .mask
            .map_or(MaskSource::Whole, |(_, bytes)| MaskSource::File(bytes));
        let pixels = decode(self.bytes, mask, &expect, changes);
        let pixels = pixels.map_err(|source| self.error(source))?;
        let (width, height) = pixels.image.dimensions();
        if let (Some(face_box), None) = (self.face_box, face) {
            return Err(UserImageError::FaceBox {
                name: self.name.to_owned(),
                face_box: numbers(face_box),
                width,
                height,
                hint: hint(face_box, (width, height)),
            });
        }
        let metadata = Metadata {
            bbox: self.face_box.unwrap_or_default(),
            width,
            height,
            ..Metadata::default()
        };
        Ok(Decoded {
            position: NO_POSITION,
            metadata,
            image: pixels.image,
            mask: pixels.mask,
        })
    }

    /// The error with the name of the file that it is about.
    fn error(&self, source: ImageError) -> UserImageError {
        let name = self.name.to_owned();
        match self.mask {
            Some((mask, _)) if source.file() != REFERENCE => UserImageError::Mask {
                name,
                mask: mask.to_owned(),
                source,
            },
            _ => UserImageError::Image { name, source },
        }
    }
}

fn numbers(face_box: [f64; 4]) -> String {
    face_box.map(|it| it.to_string()).join(",")
}

/// What a box in pixels would be in fractions, if that is inside the image.
fn hint(face_box: [f64; 4], (width, height): (u32, u32)) -> String {
    let [cx, cy, w, h] = face_box;
    let (width, height) = (f64::from(width), f64::from(height));
    let fractions = [cx / width, cy / height, w / width, h / height];
    let meant = face_box.iter().any(|it| *it > 1.0) && check_box(fractions).is_ok();
    if !meant {
        return String::new();
    }
    let fractions = fractions.map(|it| (it * 1e4).round() / 1e4);
    format!(" (these pixels are {})", numbers(fractions))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::example::Concept;
    use crate::example_data::references;
    use crate::image_file::{encode_gray, encode_rgb};
    use crate::prepare::named_reference;
    use image::{GrayImage, Rgb, RgbImage};
    use proto::spec::{Clothes, References};

    const SKIN: Rgb<u8> = Rgb([250, 220, 200]);
    const CLOTH: Rgb<u8> = Rgb([0, 180, 0]);
    const BACK: Rgb<u8> = Rgb([10, 20, 200]);

    /// 40x80: background, a face in the upper half of the middle, clothes below it.
    fn colour(x: u32, y: u32) -> Rgb<u8> {
        match (x, y) {
            (10..30, 10..40) => SKIN,
            (10..30, 40..) => CLOTH,
            _ => BACK,
        }
    }

    const FACE: [f64; 4] = [0.5, 0.3125, 0.5, 0.375];

    fn decode(
        face_box: Option<[f64; 4]>,
        mask: Option<GrayImage>,
    ) -> Result<Decoded, UserImageError> {
        let bytes = encode_rgb(RgbImage::from_fn(40, 80, colour)).unwrap();
        let mask = mask.map(|mask| encode_gray(mask).unwrap());
        let image = UserImage {
            name: "me.png",
            bytes: &bytes,
            face_box,
            mask: mask.as_ref().map(|mask| ("mask.png", mask.as_ref())),
        };
        image.decode(&mut Vec::new())
    }

    fn figure() -> GrayImage {
        GrayImage::from_fn(40, 80, |x, y| {
            image::Luma([if colour(x, y) == BACK { 0 } else { 255 }])
        })
    }

    /// Pixels of skin, cloth and background in the reference.
    fn counts(decoded: &Decoded, concept: Concept, clothes: Clothes) -> [usize; 3] {
        let settings = References {
            clothes,
            scale: 1.0,
            ..references()
        };
        let shown = named_reference(&settings, None, 64, Some(concept), decoded, 1, 0).image;
        let close = |a: &Rgb<u8>, b: Rgb<u8>| a.0.iter().zip(b.0).all(|(a, b)| a.abs_diff(b) < 40);
        [SKIN, CLOTH, BACK].map(|colour| shown.pixels().filter(|it| close(it, colour)).count())
    }

    #[test]
    fn an_image_with_its_face_box_is_cut_as_a_sample_is() {
        let decoded = decode(Some(FACE), None).unwrap();
        let [skin, cloth, _] = counts(&decoded, Concept::Face, Clothes::default());
        assert!(skin > 1000 && cloth < skin / 2, "{skin} {cloth}");
        let cut_off = Clothes {
            cut_off: 1.0,
            background: 1.0,
            ..Clothes::default()
        };
        let [skin, cloth, back] = counts(&decoded, Concept::Clothes, cut_off);
        assert!(
            skin < 100 && cloth > 1000 && back > 1000,
            "{skin} {cloth} {back}"
        );
    }

    #[test]
    fn a_mask_removes_the_background_also_where_no_face_is_known() {
        let no_background = Clothes {
            cut_off: 1.0,
            background: 0.0,
            ..Clothes::default()
        };
        let decoded = decode(Some(FACE), Some(figure())).unwrap();
        let [skin, cloth, back] = counts(&decoded, Concept::Clothes, no_background);
        assert!(
            skin < 100 && cloth > 1000 && back < 100,
            "{skin} {cloth} {back}"
        );
        let faceless = decode(None, Some(figure())).unwrap();
        let [skin, cloth, back] = counts(&faceless, Concept::Clothes, no_background);
        assert!(
            skin > 300 && cloth > 300 && back < 100,
            "{skin} {cloth} {back}"
        );
    }

    #[test]
    fn errors_name_the_file_the_box_and_the_size_of_the_image() {
        let expect = |face_box, mask, message: &str| {
            let error = decode(face_box, mask).unwrap_err();
            assert_eq!(proto::text::chain(&error), message);
        };
        let must = "it must be the face's centre x, centre y, width and height, as fractions of \
                    the image's width and height";
        expect(
            Some([0.9, 0.5, 0.4, 0.2]),
            None,
            &format!(
                "me.png: the face box 0.9,0.5,0.4,0.2 leaves the image of 40x80 pixels or is \
                 empty; {must}"
            ),
        );
        expect(
            Some([20.0, 25.0, 20.0, 30.0]),
            None,
            &format!(
                "me.png: the face box 20,25,20,30 leaves the image of 40x80 pixels or is empty; \
                 {must} (these pixels are 0.5,0.3125,0.5,0.375)"
            ),
        );
        expect(
            None,
            Some(GrayImage::new(8, 9)),
            "mask.png, the mask of me.png: the mask is 8x9 pixels, the image is 40x80",
        );
        expect(
            None,
            Some(GrayImage::new(40, 80)),
            "mask.png, the mask of me.png: the mask has no pixel of figure: its only value is 0; \
             the figure must be 255",
        );
    }
}
