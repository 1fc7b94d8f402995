//! Near-duplicates in a cluster: variants of one picture with small edits are common on Danbooru.
//! A pair of them has the same pose and framing, so a model that is to learn from different images
//! (the paper's pairing -b) would see its target in the reference (pairing -a).

use image::RgbImage;

/// Rows and columns of brightness that neighbours are compared on.
const SIDE: u32 = 9;

/// A hash of how brightness changes over an image: which of two neighbouring cells is brighter, in
/// rows and in columns (the difference hash, in both directions). Small edits, other sizes and
/// other encodings change few of its 128 bits.
#[must_use]
pub fn hash(image: &RgbImage) -> u128 {
    let cells = cells(image);
    let at = |row: u32, column: u32| cells[(row * SIDE + column) as usize];
    let mut bits = 0_u128;
    for row in 0..SIDE - 1 {
        for column in 0..SIDE - 1 {
            bits = bits << 1 | u128::from(at(row, column) < at(row, column + 1));
            bits = bits << 1 | u128::from(at(row, column) < at(row + 1, column));
        }
    }
    bits
}

/// Bits in which two hashes differ.
#[must_use]
pub fn distance(a: u128, b: u128) -> u32 {
    (a ^ b).count_ones()
}

/// The mean brightness of each cell, in whole numbers, so that it is the same on every machine.
fn cells(image: &RgbImage) -> Vec<u64> {
    let (width, height) = image.dimensions();
    let edges = |length: u32| -> Vec<u32> {
        (0..=SIDE)
            .map(|cell| (u64::from(length) * u64::from(cell) / u64::from(SIDE)) as u32)
            .collect()
    };
    let (columns, rows) = (edges(width), edges(height));
    let mut cells = Vec::with_capacity((SIDE * SIDE) as usize);
    for row in rows.windows(2) {
        for column in columns.windows(2) {
            let (mut sum, mut count) = (0_u64, 0_u64);
            // A cell of an image that is smaller than the grid is its first pixel.
            for y in row[0]..row[1].max(row[0] + 1).min(height) {
                for x in column[0]..column[1].max(column[0] + 1).min(width) {
                    let [red, green, blue] = image.get_pixel(x, y).0.map(u64::from);
                    sum += 299 * red + 587 * green + 114 * blue;
                    count += 1;
                }
            }
            cells.push(sum / count.max(1));
        }
    }
    cells
}

/// Of images in the order of their numbers, the first that each is a near-duplicate of: at most
/// `bits` differ. None: it is like no earlier one that is kept.
#[must_use]
pub fn originals(hashes: &[u128], bits: u32) -> Vec<Option<usize>> {
    let mut found: Vec<Option<usize>> = Vec::with_capacity(hashes.len());
    for (index, hash) in hashes.iter().enumerate() {
        let earlier = (0..index).filter(|it| found[*it].is_none());
        let original = earlier
            .into_iter()
            .find(|it| distance(hashes[*it], *hash) <= bits);
        found.push(original);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    fn picture(seed: u32) -> RgbImage {
        RgbImage::from_fn(90, 120, |x, y| {
            let value =
                (x / 10 * 37 + y / 13 * 91 + seed * 57 + x / 10 * (y / 13) * seed * 13) % 251;
            Rgb([value as u8, (value / 2) as u8, 255 - value as u8])
        })
    }

    #[test]
    fn a_small_edit_or_another_size_is_near_and_another_picture_is_not() {
        let original = picture(3);
        let mut edited = original.clone();
        for x in 20..30 {
            for y in 40..50 {
                edited.put_pixel(x, y, Rgb([250, 0, 0]));
            }
        }
        let smaller = image::imageops::thumbnail(&original, 45, 60);
        let [a, b, c, d] = [&original, &edited, &smaller, &picture(8)].map(hash);
        assert!(distance(a, b) <= 8, "{}", distance(a, b));
        assert!(distance(a, c) <= 8, "{}", distance(a, c));
        assert!(20 < distance(a, d), "{}", distance(a, d));
        assert_eq!(
            originals(&[a, d, b, c, d], 8),
            [None, None, Some(0), Some(0), Some(1)]
        );
        assert_eq!(originals(&[a, b], 0), [None, None]);
    }

    #[test]
    fn an_image_smaller_than_the_grid_has_a_hash() {
        let tiny = RgbImage::from_pixel(1, 1, Rgb([7, 7, 7]));
        assert_eq!(hash(&tiny), 0);
    }
}
