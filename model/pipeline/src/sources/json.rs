//! Posts of JSON lines, of both forms. A line is a post; files with one post on several lines, or
//! with an array of posts, are read as one piece.

use super::row::{Place, RowSink};
use crate::error::Result;
use crate::post::{Edition, Post, checked};
use serde::Deserialize;
use serde::de::{Deserializer, Visitor};
use serde_json::Value;
use std::borrow::Cow;
use std::fmt;

/// Longest line of a file.
pub(super) const LINE_BYTES_MAX: usize = 16 << 20;

/// A number that may be written as a text, or be absent in several ways.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Loose(pub(super) Option<i64>);

impl<'de> Deserialize<'de> for Loose {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Loose;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number, also as a text, a boolean or null")
            }
            fn visit_bool<E>(self, value: bool) -> std::result::Result<Loose, E> {
                Ok(Loose(Some(value.into())))
            }
            fn visit_i64<E>(self, value: i64) -> std::result::Result<Loose, E> {
                Ok(Loose(Some(value)))
            }
            fn visit_u64<E: serde::de::Error>(self, value: u64) -> std::result::Result<Loose, E> {
                let number = i64::try_from(value);
                number
                    .map(|it| Loose(Some(it)))
                    .map_err(|_| E::custom(format!("the number {value} is too large")))
            }
            #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
            fn visit_f64<E: serde::de::Error>(self, value: f64) -> std::result::Result<Loose, E> {
                // Pandas writes whole numbers of a column with gaps as 12.0.
                if value.fract() == 0.0 && value.abs() < (1_i64 << 53) as f64 {
                    return Ok(Loose(Some(value as i64)));
                }
                Err(E::custom(format!("the number {value} is not whole")))
            }
            fn visit_str<E: serde::de::Error>(self, value: &str) -> std::result::Result<Loose, E> {
                match value.trim() {
                    "" => Ok(Loose(None)),
                    "true" | "t" => Ok(Loose(Some(1))),
                    "false" | "f" => Ok(Loose(Some(0))),
                    text => text.parse().map(|it| Loose(Some(it))).map_err(|_| {
                        let text: String = text.chars().take(40).collect();
                        E::custom(format!("{text:?} is not a whole number"))
                    }),
                }
            }
            fn visit_unit<E>(self) -> std::result::Result<Loose, E> {
                Ok(Loose(None))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// A text that may be null.
fn text<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Cow<'de, str>, D::Error> {
    struct Any;
    impl<'de> Visitor<'de> for Any {
        type Value = Cow<'de, str>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text or null")
        }
        fn visit_borrowed_str<E>(self, value: &'de str) -> std::result::Result<Self::Value, E> {
            Ok(Cow::Borrowed(value))
        }
        fn visit_str<E>(self, value: &str) -> std::result::Result<Self::Value, E> {
            Ok(Cow::Owned(value.to_owned()))
        }
        fn visit_unit<E>(self) -> std::result::Result<Self::Value, E> {
            Ok(Cow::Borrowed(""))
        }
    }
    deserializer.deserialize_any(Any)
}

#[derive(Debug, Deserialize)]
struct TagObject<'a> {
    #[serde(borrow, deserialize_with = "text")]
    name: Cow<'a, str>,
    category: Loose,
}

/// The fields of both forms that are read. Others are skipped.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Row<'a> {
    id: Loose,
    #[serde(borrow, deserialize_with = "text")]
    rating: Cow<'a, str>,
    #[serde(borrow, deserialize_with = "text")]
    md5: Cow<'a, str>,
    #[serde(borrow, deserialize_with = "text")]
    file_ext: Cow<'a, str>,
    image_width: Loose,
    image_height: Loose,
    parent_id: Loose,
    has_children: Loose,
    is_deleted: Loose,
    is_banned: Loose,
    #[serde(borrow)]
    tags: Option<Vec<TagObject<'a>>>,
    #[serde(borrow)]
    tag_string_general: Option<Cow<'a, str>>,
    #[serde(borrow)]
    tag_string_character: Option<Cow<'a, str>>,
    #[serde(borrow)]
    tag_string_artist: Option<Cow<'a, str>>,
}

