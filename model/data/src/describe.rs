//! Statistics of a data set, as plain data that `coordinator dataset describe` prints.

use std::collections::{BTreeMap, BTreeSet};

use proto::dataset::DatasetManifest;
use proto::rating::Rating;
use serde::Serialize;

use crate::dataset::{Dataset, DatasetError};
use crate::decode::ChangeCounts;
use crate::image_sizes::{COMMON, ImageSizes};
use crate::prompt_length::{CLIP_TOKENS, CutPrompts, PromptCounter};
use crate::sample::Metadata;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Description {
    pub source: String,
    /// SHA-256 of `dataset.json`.
    pub version: String,
    pub samples: u64,
    pub characters: u64,
    /// Groups of character, outfit and artist.
    pub identities: u64,
    pub artists: u64,
    pub files: u64,
    pub row_groups: u64,
    pub size_bytes: u64,
    /// Smallest and largest width and height, in pixels.
    pub widths: (u32, u32),
    pub heights: (u32, u32),
    /// For common sizes of squares.
    pub sizes: ImageSizes,
    /// Rating -> number of samples that have it; "unrated" for those without one.
    pub ratings: BTreeMap<String, u64>,
    /// What the import changed or guessed.
    pub changes: ChangeCounts,
    /// Number of similar images -> number of samples that have so many.
    pub similar: BTreeMap<u64, u64>,
    /// The most frequent first; at most [`FREQUENT`] each.
    pub frequent_characters: Vec<(String, u64)>,
    pub frequent_cloths: Vec<(String, u64)>,
    /// For CLIP.
    pub cut_prompts: CutPrompts,
}

/// Twice the number of characters that the paper's figure 2 shows.
pub const FREQUENT: usize = 30;

/// Reads the metadata columns of the whole data set.
///
/// # Errors
/// The data set is damaged or storage fails.
pub async fn describe(dataset: &Dataset) -> Result<Description, DatasetError> {
    Ok(summarize(
        dataset.manifest(),
        dataset.version(),
        &dataset.scan().await?,
    ))
}

fn summarize(manifest: &DatasetManifest, version: &str, rows: &[Metadata]) -> Description {
    let mut similar = BTreeMap::new();
    let (mut characters, mut cloths) = (BTreeMap::new(), BTreeMap::new());
    let (mut ratings, mut changes) = (BTreeMap::new(), ChangeCounts::default());
    let (mut identities, mut artists) = (BTreeSet::new(), BTreeSet::new());
    let mut prompts = PromptCounter::new(CLIP_TOKENS);
    let mut sizes = ImageSizes::new(&COMMON);
    for row in rows {
        sizes.add(&row.id, row.width, row.height);
        prompts.add(&row.prompts);
        *similar.entry(row.similar.len() as u64).or_insert(0) += 1;
        *characters.entry(row.character.clone()).or_insert(0) += 1;
        row.cloths
            .iter()
            .for_each(|tag| *cloths.entry(tag.clone()).or_insert(0) += 1);
        let rating = Some(row.rating.as_str()).filter(|it| !it.is_empty());
        let rating = rating.unwrap_or(Rating::Unrated.word()).to_owned();
        *ratings.entry(rating).or_insert(0) += 1;
        changes.add(&row.id, row.changes.iter().map(String::as_str));
        identities.insert(row.identity);
        if !row.artists.is_empty() {
            artists.insert(&row.artists);
        }
    }
    let range = |of: fn(&Metadata) -> u32| {
        (
            rows.iter().map(of).min().unwrap_or(0),
            rows.iter().map(of).max().unwrap_or(0),
        )
    };
    Description {
        source: manifest.source.clone(),
        version: version.to_owned(),
        samples: rows.len() as u64,
        characters: characters.len() as u64,
        identities: identities.len() as u64,
        artists: artists.len() as u64,
        files: manifest.files.len() as u64,
        row_groups: manifest
            .files
            .iter()
            .map(|f| f.row_groups.len() as u64)
            .sum(),
        size_bytes: manifest.files.iter().map(|f| f.size_bytes).sum::<u64>()
            + manifest.index.size_bytes,
        widths: range(|r| r.width),
        heights: range(|r| r.height),
        sizes,
        ratings,
        changes,
        similar,
        frequent_characters: most_frequent(characters),
        frequent_cloths: most_frequent(cloths),
        cut_prompts: prompts.finish(),
    }
}

fn most_frequent(counts: BTreeMap<String, u64>) -> Vec<(String, u64)> {
    let mut list: Vec<(String, u64)> = counts.into_iter().collect();
    // The sort is stable: equal counts stay in alphabetical order.
    list.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    list.truncate(FREQUENT);
    list
}
