//! MXNet's RecordIO as InsightFace publishes sets of faces (Glint360K, An et al. 2021; MS1M):
//! `train.idx` has the byte at which each record of `train.rec` begins. A record is the number
//! 0xced7230a, its length, a header of 24 bytes (flag, label, two numbers), further labels if the
//! flag counts them, and an image. Numbers are little-endian. Images are read from the record file
//! by range.

use super::{Entry, Source, stem};
use crate::error::{BuildError, Result};
use crate::figure::WHOLE;
use proto::build::report::Report;

const MAGIC: u32 = 0xced7_230a;
/// Of a record before its image, without further labels.
const HEADER_BYTES: u64 = 8 + 24;
/// Headers that are read by one request: those of neighbours are merged by the store.
const HEADERS: usize = 1024;
/// More labels than sets of faces have.
const LABELS_MAX: u32 = 1024;

/// An image of a record.
#[derive(Debug, PartialEq)]
enum Record {
    /// The person, and where the image is in the record.
    Image { label: f32, from: u64, size: u64 },
    /// How many images and people there are; it has no image.
    Summary,
}

fn number(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|it| it.try_into().ok());
    word.map_or(0, u32::from_le_bytes)
}

/// What the first bytes of a record say. `length` is that up to the next record.
fn record(head: &[u8], length: u64) -> std::result::Result<Record, String> {
    let magic = number(head, 0);
    if magic != MAGIC {
        return Err(format!(
            "begins with {magic:#010x}; a record begins with {MAGIC:#010x}"
        ));
    }
    let word = number(head, 4);
    if word >> 29 != 0 {
        return Err("is a part of a record, which this reader does not join".to_owned());
    }
    let size = u64::from(word & 0x1fff_ffff);
    let flag = number(head, 8);
    if LABELS_MAX < flag {
        return Err(format!("says that it has {flag} labels"));
    }
    let before = 24 + 4 * u64::from(flag);
    if size < before || length < 8 + size {
        return Err(format!(
            "says that it has {size} bytes; it needs {before}, and there are {length}"
        ));
    }
    if size == before {
        return Ok(Record::Summary);
    }
    // With a flag, labels follow the header, and the first is the person.
    let label = if flag == 0 {
        number(head, 12)
    } else {
        number(head, 32)
    };
    Ok(Record::Image {
        label: f32::from_bits(label),
        from: 8 + before,
        size: size - before,
    })
}

fn file<'a>(source: &'a Source<'_>, ending: &str) -> Result<&'a storage::listing::Listed> {
    let mut found = source.files.iter().filter(|it| it.path.ends_with(ending));
    match (found.next(), found.next()) {
        (Some(file), None) => Ok(file),
        (None, _) => Err(BuildError::input(
            &source.settings.listed.folder,
            format!("has no file NAME{ending}"),
        )),
        (Some(first), Some(second)) => Err(BuildError::input(
            &source.settings.listed.folder,
            format!(
                "has {} and {}: name a folder with one",
                first.path, second.path
            ),
        )),
    }
}

/// The bytes at which records begin, ascending, and their keys.
async fn starts(source: &Source<'_>, report: &mut Report) -> Result<Vec<(u64, String)>> {
    let path = &file(source, ".idx")?.path;
    let text = source.text(path).await?;
    let mut found = Vec::new();
    for (row, line) in (1..).zip(text.lines()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [] => {}
            [key, offset] if offset.parse::<u64>().is_ok() => {
                found.push((offset.parse().unwrap_or(0), (*key).to_owned()));
            }
            _ => {
                let reason = format!("{line:?} is no key and byte");
                source.bad((path, row, None), reason, report)?;
            }
        }
    }
    found.sort();
    Ok(found)
}

pub(super) async fn read(source: &Source<'_>, report: &mut Report) -> Result<Vec<Entry>> {
    let records = file(source, ".rec")?;
    let starts = starts(source, report).await?;
    let path = crate::sources::join(&source.prefix, &records.path);
    let mut entries = Vec::new();
    let ends = starts.iter().skip(1).map(|(start, _)| *start);
    let ends: Vec<u64> = ends.chain([records.size]).collect();
    let places: Vec<(u64, u64, &String)> = starts
        .iter()
        .zip(ends)
        .map(|((start, key), end)| (*start, end, key))
        .collect();
    for (number, places) in places.chunks(HEADERS).enumerate() {
        let mut good = Vec::new();
        for (index, (start, end, key)) in places.iter().enumerate() {
            let row = (number * HEADERS + index + 1) as u64;
            if *end <= records.size && start + HEADER_BYTES <= *end {
                good.push((row, *start, *end, *key));
            } else {
                let reason = format!(
                    "the record {key} is to begin at this byte, and the file has {} bytes",
                    records.size
                );
                source.bad((&records.path, row, Some(*start)), reason, report)?;
            }
        }
        // With the first label that may follow the header.
        let ranges: Vec<_> = good
            .iter()
            .map(|(_, start, end, _)| *start..(start + HEADER_BYTES + 4).min(*end))
            .collect();
        let heads = source.store.get_ranges(&path, &ranges).await;
        let heads = heads.map_err(|error| BuildError::Read {
            path: path.to_string(),
            source: error,
        })?;
        for ((row, start, end, key), head) in good.into_iter().zip(heads) {
            match record(&head, end - start) {
                Ok(Record::Summary) => {}
                Ok(Record::Image { label, from, size }) => entries.push(Entry {
                    name: format!("{}/{key}", stem(&records.path)),
                    identity: label.to_string(),
                    cloths: Some(Vec::new()),
                    image: records.path.clone(),
                    range: Some((start + from, size)),
                    mask: WHOLE.to_owned(),
                    ..Entry::default()
                }),
                Err(reason) => {
                    let reason = format!("the record {key} {reason}");
                    source.bad((&records.path, row, Some(start)), reason, report)?;
                }
            }
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(magic: u32, length: u32, flag: u32, label: f32) -> Vec<u8> {
        let words = [magic, length, flag, label.to_bits(), 0, 0, 0, 0];
        let mut bytes: Vec<u8> = words.iter().flat_map(|it| it.to_le_bytes()).collect();
        bytes.extend(7.0_f32.to_bits().to_le_bytes());
        bytes
    }

    #[test]
    fn records_say_where_their_images_are() {
        let of = |label, from, size| Ok(Record::Image { label, from, size });
        assert_eq!(record(&head(MAGIC, 124, 0, 5.0), 132), of(5.0, 32, 100));
        assert_eq!(record(&head(MAGIC, 132, 2, 0.0), 140), of(7.0, 40, 100));
        assert_eq!(record(&head(MAGIC, 32, 2, 0.0), 40), Ok(Record::Summary));
        for (head, length, why) in [
            (head(1, 124, 0, 5.0), 132, "begins with 0x00000001"),
            (head(MAGIC, 1 << 29, 0, 5.0), 132, "a part of a record"),
            (head(MAGIC, 124, 0, 5.0), 131, "says that it has 124 bytes"),
            (head(MAGIC, 20, 0, 5.0), 132, "says that it has 20 bytes"),
            (head(MAGIC, 124, 9999, 5.0), 132, "9999 labels"),
        ] {
            let error = record(&head, length).err().unwrap_or_default();
            assert!(error.contains(why), "{error}");
        }
    }
}
