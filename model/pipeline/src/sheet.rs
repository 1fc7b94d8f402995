//! A contact sheet of figures with their masks and face boxes, to look at what a stage has done.

use crate::error::Result;
use crate::output::StageFolder;
use image::{GrayImage, Rgb, RgbImage};
use model_data::image_file::{encode_rgb, resize};
use proto::build::report::{Part, Report};

/// Side of a cell in pixels, and cells in a row.
pub(crate) const CELL: u32 = 128;
const COLUMNS: u32 = 8;
const BACKGROUND: Rgb<u8> = Rgb([255, 0, 255]);
const FRAME: Rgb<u8> = Rgb([255, 0, 0]);

/// An image that fits into a cell.
pub(crate) fn thumbnail(image: RgbImage) -> RgbImage {
    let longest = image.width().max(image.height());
    let side = |it: u32| (u64::from(it) * u64::from(CELL) / u64::from(longest)).max(1);
    let (width, height) = (side(image.width()), side(image.height()));
    let fits = |it: u64| u32::try_from(it).unwrap_or(CELL).min(CELL);
    resize(image, fits(width), fits(height))
}

/// Cells in the order in which they are added.
#[derive(Debug, Default)]
pub(crate) struct Sheet {
    cells: Vec<RgbImage>,
}

impl Sheet {
    pub(crate) fn add(&mut self, thumbnail: RgbImage) {
        self.cells.push(thumbnail);
    }

    /// As [`Self::add_mask`] and [`Self::add_box`], in one cell.
    pub(crate) fn add_mask_and_box(
        &mut self,
        thumbnail: RgbImage,
        mask: &GrayImage,
        bbox: [f64; 4],
    ) {
        self.add_mask(thumbnail, mask);
        if let Some(masked) = self.cells.pop() {
            self.add_box(masked, bbox);
        }
    }

    /// What the mask leaves out is shown in magenta. The mask has the size of the thumbnail.
    pub(crate) fn add_mask(&mut self, mut thumbnail: RgbImage, mask: &GrayImage) {
        for (pixel, mask) in thumbnail.pixels_mut().zip(mask.pixels()) {
            let over = u16::from(mask.0[0]);
            for (channel, background) in pixel.0.iter_mut().zip(BACKGROUND.0) {
                let sum = u16::from(*channel) * over + u16::from(background) * (255 - over);
                *channel = (sum / 255) as u8;
            }
        }
        self.cells.push(thumbnail);
    }

    /// The box is framed: centre x, centre y, width and height as fractions.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Clamped to the cell.
    pub(crate) fn add_box(&mut self, mut thumbnail: RgbImage, [x, y, width, height]: [f64; 4]) {
        let (across, down) = thumbnail.dimensions();
        let pixel =
            |part: f64, side: u32| (part * f64::from(side)).clamp(0.0, f64::from(side - 1)) as u32;
        let (left, right) = (
            pixel(x - width / 2.0, across),
            pixel(x + width / 2.0, across),
        );
        let (top, bottom) = (pixel(y - height / 2.0, down), pixel(y + height / 2.0, down));
        for column in left..=right {
            thumbnail.put_pixel(column, top, FRAME);
            thumbnail.put_pixel(column, bottom, FRAME);
        }
        for row in top..=bottom {
            thumbnail.put_pixel(left, row, FRAME);
            thumbnail.put_pixel(right, row, FRAME);
        }
        self.cells.push(thumbnail);
    }

    /// Writes it into the stage's folder as that of a unit, and says so in its report. None:
    /// nothing was added.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) async fn put(
        self,
        folder: &StageFolder,
        unit: usize,
        report: &mut Report,
    ) -> Result<Option<Part>> {
        let Some(bytes) = self.finish() else {
            return Ok(None);
        };
        let name = format!("sheet-{unit:06}.png");
        let shows = format!("{name} in the stage's folder shows its first figures");
        report.found.push(shows);
        folder.put_file(name, 0, bytes).await.map(Some)
    }

    /// The bytes of a PNG. None: nothing was added.
    pub(crate) fn finish(self) -> Option<Vec<u8>> {
        let count = u32::try_from(self.cells.len()).ok().filter(|it| 0 < *it)?;
        let size = (COLUMNS.min(count) * CELL, count.div_ceil(COLUMNS) * CELL);
        let mut sheet = RgbImage::from_pixel(size.0, size.1, Rgb([255; 3]));
        for (number, cell) in (0_u32..).zip(&self.cells) {
            let (left, top) = (number % COLUMNS * CELL, number / COLUMNS * CELL);
            for (x, y, pixel) in cell.enumerate_pixels() {
                sheet.put_pixel(left + x, top + y, *pixel);
            }
        }
        let bytes = encode_rgb(sheet).expect("an image is written to memory");
        Some(bytes.to_vec())
    }
}
