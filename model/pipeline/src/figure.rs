//! The columns of the tables after the filter, and how figures are loaded.

use crate::engine::Engine;
use crate::error::Result;
use crate::output::{Outputs, StageFolder};
use crate::table::Column;
use proto::build::report::{Part, StageManifest};
use proto::build::{Stage, StagePlan};
use std::path::Path;

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

/// What rows of folders have beside [`FIGURES`].
pub const FOLDED: [(&str, Column); 9] = [
    ("id", Column::Number),
    // In the data set.
    ("name", Column::Text),
    // "" if only the identity is known.
    ("outfit", Column::Text),
    // Index of the folder in the stage's settings.
    ("folder", Column::Number),
    // Path of the object in the folder; "": the row is joined with images by its id.
    ("image", Column::Text),
    ("offset", Column::Number),
    // 0: the whole object.
    ("size", Column::Number),
    // Path of a mask in the folder; "": the alpha channel; [`WHOLE`].
    ("mask", Column::Text),
    // The face as JSON; "": unknown.
    ("box", Column::Text),
];
/// The mask of an image that counts as a whole.
pub const WHOLE: &str = "*";

/// Crops of figures, by id.
pub const CROPPED: [(&str, Column); 7] = [
    ("id", Column::Number),
    // Of the crop's centre and size, as fractions of the image.
    ("x", Column::Real),
    ("y", Column::Real),
    ("width", Column::Real),
    ("height", Column::Real),
    ("score", Column::Real),
    // Figures that were detected. That with the highest score counts.
    ("figures", Column::Number),
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

/// The table of [`FIGURES`] in the engine.
pub(crate) const FIGURES_TABLE: &str = "CREATE TABLE figures(id INTEGER PRIMARY KEY, rating, md5,
    ext, width, height, parent, character, artist, general, cloths);";
const INSERT_FIGURE: &str =
    "INSERT INTO figures VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";

/// The beginning of the names of parts of [`FIGURES`], and of [`FOLDED`].
pub(crate) const FIGURES_PART: &str = "part";
pub(crate) const FOLDED_PART: &str = "rows";

/// The output that figures come from: of the filter, or of folders.
///
/// # Errors
/// The plan has neither, or its manifest cannot be read.
pub(crate) async fn origin(
    plan: &StagePlan,
    outputs: &Outputs,
) -> Result<(StageFolder, StageManifest)> {
    let stage = match plan.input(Stage::Folders) {
        Some(_) => Stage::Folders,
        None => Stage::Filter,
    };
    outputs.input(plan, stage).await
}

/// The parts whose names begin with a word.
pub(crate) fn parts<'a>(
    manifest: &'a StageManifest,
    stem: &'static str,
) -> impl Iterator<Item = &'a Part> {
    let is_of = move |part: &&Part| part.path.starts_with(stem) && part.path.ends_with(".parquet");
    manifest.parts.iter().filter(is_of)
}

/// Loads the figures into [`FIGURES_TABLE`]: their number.
///
/// # Errors
/// A part cannot be read.
pub(crate) async fn load(engine: &Engine, plan: &StagePlan, outputs: &Outputs) -> Result<u64> {
    let (folder, manifest) = origin(plan, outputs).await?;
    let mut rows = 0;
    for part in parts(&manifest, FIGURES_PART) {
        let bytes = folder.part(part).await?;
        rows += engine.load(&part.path, bytes, &FIGURES, INSERT_FIGURE)?;
    }
    Ok(rows)
}

/// Figures whose character and artist have others, by id: what is found out about the rest would be
/// of no use.
///
/// # Errors
/// As [`load`].
pub(crate) async fn with_others(
    plan: &StagePlan,
    outputs: &Outputs,
    scratch: &Path,
) -> Result<Vec<i64>> {
    let engine = Engine::open(scratch)?;
    engine.run("cannot make its tables", FIGURES_TABLE)?;
    load(&engine, plan, outputs).await?;
    let mut figures = Vec::new();
    let query = "SELECT id FROM figures JOIN (SELECT character, artist FROM figures
            GROUP BY character, artist HAVING count(*) > 1) USING (character, artist)
        ORDER BY id";
    engine.query("cannot list figures", query, |row| {
        figures.push(row.get(0)?);
        Ok(())
    })?;
    Ok(figures)
}
