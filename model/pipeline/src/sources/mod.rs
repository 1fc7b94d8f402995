//! Metadata of posts as it is published. Files are recognised by what is in them, never by their
//! names ([`recognise`]); each edition has a file that reads its rows. Files are divided into
//! pieces, so that several workers can read one file.

mod json;
mod parquet;
mod piece;
mod recognise;
mod row;
mod sqlite;

pub(crate) use piece::unchanged;
pub use piece::{LINES, read_piece};
pub(crate) use recognise::join;
pub use recognise::recognise;

use crate::post::Edition;
use serde::{Deserialize, Serialize};

/// A part of a file that one unit reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Index of the source in the pipeline.
    pub source: u32,
    pub file: String,
    pub edition: Edition,
    pub span: Span,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Span {
    /// Lines that begin at these bytes.
    Lines { start: u64, end: u64 },
    /// The whole file, which has posts on several lines.
    Document,
    /// A row group of Parquet. `first` row of it, from 0.
    RowGroup { index: u32, first: u64 },
    /// Rows of a database with these keys.
    Keys { start: i64, end: i64 },
}
