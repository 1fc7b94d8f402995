//! What segmentation models take and give. U²-Net: as its package `rembg` does. IS-Net: as
//! `Inference.py` of its authors (github.com/xuebinqin/DIS) does.

use super::{Prepared, named};
use crate::error::{BuildError, Result};
use crate::onnx::{Model, Output, bilinear, lanczos, lanczos_gray, planes};
use image::{GrayImage, RgbImage};
use proto::build::image_stages::MaskLayout;

const U2NET_SIDE: usize = 320;
const IS_NET_SIDE: usize = 1024;
/// `ImageNet`'s, of the training of U²-Net.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

const RIGHT: &str = "a segmentation model has one input of f32 [N, 3, H, W], such as \
    [1, 3, 320, 320] (U²-Net) or [1, 3, 1024, 1024] (IS-Net)";

/// How images become input.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Preparation {
    layout: MaskLayout,
    width: usize,
    height: usize,
}

impl Preparation {
    #[allow(clippy::cast_possible_truncation)] // Sides of a model's input.
    pub(crate) fn values(&self, image: &RgbImage) -> Vec<f32> {
        let (width, height) = (self.width, self.height);
        match self.layout {
            MaskLayout::U2net => {
                let small = lanczos(image, width as u32, height as u32);
                let largest = small.as_raw().iter().copied().max().unwrap_or(0).max(1);
                let values = planes(&small).into_iter().zip(MEAN).zip(DEVIATION);
                let values = values.map(|((plane, mean), deviation)| {
                    let normal = move |it: f32| (it / f32::from(largest) - mean) / deviation;
                    plane.into_iter().map(normal)
                });
                values.flatten().collect()
            }
            MaskLayout::IsNet => {
                let size = (image.width() as usize, image.height() as usize);
                let values = planes(image).into_iter().flat_map(|plane| {
                    let small = bilinear(&plane, size, (width, height));
                    small.into_iter().map(|it| it / 255.0 - 0.5)
                });
                values.collect()
            }
        }
    }
}

/// A segmentation model.
#[derive(Debug)]
pub(crate) struct Segmenter {
    model: Model,
    preparation: Preparation,
    /// Images at a time.
    pub(crate) batch: usize,
    is_fixed: bool,
}

impl Segmenter {
    /// `batch` is for models that take any number of images at a time.
    pub(crate) fn new(model: Model, layout: Option<MaskLayout>, batch: usize) -> Result<Self> {
        let input = model.image_input(RIGHT)?;
        if input.channels_last {
            return Err(model.unfit(&model.inputs, "inputs", RIGHT));
        }
        let layout = match (layout, input.height, input.width) {
            (Some(layout), ..) => layout,
            (None, Some(U2NET_SIDE), Some(U2NET_SIDE)) => MaskLayout::U2net,
            (None, Some(IS_NET_SIDE), Some(IS_NET_SIDE)) => MaskLayout::IsNet,
            (None, ..) => {
                let right = "their size tells neither U²-Net (320) nor IS-Net (1024): set \
                             masks.layout to \"u2net\" or \"is-net\"";
                return Err(model.unfit(&model.inputs, "inputs", right));
            }
        };
        let side = match layout {
            MaskLayout::U2net => U2NET_SIDE,
            MaskLayout::IsNet => IS_NET_SIDE,
        };
        Ok(Self {
            preparation: Preparation {
                layout,
                width: input.width.unwrap_or(side),
                height: input.height.unwrap_or(side),
            },
            batch: input.batch.unwrap_or(batch).max(1),
            is_fixed: input.batch.is_some(),
            model,
        })
    }

    pub(crate) fn preparation(&self) -> Preparation {
        self.preparation
    }

    pub(crate) fn description(&self) -> String {
        let Preparation {
            layout,
            width,
            height,
        } = self.preparation;
        let layout = match layout {
            MaskLayout::U2net => "U²-Net",
            MaskLayout::IsNet => "IS-Net",
        };
        format!(
            "masks of {}, prepared as for {layout} at {width}x{height}, {} at a time",
            named(&self.model),
            self.batch
        )
    }

    /// The masks of at most a batch of images. None: the output has no contrast.
    pub(crate) fn segment(&mut self, images: &[Prepared]) -> Result<Vec<Option<GrayImage>>> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let Preparation { width, height, .. } = self.preparation;
        let count = if self.is_fixed {
            self.batch
        } else {
            images.len()
        };
        let mut values: Vec<f32> = Vec::with_capacity(count * 3 * width * height);
        values.extend(images.iter().flat_map(|image| &image.values));
        values.resize(count * 3 * width * height, 0.0);
        let outputs = self.model.run([count, 3, height, width], values)?;
        let output = self.first(&outputs, count)?;
        let one = output.values.len() / count;
        let planes = output.values.chunks_exact(one).zip(images);
        Ok(planes
            .map(|(plane, image)| self.mask(plane, image.size))
            .collect())
    }

    /// The first output is the finest, and the fused one.
    fn first<'a>(&self, outputs: &'a [Output], count: usize) -> Result<&'a Output> {
        let Preparation { width, height, .. } = self.preparation;
        let name = self.model.outputs.first().map(|it| it.name.as_str());
        let output = outputs.iter().find(|it| Some(it.name.as_str()) == name);
        let is_plane = |it: &&Output| {
            it.shape.ends_with(&[height, width]) && it.values.len() == count * width * height
        };
        output.filter(is_plane).ok_or_else(|| {
            let found = output.map_or("is no tensor of f32".to_owned(), |it| {
                format!("is {:?}", it.shape)
            });
            let reason = format!(
                "its first output {:?} {found}; the mask [{count}, 1, {height}, {width}] is \
                 expected",
                name.unwrap_or_default()
            );
            BuildError::input(&self.model.name, reason)
        })
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // From 0 to 255.
    fn mask(&self, plane: &[f32], (wide, high): (u32, u32)) -> Option<GrayImage> {
        let Preparation {
            layout,
            width,
            height,
        } = self.preparation;
        let stretched = |plane: &[f32]| -> Option<Vec<u8>> {
            let low = plane.iter().copied().fold(f32::INFINITY, f32::min);
            let high = plane.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let is_usable = plane.iter().all(|it| it.is_finite()) && low < high;
            let byte = |it: &f32| ((it - low) / (high - low) * 255.0) as u8;
            is_usable.then(|| plane.iter().map(byte).collect())
        };
        match layout {
            MaskLayout::U2net => {
                let small = stretched(plane)?;
                let small = GrayImage::from_raw(width as u32, height as u32, small)?;
                Some(lanczos_gray(&small, wide, high))
            }
            MaskLayout::IsNet => {
                let large = (wide as usize, high as usize);
                let plane = bilinear(plane, (width, height), large);
                GrayImage::from_raw(wide, high, stretched(&plane)?)
            }
        }
    }
}
