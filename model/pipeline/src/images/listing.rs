//! The list of a folder's files. Each unit is a process of its own, and a folder of millions of
//! files takes minutes to list, so the list is kept in scratch space, under its digest: a file that
//! says something else is listed again.

use crate::error::{BuildError, Result};
use model_data::pipeline_inputs::digest;
use proto::build::settings::ListedFolder;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use storage::listing::{Listed, files};

const PREFIX: &str = "listing-";
/// Lists that were not used for so long are deleted.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// # Errors
/// The folder cannot be listed, or was changed since the pipeline was planned.
pub(super) async fn of(listed: &ListedFolder, scratch: &Path) -> Result<Vec<Listed>> {
    let kept = scratch.join(format!("{PREFIX}{}.json", listed.digest));
    if let Some(found) = read(&kept).filter(|found| digest(found) == listed.digest) {
        return Ok(found);
    }
    let (_, found) = files(&listed.folder)
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
    // Without room for it, the next unit lists the folder again.
    keep(&found, &kept, scratch).ok();
    Ok(found)
}

fn read(kept: &Path) -> Option<Vec<Listed>> {
    let rows: Vec<(String, u64, String)> =
        serde_json::from_slice(&std::fs::read(kept).ok()?).ok()?;
    let listed = rows
        .into_iter()
        .map(|(path, size, tag)| Listed { path, size, tag });
    Some(listed.collect())
}

fn keep(found: &[Listed], kept: &Path, scratch: &Path) -> Result<()> {
    let rows = found.iter().map(|it| (&it.path, it.size, &it.tag));
    let text = serde_json::to_vec(&rows.collect::<Vec<_>>()).unwrap_or_default();
    let file = crate::scratch::file(scratch)?;
    std::fs::write(file.path(), text)?;
    file.persist(kept).map_err(|error| error.error)?;
    for old in old(scratch)? {
        std::fs::remove_file(old).ok();
    }
    Ok(())
}

fn old(scratch: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(scratch)? {
        let entry = entry?;
        let is_list = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let written = entry.metadata()?.modified()?;
        let age = SystemTime::now().duration_since(written);
        if is_list && age.is_ok_and(|age| KEPT < age) {
            found.push(entry.path());
        }
    }
    Ok(found)
}
