//! The columns of the tables after the filter.

use crate::table::Column;

/// Figures that pass the filter, by id.
pub const FIGURES: [(&str, Column); 11] = [
    ("id", Column::Number),
    // One of `proto::rating::Rating`'s words; "" if the post has none.
    ("rating", Column::Text),
    ("md5", Column::Text),
    ("ext", Column::Text),
    ("width", Column::Number),
    ("height", Column::Number),
    // 0: none.
    ("parent", Column::Number),
    ("character", Column::Text),
    ("artist", Column::Text),
    // General tags, separated by spaces.
    ("general", Column::Text),
    // The cloth tags among them, under the names of the list, separated by spaces, sorted.
    ("cloths", Column::Text),
];

/// Figures of clusters, cluster by cluster.
pub const CLUSTERED: [(&str, Column); 6] = [
    ("id", Column::Number),
    // From 0, in the order of character, artist and outfit.
    ("cluster", Column::Number),
    // Figures in it.
    ("size", Column::Number),
    ("character", Column::Text),
    ("artist", Column::Text),
    // The signature that the cluster's figures have in common.
    ("outfit", Column::Text),
];

/// Answers of a model about figures: those that are no refusals.
pub const ANSWERS: [(&str, Column); 3] = [
    ("id", Column::Number),
    ("question", Column::Text),
    ("answer", Column::Text),
];

/// Figures that a tagger has tagged with clothes.
pub const TAGGED: [(&str, Column); 2] = [
    ("id", Column::Number),
    // As those of [`FIGURES`].
    ("cloths", Column::Text),
];

/// Figures that have a mask, cluster by cluster.
pub const MASKED: [(&str, Column); 2] = [
    ("id", Column::Number),
    // Fraction of the image's pixels that are at least half on the figure.
    ("area", Column::Real),
];

/// Figures that have a face, in the order of the stage before.
pub const FACES: [(&str, Column); 7] = [
    ("id", Column::Number),
    // Of the centre, as fractions of the image.
    ("x", Column::Real),
    ("y", Column::Real),
    ("width", Column::Real),
    ("height", Column::Real),
    ("score", Column::Real),
    // Faces that were detected. That with the highest score counts.
    ("faces", Column::Number),
];

/// Rows of one part.
pub const PART_ROWS: u64 = 1 << 18;
