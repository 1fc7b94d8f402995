//! Posts of SQLite mirrors. One kind has the columns of the site's API. The other has lists of tag
//! ids (`$2s#$1f#`, in base 36) and a table `tag` with the ids' names and types, whose numbers are
//! not those of the site.

use super::Span;
use super::json::words;
use super::row::{Place, RowSink};
use crate::error::{BuildError, Result};
use crate::post::{Edition, Post, checked};
use proto::build::settings::TagTypes;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, Row};
use std::collections::BTreeMap;
use std::path::Path;

/// Columns in the order in which they are selected; those that a database lacks are null.
const COLUMNS: [&str; 10] = [
    "id",
    "rating",
    "md5",
    "file_ext",
    "image_width",
    "image_height",
    "parent_id",
    "has_children",
    "is_deleted",
    "is_banned",
];
const KINDS: [&str; 3] = ["general", "character", "artist"];

/// A database with posts.
#[derive(Debug)]
pub(super) struct Database {
    label: String,
    connection: Connection,
    table: String,
    columns: Vec<String>,
    edition: Edition,
    /// Of a database with lists of ids.
    tags: BTreeMap<i64, (String, i64)>,
    types: Option<TagTypes>,
}

impl Database {
    /// Recognises the tables.
    pub(super) fn open(label: &str, file: &Path, types: Option<TagTypes>) -> Result<Self> {
        let failed = |source: rusqlite::Error| {
            BuildError::input(
                label,
                format!("cannot be read as a SQLite database: {source}"),
            )
        };
        // Without the immutable flag SQLite would write its lock files beside the database.
        let uri = url(file);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        let connection = Connection::open_with_flags(uri, flags).map_err(failed)?;
        let mut tables: Vec<(String, Vec<String>)> = Vec::new();
        for table in names(
            &connection,
            "SELECT name FROM sqlite_schema WHERE type = 'table'",
        )
        .map_err(failed)?
        {
            let query = format!(
                "SELECT name FROM pragma_table_info({})",
                quoted_text(&table)
            );
            tables.push((table, names(&connection, &query).map_err(failed)?));
        }
        let with = |prefix: &str| {
            let has_all = |columns: &Vec<String>| {
                let kinds = KINDS.iter();
                let mut kinds = kinds.map(|kind| format!("{prefix}{kind}"));
                columns.contains(&"id".to_owned()) && kinds.all(|it| columns.contains(&it))
            };
            // A full-text index repeats the columns of the table that it is of.
            let found = tables.iter().filter(|(_, columns)| has_all(columns));
            found.cloned().collect::<Vec<_>>()
        };
        let (strings, lists) = (with("tag_string_"), with("tag_list_"));
        let (edition, (table, columns)) = match (strings.as_slice(), lists.as_slice()) {
            ([table], []) => (Edition::SqliteTagStrings, table.clone()),
            ([], [table]) => (Edition::SqliteTagLists, table.clone()),
            ([], []) => {
                let names: Vec<&str> = tables.iter().map(|(name, _)| name.as_str()).collect();
                let reason = format!(
                    "has no table with id and tag_string_* or tag_list_* columns; it has the \
                     tables {}",
                    names.join(", ")
                );
                return Err(BuildError::input(label, reason));
            }
            (strings, lists) => {
                let names = strings.iter().chain(lists).map(|(name, _)| name.as_str());
                let reason = format!(
                    "has several tables of posts, {}: leave one",
                    names.collect::<Vec<_>>().join(", ")
                );
                return Err(BuildError::input(label, reason));
            }
        };
        let mut database = Self {
            label: label.to_owned(),
            connection,
            table,
            columns,
            edition,
            tags: BTreeMap::new(),
            types: None,
        };
        if edition == Edition::SqliteTagLists {
            database.tags = database.read_tags().map_err(failed)?;
            database.types = Some(database.numbering(types)?);
        }
        Ok(database)
    }

    pub(super) fn edition(&self) -> Edition {
        self.edition
    }

