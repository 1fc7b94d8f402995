//! The stage `faces`: a detector finds the face of each figure (paper, appendix A.1). A figure
//! without a face is dropped; of several faces that with the highest score counts.

mod animeface;
mod onnx;

use crate::batches::{self, keep, prepared};
use crate::error::Result;
use crate::figure::FACES;
use crate::images::Images;
use crate::output::{Outputs, StageFolder};
use crate::sheet::{Sheet, thumbnail};
use crate::table::{Table, Value};
use crate::truth;
use animeface::Animeface;
use futures::StreamExt;
use image::RgbImage;
pub(crate) use onnx::{Detector, Limits, Preparation};
use proto::build::StagePlan;
use proto::build::image_stages::{FaceDetector, FacesSettings};
use proto::build::report::{Report, UnitOutput};
use std::collections::BTreeMap;
use std::path::Path;
use std::pin::pin;

pub const NO_FACE: &str = "no face";

/// A face in pixels of what a detector was given: centre and size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Face {
    pub(crate) score: f64,
    pub(crate) bbox: [f64; 4],
}

/// Where the image is in what a detector was given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Fit {
    /// Of the image.
    pub(crate) size: (u32, u32),
    /// Pixels of the input for one of the image.
    pub(crate) scale: f64,
    pub(crate) left: f64,
    pub(crate) top: f64,
}

impl Fit {
    /// A box as fractions of the image, cut off at its edges: six decimals, as the paper's. None:
    /// it is outside.
    pub(crate) fn fractions(&self, [x, y, width, height]: [f64; 4]) -> Option<[f64; 4]> {
        let along = |centre: f64, length: f64, offset: f64, side: u32| {
            let side = f64::from(side) * self.scale;
            let low = ((centre - length / 2.0 - offset) / side).clamp(0.0, 1.0);
            let high = ((centre + length / 2.0 - offset) / side).clamp(0.0, 1.0);
            let short = |it: f64| (it * 1e6).round() / 1e6;
            (short((low + high) / 2.0), short(high - low))
        };
        let (x, width) = along(x, width, self.left, self.size.0);
        let (y, height) = along(y, height, self.top, self.size.1);
        // A box of no numbers is none.
        (0.0 < width && 0.0 < height).then_some([x, y, width, height])
    }
}

/// An image as a detector takes it.
pub(crate) struct Prepared {
    pub(crate) fit: Fit,
    pub(crate) input: Input,
    pub(crate) thumbnail: Option<RgbImage>,
}

pub(crate) enum Input {
    Values(Vec<f32>),
    Image(RgbImage),
}

enum Finder {
    Animeface(Animeface),
    Onnx(Box<Detector>),
}

/// Detects the faces of the figures of a unit.
///
/// # Errors
/// Input is missing or damaged, the model is no face detector, or storage fails.
pub async fn run(
    plan: &StagePlan,
    settings: &FacesSettings,
    outputs: &Outputs,
    units: (u32, u32),
    scratch: &Path,
) -> Result<UnitOutput> {
    let figures = batches::figures(plan, outputs).await?;
    let finder = match &settings.detector {
        FaceDetector::Animeface => Finder::Animeface(Animeface::start(settings.score_min)?),
        FaceDetector::Onnx { model, layout } => {
            let limits = Limits {
                score_min: settings.score_min,
                overlap_max: settings.overlap_max,
                side: settings.side,
            };
            Finder::Onnx(Box::new(Detector::open(model, *layout, limits).await?))
        }
    };
    let mut stage = Faces {
        finder,
        images: Images::of_stage(plan, outputs, settings.images.as_ref(), scratch).await?,
        truth: match &settings.truth {
            Some(truth) => truth::true_boxes(truth).await?,
            None => BTreeMap::new(),
        },
        folder: outputs.stage(&plan.key()),
        settings,
    };
    stage.images.check(settings.on_bad_row)?;
    let folder = stage.folder.clone();
    let each = async |number: usize, figures: &[i64]| stage.batch(number, figures).await;
    let mut output = batches::run(&folder, &figures, units, each).await?;
    let description = match &stage.finder {
        Finder::Animeface(animeface) => animeface.description(),
        Finder::Onnx(detector) => format!("faces of {}", detector.description()),
    };
    output.report.found.insert(0, description);
    stage.images.describe(units.0, &mut output.report);
    Ok(output)
}

