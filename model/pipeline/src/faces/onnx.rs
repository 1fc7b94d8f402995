//! Face detectors as ONNX models: yolov5_anime (github.com/zymk9/yolov5_anime, prepared as its
//! `detect.py` does) and YuNet (prepared and decoded as OpenCV's `FaceDetectorYN`).

use super::{Face, Fit, Input, Prepared};
use crate::error::{BuildError, Result};
use crate::onnx::{Model, Output, bilinear, planes, runtime, short};
use crate::truth::box_overlap;
use image::RgbImage;
use model_data::image_file::resize;
use proto::build::image_stages::FaceLayout;
use proto::build::settings::NamedFile;

const RIGHT: &str = "a face detector has one input of f32 [N, 3, H, W], such as [1, 3, 640, 640]";
const RIGHT_OUTPUTS: &str = "a face detector has an output [1, boxes, 6] (yolov5), or \
    cls_8, cls_16, cls_32, obj_8, ..., bbox_32 (YuNet)";
const STRIDES: [usize; 3] = [8, 16, 32];
/// Images at a time, if the model takes any number.
const BATCH: usize = 4;
/// yolov5 pads with grey.
const GREY: f32 = 114.0;

/// Score and overlap as authors recommend them: yolov5_anime's README and yolov5's `detect.py`;
/// OpenCV's sample of YuNet.
fn thresholds(layout: FaceLayout) -> (f64, f64) {
    match layout {
        FaceLayout::Yolov5 => (0.8, 0.45),
        FaceLayout::Yunet => (0.9, 0.3),
    }
}

/// How images become input.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Preparation {
    /// As they are, but with a longest side of at most this.
    Longest(u32),
    Model {
        layout: FaceLayout,
        width: usize,
        height: usize,
    },
}

impl Preparation {
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )] // Sides of images.
    pub(crate) fn input(&self, image: &RgbImage) -> (Fit, Input) {
        let size = image.dimensions();
        match *self {
            Self::Longest(side) => {
                let longest = size.0.max(size.1);
                let scale = (f64::from(side) / f64::from(longest)).min(1.0);
                let scaled = |it: u32| ((f64::from(it) * scale).round() as u32).max(1);
                let fit = Fit {
                    size,
                    scale,
                    left: 0.0,
                    top: 0.0,
                };
                let small = resize(image.clone(), scaled(size.0), scaled(size.1));
                (fit, Input::Image(small))
            }
            Self::Model {
                layout,
                width,
                height,
            } => {
                let across = width as f64 / f64::from(size.0);
                let down = height as f64 / f64::from(size.1);
                let scale = across.min(down);
                let scaled = |it: u32, most: usize| {
                    ((f64::from(it) * scale).round() as usize).clamp(1, most)
                };
                let inner = (scaled(size.0, width), scaled(size.1, height));
                // yolov5 centres, and rounds the half of an odd rest down; OpenCV pads at the end.
                let (left, top) = match layout {
                    FaceLayout::Yolov5 => ((width - inner.0) / 2, (height - inner.1) / 2),
                    FaceLayout::Yunet => (0, 0),
                };
                let fit = Fit {
                    size,
                    scale,
                    left: left as f64,
                    top: top as f64,
                };
                let from = (size.0 as usize, size.1 as usize);
                let mut planes = planes(image).map(|plane| bilinear(&plane, from, inner));
                let (fill, factor) = match layout {
                    FaceLayout::Yolov5 => (GREY, 255.0),
                    FaceLayout::Yunet => {
                        planes.reverse();
                        (0.0, 1.0)
                    }
                };
                let mut values = vec![fill / factor; 3 * width * height];
                for (plane, target) in planes.iter().zip(values.chunks_exact_mut(width * height)) {
                    let rows = plane.chunks_exact(inner.0);
                    let targets = target.chunks_exact_mut(width).skip(top);
                    for (row, target) in rows.zip(targets) {
                        for (value, target) in row.iter().zip(&mut target[left..]) {
                            *target = value / factor;
                        }
                    }
                }
                (fit, Input::Values(values))
            }
        }
    }
}

/// What a detector's settings may leave to its authors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) score_min: Option<f64>,
    pub(crate) overlap_max: Option<f64>,
    /// Of the square that a model of any input size gets.
    pub(crate) side: u32,
}

/// A detector of faces, or of figures.
#[derive(Debug)]
pub(crate) struct Detector {
    model: Model,
    layout: FaceLayout,
    width: usize,
    height: usize,
    pub(crate) batch: usize,
    is_fixed: bool,
    score_min: f64,
    overlap_max: f64,
}

