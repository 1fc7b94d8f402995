//! The stage `folders`: folders of images of characters or people become figures, in place of the
//! metadata of posts. What a folder is, its files tell ([`recognise`]); each form has a file that
//! reads it. Rows may have no artist, mask, outfit or face box: identity alone groups them.

mod captions;
mod celeba;
mod identities;
mod import;
mod recognise;
mod recordio;

use crate::batches::refuse;
use crate::cloths::ClothTags;
use crate::error::{BuildError, Result};
use crate::figure::{FIGURES, FIGURES_PART, FOLDED, FOLDED_PART, PART_ROWS};
use crate::output::{Outputs, StageFolder};
use crate::table::{Table, Value};
use bytes::Bytes;
use object_store::ObjectStore;
use object_store::path::Path;
use proto::build::StagePlan;
use proto::build::report::{BadRow, Part, Report, UnitOutput};
use proto::build::settings::{FolderKind, FoldersSettings, ImageFolder, OnBadRow};
use std::collections::BTreeSet;
use std::sync::Arc;
use storage::listing::{Listed, files};
use storage::read::read_bounded;

pub const NO_IDENTITY: &str = "an image in no folder of an identity";
pub const NO_ROW: &str = "an image that no row names";
pub const BAD_ROW: &str = "a row that cannot be used";
pub const SAME_NAME: &str = "a name that another row has";

/// Largest text that is read at once.
const TEXT_BYTES_MAX: u64 = 4 << 30;

/// What a form knows of an image.
#[derive(Debug, Clone, Default, PartialEq)]
struct Entry {
    /// In the data set, and unique in its folder.
    name: String,
    /// The character or person.
    identity: String,
    artist: String,
    rating: String,
    /// "": any.
    outfit: String,
    /// General tags, with underscores.
    tags: Vec<String>,
    /// None: those of the list among `tags`.
    cloths: Option<Vec<String>>,
    /// Path of its object; "" if the row is joined with images by its name.
    image: String,
    /// Of its bytes in the object. None: all.
    range: Option<(u64, u64)>,
    /// As in [`FOLDED`].
    mask: String,
    bbox: Option<[f64; 4]>,
}

/// The files of a folder, and where bad rows of it go.
struct Source<'a> {
    settings: &'a ImageFolder,
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    files: Vec<Listed>,
    on_bad_row: OnBadRow,
    /// Whether rows without an image are joined with images by their number.
    joined: bool,
}

impl Source<'_> {
    fn label(&self, path: &str) -> String {
        let folder = self.settings.listed.folder.trim_end_matches('/');
        format!("{folder}/{path}")
    }

    async fn read(&self, path: &str, bytes_max: u64) -> Result<Bytes> {
        let place = crate::sources::join(&self.prefix, path);
        let bytes = read_bounded(&*self.store, &place, bytes_max).await;
        bytes.map_err(|error| BuildError::input(&self.label(path), error))
    }

    async fn text(&self, path: &str) -> Result<String> {
        let bytes = self.read(path, TEXT_BYTES_MAX).await?;
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        String::from_utf8(text.to_vec()).map_err(|error| {
            BuildError::input(&self.label(path), format!("is no UTF-8 text: {error}"))
        })
    }

    /// Counts a row that cannot be used, or fails.
    fn bad(
        &self,
        (path, row, offset): (&str, u64, Option<u64>),
        reason: String,
        report: &mut Report,
    ) -> Result<()> {
        let row = BadRow {
            file: self.label(path),
            row,
            offset,
            reason,
        };
        refuse(row, BAD_ROW, self.on_bad_row, report)
    }

    fn images(&self) -> impl Iterator<Item = &Listed> {
        let is_image = |file: &&Listed| {
            let ending = crate::images::ending(&file.path);
            crate::images::ENDINGS.contains(&ending.as_str())
        };
        self.files.iter().filter(is_image)
    }
}

/// A path without its ending.
fn stem(path: &str) -> &str {
    path.rsplit_once('.').map_or(path, |(stem, _)| stem)
}

/// Recognises the folders, and writes their rows.
///
/// # Errors
/// A folder is none of the forms, or several, was changed, or has a bad row and
/// `on_bad_row = "stop"`.
pub async fn run(
    plan: &StagePlan,
    settings: &FoldersSettings,
    outputs: &Outputs,
) -> Result<UnitOutput> {
    let list = ClothTags::parse(&settings.cloth_tags)
        .map_err(|reason| BuildError::input("filter.cloth_tags", reason))?;
    let mut rows = Rows::new(outputs.stage(&plan.key()), list, settings.joined);
    for (number, folder) in settings.folders.iter().enumerate() {
        let source = open(folder, settings).await?;
        let kind = recognise::kind_of(&source)?;
        let report = &mut rows.report;
        let entries = match kind {
            FolderKind::Identities => identities::read(&source, report),
            FolderKind::Captions => captions::read(&source, report).await,
            FolderKind::CelebA => celeba::read(&source, report).await,
            FolderKind::RecordIo => recordio::read(&source, report).await,
            FolderKind::Import => import::read(&source, report).await,
        };
        let entries = entries?;
        rows.report.found.push(format!(
            "{}: {}, {} rows",
            folder.listed.folder,
            kind.description(),
            entries.len()
        ));
        // Folders do not know each other's people, but captions name characters.
        let several = 1 < settings.folders.len() && kind != FolderKind::Import;
        for mut entry in entries {
            if several {
                entry.name = format!("{}/{}", number + 1, entry.name);
                if kind != FolderKind::Captions {
                    entry.identity = format!("{}/{}", number + 1, entry.identity);
                }
            }
            rows.add(number, folder, &entry).await?;
        }
    }
    rows.finish().await
}

