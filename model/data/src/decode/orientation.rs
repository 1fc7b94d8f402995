//! How an image is turned before it is shown: the EXIF tag, or XMP's copy of it where EXIF has
//! none. EXIF wins, as in browsers and viewers (Metadata Working Group, guidelines 2.0).

use image::metadata::Orientation;

use super::raw::Raw;

/// The orientation of a file, and where it was found. None: upright.
pub(super) fn of(raw: &Raw) -> Option<(Orientation, String)> {
    let exif = raw.exif.as_deref().and_then(of_exif);
    let xmp = raw.xmp.as_deref().and_then(of_xmp);
    let (orientation, found) = match (exif, xmp) {
        (Some(exif), Some(xmp)) if exif != xmp => (
            exif,
            format!("EXIF {}, not XMP {}", exif.to_exif(), xmp.to_exif()),
        ),
        (Some(exif), _) => (exif, format!("EXIF {}", exif.to_exif())),
        (None, Some(xmp)) => (xmp, format!("XMP {}", xmp.to_exif())),
        (None, None) => return None,
    };
    (orientation != Orientation::NoTransforms).then_some((orientation, found))
}

fn of_exif(exif: &[u8]) -> Option<Orientation> {
    // WebP and PNG files of some tools repeat JPEG's prefix.
    Orientation::from_exif_chunk(exif.strip_prefix(b"Exif\0\0").unwrap_or(exif))
}

/// `tiff:Orientation="6"` or `<tiff:Orientation>6</tiff:Orientation>`. XMP may be written in other
/// ways that no tool uses; the prefix is always `tiff`.
fn of_xmp(xmp: &[u8]) -> Option<Orientation> {
    let text = String::from_utf8_lossy(xmp);
    let (_, after) = text.split_once("tiff:Orientation")?;
    let value = after.trim_start().trim_start_matches(['=', '>', ' ']);
    let value = value.trim_start_matches(['"', '\'']);
    let digits = value.find(|it: char| !it.is_ascii_digit())?;
    Orientation::from_exif(value[..digits].parse().ok()?)
}
