//! The folders of the daemon, checked before it accepts work: it must not take jobs that it cannot
//! start. Called by [`crate::daemon`].

use crate::run_dir::RunDir;
use anyhow::{Context, bail, ensure};
use std::io::{Error, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// Longest path of a Unix socket, in bytes: the kernel has 108 with the final zero.
const SOCKET_PATH_MAX: usize = 107;
/// Sockets are numbered below this, so that their names have a known length.
const SOCKETS: u64 = 1_000_000;
/// Bytes of `/PID-NUMBER.sock` with the largest process id (4194304) and number.
const SOCKET_NAME_MAX: usize = "/4194304-999999.sock".len();
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// A folder that has no room for this long will have none: well within a minute.
const NO_ROOM_MAX: Duration = Duration::from_secs(30);

/// The socket of the process that is started as number `started`.
pub(crate) fn socket_path(run_dir: &Path, started: u64) -> PathBuf {
    run_dir.join(format!("{}-{}.sock", std::process::id(), started % SOCKETS))
}

/// Prepares the folder of the ranks' sockets (`configured`, or one of its own) and `cache_dir`, and
/// checks that sockets can be made in the first and files in the second. While there is no room for
/// a socket it waits for half a minute, and says so. A full `cache_dir` is only said: weights that
/// are in it already can be used.
///
/// # Errors
/// A folder cannot be used; waiting would not help.
pub(crate) async fn folders(configured: Option<&Path>, cache_dir: &Path) -> anyhow::Result<RunDir> {
    if let Some(run_dir) = configured {
        check_length(run_dir)?;
    }
    let run_dir = when_there_is_room(async || {
        let path = configured.map(Path::to_owned);
        blocking(move || usable_run_dir(path.as_deref())).await?
    });
    let run_dir = run_dir.await?;
    let folder = cache_dir.to_owned();
    let made = blocking(move || {
        std::fs::create_dir_all(&folder)?;
        make_file(&folder)
    });
    match made.await? {
        Ok(()) => Ok(run_dir),
        Err(error) if is_no_room(&error) => {
            let cache_dir = cache_dir.display();
            tracing::warn!(
                %cache_dir, %error,
                "`cache_dir` has no room; jobs whose base weights are not in it will fail"
            );
            Ok(run_dir)
        }
        Err(error) => {
            let folder = cache_dir.display();
            Err(error).with_context(|| {
                format!("cannot write to `cache_dir` {folder}; this user must be able to")
            })
        }
    }
}

/// Tries again while there is no room, but not for long.
async fn when_there_is_room<T>(attempt: impl AsyncFn() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let begun = Instant::now();
    let mut is_said = false;
    loop {
        let error = match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let cause = error.chain().find_map(|it| it.downcast_ref::<Error>());
        if !cause.is_some_and(is_no_room) || NO_ROOM_MAX <= begun.elapsed() {
            return Err(error);
        }
        if !std::mem::replace(&mut is_said, true) {
            tracing::warn!("waiting for room in `run_dir`: {error:#}");
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

fn check_length(run_dir: &Path) -> anyhow::Result<()> {
    let bytes = run_dir.as_os_str().as_bytes().len();
    let bytes_max = SOCKET_PATH_MAX - SOCKET_NAME_MAX;
    ensure!(
        bytes <= bytes_max,
        "`run_dir` {} is {bytes} bytes long; at most {bytes_max} are possible, because the path of \
        a socket in it has at most {SOCKET_PATH_MAX}. Set a shorter one, such as /run/retri",
        run_dir.display()
    );
    Ok(())
}

/// The folder of the sockets, in which one was made.
fn usable_run_dir(configured: Option<&Path>) -> anyhow::Result<RunDir> {
    let run_dir = RunDir::prepare(configured)?;
    check_length(run_dir.path())?;
    make_socket(run_dir.path()).with_context(|| {
        let folder = run_dir.path().display();
        format!("cannot make a socket in `run_dir` {folder}; this user must be able to write there")
    })?;
    Ok(run_dir)
}

/// Runs `check` on a thread of its own: a file server that is away must not keep the daemon from
/// its signals.
async fn blocking<T: Send + 'static>(
    check: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    match tokio::task::spawn_blocking(check).await {
        Ok(result) => Ok(result),
        Err(error) => bail!("the check of a folder panicked: {error}"),
    }
}

fn make_socket(folder: &Path) -> std::io::Result<()> {
    let path = socket_path(folder, SOCKETS - 1);
    // It may exist from a daemon with the same process id before the last reboot.
    let _ = std::fs::remove_file(&path);
    let made = UnixListener::bind(&path).map(drop);
    let _ = std::fs::remove_file(&path);
    made
}

fn make_file(folder: &Path) -> std::io::Result<()> {
    let path = folder.join(format!(".probe-{}", std::process::id()));
    let made = std::fs::write(&path, [0; 4096]);
    let _ = std::fs::remove_file(&path);
    made
}

fn is_no_room(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn folders_are_made_and_left_empty() {
        let dir = tempfile::tempdir().unwrap();
        let (run, cache) = (dir.path().join("a/run"), dir.path().join("b/cache"));
        folders(Some(&run), &cache).await.unwrap();
        folders(Some(&run), &cache).await.unwrap();
        for folder in [run, cache] {
            assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        }
    }

    #[tokio::test]
    async fn a_run_dir_is_refused_exactly_if_a_socket_does_not_fit() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache");
        let bytes_max = SOCKET_PATH_MAX - SOCKET_NAME_MAX;
        let fill = bytes_max - dir.path().as_os_str().len() - 1;
        let fits = dir.path().join("x".repeat(fill));
        folders(Some(&fits), &cache).await.unwrap();
        let longest = PathBuf::from(format!("{}/4194304-999999.sock", fits.display()));
        UnixListener::bind(&longest).unwrap();

        let long = dir.path().join("x".repeat(fill + 1));
        let error = folders(Some(&long), &cache).await.unwrap_err().to_string();
        assert!(
            error.contains("`run_dir`") && error.contains("at most 87"),
            "{error}"
        );
        let one_more = PathBuf::from(format!("{}x", longest.display()));
        assert!(UnixListener::bind(one_more).is_err());
    }

    #[tokio::test]
    async fn a_file_in_the_place_of_a_folder_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (good, file) = (dir.path().join("good"), dir.path().join("file"));
        std::fs::write(&file, "x").unwrap();
        for (run, cache, key) in [(&file, &good, "`run_dir`"), (&good, &file, "`cache_dir`")] {
            let error = folders(Some(run), cache).await.unwrap_err();
            let text = format!("{error:#}");
            let path = file.display().to_string();
            assert!(text.contains(key) && text.contains(&path), "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_folder_is_waited_for_but_not_for_long() {
        let full = || anyhow::Error::new(Error::from(ErrorKind::StorageFull)).context("run_dir");
        let begun = Instant::now();
        let error = when_there_is_room::<()>(async || Err(full())).await;
        assert!(format!("{:#}", error.unwrap_err()).contains("no storage space"));
        let took = begun.elapsed();
        assert!(
            NO_ROOM_MAX <= took && took < Duration::from_secs(60),
            "{took:?}"
        );

        let begun = Instant::now();
        let attempt = async || match begun.elapsed().as_secs() {
            0..20 => Err(full()),
            _ => Ok(7),
        };
        assert_eq!(when_there_is_room(attempt).await.unwrap(), 7);

        let begun = Instant::now();
        let denied = || anyhow::Error::new(Error::from(ErrorKind::PermissionDenied));
        when_there_is_room::<()>(async || Err(denied()))
            .await
            .unwrap_err();
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[test]
    fn socket_names_repeat_only_after_a_million() {
        let run = Path::new("/run/retri");
        assert_eq!(socket_path(run, 7), socket_path(run, 1_000_007));
        assert_ne!(socket_path(run, 7), socket_path(run, 8));
    }
}
