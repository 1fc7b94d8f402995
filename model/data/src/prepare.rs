//! Prepares one training example from decoded samples (paper, section 5.1 and A.4; notes 3.8).
//! Pure: no I/O, and all random numbers come from [`crate::random`], so the same arguments give the
//! same example on any rank (law 2).

use image::{GrayImage, Rgb, RgbImage};
use proto::architecture::{ViewConfig, ViewKind};
use proto::spec::{ArchitectureSpec, Clothes, Data, References, Task, Transform};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::decoded::Decoded;
use crate::example::{Concept, Example, Reference};
use crate::image_file::{
    Along, Region, crop, face_region, fill, mask_region, on_pad, place, region_mask,
    replace_background,
};
use crate::random::{Purpose, random};
use crate::reference::{Slot, Source, are_dropped};
use crate::tags::without_appearance;
use crate::transform::View;
use crate::view::{as_gray, as_rgb, view_of};

/// How examples of an architecture are prepared.
#[derive(Debug, Clone, PartialEq)]
pub struct ExampleConfig {
    /// How references are chosen and cropped. None: no references.
    pub references: Option<References>,
    /// Number of noise levels of training (notes 5.3).
    pub timesteps: u32,
    /// What an image encoder reads of a reference; None without one.
    pub view: Option<ViewConfig>,
}

impl From<&ArchitectureSpec> for ExampleConfig {
    fn from(architecture: &ArchitectureSpec) -> Self {
        Self {
            references: architecture.references().copied(),
            timesteps: architecture.timesteps(),
            view: architecture.view(),
        }
    }
}

/// Prepares the example of `target` in `epoch`. `slots` are the result of
/// [`crate::reference::choose`] with the image of each slot; empty for architectures without
/// references.
#[must_use]
pub fn prepare(
    data: &Data,
    config: &ExampleConfig,
    epoch: u64,
    target: &Decoded,
    slots: &[(Slot, &Decoded)],
) -> Example {
    let stream = |purpose| random(data.seed, epoch, target.position, purpose);
    let (mut crops, mut pads) = (stream(Purpose::Crop), stream(Purpose::Pad));
    let side = data.resolution;
    let transform = config.references.and_then(|it| it.transform());
    let is_target = |view: &ViewConfig| matches!(view.kind, ViewKind::Target(_));
    let target_view = config
        .view
        .filter(is_target)
        .map(|view| view_of(view, &target.image, None, &mut stream(Purpose::ObjectView)));
    let is_object = config
        .view
        .is_some_and(|it| matches!(it.kind, ViewKind::Object { .. }));
    let shown = match transform {
        None => Shown {
            image: target.image.clone(),
            face: Some(target.metadata.bbox),
            figure: is_object.then(|| as_rgb(&target.mask)),
            scale: 1.0,
        },
        Some(transform) => transformed(
            &transform,
            (target, is_object),
            &mut stream(Purpose::TargetTransform),
        ),
    };
    let (width, height) = shown.image.dimensions();
    let region = place(
        width,
        height,
        side,
        shown.scale,
        random_alignment(&mut crops),
    );
    let image = on_pad(shown.image, region, side, random_colour(&mut pads));
    let figure_mask = shown
        .figure
        .map(|mask| as_gray(&on_pad(mask, region, side, Rgb([0; 3]))));
    let face_mask = match shown.face {
        None => GrayImage::new(side, side),
        Some(bbox) => {
            let face = face_region(bbox, 1.0, region.width, region.height);
            let face = Region {
                x: face.x + region.x,
                y: face.y + region.y,
                ..face
            };
            region_mask(side, face)
        }
    };
    let mut views = stream(Purpose::ReferenceTransform);
    let mut objects = stream(Purpose::ObjectView);
    let drops = Drops::random(data, config, epoch, target.position);
    let without_looks = stream(Purpose::LooksDrop).random_bool(data.looks_drop.clamp(0.0, 1.0));
    Example {
        position: target.position,
        target: image,
        target_mask: region_mask(side, region),
        face_mask,
        figure_mask,
        target_view,
        references: config
            .references
            .iter()
            .flat_map(|settings| slots.iter().map(move |slot| (settings, slot)))
            .map(|(settings, (slot, source))| {
                reference(
                    Cut {
                        settings,
                        side,
                        view: config.view.map(|view| (view, &mut objects)),
                    },
                    *slot,
                    source,
                    transform.map(|transform| (transform, &mut views)),
                    &mut crops,
                    random_colour(&mut pads),
                )
            })
            .collect(),
        references_dropped: drops.references,
        prompt: if drops.prompt {
            String::new()
        } else if without_looks {
            without_appearance(&target.metadata.prompts)
        } else {
            target.metadata.prompts.clone()
        },
        timestep: stream(Purpose::Timestep).random_range(0..config.timesteps),
        noise_seed: stream(Purpose::Noise).random(),
    }
}

