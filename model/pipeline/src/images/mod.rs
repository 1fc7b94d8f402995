//! Finds images (or masks) by the number of their post, in the forms in which they are published:
//! folders with a file for each, such as `0557/2895557.jpg`, and tars, which are read by range and
//! never unpacked. A tar has an index beside it (`NAME.tar` and `NAME.json` with `{"files": {NAME:
//! {"offset", "size", "sha256"}}}`), or its headers are read ([`scan`]), as those of webdataset.
//! Images of folders ([`crate::folders`]) are where the table of that stage says.

mod listing;
mod scan;

use crate::error::{BuildError, Result};
use crate::figure::{self, FOLDED};
use crate::output::{Outputs, StageFolder};
use crate::table::{self, Value};
use bytes::Bytes;
use model_data::image_file::IMAGE_FILE_BYTES_MAX;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore};
use proto::build::report::{BadRow, EXAMPLES_MAX, Part, Report};
use proto::build::settings::{ListedFolder, OnBadRow, Settings};
use proto::build::{Stage, StagePlan};
use proto::text::hex_sha256;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use storage::listing::Listed;
use storage::read::read_bounded;

/// Largest index of a tar.
const INDEX_BYTES_MAX: u64 = 1 << 30;
pub(crate) const ENDINGS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// A part of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// Index of the store that the object is in.
    store: usize,
    /// Of the object, in the store's folder.
    path: String,
    /// Offset and size in a tar. None: the whole object.
    range: Option<(u64, u64)>,
    /// Of the image, in hexadecimal, if the index has it.
    sha256: Option<String>,
    /// The object's entity tag when it was listed; "" if that is unknown.
    tag: String,
}

/// The images of a folder.
#[derive(Debug, Default)]
pub struct Images {
    stores: Vec<(Arc<dyn ObjectStore>, Path)>,
    /// By the number of the post.
    places: BTreeMap<i64, Place>,
    /// Further images of a number that has one.
    pub repeated: u64,
    /// Files that are no images, and images without a number.
    pub others: u64,
    pub tars: u64,
    /// What is wrong with tars and indexes: the first ones, and how many there are.
    faults: Vec<BadRow>,
    faulty: u64,
}

#[derive(Debug, Deserialize)]
struct Index {
    filesize: Option<u64>,
    files: BTreeMap<String, Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    offset: u64,
    size: u64,
    sha256: Option<String>,
}

/// The ending of a file's name, in lower case.
pub(crate) fn ending(path: &str) -> String {
    path.rsplit_once('.')
        .map_or("", |(_, ending)| ending)
        .to_lowercase()
}

impl Images {
    /// The images that a stage reads: crops of figures, a folder that is named, or those of the
    /// stage `folders`.
    ///
    /// # Errors
    /// As [`Self::open`], or the plan names none of them.
    pub async fn of_stage(
        plan: &StagePlan,
        outputs: &Outputs,
        listed: Option<&ListedFolder>,
        scratch: &std::path::Path,
    ) -> Result<Self> {
        if plan.input(Stage::Figures).is_some() {
            let (folder, manifest) = outputs.input(plan, Stage::Figures).await?;
            return Self::of_parts(&folder, &manifest.parts).await;
        }
        match listed {
            Some(listed) => Self::open(listed, scratch).await,
            None => Self::of_folders(plan, outputs).await,
        }
    }

    /// Lists a folder, or takes the list that a unit has kept in `scratch`, and finds the files of
    /// its tars.
    ///
    /// # Errors
    /// The folder cannot be read or was changed since the pipeline was planned, or an index is
    /// damaged.
    pub async fn open(listed: &ListedFolder, scratch: &std::path::Path) -> Result<Self> {
        let found = listing::of(listed, scratch).await?;
        let mut images = Self::default();
        images.stores.push(storage::open_to_read(&listed.folder)?);
        let names: BTreeSet<&str> = found.iter().map(|file| file.path.as_str()).collect();
        for file in &found {
            let (stem, _) = file.path.rsplit_once('.').unwrap_or((&file.path, ""));
            let index = format!("{stem}.json");
            match ending(&file.path).as_str() {
                "tar" if names.contains(index.as_str()) => images.add_tar(file, &index).await?,
                "tar" => images.scan_tar(file).await?,
                ending if ENDINGS.contains(&ending) => {
                    images.add(&file.path, None, None, file);
                }
                "json" if names.contains(format!("{stem}.tar").as_str()) => {}
                _ => images.others += 1,
            }
        }
        Ok(images)
    }

