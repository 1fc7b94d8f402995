//! A post as all editions have it in common, and the Parquet columns of the table of posts.

use crate::table::{Column, Table, Value};
use arrow_array::RecordBatch;

/// A form in which metadata of Danbooru is published.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Edition {
    /// JSON lines of 2017 to 2020: numbers are strings, and `tags` is a list of objects.
    TagObjects,
    /// JSON of 2021 and later, as the site's own API: `tag_string_general` and its siblings.
    TagStrings,
    /// Parquet with the columns of [`Edition::TagStrings`].
    Parquet,
    /// SQLite with a table of posts that has the columns of [`Edition::TagStrings`].
    SqliteTagStrings,
    /// SQLite with the tables `post` and `tag`, whose lists of tags are ids in base 36.
    SqliteTagLists,
}

impl Edition {
    #[must_use]
    pub fn description(self) -> &'static str {
        match self {
            Self::TagObjects => "JSON of 2017 to 2020 (a list of tag objects)",
            Self::TagStrings => "JSON of 2021 or later (tag_string_* fields)",
            Self::Parquet => "Parquet (tag_string_* columns)",
            Self::SqliteTagStrings => "SQLite (tag_string_* columns)",
            Self::SqliteTagLists => "SQLite (tag_list_* columns of ids in the table tag)",
        }
    }
}

/// A row of the table of posts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Post {
    pub id: i64,
    /// Index of the source in the pipeline.
    pub source: i64,
    /// The letter as published: g, s, q or e; "" if there is none. What s means depends on the
    /// source.
    pub rating: String,
    pub md5: String,
    pub ext: String,
    pub width: i64,
    pub height: i64,
    /// 0: none.
    pub parent: i64,
    pub has_children: bool,
    pub deleted: bool,
    pub banned: bool,
    /// Names separated by spaces.
    pub characters: String,
    pub artists: String,
    pub general: String,
}

/// The columns, in order.
pub const COLUMNS: [(&str, Column); 14] = [
    ("id", Column::Number),
    ("source", Column::Number),
    ("rating", Column::Text),
    ("md5", Column::Text),
    ("ext", Column::Text),
    ("width", Column::Number),
    ("height", Column::Number),
    ("parent", Column::Number),
    ("has_children", Column::Number),
    ("deleted", Column::Number),
    ("banned", Column::Number),
    ("characters", Column::Text),
    ("artists", Column::Text),
    ("general", Column::Text),
];

/// Adds a post to a table of [`COLUMNS`].
pub fn push(table: &mut Table, post: &Post) {
    let number = Value::Number;
    table.push([
        number(post.id),
        number(post.source),
        Value::Text(&post.rating),
        Value::Text(&post.md5),
        Value::Text(&post.ext),
        number(post.width),
        number(post.height),
        number(post.parent),
        number(post.has_children.into()),
        number(post.deleted.into()),
        number(post.banned.into()),
        Value::Text(&post.characters),
        Value::Text(&post.artists),
        Value::Text(&post.general),
    ]);
}

/// What a row must have before it is a post.
///
/// # Errors
/// A reason that is the same for all rows with this fault.
pub fn checked(post: Post, id: Option<i64>) -> Result<Post, String> {
    let id = id.ok_or("it has no id")?;
    if id < 1 {
        return Err("its id is not a positive number".to_owned());
    }
    if !matches!(post.rating.as_str(), "" | "g" | "s" | "q" | "e") {
        return Err(format!(
            "its rating is {:?}; g, s, q or e is expected",
            post.rating.chars().take(20).collect::<String>()
        ));
    }
    Ok(Post { id, ..post })
}

/// A table without rows.
#[must_use]
pub fn table() -> Table {
    Table::new(&COLUMNS)
}

/// The number of rows of a batch of [`COLUMNS`]; an error names what is missing.
///
/// # Errors
/// The batch has other columns.
pub fn check_columns(batch: &RecordBatch) -> Result<(), String> {
    crate::table::check_columns(batch, &COLUMNS)
}
