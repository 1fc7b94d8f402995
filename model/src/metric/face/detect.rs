//! Faces in an image by MTCNN, with the numbers of `facenet-pytorch`: windows on a pyramid of
//! scales, twice refined. Windows are few, so they are plain numbers; only the networks are
//! tensors.

use super::nets::{Proposal, Refinement};
use tch::{Device, Kind, Tensor};

/// Side of the smallest face in pixels.
const FACE_MIN: f64 = 20.0;
/// From one scale to the next.
const FACTOR: f64 = 0.709;
/// Side of the first network's window.
const CELL: f64 = 12.0;
/// Least probability of a face, for each network.
const LEAST: [f32; 3] = [0.6, 0.7, 0.7];

/// A face in pixels: left, top, right, bottom. It may reach beyond the image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FaceBox {
    pub sides: [f32; 4],
    pub probability: f32,
}

#[derive(Debug)]
pub(super) struct Detector {
    pub(super) proposal: Proposal,
    pub(super) small: Refinement,
    pub(super) large: Refinement,
}

/// A window, and how far the sides of the face are from its own, in parts of its side.
type Candidate = (FaceBox, [f32; 4]);

impl Detector {
    /// `pixels`: [1, 3, height, width], 0 to 255. The largest face comes first.
    pub(super) fn detect(&self, pixels: &Tensor) -> Vec<FaceBox> {
        let found = suppress(self.propose(pixels), 0.7, over_union);
        let windows = found.into_iter().map(|it| squared(moved(it, 0.0)));
        let found = refine(&self.small, pixels, (24, LEAST[1]), windows);
        let found = suppress(found, 0.7, over_union).into_iter();
        let windows = found.map(|it| squared(moved(it, 1.0)));
        let found = refine(&self.large, pixels, (48, LEAST[2]), windows);
        let found = found.into_iter().map(|it| (moved(it, 1.0), [0.0; 4]));
        let found = suppress(found.collect(), 0.7, over_smaller).into_iter();
        let mut faces: Vec<FaceBox> = found.map(|(face, _)| face).collect();
        faces.sort_by(|a, b| area(b, 0.0).total_cmp(&area(a, 0.0)));
        faces
    }

    fn propose(&self, pixels: &Tensor) -> Vec<Candidate> {
        let (height, width) = (pixels.size()[2], pixels.size()[3]);
        let mut found = Vec::new();
        let mut scale = CELL / FACE_MIN;
        while CELL <= height.min(width) as f64 * scale {
            let size = |length: i64| (length as f64 * scale + 1.0) as i64;
            let small = pixels.adaptive_avg_pool2d([size(height), size(width)]);
            let (face, offsets) = self.proposal.forward(&centred(&small));
            let here = proposals(&face, &offsets, scale as f32);
            found.extend(suppress(here, 0.5, over_union));
            scale *= FACTOR;
        }
        found
    }
}

fn proposals(face: &Tensor, offsets: &Tensor, scale: f32) -> Vec<Candidate> {
    let columns = face.size()[1] as usize;
    let (face, offsets) = (numbers(face), numbers(offsets));
    let cells = face.len();
    let likely = face.iter().enumerate().filter(|(_, it)| LEAST[0] <= **it);
    likely
        .map(|(cell, probability)| {
            let corner = [cell % columns, cell / columns].map(|it| 2.0 * it as f32);
            let near = corner.map(|it| ((it + 1.0) / scale).floor());
            let far = corner.map(|it| ((it + CELL as f32) / scale).floor());
            let window = FaceBox {
                sides: [near[0], near[1], far[0], far[1]],
                probability: *probability,
            };
            (
                window,
                std::array::from_fn(|side| offsets[side * cells + cell]),
            )
        })
        .collect()
}

/// What a network says of windows, without those that show no face or lie outside of the image.
fn refine(
    network: &Refinement,
    pixels: &Tensor,
    (side, least): (i64, f32),
    windows: impl Iterator<Item = FaceBox>,
) -> Vec<Candidate> {
    let (height, width) = (pixels.size()[2], pixels.size()[3]);
    let cut = |window: FaceBox| {
        let [left, top, right, bottom] = window.sides.map(|it| it as i64);
        let (x, y) = (left.max(1) - 1, top.max(1) - 1);
        let (columns, rows) = (right.min(width) - x, bottom.min(height) - y);
        let part = || pixels.narrow(2, y, rows).narrow(3, x, columns);
        (0 < columns && 0 < rows).then(|| (window, part().adaptive_avg_pool2d([side, side])))
    };
    let (windows, parts): (Vec<FaceBox>, Vec<Tensor>) = windows.filter_map(cut).unzip();
    if windows.is_empty() {
        return Vec::new();
    }
    let seen = network.forward(&centred(&Tensor::cat(&parts, 0)));
    let (face, offsets) = (numbers(&seen.face), numbers(&seen.offsets));
    let all = windows.into_iter().zip(face).zip(offsets.chunks_exact(4));
    let likely = all.filter(|((_, probability), _)| least < *probability);
    likely
        .map(|((window, probability), offsets)| {
            let window = FaceBox {
                probability,
                ..window
            };
            (window, std::array::from_fn(|side| offsets[side]))
        })
        .collect()
}