struct Faces<'a> {
    settings: &'a FacesSettings,
    finder: Finder,
    images: Images,
    truth: BTreeMap<i64, [f64; 4]>,
    folder: StageFolder,
}

impl Finder {
    fn preparation(&self, side: u32) -> Preparation {
        match self {
            Self::Animeface(_) => Preparation::Longest(side),
            Self::Onnx(detector) => detector.preparation(),
        }
    }

    /// The faces of images, best first.
    fn find(&mut self, images: &[Prepared]) -> Result<Vec<Vec<Face>>> {
        match self {
            Self::Animeface(animeface) => images
                .iter()
                .map(|image| match &image.input {
                    Input::Image(image) => animeface.find(image),
                    Input::Values(_) => unreachable!("it was prepared for animeface"),
                })
                .collect(),
            Self::Onnx(detector) => detector.find(images),
        }
    }

    fn batch(&self) -> usize {
        match self {
            Self::Animeface(_) => 1,
            Self::Onnx(detector) => detector.batch,
        }
    }
}

impl Faces<'_> {
    async fn batch(&mut self, number: usize, figures: &[i64]) -> Result<UnitOutput> {
        let mut report = Report {
            rows_in: figures.len() as u64,
            ..Report::default()
        };
        let (mut table, mut sheet) = (Table::new(&FACES), Sheet::default());
        let preparation = self.finder.preparation(self.settings.side);
        let prepare = move |image: RgbImage| {
            let (fit, input) = preparation.input(&image);
            let thumbnail = (number == 0).then(|| thumbnail(image));
            Prepared {
                fit,
                input,
                thumbnail,
            }
        };
        let (images, on_bad_row) = (&self.images, self.settings.on_bad_row);
        let groups = prepared(images, figures, prepare).chunks(self.finder.batch());
        let mut groups = pin!(groups);
        while let Some(group) = groups.next().await {
            let (mut ids, mut kept) = (Vec::new(), Vec::new());
            for found in group {
                if let Some((id, image)) = keep(found, (images, on_bad_row), &mut report)? {
                    ids.push(id);
                    kept.push(image);
                }
            }
            let faces = self.finder.find(&kept)?;
            for ((id, image), faces) in ids.into_iter().zip(kept).zip(faces) {
                let inside = faces.iter().filter_map(|face| {
                    let bbox = image.fit.fractions(face.bbox)?;
                    Some((face.score, bbox))
                });
                let inside: Vec<(f64, [f64; 4])> = inside.collect();
                let Some((score, bbox)) = inside.first().copied() else {
                    report.lose(NO_FACE, 1);
                    continue;
                };
                report.count("figures with several faces", u64::from(1 < inside.len()));
                if let Some(truth) = self.truth.get(&id) {
                    truth::compare_box(bbox, *truth, image.fit.size, &mut report);
                }
                if let Some(thumbnail) = image.thumbnail {
                    sheet.add_box(thumbnail, bbox);
                }
                let [x, y, width, height] = bbox.map(Value::Real);
                let count = i64::try_from(inside.len()).unwrap_or(i64::MAX);
                let (score, count) = (Value::Real(score), Value::Number(count));
                table.push([Value::Number(id), x, y, width, height, score, count]);
            }
        }
        report.rows_out = table.rows();
        let mut parts = Vec::new();
        if 0 < table.rows() {
            let (stem, rows) = (format!("faces-{number:06}"), table.rows());
            parts.push(self.folder.put_part(&stem, rows, table.finish()).await?);
        }
        parts.extend(sheet.put(&self.folder, number, &mut report).await?);
        Ok(UnitOutput { parts, report })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_become_fractions_of_the_image_and_end_at_its_edges() {
        // 200x100 pixels in the middle of a square of 100.
        let fit = Fit {
            size: (200, 100),
            scale: 0.5,
            left: 0.0,
            top: 25.0,
        };
        assert_eq!(
            fit.fractions([50.0, 50.0, 20.0, 10.0]),
            Some([0.5, 0.5, 0.2, 0.2])
        );
        assert_eq!(
            fit.fractions([100.0, 25.0, 20.0, 10.0]),
            Some([0.95, 0.05, 0.1, 0.1])
        );
        assert_eq!(fit.fractions([50.0, 10.0, 20.0, 10.0]), None);
        assert_eq!(fit.fractions([f64::NAN, 50.0, 20.0, 10.0]), None);
    }
}
