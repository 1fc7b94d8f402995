//! Opens files of a folder that a stranger made, and nothing outside of it: no `..`, no absolute
//! path, no symbolic link that leads out, and nothing that is not a file, such as a pipe that would
//! block its reader or a device without end.

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

/// The end of a sentence that begins with the name of the file.
#[derive(Debug, thiserror::Error)]
pub enum ConfinedError {
    #[error("leaves the folder; write a path inside it")]
    Leaves,
    #[error(
        "is reached through a symbolic link that is absolute or leaves the folder; \
         copy the file into the folder"
    )]
    Link,
    #[error("is {0}; it must be a file")]
    NotAFile(&'static str),
    #[error("has {size} bytes; at most {max} are read")]
    TooLarge { size: u64, max: u64 },
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
}

/// Opens a file below `folder`. Symbolic links are followed as long as they stay inside.
///
/// The kernel resolves the path (`openat2` with `RESOLVE_BENEATH`), so that a link which changes
/// meanwhile leads nowhere else. Where it cannot (before Linux 5.6), no link is followed.
///
/// # Errors
/// The path leaves the folder, what it names is not a file, or it cannot be opened.
pub fn open_inside(folder: &Path, name: &str) -> Result<File, ConfinedError> {
    let relative = Path::new(name);
    let is_inside = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if name.is_empty() || !relative.components().all(is_inside) {
        return Err(ConfinedError::Leaves);
    }
    // Without blocking: opening a pipe would wait for its writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let inside = openat(CWD, folder, directory, Mode::empty()).map_err(std::io::Error::from)?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let opened = match openat2(&inside, relative, flags, Mode::empty(), resolve) {
        Err(Errno::NOSYS) => {
            let strict = flags | OFlags::NOFOLLOW;
            let mut at = inside;
            let parts: Vec<_> = relative.components().collect();
            let (last, folders) = parts.split_last().ok_or(ConfinedError::Leaves)?;
            for part in folders {
                let folder = directory | OFlags::NOFOLLOW;
                at = openat(&at, part.as_os_str(), folder, Mode::empty()).map_err(refusal)?;
            }
            openat(&at, last.as_os_str(), strict, Mode::empty())
        }
        opened => opened,
    };
    let file = File::from(opened.map_err(refusal)?);
    let kind = file.metadata()?.file_type();
    if !kind.is_file() {
        use std::os::unix::fs::FileTypeExt;
        return Err(ConfinedError::NotAFile(match () {
            () if kind.is_dir() => "a folder",
            () if kind.is_fifo() => "a named pipe",
            () if kind.is_socket() => "a socket",
            () => "a device",
        }));
    }
    Ok(file)
}

/// The same for a file of a base model. In the cache of `huggingface_hub`, the files of
/// `models--NAME/snapshots/REVISION` are links into `models--NAME/blobs`, so there a link may lead
/// to any file of the same `models--NAME`, and nowhere else.
///
/// # Errors
/// As [`open_inside`].
pub fn open_of_model(folder: &Path, name: &str) -> Result<File, ConfinedError> {
    match open_inside(folder, name) {
        Err(ConfinedError::Link) => {
            let folder = folder.canonicalize()?;
            let (cache, inside) = cached_model(&folder).ok_or(ConfinedError::Link)?;
            let path = inside.join(name);
            open_inside(cache, path.to_str().ok_or(ConfinedError::Link)?)
        }
        opened => opened,
    }
}

/// The folder of a cached model above an absolute `folder`, and the path of `folder` in it. None:
/// it is in no snapshot of a cached model.
fn cached_model(folder: &Path) -> Option<(&Path, &Path)> {
    let is_model = |it: &&Path| {
        let name = it.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("models--"))
    };
    let model = folder.ancestors().find(is_model)?;
    let inside = folder.strip_prefix(model).ok()?;
    let mut parts = inside.components();
    let is_snapshot = parts.next()?.as_os_str() == "snapshots" && parts.next().is_some();
    is_snapshot.then_some((model, inside))
}