/// What training drops of a sample.
struct Drops {
    prompt: bool,
    references: bool,
}

impl Drops {
    /// Independently of each other, or at most one of: the prompt, the references, both.
    fn random(data: &Data, config: &ExampleConfig, epoch: u64, position: u64) -> Self {
        let stream = |purpose| random(data.seed, epoch, position, purpose);
        let joint = config
            .references
            .and_then(|it| Some((it.drop, it.joint_drop?)));
        let mut drops = match joint {
            None => Self {
                prompt: stream(Purpose::PromptDrop).random_bool(data.prompt_drop.clamp(0.0, 1.0)),
                references: config
                    .references
                    .is_some_and(|it| are_dropped(&it, data.seed, epoch, position)),
            },
            Some((alone, both)) => {
                let value: f64 = stream(Purpose::PromptDrop).random();
                let (first, second) = (data.prompt_drop, data.prompt_drop + alone);
                let is_both = (second..second + both).contains(&value);
                Self {
                    prompt: value < first || is_both,
                    references: (first..second).contains(&value) || is_both,
                }
            }
        };
        if let Some(ViewKind::Object { keep, .. }) = config.view.map(|it| it.kind) {
            let kept = stream(Purpose::ObjectKeep).random_bool(keep.clamp(0.0, 1.0));
            drops.references |= !kept;
        }
        drops
    }
}

/// How a reference is cut and shown.
struct Cut<'a> {
    settings: &'a References,
    side: u32,
    /// What an image encoder reads, and its random numbers.
    view: Option<(ViewConfig, &'a mut ChaCha8Rng)>,
}

/// A target under its random transform.
struct Shown {
    image: RgbImage,
    /// The mask of the figure, if the model needs it.
    figure: Option<RgbImage>,
    /// The face in it, as fractions; None if it is cropped away.
    face: Option<[f64; 4]>,
    /// The fraction of its square that its longer side fills.
    scale: f64,
}

fn transformed(
    transform: &Transform,
    (target, with_figure): (&Decoded, bool),
    rng: &mut ChaCha8Rng,
) -> Shown {
    let size = target.image.dimensions();
    let view = View::random(transform, size, rng);
    Shown {
        image: view.apply(&target.image),
        figure: with_figure.then(|| view.apply(&as_rgb(&target.mask))),
        face: view.bbox(target.metadata.bbox, size),
        scale: rng.random_range(transform.target_scale..=1.0),
    }
}

