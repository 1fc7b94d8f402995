//! Guesses a face box from the mask of a figure.

use image::GrayImage;

use crate::image_file::mask_region;

/// Guesses the face of a row without `bbox`: a square of 0.3 of the figure's height at its upper
/// end. Thin tips above the head (a raised sword, a feather) are skipped: the head starts at the
/// first row that is a quarter as wide as the widest.
pub(super) fn guess_face(mask: &GrayImage) -> Option<[f64; 4]> {
    let (width, height) = (f64::from(mask.width()), f64::from(mask.height()));
    let figure = mask_region(mask)?;
    let rows: Vec<Vec<u32>> = (figure.y..figure.bottom())
        .map(|y| {
            (0..mask.width())
                .filter(|x| mask.get_pixel(*x, y).0[0] >= 128)
                .collect()
        })
        .collect();
    let widest = rows.iter().map(Vec::len).max()?;
    let top = rows.iter().position(|row| row.len() * 4 >= widest)?;
    let side = (f64::from(figure.height) * 0.3).max(2.0);
    let mut columns: Vec<u32> = rows
        .iter()
        .skip(top)
        .take(side as usize)
        .flatten()
        .copied()
        .collect();
    columns.sort_unstable();
    let centre = f64::from(*columns.get(columns.len() / 2)?) + 0.5;
    let y = f64::from(figure.y) + top as f64;
    let clip = |low: f64, high: f64, end: f64| (low.max(0.0), high.min(end));
    let (left, right) = clip(centre - side / 2.0, centre + side / 2.0, width);
    let (upper, lower) = clip(y, y + side, height);
    Some([
        (left + right) / 2.0 / width,
        (upper + lower) / 2.0 / height,
        (right - left) / width,
        (lower - upper) / height,
    ])
}
