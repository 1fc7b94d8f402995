//! Finds the files of a tar by its headers, each read by range: the form of webdataset. POSIX ustar
//! and pax, and GNU's long names.

use crate::error::{BuildError, Result};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

const BLOCK: u64 = 512;
/// Largest name or extended header.
const NAME_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) offset: u64,
    pub(super) size: u64,
}

/// The files before the first fault.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    pub(super) members: Vec<Member>,
    /// Where it is, and why nothing is read after it.
    pub(super) fault: Option<(u64, String)>,
}

/// What a header says.
struct Header {
    name: String,
    size: u64,
    kind: u8,
}

/// Reads the headers of a tar of `size` bytes.
///
/// # Errors
/// Storage fails. A tar that is damaged or cut off is a fault of what is found.
pub(super) async fn members(store: &dyn ObjectStore, path: &Path, size: u64) -> Result<Scanned> {
    let mut scanned = Scanned::default();
    let (mut offset, mut long_name) = (0, None);
    let read = async |from: u64, length: u64| {
        let read = store.get_range(path, from..from + length).await;
        read.map_err(|source| BuildError::Read {
            path: path.to_string(),
            source,
        })
    };
    loop {
        if size < offset + BLOCK {
            let reason = format!(
                "is cut off: it ends at byte {size} and has no block of zeros, which ends a tar"
            );
            scanned.fault = Some((offset, reason));
            return Ok(scanned);
        }
        let block = read(offset, BLOCK).await?;
        if block.iter().all(|it| *it == 0) {
            return Ok(scanned);
        }
        let header = match header(&block) {
            Ok(header) => header,
            Err(reason) => {
                scanned.fault = Some((offset, reason));
                return Ok(scanned);
            }
        };
        let start = offset + BLOCK;
        let name: String = long_name.take().unwrap_or(header.name);
        let end = start.checked_add(header.size).filter(|end| *end <= size);
        let Some(end) = end else {
            let reason = format!(
                "is cut off: {name:?} is {} bytes at byte {start}, and the tar has {size}",
                header.size
            );
            scanned.fault = Some((offset, reason));
            return Ok(scanned);
        };
        match header.kind {
            b'0' | 0 => scanned.members.push(Member {
                name,
                offset: start,
                size: header.size,
            }),
            b'L' | b'x' if header.size <= NAME_BYTES_MAX => {
                let text = read(start, header.size).await?;
                long_name = match header.kind {
                    b'L' => Some(text_of(&text)),
                    _ => pax_path(&text),
                };
            }
            // Folders, links and headers for all files.
            _ => {}
        }
        offset = end.next_multiple_of(BLOCK);
    }
}

/// A text up to its first zero.
fn text_of(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|it| *it == 0);
    String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
}

fn octal(field: &[u8]) -> Option<u64> {
    // Large numbers are binary, marked by the highest bit (GNU).
    if field.first().is_some_and(|it| it & 0x80 != 0) {
        let mut digits = field.iter().enumerate();
        return digits.try_fold(0_u64, |sum, (place, digit)| {
            let digit = if place == 0 { digit & 0x7f } else { *digit };
            sum.checked_mul(256)?.checked_add(digit.into())
        });
    }
    let text = text_of(field);
    let text = text.trim();
    if text.is_empty() {
        return Some(0);
    }
    u64::from_str_radix(text, 8).ok()
}

fn header(block: &[u8]) -> std::result::Result<Header, String> {
    let sum: u64 = block
        .iter()
        .enumerate()
        .map(|(place, byte)| match place {
            // The checksum counts its own field as spaces.
            148..156 => u64::from(b' '),
            _ => u64::from(*byte),
        })
        .sum();
    if octal(&block[148..156]) != Some(sum) {
        return Err("is no header of a tar: its checksum is wrong".to_owned());
    }
    let size = octal(&block[124..136]).ok_or("is a header of a tar whose size is no number")?;
    let (prefix, name) = (text_of(&block[345..500]), text_of(&block[..100]));
    let is_posix = &block[257..262] == b"ustar" && block[262] == 0;
    Ok(Header {
        name: if is_posix && !prefix.is_empty() {
            format!("{prefix}/{name}")
        } else {
            name
        },
        size,
        kind: block[156],
    })
}

/// The path in an extended header: lines of `LENGTH KEY=VALUE`.
fn pax_path(text: &[u8]) -> Option<String> {
    let mut rest = text;
    while let Some(space) = rest.iter().position(|it| *it == b' ') {
        let length: usize = std::str::from_utf8(&rest[..space]).ok()?.parse().ok()?;
        let line = rest.get(space + 1..length.checked_sub(1)?)?;
        if let Some(path) = line.strip_prefix(b"path=") {
            return Some(String::from_utf8_lossy(path).into_owned());
        }
        rest = rest.get(length..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use object_store::PutPayload;
    use object_store::memory::InMemory;
    use std::process::Command;

    async fn scanned(bytes: &[u8]) -> Scanned {
        let (store, path) = (InMemory::new(), Path::from("a.tar"));
        let payload = PutPayload::from(bytes.to_vec());
        store.put(&path, payload).await.unwrap();
        members(&store, &path, bytes.len() as u64).await.unwrap()
    }

    #[tokio::test]
    async fn tars_of_each_format_are_read_and_a_half_one_up_to_its_fault() {
        let folder = tempfile::tempdir().unwrap();
        let long = format!("{}/{}.png", "d".repeat(90), "n".repeat(90));
        std::fs::create_dir(folder.path().join("d".repeat(90))).unwrap();
        std::fs::write(folder.path().join("1.png"), vec![1; 700]).unwrap();
        std::fs::write(folder.path().join(&long), vec![2; 40]).unwrap();
        for format in ["gnu", "ustar", "posix"] {
            let mut pack = Command::new("tar");
            pack.args(["-c", "--format", format, "1.png", &long]);
            let bytes = pack.current_dir(folder.path()).output().unwrap().stdout;
            let found = scanned(&bytes).await;
            assert_eq!(found.fault, None);
            let names: Vec<&str> = found.members.iter().map(|it| it.name.as_str()).collect();
            assert_eq!(names, ["1.png", &long], "{format}");
            let second = &found.members[1];
            let start = usize::try_from(second.offset).unwrap();
            assert_eq!(bytes[start..start + 40], [2; 40]);
            let half = scanned(&bytes[..start + 10]).await;
            assert_eq!(half.members.len(), 1);
            assert!(half.fault.unwrap().1.contains("is cut off"), "{format}");
            // Cut between two files.
            let first = &found.members[0];
            let end = usize::try_from((first.offset + 700).next_multiple_of(BLOCK)).unwrap();
            let between = scanned(&bytes[..end]).await.fault.unwrap();
            assert_eq!(between.0, end as u64);
            let mut wrong = bytes.clone();
            wrong[3] ^= 1;
            let (offset, reason) = scanned(&wrong).await.fault.unwrap();
            // Extended headers have a header of their own, before that of the first file.
            assert!(offset < 2048 && reason.contains("checksum"), "{reason}");
        }
    }
}
