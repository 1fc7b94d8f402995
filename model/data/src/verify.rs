//! Re-reads a whole data set and lists all faults. It repairs nothing and continues after a fault,
//! so one damaged file does not hide the faults of the next. Called by `coordinator dataset
//! verify`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use proto::rating::Rating;
use serde::Serialize;

use crate::dataset::{Dataset, DatasetError, GroupId};
use crate::decode::{Change, ChangeCounts, Expect, MaskSource, Origin, decode};
use crate::image_sizes::{COMMON, ImageSizes};
use crate::names;
use crate::sample::{Metadata, Sample};
use proto::text::{chain, hex_sha256};

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub path: String,
    /// Row group and row inside it, both 0-based, and the row's id. None for a fault of the whole
    /// file.
    pub row: Option<(usize, usize, String)>,
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.row {
            Some((group, row, id)) => {
                write!(
                    f,
                    "{}: row group {group}, row {row} (id {id:?}): {}",
                    self.path, self.what
                )
            }
            None => write!(f, "{}: {}", self.path, self.what),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// Samples that were read.
    pub samples: u64,
    pub findings: Vec<Finding>,
    /// What the import changed or guessed, or would today; no faults.
    pub changes: ChangeCounts,
    /// For common sizes of squares; no faults.
    pub sizes: ImageSizes,
}

/// Checks files against `dataset.json`, all rows and images, and the index.
///
/// # Errors
/// Faults of the data set are findings, not errors. It fails only if a position that was just read
/// is outside the data set.
pub async fn verify(dataset: &Dataset) -> Result<Verification, DatasetError> {
    let mut findings = Vec::new();
    let manifest = dataset.manifest();
    for file in &manifest.files {
        check_file(
            dataset,
            &file.path,
            file.size_bytes,
            &file.sha256,
            &mut findings,
        )
        .await;
    }
    let index = &manifest.index;
    check_file(
        dataset,
        &index.path,
        index.size_bytes,
        &index.sha256,
        &mut findings,
    )
    .await;
    let mut rows: BTreeMap<u64, (GroupId, Metadata)> = BTreeMap::new();
    let mut changes = ChangeCounts::default();
    let mut sizes = ImageSizes::new(&COMMON);
    for (first, group) in dataset.groups().collect::<Vec<_>>() {
        match dataset.rows_of_group(group).await {
            Err(error) => findings.push(file_finding(dataset.path_of(group), chain(&error))),
            Ok(samples) => {
                for (row, sample) in samples.into_iter().enumerate() {
                    let position = first + row as u64;
                    let location = RowLocation {
                        dataset,
                        group,
                        row,
                    };
                    let today = location.check_row(&sample, &mut findings);
                    let row = &sample.metadata;
                    sizes.add(&row.id, row.width, row.height);
                    let all = row.changes.iter().chain(&today);
                    changes.add(&row.id, all.map(String::as_str));
                    rows.insert(position, (group, sample.metadata));
                }
            }
        }
    }
    check_links(dataset, &rows, &mut findings)?;
    check_spellings(dataset, &rows, &mut findings)?;
    check_index(dataset, &rows, &mut findings).await;
    Ok(Verification {
        samples: rows.len() as u64,
        findings,
        changes,
        sizes,
    })
}

struct RowLocation<'a> {
    dataset: &'a Dataset,
    group: GroupId,
    row: usize,
}

