//! The fake Danbooru as Parquet and SQLite.

use crate::danbooru::{FakePost, md5};
use arrow_array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// A Parquet mirror with row groups of 50.
pub(crate) fn parquet(posts: &[FakePost], file: &Path) {
    let text = |of: &dyn Fn(&FakePost) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(posts.iter().map(of)))
    };
    let number = |of: &dyn Fn(&FakePost) -> Option<i64>| -> ArrayRef {
        Arc::new(posts.iter().map(of).collect::<Int64Array>())
    };
    let flag = |of: &dyn Fn(&FakePost) -> bool| -> ArrayRef {
        Arc::new(
            posts
                .iter()
                .map(|post| Some(of(post)))
                .collect::<BooleanArray>(),
        )
    };
    let batch = RecordBatch::try_from_iter(vec![
        ("id", number(&|it| Some(it.id))),
        ("md5", text(&md5)),
        ("rating", text(&|it| it.rating.to_string())),
        ("image_width", number(&|_| Some(512))),
        ("image_height", number(&|_| Some(768))),
        ("file_ext", text(&|_| "png".to_owned())),
        ("parent_id", number(&|it| it.parent)),
        ("has_children", flag(&|_| false)),
        ("is_deleted", flag(&|it| it.deleted)),
        ("is_banned", flag(&|_| false)),
        ("tag_string_general", text(&|it| it.general.join(" "))),
        ("tag_string_character", text(&|it| it.characters.join(" "))),
        ("tag_string_artist", text(&|it| it.artists.join(" "))),
    ]);
    let batch = batch.unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    for start in (0..posts.len()).step_by(50) {
        let rows = batch.slice(start, 50.min(posts.len() - start));
        writer.write(&rows).unwrap();
        writer.flush().unwrap();
    }
    std::fs::write(file, writer.into_inner().unwrap()).unwrap();
}

/// How the fake database numbers the types of tags.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Numbers {
    pub(crate) artist: i64,
    pub(crate) character: i64,
    pub(crate) meta: i64,
}

pub(crate) const CONSECUTIVE: Numbers = Numbers {
    artist: 1,
    character: 2,
    meta: 4,
};
pub(crate) const DANBOORU: Numbers = Numbers {
    artist: 1,
    character: 4,
    meta: 5,
};

fn base36(mut number: i64) -> String {
    let mut digits = Vec::new();
    while 0 < number {
        let digit = u32::try_from(number % 36).unwrap();
        digits.push(char::from_digit(digit, 36).unwrap());
        number /= 36;
    }
    digits.iter().rev().collect()
}

/// A SQLite mirror with lists of ids in base 36 and a table of tags.
pub(crate) fn sqlite_lists(posts: &[FakePost], numbers: Numbers, file: &Path) {
    let mut tags: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    let mut list = |names: &[String], kind: i64| -> String {
        let mut text = String::new();
        for name in names {
            let next = 1 + i64::try_from(tags.len()).unwrap();
            let (id, _) = tags.entry(name.clone()).or_insert((next, kind));
            text += &format!("${}#", base36(*id));
        }
        text
    };
    let database = rusqlite::Connection::open(file).unwrap();
    let create = "CREATE TABLE post(id INTEGER PRIMARY KEY, md5, rating, image_width, image_height,
            file_ext, parent_id, has_children, is_deleted, is_banned, tag_list_general,
            tag_list_artist, tag_list_character, tag_list_copyright, tag_list_meta);
        CREATE TABLE tag(id INTEGER PRIMARY KEY, name, type, popularity); BEGIN";
    database.execute_batch(create).unwrap();
    for post in posts {
        let rating = i64::try_from("gsqe".find(post.rating).unwrap()).unwrap();
        let values = (
            post.id,
            md5(post),
            rating,
            post.parent,
            post.deleted,
            list(&post.general, 0),
            list(&post.artists, numbers.artist),
            list(&post.characters, numbers.character),
            list(&["highres".to_owned()], numbers.meta),
        );
        let insert = "INSERT INTO post VALUES (?1, ?2, ?3, 512, 768, 'png', ?4, 0, ?5, 0, ?6, ?7, \
                      ?8, '', ?9)";
        let _ = database.execute(insert, values).unwrap();
    }
    for (name, (id, kind)) in &tags {
        let insert = "INSERT INTO tag VALUES (?1, ?2, ?3, 1)";
        let _ = database.execute(insert, (id, name, kind)).unwrap();
    }
    database.execute_batch("COMMIT").unwrap();
}

/// A SQLite mirror with the columns of the site's API.
pub(crate) fn sqlite_strings(posts: &[FakePost], file: &Path) {
    let database = rusqlite::Connection::open(file).unwrap();
    let create = "CREATE TABLE posts(id INTEGER PRIMARY KEY, md5 TEXT, rating TEXT, image_width,
        image_height, file_ext TEXT, parent_id, is_deleted, tag_string_general TEXT,
        tag_string_artist TEXT, tag_string_character TEXT); BEGIN";
    database.execute_batch(create).unwrap();
    for post in posts {
        let values = (
            post.id,
            md5(post),
            post.rating.to_string(),
            post.parent,
            post.deleted,
            post.general.join(" "),
            post.artists.join(" "),
            post.characters.join(" "),
        );
        let insert = "INSERT INTO posts VALUES (?1, ?2, ?3, 512, 768, 'png', ?4, ?5, ?6, ?7, ?8)";
        let _ = database.execute(insert, values).unwrap();
    }
    database.execute_batch("COMMIT").unwrap();
}
