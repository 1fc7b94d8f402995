//! Accuracy of `model_data::identity` on synthetic figures.

use figures::synthetic::{Backgrounds, Similar, SynthesizeOptions, identities};
use model_data::decoded::decode;
use model_data::identity::{Histogram, figure_mask, histogram, mean, nearest};

/// (histogram by true mask, histogram by computed mask if the background is plain) of each image of
/// each identity.
fn figures(count: u32) -> Vec<Vec<(Histogram, Option<Histogram>)>> {
    let options = SynthesizeOptions {
        characters: count,
        outfits: 1,
        images: 6,
        size: 64,
        seed: 5,
        similar: Similar::All,
        backgrounds: Backgrounds::All,
    };
    identities(&options)
        .map(|identity| {
            identity
                .iter()
                .map(|sample| {
                    let decoded = decode(sample, 0).expect("synthetic images decode");
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
fn true_images_are_nearly_always_identified_among_eight() {
    let figures = figures(40);
    let (mut total, mut correct, mut plain_total, mut plain_correct, mut single) = (0, 0, 0, 0, 0);
    for own in 0..figures.len() {
        for image in 0..6 {
            // Seven other identities, and the remaining images of its own.
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
            let (by_mask, by_computed_mask) = &figures[own][image];
            total += 1;
            correct += usize::from(nearest(by_mask, &candidates) == Some(0));
            let next = |k: usize| {
                figures[(own + k * 5) % figures.len()][(image + 1) % 6]
                    .0
                    .clone()
            };
            single +=
                usize::from(nearest(by_mask, &(0..8).map(next).collect::<Vec<_>>()) == Some(0));
            if let Some(found) = by_computed_mask {
                plain_total += 1;
                plain_correct += usize::from(nearest(found, &candidates) == Some(0));
            }
        }
    }
    println!(
        "nearest of 8: {correct}/{total} by true mask, {plain_correct}/{plain_total} by computed \
         mask"
    );
    println!("nearest of 8 with a single image of each: {single}/{total}");
    assert!(single * 100 >= total * 85, "{single} of {total}");
    assert!(correct * 100 >= total * 93, "{correct} of {total}");
    assert!(
        plain_correct * 100 >= plain_total * 85,
        "{plain_correct} of {plain_total}"
    );
}