    pub(super) fn description(&self) -> String {
        let types = match self.types {
            None => String::new(),
            Some(TagTypes::Danbooru) => "; tag types as Danbooru (4 is a character)".to_owned(),
            Some(TagTypes::Consecutive) => {
                "; tag types are not Danbooru's (2 is a character, 3 a copyright)".to_owned()
            }
        };
        format!(
            "{}, table {}{types}",
            self.edition.description(),
            self.table
        )
    }

    fn read_tags(&self) -> rusqlite::Result<BTreeMap<i64, (String, i64)>> {
        let mut statement = self.connection.prepare("SELECT id, name, type FROM tag")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?;
        rows.collect()
    }

    /// How the database numbers types. Each numbering has a number that the other lacks.
    fn numbering(&self, given: Option<TagTypes>) -> Result<TagTypes> {
        let has = |kind: i64| self.tags.values().any(|(_, it)| *it == kind);
        if let Some((name, kind)) = self.tags.values().find(|(_, it)| !(0..=5).contains(it)) {
            let reason = format!("its tag {name:?} has the type {kind}; 0 to 5 are known");
            return Err(BuildError::input(&self.label, reason));
        }
        let found = match (has(2), has(5)) {
            (true, false) => Some(TagTypes::Consecutive),
            (false, true) => Some(TagTypes::Danbooru),
            (true, true) | (false, false) => None,
        };
        match (found, given) {
            (Some(found), Some(given)) if found != given => Err(BuildError::input(
                &self.label,
                format!(
                    "tag_types is {given:?}, but the database has tags of type {}, which that \
                     numbering does not have",
                    if found == TagTypes::Consecutive { 2 } else { 5 }
                ),
            )),
            (Some(found), _) => Ok(found),
            (None, Some(given)) => Ok(given),
            (None, None) => Err(BuildError::input(
                &self.label,
                "it does not say how it numbers the types of tags (it has tags of both types 2 \
                 and 5, or of neither): set tag_types to \"danbooru\" (4 is a character) or \
                 \"consecutive\" (2 is a character)",
            )),
        }
    }

