//! One row of a data set, with the paper's fields (section 3; notes 2.1). Plain data: no I/O, no
//! decoding. Created by the synthesizer, the import and the Parquet reader.

use crate::decode::ChangeKind;
use crate::names;
use bytes::Bytes;

/// All fields of a sample except its image and mask.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Metadata {
    /// Unique in the data set.
    pub id: String,
    /// Exactly one character tag.
    pub character: String,
    /// Exactly one artist tag; the paper's key is plural. "" if the source has none.
    pub artists: String,
    /// Name of the outfit, if the source has one. "" if only `similar` links the rows.
    pub outfit: String,
    /// Number of the (character, outfit, artist) group, in row order. Set by the writer.
    pub identity: u64,
    /// Face: centre x, centre y, width, height, each divided by the image's width or height.
    pub bbox: [f64; 4],
    /// General tags in alphabetical order with underscores, joined by ", ".
    pub prompts: String,
    /// The clothing tags, with spaces.
    pub cloths: Vec<String>,
    /// Ids of images of the same character, outfit and artist.
    pub similar: Vec<String>,
    /// Positions of `similar`, in the same order. Set by the writer.
    pub similar_positions: Vec<u64>,
    /// One of `proto::rating::Rating`'s words; "" if the sample has none.
    pub rating: String,
    /// What the import changed or guessed, as `kind=detail` ([`crate::decode::Change`]).
    pub changes: Vec<String>,
    /// Of image and mask, in pixels.
    pub width: u32,
    pub height: u32,
}

impl Metadata {
    /// True if the source has no mask: the whole image counts as the figure, and no part of it is
    /// known to be clothes.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let whole = ChangeKind::Whole.name();
        self.changes.iter().any(|change| change == whole)
    }
}

/// A whole row.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub metadata: Metadata,
    /// An encoded RGB image: PNG, JPEG or WebP.
    pub image: Bytes,
    /// An encoded greyscale image of the same size: 255 on the figure, 0 on the background,
    /// intermediate values at the edge.
    pub mask: Bytes,
}

/// Tags in the paper's form ([`crate::names`]): lower case with underscores, alphabetical, without
/// duplicates, joined by ", ".
#[must_use]
pub fn join_tags<T: AsRef<str>>(tags: impl IntoIterator<Item = T>) -> String {
    let sorted: std::collections::BTreeSet<String> = tags
        .into_iter()
        .map(|t| names::tag(t.as_ref()))
        .filter(|t| !t.is_empty())
        .collect();
    sorted.into_iter().collect::<Vec<_>>().join(", ")
}

/// The tags of a prompt.
pub fn split_tags(prompts: &str) -> impl Iterator<Item = &str> {
    prompts.split(',').map(str::trim).filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_sorted_without_duplicates_and_split_again() {
        let joined = join_tags(["standing", "1girl", "blue hair", "1girl", " "]);
        assert_eq!(joined, "1girl, blue_hair, standing");
        assert!(split_tags(&joined).eq(["1girl", "blue_hair", "standing"]));
        assert_eq!(split_tags("").count(), 0);
    }
}
