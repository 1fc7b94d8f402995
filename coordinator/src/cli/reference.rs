//! References for image generation: sample ids, and image files, which are uploaded to the trained
//! job's folder in the store, where ranks read them. Called by [`super::sample`] and
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

/// A parsed `[CONCEPT:]ID|FILE` argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReferenceArg {
    concept: Option<Concept>,
    id_or_file: String,
}

impl FromStr for ReferenceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // An id may itself contain a colon.
        let split = text.split_once(':');
        let known = split.and_then(|(word, rest)| Some((parse_concept(word).ok()?, rest)));
        let (concept, id_or_file) = match known {
            Some((concept, rest)) => (Some(concept), rest),
            None => (None, text),
        };
        if id_or_file.is_empty() {
            return Err(
                "an id or a file must follow; write for instance face:12 or figure:me.png"
                    .to_owned(),
            );
        }
        Ok(Self {
            concept,
            id_or_file: id_or_file.to_owned(),
        })
    }
}

/// Parses the name of a concept.
pub(crate) fn parse_concept(word: &str) -> Result<Concept, String> {
    let found = Concept::ALL
        .into_iter()
        .find(|concept| concept.word() == word);
    found.ok_or_else(|| format!("`{word}` is no concept; write face, clothes or figure"))
}

/// Resolves each argument: the path of an existing file is a file, everything else is a sample id.
pub(crate) fn resolve(arguments: &[ReferenceArg]) -> Vec<NamedReference> {
    let from = |text: &str| match Path::new(text).is_file() {
        true => ImageSource::File {
            name: text.to_owned(),
            sha256: String::new(),
        },
        false => ImageSource::Sample {
            id: text.to_owned(),
        },
    };
    let reference = |it: &ReferenceArg| NamedReference {
        concept: it.concept,
        from: from(&it.id_or_file),
    };
    arguments.iter().map(reference).collect()
}

/// Whether files are uploaded to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Upload {
    Yes,
    /// For a dry run: files are only read and checked.
    No,
}

/// Returns the digest of every file by its name, and uploads each file under its digest. Names are
/// relative to `folder`.
pub(crate) async fn store_files(
    references: &[NamedReference],
    folder: &Path,
    trained: &pb::JobView,
    upload: Upload,
) -> Result<HashMap<String, String>> {
    let mut digests = HashMap::new();
    for reference in references {
        let ImageSource::File { name, sha256 } = &reference.from else {
            continue;
        };
        if !sha256.is_empty() {
            // The file is already in the store.
            continue;
        }
        let file = folder.join(name);
        let bytes =
            std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let _ = open_image("reference", &bytes).with_context(|| name.clone())?;
        let sha256 = hex_sha256(&bytes);
        if upload == Upload::Yes {
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
        let parse = |text: &str| text.parse::<ReferenceArg>();
        let expect = |concept, id_or_file: &str| {
            Ok(ReferenceArg {
                concept,
                id_or_file: id_or_file.to_owned(),
            })
        };
        assert_eq!(parse("face:12"), expect(Some(Concept::Face), "12"));
        assert_eq!(parse("12"), expect(None, "12"));
        assert_eq!(parse("re:zero"), expect(None, "re:zero"));
        assert_eq!(
            parse("figure:a:b.png"),
            expect(Some(Concept::Figure), "a:b.png")
        );
        assert!(
            parse("face:")
                .unwrap_err()
                .contains("an id or a file must follow")
        );
        assert!(
            parse_concept("hat")
                .unwrap_err()
                .contains("face, clothes or figure")
        );
    }

    #[tokio::test]
    async fn files_are_uploaded_to_the_store_and_ids_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("me.png");
        image::RgbImage::new(2, 2).save(&image).unwrap();
        let trained = pb::JobView {
            job: "demo-1".into(),
            store_url: format!("file://{}/store", dir.path().display()),
            ..Default::default()
        };
        let parse = |text: &str| text.parse::<ReferenceArg>().unwrap();
        let file = parse(&format!("face:{}", image.display()));
        let store = async |arguments: &[ReferenceArg]| {
            let references = resolve(arguments);
            let files = store_files(&references, Path::new(""), &trained, Upload::Yes).await?;
            anyhow::Ok((references, files))
        };
        let (found, files) = store(&[file, parse("17")]).await.unwrap();
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
        let file = parse(&image.display().to_string());
        let error = format!("{:#}", store(&[file]).await.unwrap_err());
        assert!(
            error.contains("me.png: the reference cannot be decoded"),
            "{error}"
        );
    }
}
