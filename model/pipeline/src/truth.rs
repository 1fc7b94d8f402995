//! Compares what a model has found with what is true, where somebody says it. Counts add up over
//! units; [`conclude`] makes sentences of them.

use crate::error::{BuildError, Result};
use crate::onnx::read_file;
use image::GrayImage;
use proto::build::report::Report;
use proto::build::settings::NamedFile;
use proto::build::truth::{BOX_SUM, BOXES, CENTRE_SUM, MASK_SUM, MASKS};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Least thousandths of a class.
const CLASSES: [u64; 6] = [980, 950, 900, 800, 500, 0];

/// At least half on the figure.
pub(crate) fn is_figure(value: u8) -> bool {
    128 <= value
}

fn class(what: &str, thousandths: u64, report: &mut Report) {
    let least = CLASSES.into_iter().find(|least| *least <= thousandths);
    let least = least.unwrap_or(0);
    report.count(&format!("{what} with 0.{least:03} or more"), 1);
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss
)] // From 0 to some thousand.
fn thousandths(value: f64) -> u64 {
    (value * 1000.0).round() as u64
}

/// Intersection over union of two masks of one size. Two empty ones are equal.
#[allow(clippy::cast_precision_loss)] // Numbers of pixels are exact in f64.
pub(crate) fn mask_overlap(a: &GrayImage, b: &GrayImage) -> f64 {
    let (mut both, mut either) = (0_u64, 0_u64);
    for (a, b) in a.as_raw().iter().zip(b.as_raw()) {
        both += u64::from(is_figure(*a) && is_figure(*b));
        either += u64::from(is_figure(*a) || is_figure(*b));
    }
    if either == 0 {
        return 1.0;
    }
    both as f64 / either as f64
}

/// Counts a mask with the true one: a greyscale image, or the alpha of an image that has it.
///
/// # Errors
/// Why the true one cannot be used, to follow its name.
pub(crate) fn compare_mask(
    found: &GrayImage,
    truth: &[u8],
    report: &mut Report,
) -> std::result::Result<(), String> {
    let truth = image::load_from_memory(truth).map_err(|error| error.to_string())?;
    let truth = if truth.color().has_alpha() {
        let pixels = truth.into_rgba8();
        let alpha = pixels.pixels().map(|it| it.0[3]).collect();
        GrayImage::from_raw(pixels.width(), pixels.height(), alpha).expect("one value for each")
    } else {
        truth.into_luma8()
    };
    if truth.dimensions() != found.dimensions() {
        let ((width, height), size) = (truth.dimensions(), found.dimensions());
        return Err(format!(
            "it is {width}x{height} pixels, and the image is {}x{}",
            size.0, size.1
        ));
    }
    let overlap = thousandths(mask_overlap(found, &truth));
    report.count(MASKS, 1);
    report.count(MASK_SUM, overlap);
    class("masks", overlap, report);
    Ok(())
}

/// A line of a file of face boxes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BoxRow {
    pub(crate) id: i64,
    pub(crate) bbox: [f64; 4],
}

/// Calls `each` with the boxes of a file and the numbers of their lines; its error is about a line.
///
/// # Errors
/// The file cannot be read, or a line is no box.
pub(crate) async fn read_boxes(
    file: &NamedFile,
    mut each: impl FnMut(BoxRow) -> std::result::Result<(), String>,
) -> Result<()> {
    let text = read_file(file, 1 << 30).await?;
    for (number, line) in (1..).zip(text.split(|it| *it == b'\n')) {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let path = format!("{}/{}", file.folder, file.file.path);
        let fault = |why: String| BuildError::input(&path, format!("row {number}: {why}"));
        let row: BoxRow =
            serde_json::from_slice(line).map_err(|error| fault(format!("no face box: {error}")))?;
        each(row).map_err(fault)?;
    }
    Ok(())
}

