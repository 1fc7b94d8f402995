//! Objects of a stage: parts, the output of a unit, the manifest. Each is written once, under a
//! name that depends on its content or its unit, and what names others is written after them.

use crate::error::{BuildError, Result};
use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error as ObjectError, ObjectStore, PutMode, PutPayload};
use proto::build::report::{Part, Report, StageManifest, UnitOutput};
use proto::build::{Stage, StageKey, StagePlan};
use proto::text::hex_sha256;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use storage::read::{ReadError, read_bounded};

/// Largest JSON that a stage writes.
const JSON_BYTES_MAX: u64 = 256 << 20;
/// Largest part that is read.
const PART_BYTES_MAX: u64 = 4 << 30;
const MANIFEST: &str = "manifest.json";
const PLAN: &str = "plan.json";

/// The outputs of one pipeline.
#[derive(Debug, Clone)]
pub struct Outputs {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

impl Outputs {
    /// # Errors
    /// The URL cannot be opened.
    pub fn open(url: &str) -> Result<Self> {
        let (store, prefix) = storage::open(url)?;
        Ok(Self { store, prefix })
    }

    #[must_use]
    pub fn stage(&self, key: &StageKey) -> StageFolder {
        let folder = key.folder();
        let folder = folder.split('/').fold(self.prefix.clone(), Path::join);
        StageFolder {
            store: Arc::clone(&self.store),
            folder,
        }
    }

    /// The folder and manifest of an input.
    ///
    /// # Errors
    /// The stage has no such input, or its manifest cannot be read.
    pub async fn input(
        &self,
        plan: &StagePlan,
        stage: Stage,
    ) -> Result<(StageFolder, StageManifest)> {
        let key = plan.input(stage).ok_or_else(|| {
            BuildError::Input(format!("the stage {} has no input {stage}", plan.stage()))
        })?;
        let folder = self.stage(key);
        let manifest = folder.manifest().await?.ok_or_else(|| {
            BuildError::Input(format!(
                "{}/{MANIFEST} does not exist; run the stage {stage} first",
                folder.folder
            ))
        })?;
        Ok((folder, manifest))
    }
}

/// The folder of one output.
#[derive(Debug, Clone)]
pub struct StageFolder {
    store: Arc<dyn ObjectStore>,
    folder: Path,
}

impl StageFolder {
    /// None: the stage is not complete.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn manifest(&self) -> Result<Option<StageManifest>> {
        self.json(MANIFEST).await
    }

    /// The plan of the stage with this key.
    ///
    /// # Errors
    /// There is none, or it is not that of the key.
    pub async fn plan(&self, key: &StageKey) -> Result<StagePlan> {
        let plan: Option<StagePlan> = self.json(PLAN).await?;
        let plan = plan.ok_or_else(|| {
            BuildError::Input(format!(
                "{}/{PLAN} does not exist; `coordinator dataset build` writes it",
                self.folder
            ))
        })?;
        if plan.key() != *key {
            return Err(BuildError::Damaged(format!(
                "{}/{PLAN} is the plan of another key, or of another release",
                self.folder
            )));
        }
        Ok(plan)
    }

