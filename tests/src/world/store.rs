//! A fake object store: names and contents, atomic puts, conditional put. It never fails by itself;
//! the world decides which calls fail and which answers are lost.

use proto::checkpoint::{
    CheckpointManifest, CheckpointRef, MANIFEST_FILE, ShardEntry, checkpoint_folder,
};
use proto::id::{Generation, JobId, Step};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub(crate) struct Store {
    manifests: BTreeMap<String, CheckpointManifest>,
    /// The toy's value by object name.
    shards: BTreeMap<String, u64>,
    deleted: BTreeSet<String>,
    units: BTreeMap<JobId, Outputs>,
}

/// Outputs of the units of a job.
#[derive(Debug, Default)]
struct Outputs {
    /// Units with an output under the expected name, which depends on the unit alone.
    named: BTreeSet<u64>,
    /// Outputs under unexpected names: unit and name.
    others: BTreeSet<(u64, u64)>,
}

impl Store {
    pub(crate) fn put_shard(&mut self, folder: &str, file: &str, value: u64) {
        self.shards.insert(format!("{folder}/{file}"), value);
    }

    /// Puts the output of a unit. 0 is the expected name, any other value an unexpected one.
    pub(crate) fn put_unit(&mut self, job: &JobId, unit: u64, name: u64) {
        if !self.units.contains_key(job) {
            self.units.insert(job.clone(), Outputs::default());
        }
        let Some(outputs) = self.units.get_mut(job) else {
            return;
        };
        if name == 0 {
            outputs.named.insert(unit);
        } else {
            outputs.others.insert((unit, name));
        }
    }

    pub(crate) fn has_unit(&self, job: &JobId, unit: u64) -> bool {
        let of = |outputs: &Outputs| {
            let mut others = outputs.others.range((unit, 0)..=(unit, u64::MAX));
            outputs.named.contains(&unit) || others.next().is_some()
        };
        self.units.get(job).is_some_and(of)
    }

    /// The number of outputs of a job, and the number of units that have one.
    pub(crate) fn count_units(&self, job: &JobId) -> (usize, usize) {
        let Some(Outputs { named, others }) = self.units.get(job) else {
            return (0, 0);
        };
        let also: BTreeSet<u64> = others.iter().map(|(unit, _)| *unit).collect();
        let of = named.len() + also.difference(named).count();
        (named.len() + others.len(), of)
    }

    /// Conditional put: succeeds if there is none or an equal one.
    pub(crate) fn put_manifest(&mut self, manifest: &CheckpointManifest) -> Result<(), String> {
        let name = manifest_name(&manifest.job, manifest.step, manifest.generation);
        match self.manifests.get(&name) {
            Some(existing) if existing != manifest => {
                Err(format!("{name} exists with other contents"))
            }
            Some(_) => Ok(()),
            None => {
                self.manifests.insert(name, manifest.clone());
                Ok(())
            }
        }
    }

    pub(crate) fn delete_checkpoint(&mut self, job: &JobId, checkpoint: CheckpointRef) {
        let folder = checkpoint_folder(job, checkpoint.step, checkpoint.generation);
        self.manifests.remove(&format!("{folder}/{MANIFEST_FILE}"));
        let prefix = format!("{folder}/");
        self.shards.retain(|name, _| !name.starts_with(&prefix));
        self.deleted.insert(folder);
    }

    pub(crate) fn was_deleted(&self, manifest: &CheckpointManifest) -> bool {
        self.deleted.contains(&checkpoint_folder(
            &manifest.job,
            manifest.step,
            manifest.generation,
        ))
    }

    /// Checks the shards that the manifest names.
    pub(crate) fn check_shards(&self, manifest: &CheckpointManifest) -> Result<(), String> {
        let folder = checkpoint_folder(&manifest.job, manifest.step, manifest.generation);
        let world = manifest.shards.len();
        let expected = (0..world).map(|rank| file(rank, world));
        if !expected.eq(manifest.shards.iter().map(|entry| entry.path.clone())) {
            let paths: Vec<&str> = manifest
                .shards
                .iter()
                .map(|entry| entry.path.as_str())
                .collect();
            return Err(format!("{folder} is incomplete: {}", paths.join(", ")));
        }
        for entry in &manifest.shards {
            let name = format!("{folder}/{}", entry.path);
            let value = self
                .shards
                .get(&name)
                .ok_or_else(|| format!("{name} is named and does not exist"))?;
            if digest(*value) != entry.sha256 {
                return Err(format!(
                    "{name} holds {value}, whose digest is not {}",
                    entry.sha256
                ));
            }
        }
        Ok(())
    }

    /// Reads a checkpoint as a rank does.
    pub(crate) fn load(&self, job: &JobId, checkpoint: CheckpointRef) -> Result<u64, String> {
        let name = manifest_name(job, checkpoint.step, checkpoint.generation);
        let manifest = self
            .manifests
            .get(&name)
            .ok_or_else(|| format!("{name} does not exist"))?;
        self.check_shards(manifest)?;
        let folder = checkpoint_folder(job, checkpoint.step, checkpoint.generation);
        let values: BTreeSet<u64> = manifest
            .shards
            .iter()
            .filter_map(|e| self.shards.get(&format!("{folder}/{}", e.path)))
            .copied()
            .collect();
        match values.iter().collect::<Vec<_>>()[..] {
            [value] => Ok(*value),
            _ => Err(format!("{name}: the shards hold {values:?}, not one value")),
        }
    }
}

/// The manifest entry of a shard, as a rank reports it.
pub(crate) fn entry(rank: u32, world: u32, value: u64) -> ShardEntry {
    ShardEntry {
        path: file(rank as usize, world as usize),
        size_bytes: 8,
        sha256: digest(value),
    }
}

fn file(rank: usize, world: usize) -> String {
    format!("rank-{rank}-of-{world}.safetensors")
}

pub(crate) fn digest(value: u64) -> String {
    format!("{value:064x}")
}

fn manifest_name(job: &JobId, step: Step, generation: Generation) -> String {
    format!(
        "{}/{MANIFEST_FILE}",
        checkpoint_folder(job, step, generation)
    )
}
