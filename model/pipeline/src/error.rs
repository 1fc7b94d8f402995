//! Why a unit failed.

use proto::build::report::BadRow;

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Input that no further attempt will change. The text names file and place.
    #[error("{0}")]
    Input(String),
    #[error("{}; correct it, or set on_bad_row = \"skip\"", describe(row, *after))]
    BadRow {
        row: Box<BadRow>,
        /// Its row number counts from the first line after this byte of the file.
        after: Option<u64>,
    },
    #[error("cannot read {path}")]
    Read {
        path: String,
        source: object_store::Error,
    },
    #[error("cannot write {path}")]
    Write {
        path: String,
        source: object_store::Error,
    },
    #[error(transparent)]
    Store(#[from] storage::StoreError),
    #[error("{0}: it is damaged, or was changed")]
    Damaged(String),
    #[error("the engine: {context}")]
    Engine {
        context: String,
        source: rusqlite::Error,
    },
    #[error("{path} cannot be read as Parquet")]
    Parquet {
        path: String,
        source: parquet::errors::ParquetError,
    },
    #[error("scratch space")]
    Scratch(#[from] std::io::Error),
}

impl BuildError {
    pub(crate) fn input(file: &str, reason: impl std::fmt::Display) -> Self {
        Self::Input(format!("{file}: {reason}"))
    }
}

/// A row and what is wrong with it, in one sentence.
pub(crate) fn describe(row: &BadRow, after: Option<u64>) -> String {
    let offset = row.offset.map(|offset| format!(", byte {offset}"));
    let after = after.map(|byte| format!(" of those after byte {byte}"));
    format!(
        "{}: row {}{}{}: {}",
        row.file,
        row.row,
        after.unwrap_or_default(),
        offset.unwrap_or_default(),
        row.reason
    )
}

pub type Result<T> = std::result::Result<T, BuildError>;
