//! `[data]`: defaults, bounds, and paths as URLs. Called by [`super::check`].

use crate::architecture::Defaults;
use crate::job::faults::Faults;
use crate::job::raw::DataToml;
use crate::rating::{Rating, Ratings};
use crate::spec::Data;
use std::path::Path;

/// `defaults` are those of the job's architecture.
pub(super) fn data(
    raw: &DataToml,
    defaults: Defaults,
    directory: Option<&Path>,
    faults: &mut Faults,
) -> Data {
    let data = Data {
        dataset: absolute("data.dataset", &raw.dataset, directory, faults),
        resolution: raw.resolution,
        prompt_drop: raw.prompt_drop.unwrap_or(defaults.prompt_drop),
        looks_drop: raw.looks_drop.unwrap_or(0.0),
        prompt_order: raw.prompt_order.unwrap_or_default(),
        holdout: raw.holdout.unwrap_or(0.0),
        ratings: ratings(raw.ratings.as_deref(), faults),
        seed: raw.seed.unwrap_or(0),
    };
    faults.fraction("data.prompt_drop", data.prompt_drop);
    faults.fraction("data.looks_drop", data.looks_drop);
    faults.need((0.0..1.0).contains(&data.holdout), "data.holdout", || {
        format!(
            "is {}; it must be at least 0 and below 1, because otherwise no training data is left",
            data.holdout
        )
    });
    faults.need(data.resolution <= 4096, "data.resolution", || {
        format!("is {}; it must be at most 4096", data.resolution)
    });
    data
}

fn ratings(raw: Option<&[Rating]>, faults: &mut Faults) -> Ratings {
    let Some(raw) = raw else {
        return Ratings::default();
    };
    faults.need(!raw.is_empty(), "data.ratings", || {
        "is []; it must name at least one of general, sensitive, questionable, explicit, unrated"
            .to_owned()
    });
    Ratings::new(raw.iter().copied())
}

/// Returns a URL unchanged, and a path as an absolute `file://` URL.
pub(crate) fn absolute(
    field: &str,
    value: &str,
    directory: Option<&Path>,
    faults: &mut Faults,
) -> String {
    if let Some((scheme, rest)) = value.split_once("://") {
        faults.need(matches!(scheme, "file" | "s3"), field, || {
            format!("is {value:?}; the scheme must be file:// or s3://")
        });
        faults.need(!rest.is_empty(), field, || {
            format!("is {value:?}; it has nothing after the scheme")
        });
        return value.to_owned();
    }
    if value.is_empty() {
        faults.add(
            field,
            "is empty; it must be a path, file:///… or s3://bucket/…",
        );
    }
    if Path::new(value).is_absolute() {
        return file_url(Path::new(value));
    }
    let Some(directory) = directory else {
        faults.add(
            field,
            format!("is {value:?}; it must be a URL: file:///… or s3://bucket/…"),
        );
        return value.to_owned();
    };
    file_url(&normalize(&directory.join(value)))
}

/// Percent-encodes characters that are special in a URL but not in a path.
fn file_url(path: &Path) -> String {
    let text = path.display().to_string();
    format!(
        "file://{}",
        text.replace('%', "%25")
            .replace('#', "%23")
            .replace('?', "%3F")
    )
}

/// Removes `.` and `..` from a path without accessing the file system.
fn normalize(path: &Path) -> std::path::PathBuf {
    use std::path::Component as Part;
    let mut out = std::path::PathBuf::new();
    for part in path.components() {
        match part {
            Part::CurDir => {}
            Part::ParentDir => {
                out.pop();
            }
            Part::Prefix(_) | Part::RootDir | Part::Normal(_) => out.push(part),
        }
    }
    out
}
