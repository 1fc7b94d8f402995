//! CelebA (Liu et al. 2015): `identity_CelebA.txt` names the person of each image,
//! `list_bbox_celeba.txt` has face boxes in pixels of the images before their alignment, and
//! `list_attr_celeba.txt` 40 attributes, which become tags.

use super::{Entry, NO_ROW, Source};
use crate::error::{BuildError, Result};
use crate::figure::WHOLE;
use futures::StreamExt;
use proto::build::report::Report;
use std::collections::BTreeMap;

/// Images whose sizes are read at a time.
const READS: usize = 8;
const IMAGE_BYTES_MAX: u64 = 64 << 20;
const IDENTITIES: &str = "identity_CelebA.txt";
const BOXES: &str = "list_bbox_celeba.txt";
const ATTRIBUTES: &str = "list_attr_celeba.txt";

/// The path of a file, wherever it is in the folder.
fn find<'a>(source: &'a Source<'_>, name: &str) -> Option<&'a str> {
    let paths = source.files.iter().map(|file| file.path.as_str());
    let mut found = paths.filter(|path| path.rsplit('/').next() == Some(name));
    found.next()
}

pub(super) async fn read(source: &Source<'_>, report: &mut Report) -> Result<Vec<Entry>> {
    let mut images: BTreeMap<&str, &str> = BTreeMap::new();
    for file in source.images() {
        let name = file.path.rsplit('/').next().unwrap_or_default();
        if images.insert(name, &file.path).is_some() {
            report.count("images whose name another folder has, too", 1);
        }
    }
    let attributes = attributes(source, report).await?;
    let boxes = boxes(source, report).await?;
    let path = find(source, IDENTITIES).unwrap_or(IDENTITIES);
    let text = source.text(path).await?;
    let mut entries = Vec::new();
    for (row, line) in (1..).zip(text.lines()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (name, identity) = match words.as_slice() {
            [] => continue,
            [name, identity] => (*name, *identity),
            _ => {
                let reason = format!("{line:?} is no name of an image and number of a person");
                source.bad((path, row, None), reason, report)?;
                continue;
            }
        };
        let Some(image) = images.remove(name) else {
            let reason = format!("there is no image {name}");
            source.bad((path, row, None), reason, report)?;
            continue;
        };
        entries.push(Entry {
            name: super::stem(name).to_owned(),
            identity: identity.to_owned(),
            tags: attributes.get(name).cloned().unwrap_or_default(),
            cloths: Some(Vec::new()),
            image: image.to_owned(),
            mask: WHOLE.to_owned(),
            ..Entry::default()
        });
    }
    report.lose(NO_ROW, images.len() as u64);
    add_boxes(source, &boxes, &mut entries, report).await?;
    Ok(entries)
}

/// `N`, the names of the attributes, and for each image 1 or -1 for each of them.
async fn attributes(
    source: &Source<'_>,
    report: &mut Report,
) -> Result<BTreeMap<String, Vec<String>>> {
    let mut found = BTreeMap::new();
    let Some(path) = find(source, ATTRIBUTES) else {
        return Ok(found);
    };
    let text = source.text(path).await?;
    let mut lines = (1..).zip(text.lines()).skip(1);
    let names = lines.next().map_or("", |(_, line)| line);
    let names: Vec<String> = names.split_whitespace().map(str::to_lowercase).collect();
    for (row, line) in lines {
        let mut words = line.split_whitespace();
        let Some(image) = words.next() else { continue };
        let values: Vec<&str> = words.collect();
        if values.len() != names.len() {
            let reason = format!("{} attributes; there are {}", values.len(), names.len());
            source.bad((path, row, None), reason, report)?;
            continue;
        }
        let tags = names.iter().zip(values).filter(|(_, value)| *value == "1");
        let mut tags: Vec<String> = tags.map(|(name, _)| name.clone()).collect();
        tags.sort();
        found.insert(image.to_owned(), tags);
    }
    Ok(found)
}

/// `N`, a heading, and for each image left, top, width and height in pixels.
async fn boxes(source: &Source<'_>, report: &mut Report) -> Result<BTreeMap<String, [f64; 4]>> {
    let mut found = BTreeMap::new();
    let Some(path) = find(source, BOXES) else {
        return Ok(found);
    };
    let text = source.text(path).await?;
    for (row, line) in (1..).zip(text.lines()).skip(2) {
        let mut words = line.split_whitespace();
        let Some(image) = words.next() else { continue };
        let numbers: Vec<f64> = words.filter_map(|it| it.parse().ok()).collect();
        if let Ok(numbers) = <[f64; 4]>::try_from(numbers) {
            found.insert(image.to_owned(), numbers);
        } else {
            let reason = format!("{line:?} is no box: a name and four numbers of pixels");
            source.bad((path, row, None), reason, report)?;
        }
    }
    Ok(found)
}

/// Boxes become fractions. Those of aligned images are of other pixels, and are not used.
async fn add_boxes(
    source: &Source<'_>,
    boxes: &BTreeMap<String, [f64; 4]>,
    entries: &mut [Entry],
    report: &mut Report,
) -> Result<()> {
    let mut wanted = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let name = entry.image.rsplit('/').next().unwrap_or_default();
        let Some(bbox) = boxes.get(name) else {
            continue;
        };
        if entry.image.contains("align") {
            report.count("aligned images, to which the face boxes do not apply", 1);
            continue;
        }
        wanted.push((index, entry.image.clone(), *bbox));
    }
    let sizes: Vec<_> = futures::stream::iter(&wanted)
        .map(|(_, path, _)| async move {
            let bytes = source.read(path, IMAGE_BYTES_MAX).await?;
            let reader = image::ImageReader::new(std::io::Cursor::new(bytes));
            let reader = reader.with_guessed_format().ok();
            Ok::<_, BuildError>(reader.and_then(|it| it.into_dimensions().ok()))
        })
        .buffered(READS)
        .collect()
        .await;
    for ((index, _, [left, top, across, down]), size) in wanted.iter().zip(sizes) {
        let fractions = size?.map(|(width, height)| {
            let (width, height) = (f64::from(width), f64::from(height));
            let clip = |low: f64, length: f64, side: f64| {
                let (low, high) = (low.clamp(0.0, side), (low + length).clamp(0.0, side));
                ((low + high) / 2.0 / side, (high - low) / side)
            };
            let ((x, width), (y, height)) =
                (clip(*left, *across, width), clip(*top, *down, height));
            [x, y, width, height]
        });
        match fractions {
            Some(bbox) if 0.0 < bbox[2] && 0.0 < bbox[3] => entries[*index].bbox = Some(bbox),
            // An image that cannot be read is refused where it is decoded.
            Some(_) | None => report.count("face boxes that are empty or outside", 1),
        }
    }
    Ok(())
}
