//! Images with captions in text files beside them, as trainers of LoRA read them:
//! `[N_]CHARACTER/NAME.png` and `NAME.txt`. N is a number of repeats, which is not used.

use super::{Entry, NO_IDENTITY, Source, stem};
use crate::error::Result;
use crate::figure::WHOLE;
use futures::{StreamExt, TryStreamExt};
use proto::build::report::Report;
use std::collections::BTreeMap;

/// Captions that are read at a time.
const READS: usize = 16;
const CAPTION_BYTES_MAX: u64 = 1 << 20;

pub(super) fn caption_of(image: &str) -> String {
    format!("{}.txt", stem(image))
}

/// The parts of a caption between commas, as tags. Tokens that are kept in front (`|||`) are tags;
/// of alternatives (`;;;`) and of wildcards (`{a|b}`) the first is taken, and counted.
fn tags(caption: &str, report: &mut Report) -> Vec<String> {
    let first = caption.split(";;;").next().unwrap_or_default();
    report.count(
        "captions with alternatives, of which the first is taken",
        u64::from(first.len() < caption.len()),
    );
    let mut text = first.replace("|||", ",");
    while let Some((before, inner, after)) = wildcard(&text) {
        report.count("wildcards, of which the first choice is taken", 1);
        text = format!("{before}{inner}{after}");
    }
    let mut tags: Vec<String> = text
        .split(',')
        .map(|tag| tag.split_whitespace().collect::<Vec<_>>().join("_"))
        .map(|tag| tag.to_lowercase())
        .filter(|tag| !tag.is_empty())
        .collect();
    tags.sort();
    tags.dedup();
    tags
}

/// The text before the first innermost wildcard, its first choice, and the text after it.
fn wildcard(text: &str) -> Option<(&str, &str, &str)> {
    let close = text.match_indices('}').map(|(at, _)| at).find(|at| {
        text[..*at]
            .rfind('{')
            .is_some_and(|open| text[open..*at].contains('|'))
    })?;
    let open = text[..close].rfind('{')?;
    let inner = &text[open + 1..close];
    let first = inner.split('|').next().unwrap_or_default();
    Some((&text[..open], first, &text[close + 1..]))
}

/// The folder's name without a number of repeats.
fn character(folder: &str) -> &str {
    let digits = folder.find(|it: char| !it.is_ascii_digit()).unwrap_or(0);
    match folder[digits..].strip_prefix('_') {
        Some(name) if 0 < digits && !name.is_empty() => name,
        _ => folder,
    }
}

pub(super) async fn read(source: &Source<'_>, report: &mut Report) -> Result<Vec<Entry>> {
    let captions: BTreeMap<&str, ()> = source
        .files
        .iter()
        .filter(|it| it.path.ends_with(".txt"))
        .map(|it| (it.path.as_str(), ()))
        .collect();
    let mut found = Vec::new();
    for file in source.images() {
        let folder = file.path.rsplit_once('/').map(|(folder, _)| folder);
        let Some(folder) = folder else {
            report.lose(NO_IDENTITY, 1);
            continue;
        };
        let caption = caption_of(&file.path);
        if captions.contains_key(caption.as_str()) {
            found.push((file, folder, caption));
        } else {
            let reason = format!("there is no {caption} beside it");
            source.bad((&file.path, 0, None), reason, report)?;
        }
    }
    let texts: Vec<_> = futures::stream::iter(&found)
        .map(|(_, _, caption)| source.read(caption, CAPTION_BYTES_MAX))
        .buffered(READS)
        .try_collect()
        .await?;
    let mut entries = Vec::new();
    for ((file, folder, caption), text) in found.iter().zip(texts) {
        let text = String::from_utf8_lossy(&text);
        let tags = tags(text.trim_start_matches('\u{feff}'), report);
        if tags.is_empty() {
            let reason = "the caption is empty".to_owned();
            source.bad((caption, 1, None), reason, report)?;
            continue;
        }
        let name = folder.rsplit('/').next().unwrap_or(folder);
        entries.push(Entry {
            name: stem(&file.path).to_owned(),
            identity: character(name).to_owned(),
            tags,
            image: file.path.clone(),
            mask: WHOLE.to_owned(),
            ..Entry::default()
        });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_become_tags() {
        let mut report = Report::default();
        let found = tags(
            "1girl ||| Red  Dress, {white|{black|grey}} boots, smile, smile;;;else",
            &mut report,
        );
        assert_eq!(found, ["1girl", "red_dress", "smile", "white_boots"]);
        assert_eq!(
            report.counts["wildcards, of which the first choice is taken"],
            2
        );
        assert_eq!(tags("a } { b", &mut Report::default()), ["a_}_{_b"]);
        let characters = ["3_miku", "miku", "12_", "2b", "7_2b"].map(character);
        assert_eq!(characters, ["miku", "miku", "12_", "2b", "2b"]);
    }
}