async fn open<'a>(folder: &'a ImageFolder, settings: &FoldersSettings) -> Result<Source<'a>> {
    let listed = &folder.listed;
    let (_, found) = files(&listed.folder)
        .await
        .map_err(|error| BuildError::Input(proto::text::chain(&error)))?;
    if model_data::pipeline_inputs::digest(&found) != listed.digest {
        let reason = "it was changed since the pipeline was planned: run `coordinator dataset \
                      build` again";
        return Err(BuildError::input(&listed.folder, reason));
    }
    let (store, prefix) = storage::open_to_read(&listed.folder)?;
    Ok(Source {
        settings: folder,
        store,
        prefix,
        files: found,
        on_bad_row: settings.on_bad_row,
        joined: settings.joined,
    })
}

/// Writes rows as they come, in parts.
struct Rows {
    folder: StageFolder,
    list: ClothTags,
    joined: bool,
    names: BTreeSet<String>,
    /// Of the last row. Joined rows have their own numbers.
    number: i64,
    figures: Table,
    folded: Table,
    parts: Vec<Part>,
    report: Report,
}

impl Rows {
    fn new(folder: StageFolder, list: ClothTags, joined: bool) -> Self {
        Self {
            folder,
            list,
            joined,
            names: BTreeSet::new(),
            number: 0,
            figures: Table::new(&FIGURES),
            folded: Table::new(&FOLDED),
            parts: Vec::new(),
            report: Report::default(),
        }
    }

    async fn add(&mut self, number: usize, folder: &ImageFolder, entry: &Entry) -> Result<()> {
        if !self.names.insert(entry.name.clone()) {
            self.report.lose(SAME_NAME, 1);
            return Ok(());
        }
        self.number += 1;
        // The readers of joined rows refuse names that are no numbers.
        let id = match self.joined.then(|| entry.name.parse::<i64>()) {
            Some(Ok(id)) => id,
            Some(Err(_)) | None => self.number,
        };
        let general = entry.tags.join(" ");
        let cloths = match &entry.cloths {
            Some(cloths) => cloths.join(" "),
            None => self.list.of(&general).unwrap_or_default(),
        };
        let or = |own: &str, other: &str| match own {
            "" => other.to_owned(),
            own => own.to_owned(),
        };
        let artist = or(&entry.artist, &folder.artist);
        let rating = or(&entry.rating, &folder.rating);
        // What is known of the clothes is an outfit.
        let outfit = or(&entry.outfit, &cloths);
        let text = Value::Text;
        let zero = Value::Number(0);
        self.figures.push([
            Value::Number(id),
            text(&rating),
            text(""),
            text(""),
            zero,
            zero,
            zero,
            text(&entry.identity),
            text(&artist),
            text(&general),
            text(&cloths),
        ]);
        let bbox = entry.bbox.map(|bbox| serde_json::json!(bbox).to_string());
        let whole = |it: u64| Value::Number(i64::try_from(it).unwrap_or(0));
        let (offset, size) = entry.range.unwrap_or((0, 0));
        self.folded.push([
            Value::Number(id),
            text(&entry.name),
            text(&outfit),
            Value::Number(i64::try_from(number).unwrap_or(0)),
            text(&entry.image),
            whole(offset),
            whole(size),
            text(&entry.mask),
            text(bbox.as_deref().unwrap_or_default()),
        ]);
        if self.figures.rows() == PART_ROWS {
            self.write().await?;
        }
        Ok(())
    }

    async fn write(&mut self) -> Result<()> {
        let number = self.parts.len() / 2;
        let figures = std::mem::replace(&mut self.figures, Table::new(&FIGURES));
        let folded = std::mem::replace(&mut self.folded, Table::new(&FOLDED));
        for (stem, table) in [(FIGURES_PART, figures), (FOLDED_PART, folded)] {
            let (stem, rows) = (format!("{stem}-{number:05}"), table.rows());
            let part = self.folder.put_part(&stem, rows, table.finish()).await?;
            self.parts.push(part);
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<UnitOutput> {
        if 0 < self.figures.rows() {
            self.write().await?;
        }
        let figures = self.parts.iter().step_by(2);
        self.report.rows_out = figures.map(|part| part.rows).sum();
        let lost: u64 = self.report.losses.iter().map(|loss| loss.rows).sum();
        self.report.rows_in = self.report.rows_out + lost;
        if self.report.rows_out == 0 {
            let why = self.report.losses.first();
            let why = why.map_or("they have none".to_owned(), |loss| {
                format!("{} times {}", loss.rows, loss.reason)
            });
            return Err(BuildError::Input(format!(
                "the folders have no image that can be used: {why}"
            )));
        }
        Ok(UnitOutput {
            parts: self.parts,
            report: self.report,
        })
    }
}