    /// The images in the tars that a stage has written.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn of_parts(folder: &StageFolder, parts: &[Part]) -> Result<Self> {
        let mut images = Self::default();
        images.stores.push(folder.place());
        for part in parts {
            if let Some(stem) = part.path.strip_suffix(".tar") {
                let tar = Listed {
                    path: part.path.clone(),
                    size: part.size,
                    tag: String::new(),
                };
                images.add_tar(&tar, &format!("{stem}.json")).await?;
            }
        }
        images.check(OnBadRow::Stop)?;
        Ok(images)
    }

    /// The images of the stage `folders`.
    async fn of_folders(plan: &StagePlan, outputs: &Outputs) -> Result<Self> {
        Self::of_table(plan, outputs, "image").await
    }

    /// The masks of the rows of the stage `folders` that have one.
    ///
    /// # Errors
    /// The output of the stage cannot be read.
    pub async fn masks_of_folders(plan: &StagePlan, outputs: &Outputs) -> Result<Self> {
        Self::of_table(plan, outputs, "mask").await
    }

    async fn of_table(plan: &StagePlan, outputs: &Outputs, column: &str) -> Result<Self> {
        let (folder, manifest) = outputs.input(plan, Stage::Folders).await?;
        let Settings::Folders(settings) = &manifest.plan.settings else {
            let why = "the stage folders has other settings".to_owned();
            return Err(BuildError::Damaged(why));
        };
        let mut images = Self::default();
        for source in &settings.folders {
            images
                .stores
                .push(storage::open_to_read(&source.listed.folder)?);
        }
        for part in figure::parts(&manifest, figure::FOLDED_PART) {
            let bytes = folder.part(part).await?;
            table::read(&part.path, bytes, &FOLDED, |rows| {
                for row in 0..rows.count() {
                    images.add_row(rows.row(row), column);
                }
                Ok(())
            })?;
        }
        Ok(images)
    }

    /// A row of [`FOLDED`]. A mask is a file of its own, and an image may be a part of one.
    fn add_row<'a>(&mut self, row: impl Iterator<Item = Value<'a>>, column: &str) {
        let (mut id, mut store, mut path) = (0, 0, "");
        let (mut offset, mut size) = (0, 0);
        for ((name, _), value) in FOLDED.iter().zip(row) {
            match (*name, value) {
                ("id", Value::Number(number)) => id = number,
                ("folder", Value::Number(number)) => store = usize::try_from(number).unwrap_or(0),
                ("offset", Value::Number(number)) => offset = u64::try_from(number).unwrap_or(0),
                ("size", Value::Number(number)) => size = u64::try_from(number).unwrap_or(0),
                (name, Value::Text(text)) if name == column => path = text,
                _ => {}
            }
        }
        if path.is_empty() || path == figure::WHOLE {
            return;
        }
        let is_part = column == "image" && 0 < size;
        let place = Place {
            store,
            path: path.to_owned(),
            range: is_part.then_some((offset, size)),
            sha256: None,
            tag: String::new(),
        };
        let _ = self.places.insert(id, place);
    }

    /// `name` is that of the image, and `object` what it is in.
    fn add(
        &mut self,
        name: &str,
        range: Option<(u64, u64)>,
        sha256: Option<String>,
        object: &Listed,
    ) {
        let file = name.rsplit('/').next().unwrap_or_default();
        let digits = file
            .find(|it: char| !it.is_ascii_digit())
            .unwrap_or(file.len());
        let Ok(id) = file[..digits].parse::<i64>() else {
            self.others += 1;
            return;
        };
        let place = Place {
            store: 0,
            path: object.path.clone(),
            range,
            sha256,
            tag: object.tag.clone(),
        };
        // The first in the order of names, so that the choice does not depend on the machine.
        match self.places.entry(id) {
            std::collections::btree_map::Entry::Vacant(free) => {
                let _ = free.insert(place);
            }
            std::collections::btree_map::Entry::Occupied(_) => self.repeated += 1,
        }
    }

    /// An image in a tar.
    fn add_member(&mut self, name: &str, range: (u64, u64), sha256: Option<String>, tar: &Listed) {
        if ENDINGS.contains(&ending(name).as_str()) {
            self.add(name, Some(range), sha256, tar);
        } else {
            self.others += 1;
        }
    }

    fn fault(&mut self, file: &str, row: u64, offset: Option<u64>, reason: String) {
        self.faulty += 1;
        if self.faults.len() < EXAMPLES_MAX {
            self.faults.push(BadRow {
                file: file.to_owned(),
                row,
                offset,
                reason,
            });
        }
    }

    async fn add_tar(&mut self, tar: &Listed, index: &str) -> Result<()> {
        let (store, prefix) = &self.stores[0];
        let path = crate::sources::join(prefix, index);
        let text = read_bounded(&**store, &path, INDEX_BYTES_MAX).await;
        let text = text.map_err(|error| BuildError::input(index, error))?;
        let parsed: Index = serde_json::from_slice(&text).map_err(|error| {
            let reason = format!("is no index of {}: {error}", tar.path);
            BuildError::input(index, reason)
        })?;
        self.tars += 1;
        if let Some(size) = parsed.filesize.filter(|size| *size != tar.size) {
            let reason = format!(
                "has {} bytes, and {index} says that it has {size}: one of them is cut off, or of \
                 another version",
                tar.size
            );
            self.fault(&tar.path, 0, None, reason);
        }
        for (row, (name, entry)) in (1..).zip(parsed.files) {
            let end = entry.offset.checked_add(entry.size);
            if end.is_none_or(|end| tar.size < end) {
                let reason = format!(
                    "says that {name:?} is {} bytes at byte {} of {}, which has {} bytes",
                    entry.size, entry.offset, tar.path, tar.size
                );
                self.fault(index, row, Some(entry.offset), reason);
                continue;
            }
            let range = (entry.offset, entry.size);
            self.add_member(&name, range, entry.sha256, tar);
        }
        Ok(())
    }

    /// Finds the files of a tar without an index.
    async fn scan_tar(&mut self, tar: &Listed) -> Result<()> {
        self.tars += 1;
        let (store, prefix) = &self.stores[0];
        let path = crate::sources::join(prefix, &tar.path);
        let scanned = scan::members(&**store, &path, tar.size).await?;
        for member in &scanned.members {
            self.add_member(&member.name, (member.offset, member.size), None, tar);
        }
        if let Some((offset, reason)) = scanned.fault {
            let row = scanned.members.len() as u64 + 1;
            self.fault(&tar.path, row, Some(offset), reason);
        }
        Ok(())
    }

    /// Fails if a tar or an index is damaged and nothing is to be skipped.
    ///
    /// # Errors
    /// The first fault.
    pub fn check(&self, on_bad_row: OnBadRow) -> Result<()> {
        match self.faults.first() {
            Some(row) if on_bad_row == OnBadRow::Stop => Err(BuildError::BadRow {
                row: Box::new(row.clone()),
                after: None,
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// Adds what was found and what is damaged to the report of a stage, of which the first unit
    /// says it.
    pub fn describe(&self, unit: u32, report: &mut Report) {
        if unit != 0 {
            return;
        }
        report.found.push(format!(
            "{} images, {} tars among their files",
            self.places.len(),
            self.tars
        ));
        report.count("further images of a post", self.repeated);
        report.count("files that are no image of a post", self.others);
        if 0 < self.faulty {
            report.count("faults of tars and their indexes", self.faulty);
        }
        report.bad_rows.extend(self.faults.iter().cloned());
        report.bad_rows.truncate(EXAMPLES_MAX);
    }

    #[must_use]
    pub fn count(&self) -> usize {
        self.places.len()
    }

    /// Where the image of a post is, for messages. None: there is none.
    #[must_use]
    pub fn path(&self, id: i64) -> Option<String> {
        let place = self.places.get(&id)?;
        Some(match place.range {
            None => place.path.clone(),
            Some((offset, _)) => format!("{} at byte {offset}", place.path),
        })
    }

    /// The bytes of the image of a post.
    ///
    /// # Errors
    /// Why it cannot be read, to follow its name.
    pub async fn read(&self, id: i64) -> std::result::Result<Bytes, String> {
        let place = self.places.get(&id).ok_or("does not exist")?;
        let (store, prefix) = self.stores.get(place.store).ok_or("is in no folder")?;
        let path = crate::sources::join(prefix, &place.path);
        let range = place.range;
        let options = GetOptions {
            range: range.map(|(offset, size)| GetRange::Bounded(offset..offset + size)),
            ..GetOptions::default()
        };
        let found = store.get_opts(&path, options).await;
        let found = found.map_err(|error| error.to_string())?;
        let size = range.map_or(found.meta.size, |(_, size)| size);
        if IMAGE_FILE_BYTES_MAX < size {
            return Err(format!(
                "has {size} bytes; at most {IMAGE_FILE_BYTES_MAX} are read"
            ));
        }
        let tag = found.meta.e_tag.clone().unwrap_or_default();
        if !place.tag.is_empty() && tag != place.tag {
            return Err(
                "was changed since the pipeline was planned: run `coordinator dataset \
                        build` again"
                    .to_owned(),
            );
        }
        let bytes = found.bytes().await.map_err(|error| error.to_string())?;
        if let Some(expected) = &place.sha256 {
            let found = hex_sha256(&bytes);
            if !found.eq_ignore_ascii_case(expected) {
                return Err(format!(
                    "has the SHA-256 {found}, and its index says {expected}"
                ));
            }
        }
        Ok(bytes)
    }
}
