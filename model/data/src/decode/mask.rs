//! What the values of a mask mean. A mask is read as 255 on the figure and 0 on the background,
//! with soft edges. Tools write masks in other ways; those that can mean one thing only are
//! converted, the others are refused by what they are.

use image::{DynamicImage, GrayImage, Luma};

use super::change::{Change, ChangeKind};
use crate::image_file::face_region;

/// From this value on, a pixel belongs to the figure.
const FIGURE: u8 = 128;
/// Channels that differ by no more are grey: JPEG's rounding of colours.
const GREY_TOLERANCE: u8 = 12;
/// Colours that are counted before a mask is a picture.
const COLOURS: usize = 64;
/// More values than this are soft edges, not numbers of classes.
const CLASSES: usize = 40;

/// Reads a mask from a decoded file. `indices` gives its palette indices, if it has a palette.
///
/// # Errors
/// Why no figure can be read from it.
pub(super) fn read(
    pixels: &DynamicImage,
    indices: impl FnOnce() -> Option<GrayImage>,
    changes: &mut Vec<Change>,
) -> Result<GrayImage, String> {
    let (grey, alpha) = split(pixels, changes)?;
    let grey = match alpha {
        Some(alpha) => with_alpha(grey, &alpha)?,
        None => grey,
    };
    if values(&grey).len() == 1
        && let Some(indices) = indices()
        && values(&indices).len() > 1
    {
        return numbers(indices, "palette indices", changes);
    }
    numbers(grey, "values", changes)
}

/// Checks that a mask separates a figure from a background, and that the figure is where the face
/// is.
///
/// # Errors
/// What it lacks.
pub(super) fn check(mask: &GrayImage, face: Option<[f64; 4]>) -> Result<(), String> {
    let found = values(mask);
    let listed = || list(&found);
    if found.iter().all(|value| *value < FIGURE) {
        return Err(format!(
            "has no pixel of figure: its {}; the figure must be 255",
            listed()
        ));
    }
    if found.iter().all(|value| *value >= FIGURE) {
        return Err(format!(
            "has no pixel of background: its {}; the background must be 0",
            listed()
        ));
    }
    let Some(bbox) = face else { return Ok(()) };
    let face = face_region(bbox, 1.0, mask.width(), mask.height());
    let rows = face.y..face.bottom();
    let is_figure = |x: u32, y: u32| mask.get_pixel(x, y).0[0] >= FIGURE;
    let shown = rows
        .flat_map(|y| (face.x..face.x + face.width).map(move |x| (x, y)))
        .any(|(x, y)| is_figure(x, y));
    if shown {
        return Ok(());
    }
    let figure = mask.as_raw().iter().filter(|it| **it >= FIGURE).count();
    let hint = if figure * 2 > mask.as_raw().len() {
        "; most of the image is figure, so it is perhaps inverted: the figure must be 255"
    } else {
        ""
    };
    let [x, y, w, h] = bbox;
    Err(format!(
        "has no pixel of figure where the face is (bbox [{x}, {y}, {w}, {h}]){hint}"
    ))
}

/// The values of grey, and alpha if it hides something.
fn split(
    pixels: &DynamicImage,
    changes: &mut Vec<Change>,
) -> Result<(GrayImage, Option<GrayImage>), String> {
    let (width, height) = (pixels.width(), pixels.height());
    let alpha = pixels.color().has_alpha().then(|| alpha_of(pixels));
    let alpha = alpha.filter(|alpha| alpha.as_raw().iter().any(|it| *it != u8::MAX));
    let is_wide = pixels.color().bytes_per_pixel() / pixels.color().channel_count() == 2;
    let grey = if pixels.color().has_color() {
        of_colours(pixels, changes)?
    } else if is_wide {
        let wide = pixels.to_luma16();
        let most = wide.as_raw().iter().copied().max().unwrap_or(0);
        let narrow = most <= u16::from(u8::MAX);
        let how = if narrow {
            "values to"
        } else {
            "scaled; values to"
        };
        changes.push(Change::new(ChangeKind::MaskDepth, format!("{how} {most}")));
        let convert = |value: u16| match narrow {
            true => value as u8,
            // 65535 / 255.
            false => ((u32::from(value) + 128) / 257) as u8,
        };
        let narrowed = wide.as_raw().iter().map(|it| convert(*it)).collect();
        GrayImage::from_raw(width, height, narrowed).expect("one value for each pixel")
    } else {
        pixels.to_luma8()
    };
    Ok((grey, alpha))
}