/// The face of a window. `extra`: what a window is wider than its sides differ, in pixels.
fn moved((window, offsets): Candidate, extra: f32) -> FaceBox {
    let [left, top, right, bottom] = window.sides;
    let lengths = [right - left + extra, bottom - top + extra];
    FaceBox {
        sides: std::array::from_fn(|side| window.sides[side] + offsets[side] * lengths[side % 2]),
        ..window
    }
}

/// The square around the middle with the longer side.
fn squared(window: FaceBox) -> FaceBox {
    let [left, top, right, bottom] = window.sides;
    let (width, height) = (right - left, bottom - top);
    let length = width.max(height);
    let left = left + width * 0.5 - length * 0.5;
    let top = top + height * 0.5 - length * 0.5;
    FaceBox {
        sides: [left, top, left + length, top + length],
        ..window
    }
}

/// Non-maximum suppression: without windows that overlap a likelier one too much.
fn suppress(
    mut found: Vec<Candidate>,
    most: f32,
    overlap: fn(&FaceBox, &FaceBox) -> f32,
) -> Vec<Candidate> {
    found.sort_by(|(a, _), (b, _)| b.probability.total_cmp(&a.probability));
    let mut kept: Vec<Candidate> = Vec::new();
    for (window, offsets) in found {
        if kept.iter().all(|(it, _)| overlap(it, &window) <= most) {
            kept.push((window, offsets));
        }
    }
    kept
}

/// Intersection over union.
fn over_union(a: &FaceBox, b: &FaceBox) -> f32 {
    let common = area(&intersection(a, b), 0.0);
    common / (area(a, 0.0) + area(b, 0.0) - common)
}

/// Intersection over the smaller one, with sides of whole pixels.
fn over_smaller(a: &FaceBox, b: &FaceBox) -> f32 {
    area(&intersection(a, b), 1.0) / area(a, 1.0).min(area(b, 1.0))
}

fn intersection(a: &FaceBox, b: &FaceBox) -> FaceBox {
    let sides = std::array::from_fn(|side| {
        let (a, b) = (a.sides[side], b.sides[side]);
        if side < 2 { a.max(b) } else { a.min(b) }
    });
    FaceBox { sides, ..*a }
}

fn area(window: &FaceBox, extra: f32) -> f32 {
    let [left, top, right, bottom] = window.sides;
    (right - left + extra).max(0.0) * (bottom - top + extra).max(0.0)
}

/// Bytes -> about -1 to 1.
fn centred(pixels: &Tensor) -> Tensor {
    (pixels - 127.5) * 0.007_812_5
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.to_device(Device::Cpu).to_kind(Kind::Float);
    Vec::try_from(flat.flatten(0, -1)).expect("a vector of fp32")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(sides: [f32; 4], probability: f32) -> FaceBox {
        FaceBox { sides, probability }
    }

    #[test]
    fn a_window_that_overlaps_a_likelier_one_goes() {
        let found = vec![
            (window([0.0, 0.0, 10.0, 10.0], 0.7), [0.0; 4]),
            (window([1.0, 0.0, 11.0, 10.0], 0.9), [0.0; 4]),
            (window([2.0, 2.0, 6.0, 6.0], 0.8), [0.0; 4]),
        ];
        // 90 of 110, and 16 of 100: one in the other.
        let kept = suppress(found.clone(), 0.7, over_union);
        let kept: Vec<f32> = kept.iter().map(|(it, _)| it.probability).collect();
        assert_eq!(kept, [0.9, 0.8]);
        let kept = suppress(found, 0.7, over_smaller);
        assert_eq!(kept.len(), 1);
    }

    #[test]
    fn a_window_follows_its_offsets_and_becomes_a_square() {
        let found = (window([10.0, 20.0, 30.0, 60.0], 1.0), [0.1, 0.0, -0.1, 0.5]);
        let moved = moved(found, 0.0);
        assert_eq!(moved.sides, [12.0, 20.0, 28.0, 80.0]);
        assert_eq!(squared(moved).sides, [-10.0, 20.0, 50.0, 80.0]);
    }
}