impl Detector {
    pub(crate) async fn open(
        model: &NamedFile,
        layout: Option<FaceLayout>,
        limits: Limits,
    ) -> Result<Self> {
        let model = Model::open_file(model).await?;
        let input = model.image_input(RIGHT)?;
        if input.channels_last {
            return Err(model.unfit(&model.inputs, "inputs", RIGHT));
        }
        let layout = layout.or_else(|| recognise(&model));
        let Some(layout) = layout else {
            return Err(model.unfit(&model.outputs, "outputs", RIGHT_OUTPUTS));
        };
        let side = limits.side as usize;
        let (score_min, overlap_max) = thresholds(layout);
        Ok(Self {
            layout,
            width: input.width.unwrap_or(side),
            height: input.height.unwrap_or(side),
            batch: input.batch.unwrap_or(BATCH).max(1),
            is_fixed: input.batch.is_some(),
            score_min: limits.score_min.unwrap_or(score_min),
            overlap_max: limits.overlap_max.unwrap_or(overlap_max),
            model,
        })
    }

    pub(crate) fn preparation(&self) -> Preparation {
        Preparation::Model {
            layout: self.layout,
            width: self.width,
            height: self.height,
        }
    }

    pub(crate) fn description(&self) -> String {
        let layout = match self.layout {
            FaceLayout::Yolov5 => "yolov5",
            FaceLayout::Yunet => "YuNet",
        };
        format!(
            "{}, with outputs as {layout}, at {}x{}, scores of at least {} and overlaps \
             of at most {}, by {}",
            short(&self.model.name),
            self.width,
            self.height,
            self.score_min,
            self.overlap_max,
            runtime()
        )
    }

    /// The faces of at most a batch of images, best first.
    pub(crate) fn find(&mut self, images: &[Prepared]) -> Result<Vec<Vec<Face>>> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let count = if self.is_fixed {
            self.batch
        } else {
            images.len()
        };
        let one = 3 * self.width * self.height;
        let mut values = Vec::with_capacity(count * one);
        for image in images {
            match &image.input {
                Input::Values(input) => values.extend(input),
                Input::Image(_) => unreachable!("it was prepared for a model"),
            }
        }
        values.resize(count * one, 0.0);
        let outputs = self
            .model
            .run([count, 3, self.height, self.width], values)?;
        let faces = (0..images.len()).map(|index| {
            let found = match self.layout {
                FaceLayout::Yolov5 => self.yolov5(&outputs, (index, count))?,
                FaceLayout::Yunet => self.yunet(&outputs, (index, count))?,
            };
            Ok(best(found, self.overlap_max))
        });
        faces.collect()
    }

    fn refuse(&self, found: &str, expected: &str) -> BuildError {
        let reason = format!("{found}; {expected} is expected");
        BuildError::input(&self.model.name, reason)
    }

    /// Rows of centre, size, objectness and classes, in pixels.
    fn yolov5(&self, outputs: &[Output], (index, count): (usize, usize)) -> Result<Vec<Face>> {
        let is_boxes = |it: &&Output| match it.shape[..] {
            [images, _, values] => images == count && 6 <= values,
            _ => false,
        };
        let output = outputs.iter().find(is_boxes).ok_or_else(|| {
            let shapes = outputs
                .iter()
                .map(|it| format!("{:?} {:?}", it.name, it.shape));
            let found = format!("its outputs are {}", shapes.collect::<Vec<_>>().join(", "));
            self.refuse(&found, &format!("one of [{count}, boxes, 6]"))
        })?;
        let (boxes, width) = (output.shape[1], output.shape[2]);
        let rows = output.values.chunks_exact(width);
        let rows = rows.skip(index * boxes).take(boxes);
        let faces = rows.map(|row| {
            let class = row[5..].iter().copied().fold(0.0, f32::max);
            Face {
                score: f64::from(row[4] * class),
                bbox: [row[0], row[1], row[2], row[3]].map(f64::from),
            }
        });
        Ok(faces.filter(|face| self.score_min <= face.score).collect())
    }

    /// The values of one image in an output of this shape.
    fn grid<'a>(
        &self,
        outputs: &'a [Output],
        name: &str,
        shape: [usize; 3],
        index: usize,
    ) -> Result<&'a [f32]> {
        let output = outputs.iter().find(|it| it.name == name);
        let fits = |it: &&Output| it.values.len() == shape.iter().product::<usize>();
        let output = output.filter(fits).ok_or_else(|| {
            let found = output.map_or(format!("it has no output {name} of f32"), |it| {
                format!("its output {name} is {:?}", it.shape)
            });
            self.refuse(&found, &format!("{shape:?}"))
        })?;
        let one = shape[1] * shape[2];
        Ok(&output.values[index * one..(index + 1) * one])
    }

    /// For each cell of three grids: class, objectness, and a box relative to the cell.
    #[allow(clippy::cast_precision_loss)] // Cells of an image.
    fn yunet(&self, outputs: &[Output], (index, count): (usize, usize)) -> Result<Vec<Face>> {
        let mut faces = Vec::new();
        for stride in STRIDES {
            let (across, down) = (self.width / stride, self.height / stride);
            let cells = across * down;
            let of = |kind: &str| format!("{kind}_{stride}");
            let shape = |width| [count, cells, width];
            let class = self.grid(outputs, &of("cls"), shape(1), index)?;
            let object = self.grid(outputs, &of("obj"), shape(1), index)?;
            let boxes = self.grid(outputs, &of("bbox"), shape(4), index)?;
            let boxes = boxes.chunks_exact(4);
            let size = stride as f64;
            for (cell, place) in boxes.enumerate() {
                let clamped = |it: f32| f64::from(it).clamp(0.0, 1.0);
                let score = (clamped(class[cell]) * clamped(object[cell])).sqrt();
                if score < self.score_min {
                    continue;
                }
                let place: [f64; 4] = [0, 1, 2, 3].map(|it| f64::from(place[it]));
                let (column, row) = (cell % across, cell / across);
                faces.push(Face {
                    score,
                    bbox: [
                        (column as f64 + place[0]) * size,
                        (row as f64 + place[1]) * size,
                        place[2].exp() * size,
                        place[3].exp() * size,
                    ],
                });
            }
        }
        Ok(faces)
    }
}