/// One requested reference on a square of `side` pixels, cropped from a sample under a concept.
/// Without a concept, the task determines it. `seed` and `slot` seed the random choices. It is
/// another image than the target, so the random transforms of pairing a do not apply. An image
/// without a face has an empty face box.
#[must_use]
pub fn named_reference(
    settings: &References,
    view: Option<ViewConfig>,
    side: u32,
    concept: Option<Concept>,
    source: &Decoded,
    seed: u64,
    slot: u64,
) -> Reference {
    let stream = |purpose| random(seed, slot, source.position, purpose);
    let face = stream(Purpose::Concept).random_bool(settings.face_probability.clamp(0.0, 1.0));
    let requested = concept.unwrap_or(match settings.task {
        Task::Reconstruction => Concept::Figure,
        Task::Composition | Task::Multitask if face => Concept::Face,
        Task::Composition | Task::Multitask => Concept::Clothes,
    });
    let mut objects = stream(Purpose::ObjectView);
    let slot = Slot {
        source: Source::Similar(0),
        requested,
    };
    reference(
        Cut {
            settings,
            side,
            view: view.map(|view| (view, &mut objects)),
        },
        slot,
        source,
        None,
        &mut stream(Purpose::Crop),
        random_colour(&mut stream(Purpose::Pad)),
    )
}

/// Crops one reference from a sample. A reference of clothes shows the whole figure instead if the
/// face is larger than the threshold, or if the sample has no mask. A random transform acts on what
/// the concept shows, so that it neither brings a face back nor cuts a concept away.
fn reference(
    cut: Cut<'_>,
    slot: Slot,
    source: &Decoded,
    transform: Option<(Transform, &mut ChaCha8Rng)>,
    rng: &mut ChaCha8Rng,
    pad: Rgb<u8>,
) -> Reference {
    let Cut {
        settings,
        side,
        view,
    } = cut;
    let [_, _, face_width, face_height] = source.metadata.bbox;
    let mostly_face = face_width * face_height > settings.figure_threshold;
    let no_clothes = mostly_face || source.metadata.is_whole();
    let concept = if slot.requested == Concept::Clothes && no_clothes {
        Concept::Figure
    } else {
        slot.requested
    };
    let cropped = match concept {
        Concept::Face => crop(&source.image, source.face(settings.face_enlargement)),
        Concept::Clothes => crop_clothes(settings.clothes, source, rng, pad),
        Concept::Figure if transform.is_some() => source.image.clone(),
        Concept::Figure => crop_figure(settings, source, slot.source, rng),
    };
    // A part of an image counts as figure everywhere.
    let whole = concept == Concept::Figure && cropped.dimensions() == source.mask.dimensions();
    let mask = whole.then(|| as_rgb(&source.mask));
    let (cropped, mask) = match transform {
        None => (cropped, mask),
        Some((transform, views)) => {
            let view = View::random(&transform, cropped.dimensions(), views);
            (view.apply(&cropped), mask.map(|mask| view.apply(&mask)))
        }
    };
    let view = view.map(|(view, rng)| view_of(view, &cropped, mask.as_ref(), rng));
    let scale = rng.random_range(settings.scale..=1.0);
    let region = place(
        cropped.width(),
        cropped.height(),
        side,
        scale,
        random_alignment(rng),
    );
    Reference {
        image: on_pad(cropped, region, side, pad),
        view,
        concept,
        position: source.position,
    }
}

/// The image without its face, which is cut off below the chin or painted over. The background is
/// retained or replaced by the pad's colour (both occur in the paper's figures, notes 1.2).
fn crop_clothes(
    settings: Clothes,
    source: &Decoded,
    rng: &mut ChaCha8Rng,
    pad: Rgb<u8>,
) -> RgbImage {
    let cut_off = rng.random_bool(settings.cut_off.clamp(0.0, 1.0));
    let keep_background = rng.random_bool(settings.background.clamp(0.0, 1.0));
    let (width, height) = source.image.dimensions();
    let face = source.has_face().then(|| source.face(1.0));
    let below = face.map_or(0, |face| height - face.bottom());
    let cut_off =
        cut_off && below > 0 && f64::from(below) >= settings.cut_off_minimum * f64::from(height);
    let mut region = if cut_off {
        Region {
            x: 0,
            y: height - below,
            width,
            height: below,
        }
    } else {
        Region::whole(width, height)
    };
    let mut image = source.image.clone();
    if !keep_background {
        replace_background(&mut image, &source.mask, pad);
        let figure = mask_region(&source.mask).and_then(|figure| figure.intersection(&region));
        region = figure.unwrap_or(region);
    }
    if let (Some(face), false) = (face, cut_off) {
        fill(&mut image, face, pad);
    }
    crop(&image, region)
}

