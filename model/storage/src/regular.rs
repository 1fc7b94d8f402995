//! Reads files that a user names. A pipe would make the reader wait for ever, a device has no end,
//! and opening either may do something: only regular files are read.

use std::fs::{File, FileType, Metadata};
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

use crate::read::ReadError;

/// Opens a regular file.
///
/// # Errors
/// It does not exist, is not readable, or is something else: what it is.
pub fn open(path: &Path) -> Result<File> {
    // Before it is opened, which may wait or have an effect, and again after, because it may have
    // been exchanged.
    check(&std::fs::metadata(path)?)?;
    let file = open_without_waiting(path)?;
    check(&file.metadata()?)?;
    Ok(file)
}

/// Reads a regular file of at most `max` bytes whole. A larger one is refused by its size, unread.
///
/// # Errors
/// As [`open`], the file is larger, or reading fails.
pub fn read(path: &Path, max: u64) -> Result<Vec<u8>> {
    let file = open(path)?;
    let too_large = |size| Error::new(ErrorKind::FileTooLarge, ReadError::TooLarge { size, max });
    let size = file.metadata()?.len();
    if max < size {
        return Err(too_large(size));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    // It may grow while it is read, and some files say that they have no size.
    let read = file.take(max + 1).read_to_end(&mut bytes)? as u64;
    if max < read {
        return Err(too_large(read));
    }
    Ok(bytes)
}

#[cfg(unix)]
fn open_without_waiting(path: &Path) -> Result<File> {
    use rustix::fs::{Mode, OFlags};
    // A regular file ignores NONBLOCK.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

#[cfg(not(unix))]
fn open_without_waiting(path: &Path) -> Result<File> {
    File::open(path)
}

fn check(metadata: &Metadata) -> Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let kind = name_of(metadata.file_type());
    let message = format!("it is {kind}, and only a regular file is read");
    Err(Error::new(ErrorKind::InvalidInput, message))
}

#[cfg(unix)]
fn name_of(kind: FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match kind {
        _ if kind.is_dir() => "a directory",
        _ if kind.is_fifo() => "a named pipe",
        _ if kind.is_socket() => "a socket",
        _ if kind.is_char_device() || kind.is_block_device() => "a device",
        _ => "no file",
    }
}

#[cfg(not(unix))]
fn name_of(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else {
        "no file"
    }
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), b"bytes").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        assert_eq!(read(&at("file"), 5).unwrap(), b"bytes");
        assert_eq!(read(&at("link"), 5).unwrap(), b"bytes");

        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let made = std::process::Command::new("mkfifo")
            .arg(at("pipe"))
            .status()
            .unwrap();
        assert!(made.success());
        std::os::unix::fs::symlink("pipe", at("link to pipe")).unwrap();
        for (path, kind) in [
            (folder.path().to_owned(), "a directory"),
            (at("socket"), "a socket"),
            (at("pipe"), "a named pipe"),
            (at("link to pipe"), "a named pipe"),
            (Path::new("/dev/null").to_owned(), "a device"),
        ] {
            // It returns: nobody writes into the pipe.
            let error = read(&path, 5).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("it is {kind}, and only a regular file is read")
            );
        }
        assert_eq!(
            read(&at("missing"), 5).unwrap_err().kind(),
            ErrorKind::NotFound
        );
    }

    #[test]
    fn only_files_of_at_most_that_size_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        // It has no blocks, only a length.
        File::create(at("giant")).unwrap().set_len(8 << 40).unwrap();
        std::fs::write(at("small"), b"12345").unwrap();
        let refusal = |path: &Path, max| read(path, max).unwrap_err().to_string();
        assert_eq!(read(&at("small"), 5).unwrap(), b"12345");
        assert_eq!(
            refusal(&at("small"), 4),
            "it has 5 bytes; at most 4 are read"
        );
        assert_eq!(
            refusal(&at("giant"), 1000),
            "it has 8796093022208 bytes; at most 1000 are read"
        );
        // It says that it has no bytes.
        assert_eq!(
            refusal(Path::new("/proc/self/maps"), 10),
            "it has 11 bytes; at most 10 are read"
        );
    }
}