    /// Writes the plan of the stage.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn put_plan(&self, plan: &StagePlan) -> Result<()> {
        self.put_json(PLAN, plan).await
    }

    /// None: the unit is not complete.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn unit(&self, units: u32, unit: u32) -> Result<Option<UnitOutput>> {
        self.json(&unit_name(units, unit)).await
    }

    async fn json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.folder.clone().join(name);
        match read_bounded(&*self.store, &path, JSON_BYTES_MAX).await {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| BuildError::Damaged(format!("{path}: {error}"))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(read_error(&path, error)),
        }
    }

    /// Writes a part, named by its content.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn put_part(&self, stem: &str, rows: u64, bytes: Vec<u8>) -> Result<Part> {
        let name = format!("{stem}-{}.parquet", &hex_sha256(&bytes)[..16]);
        self.put_file(name, rows, bytes).await
    }

    /// Writes a file of a stage beside its tables. Equal names have equal bytes.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn put_file(&self, path: String, rows: u64, bytes: Vec<u8>) -> Result<Part> {
        let part = Part {
            path,
            rows,
            size: bytes.len() as u64,
            sha256: hex_sha256(&bytes),
        };
        self.put_new(&part.path, bytes).await?;
        Ok(part)
    }

    /// The output of a batch of a unit. None: it is not complete.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn batch(&self, number: usize) -> Result<Option<UnitOutput>> {
        self.json(&batch_name(number)).await
    }

    /// Completes a batch whose parts are written, so that a unit that is repeated skips it.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn put_batch(&self, number: usize, output: &UnitOutput) -> Result<()> {
        self.put_json(&batch_name(number), output).await
    }

    /// Where its files are.
    pub(crate) fn place(&self) -> (Arc<dyn ObjectStore>, Path) {
        (Arc::clone(&self.store), self.folder.clone())
    }

    /// The bytes of a part.
    ///
    /// # Errors
    /// It cannot be read, or is not what was written.
    pub async fn part(&self, part: &Part) -> Result<Bytes> {
        let path = self.folder.clone().join(part.path.as_str());
        let bytes = read_bounded(&*self.store, &path, PART_BYTES_MAX).await;
        let bytes = bytes.map_err(|error| read_error(&path, error))?;
        if hex_sha256(&bytes) != part.sha256 {
            return Err(BuildError::Damaged(format!(
                "{path} has {} bytes with SHA-256 {}, and {} with {} were written",
                bytes.len(),
                hex_sha256(&bytes),
                part.size,
                part.sha256
            )));
        }
        Ok(bytes)
    }

    /// Completes a unit whose parts are written.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn put_unit(&self, units: u32, unit: u32, output: &UnitOutput) -> Result<()> {
        self.put_json(&unit_name(units, unit), output).await
    }

    /// Completes the stage: merges the outputs of its units. `finish` changes the merged report.
    ///
    /// # Errors
    /// A unit is not complete, or storage fails.
    pub async fn close(
        &self,
        plan: &StagePlan,
        units: u32,
        finish: impl FnOnce(&mut Report),
    ) -> Result<StageManifest> {
        if let Some(manifest) = self.manifest().await? {
            return Ok(manifest);
        }
        let (mut parts, mut report) = (Vec::new(), Report::default());
        for unit in 0..units {
            let output = self.unit(units, unit).await?.ok_or_else(|| {
                BuildError::Damaged(format!(
                    "{}/{} is missing",
                    self.folder,
                    unit_name(units, unit)
                ))
            })?;
            parts.extend(output.parts);
            report.add(&output.report);
        }
        // By name and not by unit, so that the number of units does not matter.
        parts.sort();
        finish(&mut report);
        let manifest = StageManifest {
            key: plan.key(),
            plan: plan.clone(),
            parts,
            report,
        };
        self.put_json(MANIFEST, &manifest).await?;
        Ok(manifest)
    }

    async fn put_json(&self, name: &str, value: &impl serde::Serialize) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(value).expect("plain values are JSON");
        self.put_new(name, bytes).await
    }

    /// An object that exists is left as it is: it has the same content.
    async fn put_new(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        let path = self.folder.clone().join(name);
        let payload = PutPayload::from(bytes);
        let put = self.store.put_opts(&path, payload, PutMode::Create.into());
        match put.await {
            Ok(_) | Err(ObjectError::AlreadyExists { .. }) => Ok(()),
            Err(source) => Err(BuildError::Write {
                path: path.to_string(),
                source,
            }),
        }
    }
}

fn batch_name(number: usize) -> String {
    format!("batch-{number:06}.json")
}

/// Units of another division of the same stage have other names.
fn unit_name(units: u32, unit: u32) -> String {
    format!("unit-{unit:05}-of-{units:05}.json")
}

fn read_error(path: &Path, error: ReadError) -> BuildError {
    match error {
        ReadError::Store(source) => BuildError::Read {
            path: path.to_string(),
            source,
        },
        large @ ReadError::TooLarge { .. } => BuildError::Damaged(format!("{path}: {large}")),
    }
}
