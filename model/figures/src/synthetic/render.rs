//! Renders SVG to an encoded image and mask. The figure is rendered on a transparent background;
//! its alpha, slightly blurred, is the mask.

use bytes::Bytes;
use image::{GrayImage, RgbImage};
use resvg::tiny_skia::{Pixmap, PixmapPaint, Transform};
use resvg::usvg::{Options, Tree};

use model_data::image_file::{encode_gray, encode_rgb};

/// PNG bytes of the figure over the background, and of its mask; both `size` pixels wide and high.
pub(super) fn render(background: &str, figure: &str, size: u32) -> (Bytes, Bytes) {
    let figure = rasterize(figure, size);
    let mut image = rasterize(background, size);
    image.draw_pixmap(
        0,
        0,
        figure.as_ref(),
        &PixmapPaint::default(),
        Transform::identity(),
        None,
    );
    // The background is opaque, so premultiplied values equal plain ones.
    let rgb: Vec<u8> = image
        .data()
        .chunks_exact(4)
        .flat_map(|p| [p[0], p[1], p[2]])
        .collect();
    let alpha: Vec<u8> = figure.data().chunks_exact(4).map(|p| p[3]).collect();
    let image = RgbImage::from_vec(size, size, rgb).expect("one pixel each");
    let mask =
        GrayImage::from_vec(size, size, soften(&alpha, size as usize)).expect("one pixel each");
    (
        encode_rgb(image).expect("an image in memory can be encoded"),
        encode_gray(mask).expect("an image in memory can be encoded"),
    )
}

fn rasterize(svg: &str, size: u32) -> Pixmap {
    let tree = Tree::from_str(svg, &Options::default()).expect("this module writes valid SVG");
    let mut pixmap =
        Pixmap::new(size, size).expect("sizes are checked before anything is rendered");
    resvg::render(&tree, Transform::identity(), &mut pixmap.as_mut());
    pixmap
}

/// A three-by-three blur, because IS-Net's masks have soft edges too (notes 2.4).
fn soften(alpha: &[u8], size: usize) -> Vec<u8> {
    let across = |y: usize, x: usize| {
        let row = &alpha[y * size..(y + 1) * size];
        u32::from(row[x.saturating_sub(1)])
            + 2 * u32::from(row[x])
            + u32::from(row[(x + 1).min(size - 1)])
    };
    let mut out = Vec::with_capacity(alpha.len());
    for y in 0..size {
        let (above, below) = (y.saturating_sub(1), (y + 1).min(size - 1));
        for x in 0..size {
            out.push(((across(above, x) + 2 * across(y, x) + across(below, x) + 8) / 16) as u8);
        }
    }
    out
}
