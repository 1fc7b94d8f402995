//! Rows in the form of `coordinator dataset import`, and of a data set's published annotations:
//! `samples.jsonl`. Images are those that the rows name, or, without them, images that somebody
//! has, named by the rows' ids.

use super::recognise::SAMPLES;
use super::{Entry, Source};
use crate::error::Result;
use crate::figure::WHOLE;
use proto::build::report::Report;
use proto::rating::Rating;
use serde::Deserialize;
use std::collections::BTreeMap;

/// A line of the file. `model_data::import` documents its fields.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: String,
    character: String,
    #[serde(default)]
    artists: String,
    bbox: Option<[f64; 4]>,
    #[serde(default)]
    prompts: String,
    #[serde(default)]
    cloths: Vec<String>,
    #[serde(default)]
    similar: Vec<String>,
    #[serde(default)]
    outfit: String,
    image: Option<String>,
    mask: Option<String>,
    #[serde(default)]
    whole: bool,
    rating: Option<String>,
}

pub(super) async fn read(source: &Source<'_>, report: &mut Report) -> Result<Vec<Entry>> {
    let text = source.read(SAMPLES, super::TEXT_BYTES_MAX).await?;
    let (mut entries, mut similar) = (Vec::new(), Vec::new());
    let mut offset = 0_u64;
    for (row, line) in (1..).zip(text.split(|it| *it == b'\n')) {
        let start = offset;
        offset += line.len() as u64 + 1;
        let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        if line.trim_ascii().is_empty() {
            continue;
        }
        let parsed = serde_json::from_slice::<Line>(line).map_err(|error| error.to_string());
        match parsed.and_then(|line| entry(source, line)) {
            Ok((entry, links)) => {
                entries.push(entry);
                similar.push(links);
            }
            Err(reason) => source.bad((SAMPLES, row, Some(start)), reason, report)?,
        }
    }
    link(&mut entries, &similar);
    Ok(entries)
}

fn entry(source: &Source<'_>, line: Line) -> std::result::Result<(Entry, Vec<String>), String> {
    if line.id.trim().is_empty() || line.character.trim().is_empty() {
        return Err("it has no id or no character".to_owned());
    }
    if source.joined {
        let is_number = line.id.parse::<i64>().is_ok_and(|id| 0 < id);
        if !is_number {
            let id = &line.id;
            return Err(format!(
                "its id {id:?} is no number, by which an image is found"
            ));
        }
    } else if line.image.is_none() {
        return Err(
            "it has no image: name a folder of images as dataset.images, with which rows are \
             joined"
                .to_owned(),
        );
    }
    let rating = line.rating.unwrap_or_default();
    let rating = match Rating::meant(&rating) {
        Some(Rating::Unrated) => String::new(),
        Some(rating) => rating.word().to_owned(),
        None if rating.trim().is_empty() => String::new(),
        None => return Err(format!("its rating is {rating:?}")),
    };
    let underscored = |tag: &str| tag.split_whitespace().collect::<Vec<_>>().join("_");
    let tags = line.prompts.split(',').map(underscored);
    let cloths = line.cloths.iter().map(|tag| underscored(tag));
    let not_empty = |tag: &String| !tag.is_empty();
    let mask = match line.mask {
        Some(_) if line.whole => return Err("it is whole, and has a mask".to_owned()),
        Some(mask) => mask,
        None if line.whole => WHOLE.to_owned(),
        None => String::new(),
    };
    let entry = Entry {
        name: line.id,
        identity: line.character,
        artist: line.artists,
        rating,
        outfit: line.outfit,
        tags: tags.filter(not_empty).collect(),
        cloths: Some(cloths.filter(not_empty).collect()),
        image: line.image.unwrap_or_default(),
        range: None,
        mask,
        bbox: line.bbox,
    };
    Ok((entry, line.similar))
}

fn root(parents: &mut [usize], mut at: usize) -> usize {
    while parents[at] != at {
        parents[at] = parents[parents[at]];
        at = parents[at];
    }
    at
}

/// Rows without an outfit that name each other as similar have one, named after the first of them.
fn link(entries: &mut [Entry], similar: &[Vec<String>]) {
    let names = entries.iter().enumerate();
    let index: BTreeMap<String, usize> = names.map(|(at, it)| (it.name.clone(), at)).collect();
    let mut parents: Vec<usize> = (0..entries.len()).collect();
    for (at, links) in similar.iter().enumerate() {
        for other in links.iter().filter_map(|id| index.get(id)) {
            let (a, b) = (root(&mut parents, at), root(&mut parents, *other));
            parents[a.max(b)] = a.min(b);
        }
    }
    let roots: Vec<usize> = (0..entries.len())
        .map(|at| root(&mut parents, at))
        .collect();
    let mut members: BTreeMap<usize, usize> = BTreeMap::new();
    for root in &roots {
        *members.entry(*root).or_insert(0) += 1;
    }
    for (at, first) in roots.into_iter().enumerate() {
        if entries[at].outfit.is_empty() && 1 < members[&first] {
            entries[at].outfit = format!("of {}", entries[first].name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_similar_have_one_outfit_and_others_none() {
        let entry = |name: &str| Entry {
            name: name.to_owned(),
            ..Entry::default()
        };
        let mut entries: Vec<Entry> = ["a", "b", "c", "d"].map(entry).into();
        let links = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
        // "a" names nobody, and "x" does not exist.
        let similar: Vec<Vec<String>> =
            vec![links(&[]), links(&["a"]), links(&["b", "x"]), links(&["x"])];
        link(&mut entries, &similar);
        let outfits: Vec<&str> = entries.iter().map(|it| it.outfit.as_str()).collect();
        assert_eq!(outfits, ["of a", "of a", "of a", ""]);
    }
}
