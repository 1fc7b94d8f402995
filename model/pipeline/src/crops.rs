//! The stage `figures`: a detector finds the figure of each image, and the image is cropped to it.
//! The paper takes crops of single figures as given (Danbooru2019 Figures, which AniSeg has made).
//! An image without a figure is dropped; of several figures that with the highest score counts.
//! Crops are PNG in tars with an index.

use crate::batches::{self, keep, prepared};
use crate::error::Result;
use crate::faces::{Detector, Limits, Prepared};
use crate::figure::{self, CROPPED};
use crate::images::Images;
use crate::masks::put_tar;
use crate::output::{Outputs, StageFolder};
use crate::sheet::{Sheet, thumbnail};
use crate::table::{Table, Value};
use crate::tar::Tar;
use futures::StreamExt;
use image::RgbImage;
use model_data::image_file::encode_rgb;
use proto::build::StagePlan;
use proto::build::image_stages::FiguresSettings;
use proto::build::report::{Report, UnitOutput};
use std::path::Path;
use std::pin::pin;

pub const NO_FIGURE: &str = "no figure";

/// Crops the figures of a unit.
///
/// # Errors
/// Input is missing or damaged, the model is no detector, or storage fails.
pub async fn run(
    plan: &StagePlan,
    settings: &FiguresSettings,
    outputs: &Outputs,
    units: (u32, u32),
    scratch: &Path,
) -> Result<UnitOutput> {
    let figures = figure::with_others(plan, outputs, scratch).await?;
    let limits = Limits {
        score_min: settings.score_min,
        overlap_max: settings.overlap_max,
        side: settings.side,
    };
    let mut stage = Crops {
        detector: Detector::open(&settings.model, settings.layout, limits).await?,
        images: Images::of_stage(plan, outputs, settings.images.as_ref(), scratch).await?,
        folder: outputs.stage(&plan.key()),
        settings,
    };
    stage.images.check(settings.on_bad_row)?;
    let folder = stage.folder.clone();
    let each = async |number: usize, figures: &[i64]| stage.batch(number, figures).await;
    let mut output = batches::run(&folder, &figures, units, each).await?;
    let description = format!("figures of {}", stage.detector.description());
    output.report.found.insert(0, description);
    stage.images.describe(units.0, &mut output.report);
    Ok(output)
}

struct Crops<'a> {
    settings: &'a FiguresSettings,
    detector: Detector,
    images: Images,
    folder: StageFolder,
}

/// A box that is larger by a margin on each side and ends at the image's edges: centre and size.
fn enlarged([x, y, width, height]: [f64; 4], margin: f64) -> [f64; 4] {
    let along = |centre: f64, length: f64| {
        let half = length * (0.5 + margin);
        let (low, high) = ((centre - half).max(0.0), (centre + half).min(1.0));
        ((low + high) / 2.0, high - low)
    };
    let ((x, width), (y, height)) = (along(x, width), along(y, height));
    [x, y, width, height]
}

/// The part of an image in a box of fractions, at least one pixel.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Clamped to the image.
fn crop(image: &RgbImage, [x, y, width, height]: [f64; 4]) -> RgbImage {
    let along = |centre: f64, length: f64, side: u32| {
        let pixel = |part: f64| (part * f64::from(side)).round().clamp(0.0, f64::from(side)) as u32;
        let low = pixel(centre - length / 2.0).min(side - 1);
        (low, pixel(centre + length / 2.0).max(low + 1) - low)
    };
    let (left, width) = along(x, width, image.width());
    let (top, height) = along(y, height, image.height());
    image::imageops::crop_imm(image, left, top, width, height).to_image()
}

impl Crops<'_> {
    async fn batch(&mut self, number: usize, figures: &[i64]) -> Result<UnitOutput> {
        let mut report = Report {
            rows_in: figures.len() as u64,
            ..Report::default()
        };
        let (mut table, mut tar) = (Table::new(&CROPPED), Tar::default());
        let mut sheet = Sheet::default();
        let preparation = self.detector.preparation();
        let prepare = move |image: RgbImage| {
            let (fit, input) = preparation.input(&image);
            let prepared = Prepared {
                fit,
                input,
                thumbnail: None,
            };
            (prepared, image)
        };
        let (images, on_bad_row) = (&self.images, self.settings.on_bad_row);
        let groups = prepared(images, figures, prepare).chunks(self.detector.batch);
        let mut groups = pin!(groups);
        while let Some(group) = groups.next().await {
            let (mut ids, mut inputs, mut pictures) = (Vec::new(), Vec::new(), Vec::new());
            for found in group {
                if let Some((id, (input, image))) = keep(found, (images, on_bad_row), &mut report)?
                {
                    ids.push(id);
                    inputs.push(input);
                    pictures.push(image);
                }
            }
            let found = self.detector.find(&inputs)?;
            let rows = ids.into_iter().zip(inputs).zip(pictures).zip(found);
            for (((id, input), image), boxes) in rows {
                let inside = boxes.iter().filter_map(|it| {
                    let bbox = input.fit.fractions(it.bbox)?;
                    Some((it.score, bbox))
                });
                let inside: Vec<(f64, [f64; 4])> = inside.collect();
                let Some((score, bbox)) = inside.first().copied() else {
                    report.lose(NO_FIGURE, 1);
                    continue;
                };
                report.count("images with several figures", u64::from(1 < inside.len()));
                let bbox = enlarged(bbox, self.settings.margin);
                let cropped = crop(&image, bbox);
                if number == 0 {
                    sheet.add_box(thumbnail(image), bbox);
                }
                let bytes = encode_rgb(cropped).expect("an image is written to memory");
                tar.add(&format!("{id}.png"), &bytes);
                let [x, y, width, height] = bbox.map(Value::Real);
                let count = i64::try_from(inside.len()).unwrap_or(i64::MAX);
                let (score, count) = (Value::Real(score), Value::Number(count));
                table.push([Value::Number(id), x, y, width, height, score, count]);
            }
        }
        report.rows_out = table.rows();
        let mut parts = Vec::new();
        if 0 < table.rows() {
            let (stem, rows) = (format!("crops-{number:06}"), table.rows());
            let part = self.folder.put_part(&stem, rows, table.finish()).await?;
            let (bytes, index) = tar.finish();
            parts.extend(put_tar(&self.folder, &part, bytes, index).await?);
            parts.push(part);
        }
        parts.extend(sheet.put(&self.folder, number, &mut report).await?);
        Ok(UnitOutput { parts, report })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crop_has_its_margin_and_ends_at_the_edges() {
        let near = |a: [f64; 4], b: [f64; 4]| {
            let all = a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9);
            assert!(all, "{a:?} {b:?}");
        };
        near(enlarged([0.5, 0.5, 0.4, 0.2], 0.25), [0.5, 0.5, 0.6, 0.3]);
        near(enlarged([0.1, 0.5, 0.2, 0.2], 0.5), [0.15, 0.5, 0.3, 0.4]);
        let image = RgbImage::from_fn(10, 20, |x, y| image::Rgb([x as u8, y as u8, 0]));
        let part = crop(&image, [0.5, 0.25, 0.4, 0.5]);
        assert_eq!(part.dimensions(), (4, 10));
        assert_eq!(part.get_pixel(0, 0).0, [3, 0, 0]);
        assert_eq!(crop(&image, [1.0, 1.0, 0.0, 0.0]).dimensions(), (1, 1));
    }
}
