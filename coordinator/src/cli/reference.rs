//! References that images are made from: ids of samples, and image files, which are put into the
//! store beside the trained job for the rank to read. Called by [`super::sample`] and
//! [`super::submit`].

use anyhow::{Context, Result};
use model_data::image_file::open_image;
use object_store::ObjectStoreExt;
use proto::pb;
use proto::sample::{Concept, ImageSource, NamedReference};
use proto::text::hex_sha256;
use std::collections::HashMap;
use std::path::Path;
use std::str::FromStr;

/// `[CONCEPT:]ID|FILE` as typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    concept: Option<Concept>,
    what: String,
}

impl FromStr for Asked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // An id may hold a colon of its own.
        let split = text.split_once(':');
        let known = split.and_then(|(word, what)| Some((concept(word).ok()?, what)));
        let (concept, what) = match known {
            Some((concept, what)) => (Some(concept), what),
            None => (None, text),
        };
        if what.is_empty() {
            return Err(
                "an id or a file must follow; write for instance face:12 or figure:me.png"
                    .to_owned(),
            );
        }
        Ok(Self {
            concept,
            what: what.to_owned(),
        })
    }
}

/// A concept by its word.
pub(crate) fn concept(word: &str) -> Result<Concept, String> {
    let found = Concept::ALL
        .into_iter()
        .find(|concept| concept.word() == word);
    found.ok_or_else(|| format!("`{word}` is no concept; write face, clothes or figure"))
}

/// What is a file here is a file; everything else is an id.
pub(crate) fn named(asked: &[Asked]) -> Vec<NamedReference> {
    let from = |what: &str| match Path::new(what).is_file() {
        true => ImageSource::File {
            name: what.to_owned(),
            sha256: String::new(),
        },
        false => ImageSource::Sample {
            id: what.to_owned(),
        },
    };
    let reference = |it: &Asked| NamedReference {
        concept: it.concept,
        from: from(&it.what),
    };
    asked.iter().map(reference).collect()
}

/// Whether what was read is also put into the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    Stored,
    /// For a dry run.
    LookedAt,
}

/// The digest of every file by its name. Puts each where ranks find it by that. Names are relative
/// to `folder`.
pub(crate) async fn store_files(
    references: &[NamedReference],
    folder: &Path,
    trained: &pb::JobView,
    keep: Keep,
) -> Result<HashMap<String, String>> {
    let mut digests = HashMap::new();
    for reference in references {
        let ImageSource::File { name, sha256 } = &reference.from else {
            continue;
        };
        if !sha256.is_empty() {
            // It is in the store already.
            continue;
        }
        let file = folder.join(name);
        let bytes =
            std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let _ = open_image("reference", &bytes).with_context(|| name.clone())?;
        let sha256 = hex_sha256(&bytes);
        if keep == Keep::Stored {
            let (store, prefix) = storage::open(&trained.store_url)?;
            let path = ["jobs", &trained.job, "references", &sha256]
                .into_iter()
                .fold(prefix, |path, part| path.join(part));
            store
                .put(&path, bytes.into())
                .await
                .with_context(|| format!("cannot write {path}"))?;
        }
        digests.insert(name.clone(), sha256);
    }
    Ok(digests)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_reference_may_begin_with_its_concept() {
        let asked = |text: &str| text.parse::<Asked>();
        let expect = |concept, what: &str| {
            Ok(Asked {
                concept,
                what: what.to_owned(),
            })
        };
        assert_eq!(asked("face:12"), expect(Some(Concept::Face), "12"));
        assert_eq!(asked("12"), expect(None, "12"));
        assert_eq!(asked("re:zero"), expect(None, "re:zero"));
        assert_eq!(
            asked("figure:a:b.png"),
            expect(Some(Concept::Figure), "a:b.png")
        );
        assert!(
            asked("face:")
                .unwrap_err()
                .contains("an id or a file must follow")
        );
        assert!(
            concept("hat")
                .unwrap_err()
                .contains("face, clothes or figure")
        );
    }

    #[tokio::test]
    async fn files_go_into_the_store_and_ids_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("me.png");
        image::RgbImage::new(2, 2).save(&image).unwrap();
        let trained = pb::JobView {
            job: "demo-1".into(),
            store_url: format!("file://{}/store", dir.path().display()),
            ..Default::default()
        };
        let asked = |text: &str| text.parse::<Asked>().unwrap();
        let file = asked(&format!("face:{}", image.display()));
        let resolve = async |asked: &[Asked]| {
            let references = named(asked);
            let files = store_files(&references, Path::new(""), &trained, Keep::Stored).await?;
            anyhow::Ok((references, files))
        };
        let (found, files) = resolve(&[file, asked("17")]).await.unwrap();
        let ImageSource::File { name, .. } = &found[0].from else {
            panic!("{found:?}")
        };
        let sha256 = &files[name];
        let stored = dir.path().join("store/jobs/demo-1/references").join(sha256);
        assert_eq!(
            std::fs::read(stored).unwrap(),
            std::fs::read(&image).unwrap()
        );
        assert_eq!(found[1].from, ImageSource::Sample { id: "17".into() });
        std::fs::write(&image, b"no picture").unwrap();
        let file = asked(&image.display().to_string());
        let error = format!("{:#}", resolve(&[file]).await.unwrap_err());
        assert!(
            error.contains("me.png: the reference cannot be decoded"),
            "{error}"
        );
    }
}
