//! The folder of the ranks' sockets. Whoever could put a socket there would give a rank its orders,
//! so it is this user's alone, and its name is never one that another user could have taken first.

use anyhow::{Context, Result, ensure};
use std::fs::{DirBuilder, Metadata, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const PRIVATE: u32 = 0o700;

/// A prepared folder. One that was not configured is removed with this value.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    _temporary: Option<TempDir>,
}

impl RunDir {
    /// Creates the configured folder if it is missing, and checks that nobody else can change it.
    /// Without one, creates a folder with a random name in `$XDG_RUNTIME_DIR` or the system's
    /// temporary folder.
    ///
    /// # Errors
    /// It cannot be created, belongs to another user, or can be replaced by one.
    pub(crate) fn prepare(configured: Option<&Path>) -> Result<Self> {
        let Some(path) = configured else {
            let above = std::env::var_os("XDG_RUNTIME_DIR").filter(|it| !it.is_empty());
            let above = above.map_or_else(std::env::temp_dir, PathBuf::from);
            return Self::temporary(&above);
        };
        DirBuilder::new()
            .recursive(true)
            .mode(PRIVATE)
            .create(path)
            .with_context(|| format!("cannot create `run_dir` {}", path.display()))?;
        make_private(path, rustix::process::geteuid().as_raw())?;
        Ok(Self {
            path: path.to_owned(),
            _temporary: None,
        })
    }

    fn temporary(above: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("retri-worker-")
            .permissions(Permissions::from_mode(PRIVATE))
            .tempdir_in(above)
            .with_context(|| {
                format!(
                    "cannot create a folder in {}; set `run_dir`",
                    above.display()
                )
            })?;
        make_private(folder.path(), rustix::process::geteuid().as_raw())?;
        Ok(Self {
            path: folder.path().to_owned(),
            _temporary: Some(folder),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Checks that the folder is `user`'s, and takes all rights of others away.
fn make_private(path: &Path, user: u32) -> Result<()> {
    let shown = path.display();
    let found = look(path)?;
    ensure!(
        found.is_dir(),
        "`run_dir` {shown} is not a folder (links are not followed); choose another path"
    );
    ensure!(
        found.uid() == user,
        "`run_dir` {shown} belongs to user {}, and this daemon is user {user}: its owner could \
         give orders to ranks; remove it or choose another path",
        found.uid()
    );
    let mode = found.mode() & 0o7777;
    if mode & 0o077 != 0 {
        std::fs::set_permissions(path, Permissions::from_mode(PRIVATE))
            .with_context(|| format!("cannot make `run_dir` {shown} private (mode 0700)"))?;
        tracing::warn!(
            run_dir = %shown,
            "others could enter run_dir (mode {mode:04o}); it has mode 0700 now"
        );
    }
    let whole =
        std::fs::canonicalize(path).with_context(|| format!("cannot resolve `run_dir` {shown}"))?;
    for above in whole.ancestors().skip(1) {
        let mode = look(above)?.mode();
        let (is_open, is_sticky) = (mode & 0o002 != 0, mode & 0o1000 != 0);
        ensure!(
            !is_open || is_sticky,
            "`run_dir` {shown} is in {}, where every user may replace it; choose another path, or \
             set that folder's sticky bit (chmod +t)",
            above.display()
        );
    }
    Ok(())
}

fn look(path: &Path) -> Result<Metadata> {
    std::fs::symlink_metadata(path).with_context(|| format!("cannot look at {}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn user() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    fn mode(path: &Path) -> u32 {
        look(path).unwrap().mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_folder_of_its_own_has_a_name_that_nobody_can_guess() {
        let above = tempfile::tempdir().unwrap();
        let (one, two) = (
            RunDir::temporary(above.path()),
            RunDir::temporary(above.path()),
        );
        let (one, two) = (one.unwrap(), two.unwrap());
        assert_ne!(one.path(), two.path());
        assert_eq!(mode(one.path()), PRIVATE);
        let path = one.path().to_owned();
        drop(one);
        assert!(!path.exists() && two.path().exists());
    }

    #[test]
    fn a_configured_folder_becomes_private_and_stays() {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("a/b");
        drop(RunDir::prepare(Some(&path)).unwrap());
        assert_eq!(
            (mode(&path), mode(&above.path().join("a"))),
            (PRIVATE, PRIVATE)
        );
        set_mode(&path, 0o775);
        drop(RunDir::prepare(Some(&path)).unwrap());
        assert_eq!(mode(&path), PRIVATE);
    }

    #[test]
    fn a_folder_that_others_own_or_can_replace_is_refused() {
        let above = tempfile::tempdir().unwrap();
        let refusal = |path: &Path| RunDir::prepare(Some(path)).unwrap_err().to_string();
        let path = above.path().join("run");
        std::fs::create_dir(&path).unwrap();
        let error = make_private(&path, user() + 1).unwrap_err().to_string();
        let expected = format!(
            "belongs to user {}, and this daemon is user {}",
            user(),
            user() + 1
        );
        assert!(error.contains(&expected), "{error}");
        let link = above.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(
            refusal(&link).contains("links are not followed"),
            "{}",
            refusal(&link)
        );
        set_mode(above.path(), 0o777);
        let error = refusal(&path);
        assert!(error.contains("where every user may replace it"), "{error}");
        set_mode(above.path(), 0o1777);
        drop(RunDir::prepare(Some(&path)).unwrap());
        set_mode(above.path(), 0o700);
    }
}
