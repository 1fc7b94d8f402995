//! Synthetic figures: a data set of chibi characters that needs no download. They are drawn as SVG
//! from geometry, so face box, mask and tags are exact. The same options give the same bytes.
//! Called by `coordinator dataset synthesize` and tests.
//!
//! An identity is a character (hair, eyes, skin, accessories) in an outfit, drawn in the style of
//! an artist. Its images differ in pose, expression, framing, angle and background.

mod accessory;
mod background;
mod body;
mod canvas;
mod clothes;
mod colour;
mod design;
mod face;
mod hair;
mod pose;
mod render;
mod scene;

use rand::SeedableRng;
use rand::seq::IteratorRandom;
use rand::{Rng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use colour::HAIR;
use design::{ARTISTS, Artist, Character, Outfit};
use model_data::order::SampleOrder;
use model_data::random::hash_words;
use model_data::sample::{Metadata, Sample, join_tags};
use pose::Shot;
use proto::rating::Rating;

/// How many other images of its identity a sample lists as similar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Similar {
    /// All other images.
    All,
    /// The distribution of the paper's data set (notes 2.2): 81 % of samples have fewer than 4.
    Paper,
    /// Relative weights: entry `n` is the weight of samples that list `n` others.
    Parts(Vec<u32>),
}

impl Similar {
    /// Largest number of similar images of a sample. None: all other images.
    #[must_use]
    pub fn longest(&self) -> Option<usize> {
        let classes = self.classes()?;
        classes
            .iter()
            .filter(|(weight, _)| *weight > 0)
            .map(|(_, length)| *length)
            .max()
    }

    /// (Weight, number of similar images) of each class. None: all samples list all others.
    fn classes(&self) -> Option<Vec<(u32, usize)>> {
        match self {
            Self::All => None,
            Self::Paper => Some(PAPER_SIMILAR.to_vec()),
            Self::Parts(parts) => Some(parts.iter().copied().zip(0..).collect()),
        }
    }
}

/// Number of samples of the paper's data set by the length of their `similar` (notes 2.2, the
/// middle or the minimum of each class).
const PAPER_SIMILAR: [(u32, usize); 7] = [
    (65_594, 1),
    (19_636, 2),
    (9_125, 3),
    (5_227, 4),
    (3_434, 5),
    (9_481, 8),
    (4_232, 16),
];

/// What is behind the figures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Backgrounds {
    /// Colours, gradients, patterns and scenery.
    #[default]
    All,
    /// One pale colour, white in half of the images.
    Plain,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SynthesizeOptions {
    pub characters: u32,
    /// Outfits of each character.
    pub outfits: u32,
    /// Images of each identity (character and outfit), at least 2.
    pub images: u32,
    /// Width and height in pixels.
    pub size: u32,
    pub seed: u64,
    pub similar: Similar,
    pub backgrounds: Backgrounds,
}

impl SynthesizeOptions {
    /// One line that describes the origin of the data set, for humans.
    #[must_use]
    pub fn source(&self) -> String {
        let backgrounds = match self.backgrounds {
            Backgrounds::All => "",
            Backgrounds::Plain => ", plain backgrounds",
        };
        format!(
            "synthetic figures: {} characters x {} outfits x {} images of {} px, seed \
            {}{backgrounds}",
            self.characters, self.outfits, self.images, self.size, self.seed
        )
    }
}

/// All samples, identity by identity. Each identity is a pure function of the seed and its indices,
/// so more characters, outfits or images extend a data set without changing existing identities.
pub fn synthesize(options: &SynthesizeOptions) -> impl Iterator<Item = Sample> + use<> {
    identities(options).flatten()
}

/// As [`synthesize`], one whole identity at a time, as the writer needs it.
pub fn identities(options: &SynthesizeOptions) -> impl Iterator<Item = Vec<Sample>> + use<> {
    let options = options.clone();
    let outfits = options.outfits;
    (0..options.characters)
        .flat_map(move |character| (0..outfits).map(move |outfit| (character, outfit)))
        .map(move |(character, outfit)| identity(&options, character, outfit))
}

fn identity(options: &SynthesizeOptions, character_index: u32, outfit_index: u32) -> Vec<Sample> {
    let stream = |words: &[&str]| ChaCha8Rng::seed_from_u64(hash_words(options.seed, words));
    let (c, o) = (character_index.to_string(), outfit_index.to_string());
    // Each twelve consecutive characters have the twelve hair colours in shuffled order, so that
    // neighbours differ.
    let (round, index_in_round) = (
        character_index / HAIR.len() as u32,
        character_index % HAIR.len() as u32,
    );
    let hair = SampleOrder::new(options.seed, HAIR.len() as u64)
        .position(u64::from(round), u64::from(index_in_round));
    let character = Character::sample(HAIR[hair as usize], &mut stream(&["character", &c]));
    let mut rng = stream(&["outfit", &c, &o]);
    let outfit = Outfit::sample(&character, &mut rng);
    let artist = *ARTISTS.iter().choose(&mut rng).expect("there are artists");
    let id = |image: u32| format!("{character_index:05}-{outfit_index:02}-{image:03}");
    (0..options.images)
        .map(|image| {
            let mut rng = stream(&["image", &c, &o, &image.to_string()]);
            let mut others: Vec<u32> = (0..options.images)
                .filter(|other| *other != image)
                .collect();
            if let Some(classes) = options.similar.classes() {
                let length = sample_length(&classes, &mut rng);
                others.shuffle(&mut rng);
                others.truncate(length);
            }
            let base = Metadata {
                id: id(image),
                character: format!("figure_{character_index:05}"),
                outfit: format!("outfit_{outfit_index:02}"),
                artists: artist.name.to_owned(),
                similar: others.into_iter().map(id).collect(),
                width: options.size,
                height: options.size,
                rating: Rating::General.word().to_owned(),
                ..Metadata::default()
            };
            sample(
                base,
                artist,
                &character,
                &outfit,
                options.backgrounds,
                &mut rng,
            )
        })
        .collect()
}

fn sample(
    base: Metadata,
    artist: Artist,
    character: &Character,
    outfit: &Outfit,
    backgrounds: Backgrounds,
    rng: &mut ChaCha8Rng,
) -> Sample {
    let shot = Shot::sample(rng);
    let (background, background_tags) =
        background::draw(base.width, shot.framing, backgrounds, rng);
    let figure = scene::figure(artist, character, outfit, &shot, base.width);
    let (image, mask) = render::render(&background, &figure, base.width);
    let mut cloths = outfit.tags(shot.framing.depth());
    cloths.extend(character.accessory_cloths());
    let words = character.tags(!shot.expression.closes_both_eyes());
    let prompts = join_tags(
        words
            .iter()
            .map(String::as_str)
            .chain(shot.tags())
            .chain(background_tags)
            .chain(cloths.iter().map(String::as_str)),
    );
    let mut cloths: Vec<String> = cloths.iter().map(|tag| tag.replace('_', " ")).collect();
    cloths.sort();
    cloths.dedup();
    Sample {
        metadata: Metadata {
            bbox: scene::face_box(&shot),
            prompts,
            cloths,
            ..base
        },
        image,
        mask,
    }
}

/// Samples a length in proportion to the weights of the classes.
fn sample_length(classes: &[(u32, usize)], rng: &mut ChaCha8Rng) -> usize {
    let total = classes.iter().map(|(weight, _)| *weight).sum();
    let mut rank = rng.random_range(0..total);
    for (weight, length) in classes {
        match rank.checked_sub(*weight) {
            Some(rest) => rank = rest,
            None => return *length,
        }
    }
    unreachable!("a rank is below the sum of all weights")
}
