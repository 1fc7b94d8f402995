//! The location of the servers that `deploy/setup/test_tools.py` installs for tests.

use anyhow::{Context, Result, ensure};
use std::path::PathBuf;

/// A file below the cache's `test-tools/`, for instance `seaweedfs/weed`.
///
/// # Errors
/// It does not exist.
pub fn path(file: &str) -> Result<PathBuf> {
    let cache = match std::env::var_os("RETRI_CACHE").filter(|value| !value.is_empty()) {
        Some(cache) => PathBuf::from(cache),
        None => {
            PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache/retri")
        }
    };
    let path = cache.join("test-tools").join(file);
    ensure!(
        path.is_file(),
        "{} does not exist: run `python3 deploy/setup/test_tools.py` first",
        path.display()
    );
    Ok(path)
}
