//! The embedded engine of tabular stages: SQLite, on a database of its own in scratch space, which
//! is deleted with it. Joins, groups and sorts run in SQL; rows come from Parquet and return to it.
//!
//! Memory is bounded by [`CACHE_MIB`] for pages and sorting, and by a batch and a part of rows that
//! are read or written. The rest is on disk: about 1.3 times the texts of the rows.

use crate::cloths::ClothTags;
use crate::error::{BuildError, Result};
use crate::table::{self, Column, Rows, Value};
use bytes::Bytes;
use rusqlite::functions::FunctionFlags;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Params, Row, Statement, ToSql};
use std::collections::BTreeSet;
use std::path::Path;

/// Memory for pages, in MiB.
pub const CACHE_MIB: u32 = 256;

/// A database in scratch space.
#[derive(Debug)]
pub struct Engine {
    connection: Connection,
    _folder: tempfile::TempDir,
}

/// The error of a statement.
pub(crate) fn failed(context: &str) -> impl Fn(rusqlite::Error) -> BuildError + '_ {
    move |source| BuildError::Engine {
        context: context.to_owned(),
        source,
    }
}

impl Engine {
    /// Opens an empty database below a folder.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn open(scratch: &Path) -> Result<Self> {
        let folder = crate::scratch::folder(scratch)?;
        let context = "cannot open its database";
        let connection = Connection::open(folder.path().join("tables.db"));
        let connection = connection.map_err(failed(context))?;
        // The database need not survive this process, so nothing is synchronised or undone.
        // Sorting spills into the same folder, not into /tmp, which may be memory.
        let temporary = folder.path().display().to_string().replace('\'', "''");
        let settings = format!(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;
             PRAGMA page_size = 16384; PRAGMA cache_size = -{}; PRAGMA temp_store = FILE;
             PRAGMA temp_store_directory = '{temporary}'; PRAGMA threads = 2;",
            u64::from(CACHE_MIB) * 1024
        );
        connection
            .execute_batch(&settings)
            .map_err(failed(context))?;
        let engine = Self {
            connection,
            _folder: folder,
        };
        engine.add_functions().map_err(failed(context))?;
        Ok(engine)
    }

    fn add_functions(&self) -> rusqlite::Result<()> {
        let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
        // normalised(answer): see [`normalised`].
        self.connection
            .create_scalar_function("normalised", 1, flags, |context| {
                Ok(context.get_raw(0).as_str().map(normalised)?)
            })
    }

    /// Adds the function `cloths(tags)`: the cloth tags among tags, or null.
    ///
    /// # Errors
    /// The engine refuses it.
    pub fn add_cloths(&self, list: ClothTags) -> Result<()> {
        let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
        let added = self
            .connection
            .create_scalar_function("cloths", 1, flags, move |context| {
                Ok(list.of(context.get_raw(0).as_str()?))
            });
        added.map_err(failed("cannot add the function cloths"))
    }

    /// Runs statements without results.
    ///
    /// # Errors
    /// A statement fails, for instance because the disk is full.
    pub fn run(&self, context: &str, statements: &str) -> Result<()> {
        let done = self.connection.execute_batch(statements);
        done.map_err(failed(context))
    }

    /// A statement with parameters, to be run many times.
    ///
    /// # Errors
    /// The engine refuses it.
    pub fn prepare(&self, context: &str, statement: &str) -> Result<Prepared<'_>> {
        let prepared = self.connection.prepare(statement);
        Ok(Prepared {
            statement: prepared.map_err(failed(context))?,
            context: context.to_owned(),
        })
    }

    /// Calls `each` with all rows of a query.
    ///
    /// # Errors
    /// As [`Self::run`], or `each` fails.
    pub fn query(
        &self,
        context: &str,
        query: &str,
        mut each: impl FnMut(&Row<'_>) -> rusqlite::Result<()>,
    ) -> Result<()> {
        let prepared = self.connection.prepare(query);
        let mut prepared = prepared.map_err(failed(context))?;
        let mut rows = prepared.query([]).map_err(failed(context))?;
        while let Some(row) = rows.next().map_err(failed(context))? {
            each(row).map_err(failed(context))?;
        }
        Ok(())
    }

    /// The number that a query results in.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn number(&self, context: &str, query: &str) -> Result<u64> {
        let found = self
            .connection
            .query_row(query, [], |row| row.get::<_, Option<i64>>(0));
        let found = found.map_err(failed(context))?.unwrap_or(0);
        Ok(u64::try_from(found).unwrap_or(0))
    }

    /// A table of words and numbers.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn table(&self, context: &str, query: &str) -> Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        self.query(context, query, |row| {
            let word = match row.get_ref(0)? {
                ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
                ValueRef::Integer(number) => number.to_string(),
                ValueRef::Null | ValueRef::Real(_) | ValueRef::Blob(_) => String::new(),
            };
            let number: i64 = row.get(1)?;
            found.push((word, u64::try_from(number).unwrap_or(0)));
            Ok(())
        })?;
        Ok(found)
    }

    /// Runs an insertion for each row of a part, in one transaction.
    ///
    /// # Errors
    /// The part cannot be read, or the insertion fails.
    pub fn load(
        &self,
        path: &str,
        bytes: Bytes,
        columns: &[(&str, Column)],
        insertion: &str,
    ) -> Result<u64> {
        let context = "cannot load rows";
        self.run(context, "BEGIN")?;
        let mut loaded = 0;
        {
            let prepared = self.connection.prepare(insertion);
            let mut prepared = prepared.map_err(failed(context))?;
            table::read(path, bytes, columns, |rows: &Rows<'_>| {
                for row in 0..rows.count() {
                    for (index, value) in (1..).zip(rows.row(row)) {
                        prepared
                            .raw_bind_parameter(index, Bound(value))
                            .map_err(failed(context))?;
                    }
                    prepared.raw_execute().map_err(failed(context))?;
                }
                loaded += rows.count() as u64;
                Ok(())
            })?;
        }
        self.run(context, "COMMIT")?;
        Ok(loaded)
    }
}

