//! Image grids for humans: rows of target, references with their concepts, and generated images.
//! The rank and the command line save them as PNG.

use image::imageops::FilterType;
use image::{DynamicImage, Rgb, RgbImage};

use crate::text::{self, Pixel};

const BACKGROUND: Rgb<u8> = Rgb([250, 250, 248]);
const LABEL_TEXT: Rgb<u8> = Rgb([255, 255, 255]);
const CAPTION_TEXT: Rgb<u8> = Rgb([60, 62, 70]);
const GAP: u32 = 4;
const LABEL_HEIGHT: u32 = 13;
/// Height of a line of a caption.
const LINE_HEIGHT: u32 = text::HEIGHT + 3;

/// One image with a label above it: "target", "drawn", or the word of a concept.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    pub label: String,
    pub image: RgbImage,
}

impl Cell {
    #[must_use]
    pub fn new(label: impl Into<String>, image: RgbImage) -> Self {
        Self {
            label: label.into(),
            image,
        }
    }
}

/// Rows of cells, `across` rows next to each other, each image scaled to `side` pixels. An empty
/// list gives a blank grid.
#[must_use]
pub fn image_grid(rows: &[Vec<Cell>], side: u32, across: u32) -> RgbImage {
    let across = across.clamp(1, rows.len().max(1) as u32);
    let cells = rows.iter().map(Vec::len).max().unwrap_or(0).max(1) as u32;
    let lines = (rows.len() as u32).div_ceil(across).max(1);
    let block = (cells * (side + GAP) + GAP * 2, side + LABEL_HEIGHT + GAP);
    let mut sheet = RgbImage::from_pixel(across * block.0 + GAP, lines * block.1 + GAP, BACKGROUND);
    for (index, row) in rows.iter().enumerate() {
        let (column, line) = (index as u32 % across, index as u32 / across);
        for (n, cell) in row.iter().enumerate() {
            let x = GAP + column * block.0 + n as u32 * (side + GAP);
            let y = GAP + line * block.1;
            put_cell(&mut sheet, cell, pixel(x, y), side);
        }
    }
    sheet
}

/// A grid with one row in a line, and further cells to the right of its rows. None if the grid has
/// another number of lines, or its images another side.
#[must_use]
pub fn beside(grid: &RgbImage, rows: &[Vec<Cell>], side: u32) -> Option<RgbImage> {
    let right = image_grid(rows, side, 1);
    if grid.height() != right.height() {
        return None;
    }
    let mut sheet = RgbImage::new(grid.width() + right.width(), grid.height());
    image::imageops::replace(&mut sheet, grid, 0, 0);
    image::imageops::replace(&mut sheet, &right, i64::from(grid.width()), 0);
    Some(sheet)
}

/// Rows of cells below each other, each with a caption that wraps at the width of the grid.
#[must_use]
pub fn captioned_grid(rows: &[(Vec<Cell>, String)], side: u32) -> RgbImage {
    let cells = rows
        .iter()
        .map(|(cells, _)| cells.len())
        .max()
        .unwrap_or(0)
        .max(1) as u32;
    let width = cells * (side + GAP) + GAP;
    let characters = ((width - 2 * GAP) / text::ADVANCE).max(1) as usize;
    let lines: Vec<Vec<String>> = rows
        .iter()
        .map(|(_, caption)| wrap(caption, characters))
        .collect();
    let height_of =
        |lines: &[String]| LABEL_HEIGHT + side + GAP + lines.len() as u32 * LINE_HEIGHT + GAP;
    let height = lines.iter().map(|it| height_of(it)).sum::<u32>() + GAP;
    let mut sheet = RgbImage::from_pixel(width, height, BACKGROUND);
    let mut y = GAP;
    for ((cells, _), lines) in rows.iter().zip(&lines) {
        for (n, cell) in cells.iter().enumerate() {
            put_cell(
                &mut sheet,
                cell,
                pixel(GAP + n as u32 * (side + GAP), y),
                side,
            );
        }
        for (n, line) in lines.iter().enumerate() {
            let top = y + LABEL_HEIGHT + side + GAP + n as u32 * LINE_HEIGHT;
            text::render(&mut sheet, line, pixel(GAP, top), 1, CAPTION_TEXT);
        }
        y += height_of(lines);
    }
    sheet
}