impl RowLocation<'_> {
    fn finding(&self, id: &str, what: String) -> Finding {
        Finding {
            path: self.dataset.path_of(self.group).to_owned(),
            row: Some((self.group.group, self.row, id.to_owned())),
            what,
        }
    }

    /// Returns what an import would change today without a fault, as the column `changes` has it.
    fn check_row(&self, sample: &Sample, findings: &mut Vec<Finding>) -> Vec<String> {
        let row = &sample.metadata;
        let mut report = |what: String| findings.push(self.finding(&row.id, what));
        let box_fault = check_box(row.bbox).err();
        let expect = Expect {
            what: "image",
            origin: Origin::Stored,
            size: Some((row.width, row.height)),
            face: box_fault.is_none().then_some(row.bbox),
            check: true,
        };
        let mut pending = Vec::new();
        let stored = MaskSource::File(&sample.mask);
        let mask = if row.is_whole() {
            MaskSource::Whole
        } else {
            stored
        };
        if let Err(error) = decode(&sample.image, mask, &expect, &mut pending) {
            report(error.to_string());
        }
        if row.is_whole() {
            // A mask without background is no fault of such a row, and any other is.
            let lenient = Expect {
                check: false,
                ..expect
            };
            match decode(&sample.image, stored, &lenient, &mut Vec::new()) {
                Ok(pixels) if pixels.mask.as_raw().iter().all(|it| *it == u8::MAX) => {}
                Ok(_) => report("it counts as whole, but its mask is not 255 everywhere".into()),
                Err(error) => report(error.to_string()),
            }
        }
        let (faults, harmless): (Vec<Change>, Vec<Change>) = pending
            .into_iter()
            .partition(|it| it.kind.is_fault_of_stored());
        for change in faults {
            let what = change.sentence();
            report(format!(
                "an import would change it today, so import it again: {what}"
            ));
        }
        if let Some(reason) = box_fault {
            report(reason);
        }
        let outfit = match row.outfit.as_str() {
            "" => Ok(String::new()),
            outfit => names::name(outfit),
        };
        let artists = match row.artists.as_str() {
            "" => Ok(String::new()),
            artists => names::name(artists),
        };
        for (field, value, cleaned) in [
            ("id", &row.id, names::id(&row.id)),
            ("character", &row.character, names::name(&row.character)),
            ("artists", &row.artists, artists),
            ("outfit", &row.outfit, outfit),
        ] {
            match cleaned {
                Err(reason) => report(format!("{field} {reason}")),
                Ok(cleaned) if cleaned != *value => report(format!(
                    "{field} is {value:?}; an import writes {cleaned:?} today (white space, \
                     invisible characters, Unicode form NFC)"
                )),
                Ok(_) => {}
            }
        }
        if Rating::parse(&row.rating).is_none() {
            report(format!(
                "rating is {:?}; it must be general, sensitive, questionable, explicit, or empty",
                row.rating
            ));
        }
        harmless.iter().map(ToString::to_string).collect()
    }
}

/// Checks that a face box is inside the image and not empty.
///
/// # Errors
/// The reason why the box is invalid.
pub fn check_box(bbox: [f64; 4]) -> Result<(), String> {
    let [cx, cy, w, h] = bbox;
    // Detectors print six digits, so a box may exceed the image by half a millionth.
    let inside = |low: f64, high: f64| low >= -1e-5 && high <= 1.0 + 1e-5 && high > low;
    if inside(cx - w / 2.0, cx + w / 2.0) && inside(cy - h / 2.0, cy + h / 2.0) {
        return Ok(());
    }
    Err(format!(
        "bbox [{cx}, {cy}, {w}, {h}] leaves the image or is empty; \
         write centre x, centre y, width, height in 0..1"
    ))
}

async fn check_file(
    dataset: &Dataset,
    path: &str,
    size: u64,
    sha256: &str,
    findings: &mut Vec<Finding>,
) {
    match dataset.bytes_of(path).await {
        Err(error) => findings.push(file_finding(path, chain(&error))),
        Ok(bytes) if bytes.len() as u64 != size => {
            findings.push(file_finding(
                path,
                format!("has {} bytes, dataset.json says {size}", bytes.len()),
            ));
        }
        Ok(bytes) => {
            let found = hex_sha256(&bytes);
            if found != sha256 {
                findings.push(file_finding(
                    path,
                    format!("has SHA-256 {found}, dataset.json says {sha256}"),
                ));
            }
        }
    }
}