/// The true boxes of a file, by post.
///
/// # Errors
/// As [`read_boxes`].
pub(crate) async fn true_boxes(file: &NamedFile) -> Result<BTreeMap<i64, [f64; 4]>> {
    let mut boxes = BTreeMap::new();
    read_boxes(file, |row| {
        let _ = boxes.insert(row.id, row.bbox);
        Ok(())
    })
    .await?;
    Ok(boxes)
}

/// Intersection over union of two boxes: centre x, centre y, width, height.
pub(crate) fn box_overlap(a: [f64; 4], b: [f64; 4]) -> f64 {
    let along = |axis: usize| {
        let (low, high) = (
            (a[axis] - a[axis + 2] / 2.0).max(b[axis] - b[axis + 2] / 2.0),
            (a[axis] + a[axis + 2] / 2.0).min(b[axis] + b[axis + 2] / 2.0),
        );
        (high - low).max(0.0)
    };
    let both = along(0) * along(1);
    let either = a[2] * a[3] + b[2] * b[3] - both;
    if 0.0 < either { both / either } else { 0.0 }
}

/// Counts a face box with the true one. `size` is that of the image.
pub(crate) fn compare_box(found: [f64; 4], truth: [f64; 4], size: (u32, u32), report: &mut Report) {
    let (width, height) = (f64::from(size.0), f64::from(size.1));
    let longer = (truth[2] * width).max(truth[3] * height);
    let apart = ((found[0] - truth[0]) * width).hypot((found[1] - truth[1]) * height);
    let overlap = thousandths(box_overlap(found, truth));
    report.count(BOXES, 1);
    report.count(BOX_SUM, overlap);
    report.count(
        CENTRE_SUM,
        thousandths(apart / longer.max(f64::MIN_POSITIVE)).min(1_000_000),
    );
    class("boxes", overlap, report);
}

/// Adds the means of a whole stage to its report.
#[allow(clippy::cast_precision_loss)] // Three decimals are shown.
pub(crate) fn conclude(report: &mut Report) {
    let counted = |name: &str| report.counts.get(name).copied().unwrap_or(0);
    let mean = |sum: &str, count: u64| counted(sum) as f64 / 1000.0 / count as f64;
    let (masks, boxes) = (counted(MASKS), counted(BOXES));
    let mut found = Vec::new();
    if 0 < masks {
        let overlap = mean(MASK_SUM, masks);
        found.push(format!(
            "{masks} masks compared with true ones: mean intersection over union {overlap:.3}"
        ));
    }
    if 0 < boxes {
        let (overlap, apart) = (mean(BOX_SUM, boxes), mean(CENTRE_SUM, boxes));
        found.push(format!(
            "{boxes} face boxes compared with true ones: mean intersection over union \
             {overlap:.3}, mean distance of the centres {apart:.3} of the true box's longer side"
        ));
    }
    report.found.extend(found);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_those_of_a_ruler() {
        let half = |left: u32| {
            GrayImage::from_fn(4, 2, |x, _| {
                image::Luma([if (left..left + 2).contains(&x) {
                    200
                } else {
                    3
                }])
            })
        };
        assert!((mask_overlap(&half(0), &half(1)) - 1.0 / 3.0).abs() < 1e-12);
        assert!((mask_overlap(&half(2), &half(2)) - 1.0).abs() < 1e-12);
        let box_at = |x: f64| [x, 0.5, 0.2, 0.4];
        assert!((box_overlap(box_at(0.5), box_at(0.6)) - 1.0 / 3.0).abs() < 1e-9);
        assert!(box_overlap(box_at(0.1), box_at(0.6)).abs() < 1e-12);
        let mut report = Report::default();
        compare_box(box_at(0.5), box_at(0.6), (100, 50), &mut report);
        conclude(&mut report);
        assert_eq!(
            report.found,
            [
                "1 face boxes compared with true ones: mean intersection over union 0.333, mean \
              distance of the centres 0.500 of the true box's longer side"
            ]
        );
    }
}