    /// Ranges of keys, in order.
    pub(super) fn spans(&self, rows: u64) -> Result<Vec<Span>> {
        let query = format!("SELECT min(id), max(id) FROM {}", quoted(&self.table));
        let range = self.connection.query_row(&query, [], |row| {
            Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<i64>>(1)?))
        });
        let (Some(min), Some(max)) = range.map_err(|it| self.failed(it))? else {
            return Ok(Vec::new());
        };
        let step = i64::try_from(rows.max(1)).unwrap_or(i64::MAX);
        let (mut start, mut spans) = (min, Vec::new());
        while start <= max {
            let end = start.saturating_add(step);
            spans.push(Span::Keys { start, end });
            start = end;
        }
        Ok(spans)
    }

    fn failed(&self, source: rusqlite::Error) -> BuildError {
        BuildError::input(&self.label, format!("table {}: {source}", self.table))
    }

    /// Reads the posts with these keys. Rows without one are in the first span.
    pub(super) fn read(&self, start: i64, end: i64, sink: &mut RowSink<'_>) -> Result<()> {
        let prefix = match self.edition {
            Edition::SqliteTagLists => "tag_list_",
            _ => "tag_string_",
        };
        let columns = COLUMNS.iter().map(|it| (*it).to_owned());
        let columns = columns.chain(KINDS.iter().map(|kind| format!("{prefix}{kind}")));
        let columns = columns.map(|name| match self.columns.contains(&name) {
            true => quoted(&name),
            false => "NULL".to_owned(),
        });
        let query = format!(
            "SELECT {} FROM {} WHERE id >= ?1 AND id < ?2 ORDER BY id",
            columns.collect::<Vec<_>>().join(", "),
            quoted(&self.table)
        );
        let mut statement = self
            .connection
            .prepare(&query)
            .map_err(|it| self.failed(it))?;
        let mut rows = statement
            .query([start, end])
            .map_err(|it| self.failed(it))?;
        // SQLite has no row numbers: the key is the place.
        loop {
            let row = rows.next().map_err(|it| self.failed(it))?;
            let Some(row) = row else { return Ok(()) };
            let key = number(row, 0).ok().flatten().unwrap_or(0);
            let place = Place::at(u64::try_from(key).unwrap_or(0), None);
            sink.take(self.post(row), place)?;
        }
    }

    fn post(&self, row: &Row<'_>) -> std::result::Result<Post, String> {
        let flag = |index| Ok::<_, String>(number(row, index)?.unwrap_or(0) != 0);
        let rating = match row.get_ref(1).map_err(|it| it.to_string())? {
            ValueRef::Integer(index) => match index {
                0 => "g".to_owned(),
                1 => "s".to_owned(),
                2 => "q".to_owned(),
                3 => "e".to_owned(),
                other => return Err(format!("its rating is {other}; 0 to 3 are expected")),
            },
            _ => text(row, 1)?.to_lowercase(),
        };
        let post = Post {
            rating,
            md5: text(row, 2)?,
            ext: text(row, 3)?.to_lowercase(),
            width: number(row, 4)?.unwrap_or(0),
            height: number(row, 5)?.unwrap_or(0),
            parent: number(row, 6)?.unwrap_or(0),
            has_children: flag(7)?,
            deleted: flag(8)?,
            banned: flag(9)?,
            general: self.tags(row, 10, 0)?,
            characters: self.tags(row, 11, self.character_type())?,
            artists: self.tags(row, 12, 1)?,
            ..Post::default()
        };
        checked(post, number(row, 0)?)
    }

    fn character_type(&self) -> i64 {
        match self.types {
            Some(TagTypes::Consecutive) => 2,
            Some(TagTypes::Danbooru) | None => 4,
        }
    }

    /// The tags of a column, whose type must be `kind`.
    fn tags(&self, row: &Row<'_>, index: usize, kind: i64) -> std::result::Result<String, String> {
        let text = text(row, index)?;
        if self.edition != Edition::SqliteTagLists {
            return Ok(words(&text));
        }
        let mut names = Vec::new();
        for id in text.split('#').filter(|it| !it.is_empty()) {
            let digits = id.strip_prefix('$').unwrap_or(id);
            let found = i64::from_str_radix(digits, 36).ok();
            let tag = found.and_then(|id| self.tags.get(&id));
            let Some((name, found)) = tag else {
                let id: String = id.chars().take(40).collect();
                return Err(format!("its tag {id:?} is not in the table tag"));
            };
            if *found != kind {
                return Err(format!(
                    "its tag {name:?} is listed as type {kind}, and the table tag says {found}"
                ));
            }
            names.push(name.as_str());
        }
        Ok(names.join(" "))
    }
}

fn url(file: &Path) -> String {
    let path = url::Url::from_file_path(file).map(String::from);
    let path = path.unwrap_or_else(|()| file.display().to_string());
    format!("{path}?immutable=1")
}

fn names(connection: &Connection, query: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(query)?;
    let rows = statement.query_map([], |row| row.get(0))?;
    rows.collect()
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn quoted_text(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn text(row: &Row<'_>, index: usize) -> std::result::Result<String, String> {
    match row.get_ref(index).map_err(|error| error.to_string())? {
        ValueRef::Null => Ok(String::new()),
        ValueRef::Text(bytes) => Ok(String::from_utf8_lossy(bytes).into_owned()),
        ValueRef::Integer(number) => Ok(number.to_string()),
        ValueRef::Real(_) | ValueRef::Blob(_) => Err(format!("its column {index} is no text")),
    }
}

fn number(row: &Row<'_>, index: usize) -> std::result::Result<Option<i64>, String> {
    match row.get_ref(index).map_err(|error| error.to_string())? {
        ValueRef::Null => Ok(None),
        ValueRef::Integer(number) => Ok(Some(number)),
        ValueRef::Real(value) => super::parquet::whole(value)
            .map(Some)
            .ok_or_else(|| format!("{value} is not a whole number")),
        ValueRef::Text(bytes) => {
            let text = String::from_utf8_lossy(bytes);
            match text.trim() {
                "" => Ok(None),
                "true" | "t" => Ok(Some(1)),
                "false" | "f" => Ok(Some(0)),
                text => text
                    .parse()
                    .map(Some)
                    .map_err(|_| format!("{text:?} is not a whole number")),
            }
        }
        ValueRef::Blob(_) => Err("a number is expected, and there are bytes".to_owned()),
    }
}