/// The edition of the posts in the beginning of a file. None: these are objects, but no posts.
pub(super) fn edition_of(value: &Value) -> Option<Edition> {
    let keys = value.as_object()?;
    if keys.contains_key("tag_string_general") {
        return Some(Edition::TagStrings);
    }
    let tags = keys.get("tags")?.as_array()?;
    let object = |tag: &Value| tag.get("name").is_some() && tag.get("category").is_some();
    tags.iter().all(object).then_some(Edition::TagObjects)
}

/// True for a row of the list of tags that some editions have beside their posts.
pub(super) fn is_tag(value: &Value) -> bool {
    let has = |key: &str| value.get(key).is_some();
    has("name") && has("category") && !has("rating")
}

/// The post of a line, or why there is none.
pub(super) fn post(text: &[u8], edition: Edition) -> std::result::Result<Post, String> {
    let row: Row<'_> = serde_json::from_slice(text).map_err(|error| {
        // The place is in the report; without it rows with the same fault have the same reason.
        let message = error.to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        let message = message.strip_suffix(&place).unwrap_or(&message);
        format!("it is not the JSON of a post: {message}")
    })?;
    let flag = |it: Loose| it.0.unwrap_or(0) != 0;
    let mut post = Post {
        rating: row.rating.to_lowercase(),
        md5: row.md5.into_owned(),
        ext: row.file_ext.to_lowercase(),
        width: row.image_width.0.unwrap_or(0),
        height: row.image_height.0.unwrap_or(0),
        parent: row.parent_id.0.unwrap_or(0),
        has_children: flag(row.has_children),
        deleted: flag(row.is_deleted),
        banned: flag(row.is_banned),
        ..Post::default()
    };
    match edition {
        Edition::TagObjects => {
            let tags = row
                .tags
                .ok_or("it has no list of tags, as others of this file have")?;
            for tag in &tags {
                let list = match tag.category.0 {
                    Some(0) => &mut post.general,
                    Some(1) => &mut post.artists,
                    Some(4) => &mut post.characters,
                    Some(3 | 5) => continue,
                    other => {
                        return Err(format!(
                            "a tag has the category {}; 0, 1, 3, 4 or 5 is expected",
                            other.map_or("null".to_owned(), |it| it.to_string())
                        ));
                    }
                };
                if !list.is_empty() {
                    list.push(' ');
                }
                list.push_str(&tag.name);
            }
        }
        _ => {
            let general = row.tag_string_general;
            let general = general.ok_or("it has no tag_string_general, as others of this file")?;
            post.general = words(&general);
            post.characters = words(&row.tag_string_character.unwrap_or_default());
            post.artists = words(&row.tag_string_artist.unwrap_or_default());
        }
    }
    checked(post, row.id.0)
}