/// A mask that is stored as colours: grey ones, or black and one other.
fn of_colours(pixels: &DynamicImage, changes: &mut Vec<Change>) -> Result<GrayImage, String> {
    let rgb = pixels.to_rgb8();
    let spread = |colour: &[u8; 3]| {
        let most = colour.iter().max().unwrap_or(&0);
        most - colour.iter().min().unwrap_or(&0)
    };
    if rgb.pixels().all(|it| spread(&it.0) <= GREY_TOLERANCE) {
        // Equal channels stay as they are; luma would round.
        let grey = |x, y| Luma([rgb.get_pixel(x, y).0[1]]);
        return Ok(GrayImage::from_fn(rgb.width(), rgb.height(), grey));
    }
    let mut colours: Vec<[u8; 3]> = Vec::new();
    let mut last = None;
    for pixel in rgb.pixels() {
        // Neighbours are mostly equal.
        if last.replace(pixel.0) != Some(pixel.0) && !colours.contains(&pixel.0) {
            colours.push(pixel.0);
        }
        if colours.len() > COLOURS {
            return Err("is a colour picture; write 255 on the figure and 0 elsewhere".to_owned());
        }
    }
    colours.sort_unstable();
    let name = |[r, g, b]: [u8; 3]| format!("({r}, {g}, {b})");
    let [black, figure] = colours[..] else {
        let listed: Vec<String> = colours.iter().take(4).map(|it| name(*it)).collect();
        return Err(format!(
            "has {} colours ({}…), which do not say which is the figure; write 255 on the figure \
             and 0 elsewhere",
            colours.len(),
            listed.join(", ")
        ));
    };
    if black.iter().any(|it| *it > GREY_TOLERANCE) {
        return Err(format!(
            "has the colours {} and {}, which do not say which is the figure; write 255 on the \
             figure and 0 elsewhere",
            name(black),
            name(figure)
        ));
    }
    changes.push(Change::new(ChangeKind::MaskColours, name(figure)));
    let value = |x, y| {
        Luma([if rgb.get_pixel(x, y).0 == figure {
            u8::MAX
        } else {
            0
        }])
    };
    Ok(GrayImage::from_fn(rgb.width(), rgb.height(), value))
}

/// Joins grey and alpha where they agree.
fn with_alpha(grey: GrayImage, alpha: &GrayImage) -> Result<GrayImage, String> {
    if values(&grey).len() == 1 {
        return Err(format!(
            "has its shape only in its alpha channel: its colour is {} everywhere; write the alpha \
             channel as grey, 255 on the figure and 0 elsewhere",
            grey.as_raw().first().unwrap_or(&0)
        ));
    }
    let mut joined = grey.clone();
    for (value, alpha) in joined.iter_mut().zip(alpha.as_raw()) {
        *value = ((u32::from(*value) * u32::from(*alpha) + 127) / 255) as u8;
    }
    let differs = |(joined, grey): (&u8, &u8)| (*joined >= FIGURE) != (*grey >= FIGURE);
    if joined.as_raw().iter().zip(grey.as_raw()).any(differs) {
        return Err(
            "shows one shape in its colours and another in its alpha channel; write it as grey \
             without alpha, 255 on the figure and 0 elsewhere"
                .to_owned(),
        );
    }
    Ok(joined)
}

/// Reads numbers of classes: 0 and one other are background and figure.
fn numbers(
    mut mask: GrayImage,
    kind: &str,
    changes: &mut Vec<Change>,
) -> Result<GrayImage, String> {
    let found = values(&mask);
    if let [0, figure] = found[..]
        && (figure < FIGURE || kind != "values")
    {
        let detail = if kind == "values" {
            format!("0 and {figure}")
        } else {
            format!("{kind} 0 and {figure}")
        };
        changes.push(Change::new(ChangeKind::MaskNumbers, detail));
        mask.iter_mut()
            .for_each(|it| *it = if *it == 0 { 0 } else { u8::MAX });
        return Ok(mask);
    }
    let nonzero = mask.as_raw().iter().filter(|it| **it != 0).count();
    let small = mask
        .as_raw()
        .iter()
        .filter(|it| (1..FIGURE).contains(*it))
        .count();
    // Of a soft edge, half is figure. Numbers of classes are mostly small.
    let few = found.len() > 1 && found.len() <= CLASSES;
    if few && (small * 2 > nonzero || kind != "values") {
        return Err(format!(
            "has numbers of classes ({kind}: {}), which do not say which are the figure; write 255 \
             on the figure and 0 elsewhere",
            list(&found)
        ));
    }
    Ok(mask)
}

/// The alpha channel, 8 bits.
pub(super) fn alpha_of(image: &DynamicImage) -> GrayImage {
    let rgba = image.to_rgba8();
    let values = rgba.as_raw().chunks_exact(4).map(|it| it[3]).collect();
    GrayImage::from_raw(rgba.width(), rgba.height(), values).expect("one alpha for each pixel")
}

/// All values that occur, ascending.
fn values(mask: &GrayImage) -> Vec<u8> {
    let mut seen = [false; 256];
    mask.as_raw()
        .iter()
        .for_each(|it| seen[usize::from(*it)] = true);
    (0..=u8::MAX).filter(|it| seen[usize::from(*it)]).collect()
}

fn list(values: &[u8]) -> String {
    match values {
        [] => "mask has no pixels".to_owned(),
        [one] => format!("only value is {one}"),
        [first, .., last] if values.len() > 8 => {
            format!("{} values go from {first} to {last}", values.len())
        }
        _ => {
            let listed: Vec<String> = values.iter().map(u8::to_string).collect();
            format!("values are {}", listed.join(", "))
        }
    }
}
