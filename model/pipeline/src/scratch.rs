//! Files that are needed while a unit runs. They are deleted at its end, or, if its process was
//! killed, by the next unit on the same machine.

use std::io::Result;
use std::path::Path;
use tempfile::{Builder, NamedTempFile, TempDir};

/// The prefix of all files of this process.
fn prefix(process: u32) -> String {
    format!("unit-{process}-")
}

/// A new folder in `scratch`.
///
/// # Errors
/// It cannot be made.
pub(crate) fn folder(scratch: &Path) -> Result<TempDir> {
    Builder::new()
        .prefix(&prefix(std::process::id()))
        .tempdir_in(scratch)
}

/// A new file in `scratch`.
///
/// # Errors
/// It cannot be made.
pub(crate) fn file(scratch: &Path) -> Result<NamedTempFile> {
    Builder::new()
        .prefix(&prefix(std::process::id()))
        .tempfile_in(scratch)
}

/// Deletes what processes have left that exist no more. What cannot be deleted is left.
///
/// # Errors
/// The folder cannot be made or listed.
pub(crate) fn sweep(scratch: &Path) -> Result<()> {
    std::fs::create_dir_all(scratch)?;
    for entry in std::fs::read_dir(scratch)? {
        let entry = entry?;
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix("unit-"));
        let process = process.and_then(|name| name.split('-').next()?.parse::<u32>().ok());
        let Some(process) = process else { continue };
        if Path::new("/proc").join(process.to_string()).exists() {
            continue;
        }
        let path = entry.path();
        if path.is_dir() {
            std::fs::remove_dir_all(path).ok();
        } else {
            std::fs::remove_file(path).ok();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_killed_process_left_is_deleted_and_nothing_else() {
        let scratch = tempfile::tempdir().unwrap();
        let (own, kept) = (
            folder(scratch.path()).unwrap(),
            file(scratch.path()).unwrap(),
        );
        // The kernel's largest number of a process is below this.
        let left = scratch.path().join(format!("{}x", prefix(1 << 30)));
        std::fs::create_dir(&left).unwrap();
        std::fs::write(left.join("tables.db"), "x").unwrap();
        std::fs::write(scratch.path().join("other"), "x").unwrap();
        sweep(scratch.path()).unwrap();
        assert!(!left.exists() && own.path().exists() && kept.path().exists());
        assert!(scratch.path().join("other").exists());
        sweep(&scratch.path().join("new")).unwrap();
    }
}
