//! What a folder is, by its files.

use super::captions::caption_of;
use super::{Source, stem};
use crate::error::{BuildError, Result};
use proto::build::settings::FolderKind;
use std::collections::BTreeSet;

pub(super) const SAMPLES: &str = "samples.jsonl";

/// The form of a folder.
///
/// # Errors
/// It is none, or several.
pub(super) fn kind_of(source: &Source<'_>) -> Result<FolderKind> {
    if let Some(kind) = source.settings.kind {
        return Ok(kind);
    }
    let has = |name: &str| {
        let of = |path: &str| path == name || path.ends_with(&format!("/{name}"));
        source.files.iter().any(|file| of(&file.path))
    };
    let ends = |ending: &str| source.files.iter().any(|file| file.path.ends_with(ending));
    let names: BTreeSet<&str> = source.files.iter().map(|it| it.path.as_str()).collect();
    let (mut images, mut captions, mut inside) = (0_u64, 0_u64, 0_u64);
    for file in source.images() {
        images += 1;
        captions += u64::from(names.contains(caption_of(&file.path).as_str()));
        inside += u64::from(stem(&file.path).contains('/'));
    }
    let mut kinds = Vec::new();
    for (kind, is) in [
        (FolderKind::Import, names.contains(SAMPLES)),
        (FolderKind::CelebA, has("identity_CelebA.txt")),
        (FolderKind::RecordIo, ends(".rec") && ends(".idx")),
    ] {
        kinds.extend(is.then_some(kind));
    }
    if kinds.is_empty() && 0 < images {
        // A few images without a caption are bad rows of a folder with captions.
        if images <= captions * 2 {
            kinds.push(FolderKind::Captions);
        } else if captions == 0 && 0 < inside {
            kinds.push(FolderKind::Identities);
        }
    }
    let folder = &source.settings.listed.folder;
    match kinds.as_slice() {
        [kind] => Ok(*kind),
        [] => Err(BuildError::input(
            folder,
            format!(
                "is none of the forms: {images} images, {captions} of them with a caption and \
                 {inside} in folders; expected is a folder for each identity, captions (.txt) \
                 beside the images, identity_CelebA.txt, NAME.rec and NAME.idx, or {SAMPLES}; \
                 kind says which one it is"
            ),
        )),
        several => {
            let words = several.iter().map(|kind| kind.description());
            let words = words.collect::<Vec<_>>().join(", and ");
            Err(BuildError::input(
                folder,
                format!("is {words}: say with kind which one it is"),
            ))
        }
    }
}