/// Words with one space between them.
pub(super) fn words(text: &str) -> String {
    let is_plain = !text.starts_with(' ') && !text.ends_with(' ') && !text.contains("  ");
    if is_plain && !text.contains(['\n', '\t']) {
        return text.to_owned();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Reads the lines that begin inside of a piece. `text` is what follows the piece's beginning.
pub(super) struct Lines {
    edition: Edition,
    pending: Vec<u8>,
    /// Of the pending bytes, in the file.
    offset: u64,
    /// Lines that begin here or later belong to the next piece.
    end: u64,
    row: u64,
    pub(super) done: bool,
}

impl Lines {
    pub(super) fn new(edition: Edition, offset: u64, end: u64) -> Self {
        Self {
            edition,
            pending: Vec::new(),
            offset,
            end,
            row: 0,
            done: false,
        }
    }

    /// Lines so far, also empty ones.
    pub(super) fn rows(&self) -> u64 {
        self.row
    }

    /// The first line of the piece begins here; what is before it belongs to the piece before.
    pub(super) fn begin_at(&mut self, offset: u64) {
        self.offset = offset;
    }

    /// Adds bytes of the file. `last`: none follow.
    pub(super) fn add(&mut self, bytes: &[u8], last: bool, sink: &mut RowSink<'_>) -> Result<()> {
        self.pending.extend_from_slice(bytes);
        let pending = std::mem::take(&mut self.pending);
        let mut rest = pending.as_slice();
        while !self.done {
            let (line, length) = match rest.iter().position(|byte| *byte == b'\n') {
                Some(end) => (&rest[..end], end + 1),
                None if last && !rest.is_empty() => (rest, rest.len()),
                None if LINE_BYTES_MAX < rest.len() => {
                    // Its end is not looked for: it would not fit into memory.
                    let at = Place::at(self.row + 1, Some(self.offset));
                    let reason = format!("the line has more than {LINE_BYTES_MAX} bytes");
                    return Err(sink.unreadable(at, &reason));
                }
                None => break,
            };
            if self.end <= self.offset {
                self.done = true;
                break;
            }
            self.row += 1;
            self.line(line, sink)?;
            rest = &rest[length..];
            self.offset += length as u64;
        }
        self.pending = rest.to_vec();
        Ok(())
    }

    fn line(&self, line: &[u8], sink: &mut RowSink<'_>) -> Result<()> {
        let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        let line = line.trim_ascii();
        if line.is_empty() {
            return Ok(());
        }
        let at = Place::at(self.row, Some(self.offset));
        sink.take(post(line, self.edition), at)
    }
}

/// Reads a file whose posts are not one in each line. Returns the number of posts.
pub(super) fn document(text: &[u8], edition: Edition, sink: &mut RowSink<'_>) -> Result<u64> {
    let mut row = 0;
    let mut take = |value: &Value, offset: Option<u64>, sink: &mut RowSink<'_>| {
        row += 1;
        let text = value.to_string();
        sink.take(post(text.as_bytes(), edition), Place::at(row, offset))
    };
    let mut stream = serde_json::Deserializer::from_slice(text).into_iter::<Value>();
    loop {
        let offset = stream.byte_offset() as u64;
        match stream.next() {
            None => return Ok(row),
            // Its posts have no offsets.
            Some(Ok(Value::Array(posts))) => {
                for post in &posts {
                    take(post, None, sink)?;
                }
            }
            Some(Ok(value)) => take(&value, Some(offset), sink)?,
            // What follows a fault cannot be told apart.
            Some(Err(error)) => {
                let at = Place::at(row + 1, Some(offset));
                return Err(sink.unreadable(at, &format!("it is not JSON: {error}")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers_may_be_texts_and_absent_in_several_ways() {
        let loose = |text: &str| serde_json::from_str::<Loose>(text).map(|it| it.0);
        assert_eq!(loose("\"12\"").unwrap(), Some(12));
        assert_eq!(loose("12").unwrap(), Some(12));
        assert_eq!(loose("12.0").unwrap(), Some(12));
        assert_eq!(loose("true").unwrap(), Some(1));
        assert_eq!(loose("null").unwrap(), None);
        assert_eq!(loose("\"\"").unwrap(), None);
        assert!(loose("12.5").is_err() && loose("\"x\"").is_err());
        assert!(loose("18446744073709551615").is_err());
    }

    #[test]
    fn both_forms_give_the_same_post() {
        let old = br#"{"id":"7","rating":"s","parent_id":"0","is_deleted":false,"tags":[
            {"id":"1","name":"skirt","category":"0"},{"id":"2","name":"a","category":"1"},
            {"id":"3","name":"c","category":"4"},{"id":"4","name":"x","category":"3"}]}"#;
        let new = br#"{"id":7,"rating":"s","parent_id":null,"is_deleted":false,
            "tag_string_general":"skirt","tag_string_artist":"a","tag_string_character":"c"}"#;
        let old = post(old, Edition::TagObjects).unwrap();
        assert_eq!(old, post(new, Edition::TagStrings).unwrap());
        assert_eq!(
            (old.id, old.artists.as_str(), old.characters.as_str()),
            (7, "a", "c")
        );
    }

    #[test]
    fn faults_of_a_row_are_named() {
        let fault = |text: &str| post(text.as_bytes(), Edition::TagObjects).unwrap_err();
        assert_eq!(fault(r#"{"tags":[]}"#), "it has no id");
        assert_eq!(
            fault(r#"{"id":-1,"tags":[]}"#),
            "its id is not a positive number"
        );
        assert!(fault(r#"{"id":1}"#).contains("no list of tags"));
        let category = fault(r#"{"id":1,"tags":[{"name":"a","category":"2"}]}"#);
        assert!(
            category.contains("category 2; 0, 1, 3, 4 or 5"),
            "{category}"
        );
        assert!(fault(r#"{"id":1,"tags":[],"rating":"x"}"#).contains("rating is \"x\""));
        assert!(fault("{\"id\":").contains("not the JSON of a post: EOF"));
    }
}