/// Reads a whole file below `folder`, of at most `max` bytes.
///
/// # Errors
/// As [`open_inside`], or the file is larger.
pub fn read_inside(folder: &Path, name: &str, max: u64) -> Result<Vec<u8>, ConfinedError> {
    let file = open_inside(folder, name)?;
    let size = file.metadata()?.len();
    if max < size {
        return Err(ConfinedError::TooLarge { size, max });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    // It may grow while it is read, and some files say that they have no size.
    let read = file.take(max + 1).read_to_end(&mut bytes)? as u64;
    if max < read {
        return Err(ConfinedError::TooLarge { size: read, max });
    }
    Ok(bytes)
}

fn refusal(error: Errno) -> ConfinedError {
    match error {
        Errno::XDEV | Errno::LOOP => ConfinedError::Link,
        // A socket cannot be opened.
        Errno::NXIO => ConfinedError::NotAFile("a socket"),
        error => ConfinedError::Io(error.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_link_in_a_cached_model_may_lead_to_the_same_model_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let hub = dir.path().join("hub");
        let put = |path: &str, text: &str| {
            let path = hub.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("models--a--b/blobs/1234", "weights");
        put("models--c--d/blobs/1234", "of another model");
        put("token", "secret");
        let unet = hub.join("models--a--b/snapshots/5678/unet");
        std::fs::create_dir_all(&unet).unwrap();
        let link = |to: &str, name: &str| symlink(to, unet.join(name)).unwrap();
        link("../../../blobs/1234", "good");
        link("../../../../models--c--d/blobs/1234", "other");
        link("../../../../token", "token");
        link("../../../blobs", "folder");
        link("/etc/passwd", "absolute");
        symlink("../../../token", hub.join("models--a--b/blobs/out")).unwrap();
        link("../../../blobs/out", "twice");
        let read = |folder: &Path, name: &str| {
            let file = open_of_model(folder, name).map_err(|error| error.to_string())?;
            std::io::read_to_string(file).map_err(|error| error.to_string())
        };
        assert_eq!(read(&unet, "good").unwrap(), "weights");
        // Users may reach the snapshot through a link of their own.
        let short = dir.path().join("short");
        symlink(unet.parent().unwrap(), &short).unwrap();
        assert_eq!(read(&short.join("unet"), "good").unwrap(), "weights");
        for (name, part) in [
            ("other", "symbolic link"),
            ("token", "symbolic link"),
            ("absolute", "symbolic link"),
            ("twice", "symbolic link"),
            ("folder", "is a folder"),
            ("../../../blobs/1234", "leaves the folder"),
        ] {
            let error = read(&unet, name).unwrap_err();
            assert!(error.contains(part), "{name}: {error}");
        }
        // The same links in a folder that is no snapshot of a cached model.
        for folder in [
            "models--a--b/blobs",
            "models--a--b/snapshots",
            "plain/snapshots/1/unet",
        ] {
            let folder = hub.join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            symlink("../token", folder.join("link")).unwrap();
            let error = read(&folder, "link").unwrap_err();
            assert!(error.contains("symbolic link"), "{error}");
        }
    }

    #[test]
    fn only_files_inside_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("folder");
        std::fs::create_dir_all(folder.join("sub")).unwrap();
        std::fs::write(dir.path().join("private"), b"secret").unwrap();
        std::fs::write(folder.join("sub/a.png"), b"image").unwrap();
        symlink("sub/a.png", folder.join("inside.png")).unwrap();
        symlink("../private", folder.join("up.png")).unwrap();
        symlink(dir.path().join("private"), folder.join("absolute.png")).unwrap();
        symlink("..", folder.join("above")).unwrap();
        symlink("loop.png", folder.join("loop.png")).unwrap();
        symlink("/dev/zero", folder.join("zero.png")).unwrap();
        let pipe = std::process::Command::new("mkfifo")
            .arg(folder.join("pipe.png"))
            .status();
        assert!(pipe.unwrap().success());
        let _socket = std::os::unix::net::UnixListener::bind(folder.join("s.png")).unwrap();
        let read = |name: &str| read_inside(&folder, name, 5).map_err(|error| error.to_string());
        for name in ["sub/a.png", "./sub/./a.png", "inside.png"] {
            assert_eq!(read(name).unwrap(), b"image", "{name}");
        }
        let absolute = dir.path().join("private").display().to_string();
        for (name, part) in [
            ("", "leaves the folder"),
            ("..", "leaves the folder"),
            ("../private", "leaves the folder"),
            ("sub/../../private", "leaves the folder"),
            (absolute.as_str(), "leaves the folder"),
            ("up.png", "symbolic link"),
            ("absolute.png", "symbolic link"),
            ("above/private", "symbolic link"),
            ("loop.png", "symbolic link"),
            ("zero.png", "symbolic link"),
            ("pipe.png", "is a named pipe"),
            ("s.png", "is a socket"),
            ("sub", "is a folder"),
            ("none.png", "cannot be read: No such file"),
        ] {
            let error = read(name).unwrap_err();
            assert!(error.contains(part), "{name}: {error}");
        }
        let error = read_inside(&folder, "sub/a.png", 4)
            .unwrap_err()
            .to_string();
        assert_eq!(error, "has 5 bytes; at most 4 are read");
    }
}
