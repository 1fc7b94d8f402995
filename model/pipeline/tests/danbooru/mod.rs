//! Synthetic figures exported as a fake Danbooru in the JSON of each edition, with the truth beside
//! it. Also used by `tests/tests/cluster_build.rs`.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use figures::synthetic::{Backgrounds, Similar, SynthesizeOptions, identities, synthesize};
use model_data::sample::Sample;
use serde_json::{Value, json};

/// A post, and what is true of its picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakePost {
    pub id: i64,
    pub characters: Vec<String>,
    pub artists: Vec<String>,
    pub general: Vec<String>,
    /// As today: g, s, q or e.
    pub rating: char,
    pub parent: Option<i64>,
    pub deleted: bool,
    /// Character and outfit that are drawn.
    pub identity: (String, String),
    /// All that the outfit has, also what this picture does not show.
    pub outfit: String,
}

fn options(characters: u32, images: u32, size: u32) -> SynthesizeOptions {
    SynthesizeOptions {
        characters,
        outfits: 2,
        images,
        size,
        seed: 7,
        similar: Similar::All,
        backgrounds: Backgrounds::Plain,
    }
}

/// Posts with the pictures that they are of, which have this side in pixels.
pub fn drawn(characters: u32, images: u32, size: u32) -> Vec<(FakePost, Sample)> {
    let samples: Vec<Sample> = synthesize(&options(characters, images, size)).collect();
    let posts = posts(characters, images).into_iter();
    posts
        .map(|post| {
            // Posts are sorted by id; the picture of one is that of its attributes.
            let prompts = post.general.join(", ");
            let found = samples.iter().find(|it| {
                it.metadata.character == post.identity.0
                    && it.metadata.outfit == post.identity.1
                    && it.metadata.prompts == prompts
            });
            (post, found.unwrap().clone())
        })
        .collect()
}

/// Posts of synthetic figures: `images` of each of `characters` in two outfits.
pub fn posts(characters: u32, images: u32) -> Vec<FakePost> {
    let options = options(characters, images, 16);
    let mut posts = Vec::new();
    for identity in identities(&options) {
        let cloths = identity.iter().flat_map(|it| it.metadata.cloths.clone());
        let cloths: std::collections::BTreeSet<String> = cloths.collect();
        let outfit = cloths.into_iter().collect::<Vec<_>>().join(" and ");
        for sample in identity {
            let row = sample.metadata;
            let general = row.prompts.split(", ").map(str::to_owned).collect();
            // Ids have gaps, and neighbours are not of one identity.
            let number = i64::try_from(posts.len()).unwrap();
            posts.push(FakePost {
                id: 1000 + number * 7919 % 100_003,
                characters: vec![row.character.clone()],
                artists: vec![row.artists],
                general,
                rating: if number % 3 == 0 { 's' } else { 'g' },
                parent: None,
                deleted: false,
                identity: (row.character, row.outfit),
                outfit: outfit.clone(),
            });
        }
    }
    posts.sort_by_key(|post| post.id);
    posts
}

pub fn md5(post: &FakePost) -> String {
    format!("{:032x}", post.id)
}

/// A line of 2017 to 2020: numbers are texts, and `s` is "safe".
pub fn old(post: &FakePost) -> Value {
    let kinds = [
        (&post.general, "0"),
        (&post.artists, "1"),
        (&vec!["original".to_owned()], "3"),
        (&post.characters, "4"),
        (&vec!["highres".to_owned()], "5"),
    ];
    let tags = kinds.iter().flat_map(|(names, category)| {
        let tags = names.iter().enumerate();
        tags.map(
            move |(id, name)| json!({"id": id.to_string(), "name": name, "category": category}),
        )
    });
    json!({
        "id": post.id.to_string(),
        "md5": md5(post),
        "rating": if post.rating == 'g' { "s".to_owned() } else { post.rating.to_string() },
        "image_width": "512", "image_height": "768", "file_ext": "png",
        "parent_id": post.parent.unwrap_or(0).to_string(),
        "has_children": false, "is_deleted": post.deleted, "is_banned": false,
        "pools": [], "favs": ["12"],
        "tags": tags.collect::<Vec<_>>(),
    })
}

/// A line of 2021 and later.
pub fn new(post: &FakePost) -> Value {
    json!({
        "id": post.id,
        "md5": md5(post),
        "rating": post.rating.to_string(),
        "image_width": 512, "image_height": 768, "file_ext": "png",
        "parent_id": post.parent,
        "has_children": false, "is_deleted": post.deleted, "is_banned": false,
        "tag_string_general": post.general.join(" "),
        "tag_string_character": post.characters.join(" "),
        "tag_string_artist": post.artists.join(" "),
        "tag_string_copyright": "original", "tag_string_meta": "highres",
        "tag_count_general": post.general.len(), "pixiv_id": null,
    })
}

pub fn lines(rows: impl IntoIterator<Item = Value>) -> String {
    rows.into_iter().map(|row| format!("{row}\n")).collect()
}