/// A statement with parameters.
#[derive(Debug)]
pub struct Prepared<'a> {
    statement: Statement<'a>,
    context: String,
}

impl Prepared<'_> {
    /// Runs it. Returns the number of rows that it changed.
    ///
    /// # Errors
    /// It fails, for instance because the disk is full.
    pub fn run(&mut self, parameters: impl Params) -> Result<usize> {
        self.statement
            .execute(parameters)
            .map_err(failed(&self.context))
    }
}

struct Bound<'a>(Value<'a>);

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Value::Number(number) => ValueRef::Integer(number),
            Value::Real(real) => ValueRef::Real(real),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
        }))
    }
}

/// An answer of a model, so that two that mean the same are equal: lower case, without the full
/// stop, split on commas and "and", each part once, in order. The paper compares answers strictly
/// and does not say how it writes them.
#[must_use]
pub fn normalised(answer: &str) -> String {
    let lower = answer.to_lowercase();
    let lower = lower.trim().trim_end_matches('.');
    let parts = lower.split([',', '&', ';']);
    let parts = parts.flat_map(|part| {
        let words: Vec<&str> = part.split_whitespace().collect();
        let groups = words.split(|word| *word == "and");
        groups.map(|words| words.join(" ")).collect::<Vec<_>>()
    });
    let parts: BTreeSet<String> = parts.filter(|part| !part.is_empty()).collect();
    parts.into_iter().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn answers_that_mean_the_same_are_equal() {
        for answer in [
            "Blue and White.",
            "white, blue",
            "blue,  white and blue",
            "white & blue",
        ] {
            assert_eq!(normalised(answer), "blue, white", "{answer}");
        }
        assert_eq!(normalised("Sandy brown"), "sandy brown");
        assert_eq!(normalised(" and , . "), "");
    }

    #[test]
    fn the_engine_counts_and_its_folder_goes_with_it() {
        let scratch = tempfile::tempdir().unwrap();
        let engine = Engine::open(scratch.path()).unwrap();
        engine
            .run("test", "CREATE TABLE t(x); INSERT INTO t VALUES (1), (2)")
            .unwrap();
        assert_eq!(engine.number("test", "SELECT sum(x) FROM t").unwrap(), 3);
        let error = engine
            .run("test", "SELECT nothing")
            .unwrap_err()
            .to_string();
        assert_eq!(error, "the engine: test");
        drop(engine);
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}