/// The whole image. Of the target itself only a random part, because an identical reference would
/// teach the model to copy.
fn crop_figure(
    settings: &References,
    sample: &Decoded,
    source: Source,
    rng: &mut ChaCha8Rng,
) -> RgbImage {
    if source != Source::Target {
        return sample.image.clone();
    }
    let (width, height) = (
        f64::from(sample.image.width()),
        f64::from(sample.image.height()),
    );
    let scale = rng.random_range(settings.scale..=1.0);
    let Along { x, y } = random_alignment(rng);
    let (left, top) = (width * (1.0 - scale) * x, height * (1.0 - scale) * y);
    let (w, h) = sample.image.dimensions();
    crop(
        &sample.image,
        Region::clipped(left, top, left + width * scale, top + height * scale, w, h),
    )
}

fn random_alignment(rng: &mut ChaCha8Rng) -> Along {
    Along {
        x: rng.random_range(0.0..=1.0),
        y: rng.random_range(0.0..=1.0),
    }
}

fn random_colour(rng: &mut ChaCha8Rng) -> Rgb<u8> {
    Rgb([rng.random(), rng.random(), rng.random()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example_data::{data, example_config, references};
    use crate::sample::Metadata;
    use proto::spec::Pairing;

    const SKIN: Rgb<u8> = Rgb([250, 220, 200]);
    const BACK: Rgb<u8> = Rgb([10, 20, 30]);
    const CLOTH: Rgb<u8> = Rgb([0, 180, 0]);

    /// A "figure": face in the upper half, clothes below, background left and right.
    fn figure(position: u64, width: u32, height: u32) -> Decoded {
        let mut image = RgbImage::from_pixel(width, height, BACK);
        let mut mask = GrayImage::new(width, height);
        for y in height / 8..height {
            for x in width / 4..width * 3 / 4 {
                image.put_pixel(x, y, if y < height / 2 { SKIN } else { CLOTH });
                mask.put_pixel(x, y, image::Luma([255]));
            }
        }
        let metadata = Metadata {
            bbox: [0.5, 5.0 / 16.0, 0.5, 3.0 / 8.0],
            prompts: "1girl, solo".to_owned(),
            width,
            height,
            ..Metadata::default()
        };
        Decoded {
            position,
            metadata,
            image,
            mask,
        }
    }

    fn slot(requested: Concept) -> Slot {
        Slot {
            source: Source::Similar(0),
            requested,
        }
    }

    fn close(a: Rgb<u8>, b: Rgb<u8>) -> bool {
        a.0.iter().zip(b.0).all(|(a, b)| a.abs_diff(b) < 40)
    }

    fn count(image: &RgbImage, colour: Rgb<u8>) -> usize {
        image.pixels().filter(|p| close(**p, colour)).count()
    }

    #[test]
    fn the_mask_covers_the_image_and_not_the_pad() {
        let target = figure(1, 48, 96);
        let example = prepare(&data(), &example_config(), 0, &target, &[]);
        assert_eq!(example.target.dimensions(), (64, 64));
        let inside = example
            .target_mask
            .pixels()
            .filter(|p| p.0[0] == 255)
            .count();
        assert_eq!(inside, 32 * 64);
        let pad = example
            .target
            .enumerate_pixels()
            .find(|(x, y, _)| example.target_mask.get_pixel(*x, *y).0[0] == 0);
        let (_, _, pad) = pad.expect("a tall image leaves a pad");
        for (x, y, pixel) in example.target.enumerate_pixels() {
            if example.target_mask.get_pixel(x, y).0[0] == 0 {
                assert_eq!(pixel, pad, "the pad has one colour");
            }
        }
    }

    #[test]
    fn the_tags_of_looks_are_left_out_as_often_as_the_job_says() {
        let mut target = figure(1, 64, 64);
        target.metadata.prompts = "1girl, blue_hair, smile".to_owned();
        let count = |looks_drop| {
            let data = Data {
                prompt_drop: 0.0,
                looks_drop,
                ..data()
            };
            let prompts =
                (0..200).map(|epoch| prepare(&data, &example_config(), epoch, &target, &[]).prompt);
            prompts.filter(|prompt| prompt == "1girl, smile").count()
        };
        assert_eq!((count(0.0), count(1.0)), (0, 200));
        assert!((70..130).contains(&count(0.5)), "{}", count(0.5));
    }

    #[test]
    fn the_face_mask_is_on_the_face_at_every_alignment() {
        for position in 0..20 {
            // The image has the final size, so no edge is blurred.
            let example = prepare(
                &data(),
                &example_config(),
                0,
                &figure(position, 32, 64),
                &[],
            );
            let mut faces = 0;
            for (x, y, pixel) in example.target.enumerate_pixels() {
                if example.face_mask.get_pixel(x, y).0[0] == 255 {
                    faces += 1;
                    assert!(
                        close(*pixel, SKIN),
                        "position {position} at {x} {y}: {pixel:?}"
                    );
                }
            }
            assert_eq!(faces, 16 * 24);
        }
    }

    #[test]
    fn clothes_never_show_the_face_and_faces_never_the_clothes() {
        let target = figure(0, 64, 64);
        for position in 0..60 {
            let target = Decoded {
                position,
                ..target.clone()
            };
            let from = figure(100, 64, 64);
            let slots = [
                (slot(Concept::Clothes), &from),
                (slot(Concept::Face), &from),
            ];
            let example = prepare(&data(), &example_config(), 0, &target, &slots);
            let (clothes, face) = (&example.references[0], &example.references[1]);
            assert_eq!(
                (clothes.concept, face.concept),
                (Concept::Clothes, Concept::Face)
            );
            // The pad may by chance have the colour of skin. The real face covers far more pixels.
            assert!(count(&clothes.image, CLOTH) > 250, "position {position}");
            assert!(count(&face.image, SKIN) > 900, "position {position}");
            let greens = count(&face.image, CLOTH);
            assert!(
                greens < count(&clothes.image, CLOTH) * 2,
                "position {position}: {greens}"
            );
        }
    }

    #[test]
    fn clothes_are_cropped_as_the_job_says() {
        let from = figure(100, 64, 64);
        let counted = |clothes: Clothes| {
            let references = References {
                clothes,
                scale: 1.0,
                ..references()
            };
            let config = ExampleConfig {
                references: Some(references),
                timesteps: 1000,
                view: None,
            };
            let slots = [(slot(Concept::Clothes), &from)];
            let example = prepare(&data(), &config, 0, &figure(3, 64, 64), &slots);
            count(&example.references[0].image, BACK)
        };
        let always = |cut_off: bool, background: bool| Clothes {
            cut_off: f64::from(u8::from(cut_off)),
            background: f64::from(u8::from(background)),
            ..Clothes::default()
        };
        // Whole image with its background; lower half only; no background.
        assert!((2000..2500).contains(&counted(always(false, true))));
        assert!((900..1200).contains(&counted(always(true, true))));
        assert_eq!(counted(always(false, false)), 0);
        // The lower half is below the minimum, so the face is painted over.
        let strict = Clothes {
            cut_off_minimum: 0.9,
            ..always(true, true)
        };
        assert_eq!(counted(strict), counted(always(false, true)));
    }

    #[test]
    fn an_image_that_is_mostly_face_is_used_whole() {
        let mut from = figure(100, 64, 64);
        from.metadata.bbox = [0.5, 0.5, 0.8, 0.7];
        let example = prepare(
            &data(),
            &example_config(),
            0,
            &figure(1, 64, 64),
            &[(slot(Concept::Clothes), &from)],
        );
        assert_eq!(example.references[0].concept, Concept::Figure);
        assert_eq!(example.references[0].position, 100);
    }

    #[test]
    fn everything_repeats_and_another_epoch_differs() {
        let (target, source) = (figure(5, 48, 64), figure(6, 64, 64));
        let slots = [(slot(Concept::Clothes), &source)];
        let once = prepare(&data(), &example_config(), 0, &target, &slots);
        assert_eq!(
            once,
            prepare(&data(), &example_config(), 0, &target, &slots)
        );
        let later = prepare(&data(), &example_config(), 1, &target, &slots);
        assert_ne!(once.noise_seed, later.noise_seed);
        assert_ne!(once.references[0].image, later.references[0].image);
    }

    #[test]
    fn prompts_drop_at_their_rate_and_timesteps_spread() {
        let target = figure(0, 16, 16);
        let examples: Vec<Example> = (0..1000)
            .map(|position| {
                prepare(
                    &data(),
                    &example_config(),
                    0,
                    &Decoded {
                        position,
                        ..target.clone()
                    },
                    &[],
                )
            })
            .collect();
        let dropped = examples.iter().filter(|e| e.prompt.is_empty()).count();
        assert!((430..570).contains(&dropped), "{dropped}");
        let mean = examples.iter().map(|e| f64::from(e.timestep)).sum::<f64>() / 1000.0;
        assert!((450.0..550.0).contains(&mean), "{mean}");
        assert!(examples.iter().all(|e| e.timestep < 1000));
    }

    /// References of pairing a. `settings` changes them.
    fn pairing_a(settings: impl Fn(&mut References)) -> ExampleConfig {
        let mut references = References {
            pairing: Pairing::A,
            task: Task::Reconstruction,
            ..references()
        };
        settings(&mut references);
        ExampleConfig {
            references: Some(references),
            timesteps: 1000,
            view: None,
        }
    }

    fn own(requested: Concept) -> Slot {
        Slot {
            source: Source::Target,
            requested,
        }
    }

    #[test]
    fn pairing_b_and_pairing_a_without_transforms_are_as_they_always_were() {
        let digest = |config: &ExampleConfig, source: Source| {
            let mut bytes = Vec::new();
            for position in 0..8 {
                let (target, other) = (figure(position, 48, 64), figure(100, 64, 64));
                let from = if source == Source::Target {
                    &target
                } else {
                    &other
                };
                let concepts = [Concept::Face, Concept::Clothes, Concept::Figure];
                let slots = concepts.map(|requested| (Slot { source, requested }, from));
                let example = prepare(&data(), config, 2, &target, &slots);
                bytes.extend_from_slice(example.target.as_raw());
                bytes.extend_from_slice(example.target_mask.as_raw());
                bytes.extend_from_slice(example.face_mask.as_raw());
                for reference in &example.references {
                    bytes.extend_from_slice(reference.image.as_raw());
                }
                bytes.extend_from_slice(example.prompt.as_bytes());
                bytes.extend_from_slice(&example.noise_seed.to_le_bytes());
            }
            proto::text::hex_sha256(&bytes)
        };
        let off = pairing_a(|references| references.transform = Transform::OFF);
        assert_eq!(
            [
                digest(&example_config(), Source::Similar(0)),
                digest(&off, Source::Target)
            ],
            [
                "7ddbb392788f0c033e0bcfe6cd1b35d6c02226e3aeffe32c2d43e53d33278344",
                "edca79d043ea2164d41e5e6a60f693b1c4ebb3e63091d689a5129a4951095fe0"
            ]
        );
        let on = pairing_a(|_| ());
        assert_ne!(digest(&on, Source::Target), digest(&off, Source::Target));
    }

    const LEFT: Rgb<u8> = Rgb([200, 20, 20]);
    const RIGHT: Rgb<u8> = Rgb([20, 20, 200]);

    /// Red on the left and blue on the right, square.
    fn two_sides(position: u64) -> Decoded {
        let image = RgbImage::from_fn(64, 64, |x, _| if x < 32 { LEFT } else { RIGHT });
        Decoded {
            image,
            ..figure(position, 64, 64)
        }
    }

    /// Whether red is on the right.
    fn is_flipped(image: &RgbImage) -> bool {
        let mean_x = |colour| {
            let pixels = image.enumerate_pixels();
            let of: Vec<u64> = pixels
                .filter(|(_, _, pixel)| **pixel == colour)
                .map(|(x, ..)| u64::from(x))
                .collect();
            of.iter().sum::<u64>() / of.len().max(1) as u64
        };
        mean_x(LEFT) > mean_x(RIGHT)
    }

    #[test]
    fn in_pairing_a_target_and_references_are_transformed_independently() {
        let config = pairing_a(|_| ());
        let (mut flips, mut moved) = (std::collections::BTreeMap::new(), 0);
        for position in 0..200 {
            let target = two_sides(position);
            let slots = [
                (own(Concept::Figure), &target),
                (own(Concept::Figure), &target),
            ];
            let example = prepare(&data(), &config, 0, &target, &slots);
            let [first, second] = [0, 1].map(|n| &example.references[n].image);
            assert_ne!(first, second, "position {position}");
            assert_ne!(*first, example.target, "position {position}");
            *flips
                .entry([&example.target, first, second].map(is_flipped))
                .or_insert(0) += 1;
            // A square image has a pad now, and the mask ends where it begins.
            let inside = example.target_mask.as_raw().iter().filter(|it| **it == 255);
            moved += u32::from(inside.count() < 64 * 64);
            for (x, y, pixel) in example.target.enumerate_pixels() {
                let shows = example.target_mask.get_pixel(x, y).0[0] == 255;
                let is_image = pixel.0[1] == 20 && pixel.0[0] as u32 + pixel.0[2] as u32 == 220;
                assert!(
                    !shows || is_image,
                    "position {position} at {x} {y}: {pixel:?}"
                );
            }
        }
        assert!(moved > 150, "{moved} of 200 squares moved");
        // All eight combinations occur, each in about an eighth of the samples.
        assert_eq!(flips.len(), 8, "{flips:?}");
        assert!(flips.values().all(|count| *count >= 8), "{flips:?}");
    }

    #[test]
    fn the_face_mask_follows_a_transformed_target() {
        let config = pairing_a(|_| ());
        for position in 0..60 {
            // The face is left of the middle, so that flips matter.
            let mut target = figure(position, 64, 64);
            let mut image = RgbImage::from_pixel(64, 64, BACK);
            fill(
                &mut image,
                Region {
                    x: 8,
                    y: 16,
                    width: 20,
                    height: 20,
                },
                SKIN,
            );
            target.image = image;
            target.metadata.bbox = [18.0 / 64.0, 26.0 / 64.0, 20.0 / 64.0, 20.0 / 64.0];
            let example = prepare(&data(), &config, 0, &target, &[]);
            let (mut inside, mut skin) = (0, 0);
            for (x, y, pixel) in example.target.enumerate_pixels() {
                let is_face = example.face_mask.get_pixel(x, y).0[0] == 255;
                let shown = example.target_mask.get_pixel(x, y).0[0] == 255;
                assert!(shown || !is_face, "position {position}: a face on the pad");
                inside += u32::from(is_face);
                skin += u32::from(is_face && close(*pixel, SKIN));
            }
            // Only its edges are mixed with the background.
            assert!(
                inside > 100 && skin * 10 >= inside * 8,
                "{position}: {skin} of {inside}"
            );
        }
    }

    #[test]
    fn a_face_that_the_crop_leaves_out_has_no_mask() {
        let config = pairing_a(|it| it.transform.crop = [0.3, 0.3]);
        let faces = (0..100).filter(|position| {
            let mut target = figure(*position, 64, 64);
            target.metadata.bbox = [0.1, 0.1, 0.1, 0.1];
            let example = prepare(&data(), &config, 0, &target, &[]);
            example.face_mask.as_raw().contains(&255)
        });
        let faces = faces.count();
        assert!((1..60).contains(&faces), "{faces} of 100");
    }

    #[test]
    fn transformed_references_of_clothes_show_no_face() {
        let config = pairing_a(|it| it.task = Task::Composition);
        for position in 0..60 {
            let target = figure(position, 64, 64);
            let slots = [
                (own(Concept::Clothes), &target),
                (own(Concept::Face), &target),
            ];
            let example = prepare(&data(), &config, 0, &target, &slots);
            let [clothes, face] = [0, 1].map(|n| &example.references[n].image);
            assert!(count(clothes, CLOTH) > 200, "position {position}");
            assert!(count(face, SKIN) > 900, "position {position}");
        }
    }

    #[test]
    fn references_drop_at_their_rate_and_independently_of_prompts() {
        let dropping = |drop| ExampleConfig {
            references: Some(References {
                drop,
                ..references()
            }),
            timesteps: 1000,
            view: None,
        };
        let target = figure(0, 16, 16);
        let count = |config: &ExampleConfig, prompt: bool, references: bool| {
            let examples = (0..1000).map(|position| {
                let target = Decoded {
                    position,
                    ..target.clone()
                };
                prepare(&data(), config, 0, &target, &[])
            });
            examples
                .filter(|it| (it.prompt.is_empty(), it.references_dropped) == (prompt, references))
                .count()
        };
        let quarter = dropping(0.25);
        let counts = [(true, true), (false, true), (true, false), (false, false)]
            .map(|(prompt, references)| count(&quarter, prompt, references));
        for (count, expected) in counts.into_iter().zip([125_usize, 125, 375, 375]) {
            assert!(count.abs_diff(expected) < 50, "{counts:?}");
        }
        let never = dropping(0.0);
        assert_eq!(count(&never, true, true) + count(&never, false, true), 0);
    }

    #[test]
    fn at_most_one_of_three_things_is_dropped_where_the_job_says_so() {
        let config = ExampleConfig {
            references: Some(References {
                drop: 0.1,
                joint_drop: Some(0.2),
                ..references()
            }),
            ..example_config()
        };
        let data = Data {
            prompt_drop: 0.3,
            ..data()
        };
        let mut counts = [0_usize; 4];
        for position in 0..2000 {
            let target = Decoded {
                position,
                ..figure(0, 16, 16)
            };
            let example = prepare(&data, &config, 0, &target, &[]);
            let dropped = (example.prompt.is_empty(), example.references_dropped);
            counts[usize::from(dropped.0) + 2 * usize::from(dropped.1)] += 1;
        }
        // Neither, the prompt, the references, both.
        for (count, expected) in counts.into_iter().zip([800_usize, 600, 200, 400]) {
            assert!(count.abs_diff(expected) < 80, "{counts:?}");
        }
    }

    #[test]
    fn an_object_is_shown_alone_and_its_target_has_the_mask_of_its_figure() {
        let view = ViewConfig {
            kind: ViewKind::Object {
                augment: false,
                keep: 0.5,
            },
            side: 32,
        };
        let config = ExampleConfig {
            view: Some(view),
            ..example_config()
        };
        let from = figure(100, 64, 64);
        let mut kept = 0;
        for position in 0..200 {
            let target = figure(position, 64, 64);
            let slots = [(slot(Concept::Figure), &from)];
            let example = prepare(&data(), &config, 0, &target, &slots);
            let view = example.references[0].view.as_ref().expect("a view");
            assert_eq!(view.dimensions(), (32, 32));
            // The background is noise.
            assert!(count(view, BACK) < 60 && count(view, CLOTH) > 100);
            let mask = example.figure_mask.expect("a mask of the figure");
            let inside = mask.as_raw().iter().filter(|it| **it > 127).count();
            assert!((1500..2000).contains(&inside), "{inside}");
            kept += u32::from(!example.references_dropped);
        }
        assert!((70..130).contains(&kept), "{kept} of 200 objects are kept");
    }
}