/// Finds duplicate ids, and `similar` entries that do not exist, name the sample itself, are of
/// another character or artist, are in another row group, or disagree with their positions.
fn check_links(
    dataset: &Dataset,
    rows: &BTreeMap<u64, (GroupId, Metadata)>,
    findings: &mut Vec<Finding>,
) -> Result<(), DatasetError> {
    let mut positions: BTreeMap<&str, u64> = BTreeMap::new();
    for (position, (group, row)) in rows {
        let (_, row_in_group) = dataset.group_of(*position)?;
        let location = RowLocation {
            dataset,
            group: *group,
            row: row_in_group,
        };
        if let Some(first) = positions.insert(&row.id, *position) {
            findings.push(
                location.finding(&row.id, format!("the id is also that of position {first}")),
            );
        }
    }
    for (position, (group, row)) in rows {
        let (_, row_in_group) = dataset.group_of(*position)?;
        let location = RowLocation {
            dataset,
            group: *group,
            row: row_in_group,
        };
        if row.similar.len() != row.similar_positions.len() {
            let (ids, positions) = (row.similar.len(), row.similar_positions.len());
            findings.push(location.finding(
                &row.id,
                format!("similar has {ids} ids and {positions} positions"),
            ));
        }
        for (n, id) in row.similar.iter().enumerate() {
            let fault = match positions.get(id.as_str()) {
                None => Some(format!(
                    "similar names {id:?}, which is not in the data set"
                )),
                Some(at) if at == position => Some("similar names the sample itself".to_owned()),
                Some(at) if row.similar_positions.get(n).is_some_and(|p| p != at) => Some(format!(
                    "similar {id:?} is at position {at}, not {}",
                    row.similar_positions[n]
                )),
                Some(at) if dataset.group_of(*at)?.0 != *group => {
                    Some(format!("similar {id:?} is in another row group"))
                }
                Some(at)
                    if rows
                        .get(at)
                        .is_some_and(|(_, other)| !same_owner(row, other)) =>
                {
                    Some(format!(
                        "similar names {id:?}, which is of another character or artist"
                    ))
                }
                Some(_) => None,
            };
            findings.extend(fault.map(|what| location.finding(&row.id, what)));
        }
    }
    Ok(())
}

fn same_owner(a: &Metadata, b: &Metadata) -> bool {
    (&a.character, &a.artists) == (&b.character, &b.artists)
}

/// Finds characters and artists that are spelled in several ways. Each spelling would be a
/// character of its own: `holdout` could hide one and train on the other.
fn check_spellings(
    dataset: &Dataset,
    rows: &BTreeMap<u64, (GroupId, Metadata)>,
    findings: &mut Vec<Finding>,
) -> Result<(), DatasetError> {
    type Field = (&'static str, fn(&Metadata) -> &String);
    let fields: [Field; 2] = [
        ("character", |it| &it.character),
        ("artists", |it| &it.artists),
    ];
    for (field, of) in fields {
        let mut first: BTreeMap<String, &String> = BTreeMap::new();
        let mut reported: BTreeSet<&String> = BTreeSet::new();
        for (position, (group, row)) in rows {
            let name = of(row);
            let spelling = *first.entry(names::key(name)).or_insert(name);
            if spelling == name || !reported.insert(name) {
                continue;
            }
            let (_, row_in_group) = dataset.group_of(*position)?;
            let location = RowLocation {
                dataset,
                group: *group,
                row: row_in_group,
            };
            findings.push(location.finding(
                &row.id,
                format!(
                    "{field} {name:?} differs from {spelling:?} only in case or spaces; an import \
                     writes one spelling today"
                ),
            ));
        }
    }
    Ok(())
}

async fn check_index(
    dataset: &Dataset,
    rows: &BTreeMap<u64, (GroupId, Metadata)>,
    findings: &mut Vec<Finding>,
) {
    let path = &dataset.manifest().index.path;
    let index = match dataset.index().await {
        Ok(index) => index,
        Err(error) => return findings.push(file_finding(path, chain(&error))),
    };
    if index.len() as u64 != dataset.len() {
        findings.push(file_finding(
            path,
            format!("has {} entries for {} samples", index.len(), dataset.len()),
        ));
    }
    if !index.is_sorted_by(|a, b| a.0 < b.0) {
        findings.push(file_finding(path, "is not sorted by id".to_owned()));
    }
    for (id, position) in index {
        // Rows that could not be read have their own finding.
        if rows.get(&position).is_some_and(|(_, row)| row.id != id) || position >= dataset.len() {
            findings.push(file_finding(
                path,
                format!("says {id:?} is at position {position}, which is not that sample"),
            ));
        }
    }
}

fn file_finding(path: &str, what: String) -> Finding {
    Finding {
        path: path.to_owned(),
        row: None,
        what,
    }
}