/// Wraps text to lines of at most `characters` characters, between words if possible.
fn wrap(text: &str, characters: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let letters: Vec<char> = word.chars().collect();
        for piece in letters.chunks(characters) {
            let line = lines.last_mut().expect("there is one at least");
            let space = usize::from(!line.is_empty());
            if line.chars().count() + space + piece.len() > characters {
                lines.push(piece.iter().collect());
            } else {
                line.extend(std::iter::repeat_n(' ', space).chain(piece.iter().copied()));
            }
        }
    }
    lines
}

fn pixel(x: u32, y: u32) -> Pixel {
    Pixel {
        x: i64::from(x),
        y: i64::from(y),
    }
}

/// `corner` is the top left corner of the cell.
fn put_cell(sheet: &mut RgbImage, cell: &Cell, corner: Pixel, side: u32) {
    let strip = RgbImage::from_pixel(side, LABEL_HEIGHT, strip_colour(&cell.label));
    image::imageops::replace(sheet, &strip, corner.x, corner.y);
    let characters = (side / text::ADVANCE) as usize;
    let label: String = cell.label.chars().take(characters).collect();
    let inside = Pixel {
        x: corner.x + 3,
        y: corner.y + 3,
    };
    text::render(sheet, &label, inside, 1, LABEL_TEXT);
    let scaled = DynamicImage::ImageRgb8(cell.image.clone()).resize_exact(
        side,
        side,
        FilterType::CatmullRom,
    );
    image::imageops::replace(
        sheet,
        &scaled.into_rgb8(),
        corner.x,
        corner.y + i64::from(LABEL_HEIGHT),
    );
}

/// Each concept has its own colour, so that a grid can be read at a glance.
fn strip_colour(label: &str) -> Rgb<u8> {
    match label.split(' ').next().unwrap_or("") {
        "target" => Rgb([70, 74, 92]),
        "face" => Rgb([206, 104, 40]),
        "clothes" => Rgb([44, 130, 84]),
        "figure" => Rgb([52, 98, 188]),
        "drawn" => Rgb([150, 50, 140]),
        _ => Rgb([110, 112, 120]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_break_between_words_or_inside_long_ones() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij k", 4), ["abcd", "efgh", "ij k"]);
        assert_eq!(wrap("", 4), [""]);
    }

    #[test]
    fn every_cell_is_in_its_position() {
        let solid = |v: u8| RgbImage::from_pixel(10, 10, Rgb([v, v, v]));
        let rows: Vec<Vec<Cell>> = (0..3)
            .map(|r| {
                (0..2)
                    .map(|c| Cell::new("target", solid(10 + r * 40 + c * 20)))
                    .collect()
            })
            .collect();
        let sheet = image_grid(&rows, 32, 2);
        assert_eq!(
            sheet.dimensions(),
            (2 * (2 * 36 + 8) + 4, 2 * (32 + 17) + 4)
        );
        for value in [10u8, 30, 50, 70, 90, 110] {
            let count = sheet
                .pixels()
                .filter(|p| **p == Rgb([value, value, value]))
                .count();
            assert_eq!(count, 32 * 32, "cell of grey {value}");
        }
        assert!(
            sheet.pixels().any(|p| *p == LABEL_TEXT),
            "labels are written"
        );
        let one_in_a_line = image_grid(&rows, 32, 1);
        let wider = beside(&one_in_a_line, &rows[..3], 32).map(|it| it.dimensions());
        assert_eq!(wider, Some((2 * 84, 3 * (32 + 17) + 4)));
        assert_eq!(beside(&one_in_a_line, &rows[..2], 32), None);
        let captioned = captioned_grid(&[(rows[0].clone(), "a word and more words".into())], 32);
        // Two cells, and a text of two lines of twelve characters.
        assert_eq!(
            captioned.dimensions(),
            (2 * 36 + 4, 4 + 13 + 32 + 4 + 2 * 10 + 4)
        );
        assert!(
            captioned.pixels().any(|p| *p == CAPTION_TEXT),
            "captions are written"
        );
        assert_eq!(image_grid(&[], 32, 4).dimensions().0, 32 + 3 * GAP + GAP);
    }
}
