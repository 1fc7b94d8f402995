//! How well `model_data::identity` tells synthetic figures apart.

use figures::synthetic::{Similar, SynthesizeOptions, identities};
use model_data::identity::{Histogram, figure_mask, histogram, mean, nearest};
use model_data::image_file::decode;

/// (histogram by true mask, histogram by found mask where the ground is plain) of each picture of
/// each identity.
fn figures(count: u32) -> Vec<Vec<(Histogram, Option<Histogram>)>> {
    let options = SynthesizeOptions {
        characters: count,
        outfits: 1,
        images: 6,
        size: 64,
        seed: 5,
        similar: Similar::All,
    };
    identities(&options)
        .map(|identity| {
            identity
                .iter()
                .map(|sample| {
                    let decoded = decode(sample, 0).expect("synthetic pictures decode");
                    let plain = sample.metadata.prompts.contains("simple_background");
                    let found =
                        plain.then(|| histogram(&decoded.image, &figure_mask(&decoded.image)));
                    (histogram(&decoded.image, &decoded.mask), found)
                })
                .collect()
        })
        .collect()
}

#[test]
fn true_pictures_are_found_among_eight_nearly_always() {
    let figures = figures(40);
    let (mut asked, mut right, mut plain_asked, mut plain_right, mut single) = (0, 0, 0, 0, 0);
    for own in 0..figures.len() {
        for image in 0..6 {
            // Seven others, and the rest of its own pictures.
            let candidates: Vec<Histogram> = (0..8)
                .map(|k| {
                    let other = &figures[(own + k * 5) % figures.len()];
                    let rest: Vec<Histogram> = (0..6)
                        .filter(|i| *i != image)
                        .map(|i| other[i].0.clone())
                        .collect();
                    mean(&rest)
                })
                .collect();
            let (by_mask, by_ground) = &figures[own][image];
            asked += 1;
            right += usize::from(nearest(by_mask, &candidates) == Some(0));
            let next = |k: usize| {
                figures[(own + k * 5) % figures.len()][(image + 1) % 6]
                    .0
                    .clone()
            };
            single +=
                usize::from(nearest(by_mask, &(0..8).map(next).collect::<Vec<_>>()) == Some(0));
            if let Some(found) = by_ground {
                plain_asked += 1;
                plain_right += usize::from(nearest(found, &candidates) == Some(0));
            }
        }
    }
    println!(
        "nearest of 8: {right}/{asked} by true mask, {plain_right}/{plain_asked} by found mask"
    );
    println!("nearest of 8 when each is known by one picture only: {single}/{asked}");
    assert!(single * 100 >= asked * 85, "{single} of {asked}");
    assert!(right * 100 >= asked * 93, "{right} of {asked}");
    assert!(
        plain_right * 100 >= plain_asked * 85,
        "{plain_right} of {plain_asked}"
    );
}