/// The layout that a model's outputs tell.
fn recognise(model: &Model) -> Option<FaceLayout> {
    let has = |name: &str| model.outputs.iter().any(|it| it.name == name);
    if ["cls_8", "obj_16", "bbox_32"].into_iter().all(has) {
        return Some(FaceLayout::Yunet);
    }
    let is_boxes = |shape: &Vec<Option<usize>>| {
        matches!(shape[..], [_, _, Some(6..)]) || matches!(shape[..], [_, _, None])
    };
    let mut outputs = model.outputs.iter().filter_map(|it| it.shape.as_ref());
    outputs.any(is_boxes).then_some(FaceLayout::Yolov5)
}

/// Non-maximum suppression: best first, without those that overlap a better one.
fn best(mut faces: Vec<Face>, overlap_max: f64) -> Vec<Face> {
    // Stable: of equal scores the first in the model's order.
    faces.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut kept: Vec<Face> = Vec::new();
    for face in faces {
        let overlaps = |it: &Face| overlap_max < box_overlap(it.bbox, face.bbox);
        if !kept.iter().any(overlaps) {
            kept.push(face);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_overlapping_boxes_the_best_is_kept() {
        let face = |score, x| Face {
            score,
            bbox: [x, 10.0, 10.0, 10.0],
        };
        let kept = best(
            vec![face(0.5, 10.0), face(0.9, 12.0), face(0.7, 40.0)],
            0.45,
        );
        assert_eq!(kept, [face(0.9, 12.0), face(0.7, 40.0)]);
        assert_eq!(best(vec![face(0.5, 10.0), face(0.9, 12.0)], 0.9).len(), 2);
    }

    #[test]
    fn images_are_centred_on_grey_or_put_into_the_corner() {
        let image = RgbImage::from_pixel(8, 4, image::Rgb([255, 0, 51]));
        let of = |layout| {
            let preparation = Preparation::Model {
                layout,
                width: 4,
                height: 4,
            };
            match preparation.input(&image) {
                (fit, Input::Values(values)) => (fit, values),
                (_, Input::Image(_)) => unreachable!("a model takes values"),
            }
        };
        let (fit, values) = of(FaceLayout::Yolov5);
        assert_eq!((fit.scale, fit.left, fit.top), (0.5, 0.0, 1.0));
        let grey = 114.0 / 255.0;
        assert_eq!(values[..8], [grey, grey, grey, grey, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(values[12..16], [grey; 4]);
        let (fit, values) = of(FaceLayout::Yunet);
        assert_eq!((fit.left, fit.top), (0.0, 0.0));
        // Blue comes first.
        assert_eq!(
            values[..9],
            [51.0, 51.0, 51.0, 51.0, 51.0, 51.0, 51.0, 51.0, 0.0]
        );
        assert_eq!(values[32], 255.0);
    }
}
