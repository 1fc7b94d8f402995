//! Finds images (or masks) by the number of their post, in the forms in which they are published:
//! folders with a file for each, such as `0557/2895557.jpg`, and tars with an index beside them
//! (`NAME.tar` and `NAME.json` with `{"files": {NAME: {"offset", "size", "sha256"}}}`), which are
//! read by range and never unpacked.

use crate::error::{BuildError, Result};
use crate::output::StageFolder;
use bytes::Bytes;
use model_data::image_file::IMAGE_FILE_BYTES_MAX;
use model_data::pipeline_inputs::digest;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use proto::build::report::Part;
use proto::build::settings::ListedFolder;
use proto::text::hex_sha256;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use storage::listing::{Listed, files};
use storage::read::read_bounded;

/// Largest index of a tar.
const INDEX_BYTES_MAX: u64 = 1 << 30;
const ENDINGS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// A part of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// Of the object, in the folder.
    path: String,
    /// Offset and size in a tar. None: the whole object.
    range: Option<(u64, u64)>,
    /// Of the image, in hexadecimal, if the index has it.
    sha256: Option<String>,
}

/// The images of a folder.
#[derive(Debug)]
pub struct Images {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// By the number of the post.
    places: BTreeMap<i64, Place>,
    /// Further images of a number that has one.
    pub repeated: u64,
    /// Files that are no images, and images without a number.
    pub others: u64,
    /// Tars with an index.
    pub tars: u64,
}

#[derive(Debug, Deserialize)]
struct Index {
    files: BTreeMap<String, Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    offset: u64,
    size: u64,
    sha256: Option<String>,
}

impl Images {
    /// Lists a folder again, and reads the indexes of its tars.
    ///
    /// # Errors
    /// The folder cannot be read or was changed since the pipeline was planned, or an index is
    /// damaged or describes bytes that its tar does not have.
    pub async fn open(listed: &ListedFolder) -> Result<Self> {
        let (folder, found) = files(&listed.folder)
            .await
            .map_err(|error| BuildError::Input(proto::text::chain(&error)))?;
        if digest(&found) != listed.digest {
            let reason = format!(
                "it was changed since the pipeline was planned ({} files then, {} now): run \
                 `coordinator dataset build` again",
                listed.files,
                found.len()
            );
            return Err(BuildError::input(&listed.folder, reason));
        }
        let (store, prefix) = storage::open(&folder)?;
        let mut images = Self::empty(store, prefix);
        let names: BTreeSet<&str> = found.iter().map(|file| file.path.as_str()).collect();
        for file in &found {
            let (stem, ending) = file.path.rsplit_once('.').unwrap_or((&file.path, ""));
            let index = format!("{stem}.json");
            if ending == "tar" {
                if !names.contains(index.as_str()) {
                    let reason = format!(
                        "there is no {index} beside it: an index says where its files are; unpack \
                         it, or make one"
                    );
                    return Err(BuildError::input(&file.path, reason));
                }
                images.add_tar(file, &index).await?;
            } else if ENDINGS.contains(&ending.to_lowercase().as_str()) {
                images.add(&file.path, None, None, &file.path);
            } else if !(ending == "json" && names.contains(format!("{stem}.tar").as_str())) {
                images.others += 1;
            }
        }
        Ok(images)
    }

    /// The images in the tars that a stage has written.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn of_parts(folder: &StageFolder, parts: &[Part]) -> Result<Self> {
        let (store, prefix) = folder.place();
        let mut images = Self::empty(store, prefix);
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
        Ok(images)
    }

    fn empty(store: Arc<dyn ObjectStore>, prefix: Path) -> Self {
        Self {
            store,
            prefix,
            places: BTreeMap::new(),
            repeated: 0,
            others: 0,
            tars: 0,
        }
    }

    /// `name` is that of the image, and `path` that of the object which it is in.
    fn add(&mut self, name: &str, range: Option<(u64, u64)>, sha256: Option<String>, path: &str) {
        let file = name.rsplit('/').next().unwrap_or_default();
        let digits = file
            .find(|it: char| !it.is_ascii_digit())
            .unwrap_or(file.len());
        let Ok(id) = file[..digits].parse::<i64>() else {
            self.others += 1;
            return;
        };
        let place = Place {
            path: path.to_owned(),
            range,
            sha256,
        };
        // The first in the order of names, so that the choice does not depend on the machine.
        match self.places.entry(id) {
            std::collections::btree_map::Entry::Vacant(free) => {
                let _ = free.insert(place);
            }
            std::collections::btree_map::Entry::Occupied(_) => self.repeated += 1,
        }
    }

    async fn add_tar(&mut self, tar: &Listed, index: &str) -> Result<()> {
        let path = crate::sources::join(&self.prefix, index);
        let text = read_bounded(&*self.store, &path, INDEX_BYTES_MAX).await;
        let text = text.map_err(|error| BuildError::input(index, error))?;
        let parsed: Index = serde_json::from_slice(&text).map_err(|error| {
            let reason = format!("is no index of {}: {error}", tar.path);
            BuildError::input(index, reason)
        })?;
        self.tars += 1;
        for (name, entry) in parsed.files {
            let end = entry.offset.checked_add(entry.size);
            if end.is_none_or(|end| tar.size < end) {
                let reason = format!(
                    "says that {name:?} is {} bytes at byte {} of {}, which has {} bytes",
                    entry.size, entry.offset, tar.path, tar.size
                );
                return Err(BuildError::input(index, reason));
            }
            let ending = name
                .rsplit_once('.')
                .map_or("", |(_, ending)| ending)
                .to_lowercase();
            if ENDINGS.contains(&ending.as_str()) {
                let range = Some((entry.offset, entry.size));
                self.add(&name, range, entry.sha256, &tar.path);
            } else {
                self.others += 1;
            }
        }
        Ok(())
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
        let path = crate::sources::join(&self.prefix, &place.path);
        let bytes = match place.range {
            None => read_bounded(&*self.store, &path, IMAGE_FILE_BYTES_MAX)
                .await
                .map_err(|error| error.to_string())?,
            Some((_, size)) if IMAGE_FILE_BYTES_MAX < size => {
                return Err(format!(
                    "has {size} bytes; at most {IMAGE_FILE_BYTES_MAX} are read"
                ));
            }
            Some((offset, size)) => self
                .store
                .get_range(&path, offset..offset + size)
                .await
                .map_err(|error| error.to_string())?,
        };
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
