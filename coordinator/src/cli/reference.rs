//! References for image generation: sample ids, and image files, which are uploaded to the trained
//! job's folder in the store, where ranks read them. Called by [`super::sample`] and
//! [`super::submit`].

use crate::text::errln;
use anyhow::{Context, Result, bail};
use model_data::image_file::IMAGE_FILE_BYTES_MAX;
use model_data::user_image::UserImage;
use object_store::ObjectStoreExt;
use proto::pb;
use proto::sample::{Concept, ImageSource, MaskFile, NamedReference};
use proto::spec::TrainWork;
use proto::text::hex_sha256;
use std::collections::HashMap;
use std::path::Path;
use std::str::FromStr;
use storage::regular;

/// A parsed `[CONCEPT:]ID|FILE[@X,Y,W,H][+MASK]` argument.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ReferenceArg {
    concept: Option<Concept>,
    id_or_file: String,
    face_box: Option<[f64; 4]>,
    /// Named after a face box. Without a box, `+` may also belong to an id or a file name.
    mask: Option<String>,
}

/// References separated by commas. The commas of a face box do not separate.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ReferenceArgs(Vec<ReferenceArg>);

impl FromStr for ReferenceArgs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let mut references = Vec::new();
        while let Some(part) = parts.next() {
            // An `@` that no number follows belongs to an id or a file name.
            let box_begins = part
                .rsplit_once('@')
                .and_then(|(name, x)| Some((name, x.parse().ok()?)));
            references.push(match box_begins {
                None => named(part)?,
                Some((name, x)) => boxed(name, x, [parts.next(), parts.next(), parts.next()])?,
            });
        }
        Ok(Self(references))
    }
}

/// The arguments of all occurrences of the option.
pub(crate) fn flatten(lists: &[ReferenceArgs]) -> Vec<ReferenceArg> {
    lists.iter().flat_map(|list| list.0.clone()).collect()
}

fn named(text: &str) -> Result<ReferenceArg, String> {
    // An id may itself contain a colon.
    let split = text.split_once(':');
    let known = split.and_then(|(word, rest)| Some((parse_concept(word).ok()?, rest)));
    let (concept, id_or_file) = match known {
        Some((concept, rest)) => (Some(concept), rest),
        None => (None, text),
    };
    if id_or_file.is_empty() {
        return Err(
            "an id or a file must follow; write for instance face:12 or figure:me.png".to_owned(),
        );
    }
    Ok(ReferenceArg {
        concept,
        id_or_file: id_or_file.to_owned(),
        face_box: None,
        mask: None,
    })
}

/// A file with a face box that begins with `x`; the mask follows the last number.
fn boxed(name: &str, x: f64, rest: [Option<&str>; 3]) -> Result<ReferenceArg, String> {
    let invalid = || {
        let rest: Vec<&str> = rest.iter().flatten().copied().collect();
        format!(
            "`{name}@{x},{}` has no face box of four numbers; write FILE@X,Y,W,H or \
            FILE@X,Y,W,H+MASK with the face's centre, width and height as fractions of the image",
            rest.join(",")
        )
    };
    let [Some(y), Some(width), Some(last)] = rest else {
        return Err(invalid());
    };
    let (height, mask) = match last.split_once('+') {
        Some((height, mask)) if !mask.is_empty() => (height, Some(mask.to_owned())),
        Some(_) => return Err(invalid()),
        None => (last, None),
    };
    let mut face_box = [x, 0.0, 0.0, 0.0];
    for (number, text) in face_box[1..].iter_mut().zip([y, width, height]) {
        *number = text.parse().map_err(|_| invalid())?;
    }
    Ok(ReferenceArg {
        face_box: Some(face_box),
        mask,
        ..named(name)?
    })
}

/// Parses the name of a concept.
pub(crate) fn parse_concept(word: &str) -> Result<Concept, String> {
    let found = Concept::ALL
        .into_iter()
        .find(|concept| concept.word() == word);
    found.ok_or_else(|| format!("`{word}` is no concept; write face, clothes or figure"))
}

/// Resolves each argument: the path of an existing file is a file, everything else is a sample id.
/// `FILE+MASK` is an image with its mask if FILE exists.
pub(crate) fn resolve(arguments: &[ReferenceArg]) -> Result<Vec<NamedReference>> {
    arguments.iter().map(resolve_one).collect()
}

fn resolve_one(argument: &ReferenceArg) -> Result<NamedReference> {
    let is_file = |text: &str| Path::new(text).is_file();
    let text = argument.id_or_file.as_str();
    let with_mask = text
        .rsplit_once('+')
        .filter(|(file, mask)| is_file(file) && !mask.is_empty());
    let (file, mask) = match (with_mask, &argument.mask) {
        _ if is_file(text) => (Some(text), argument.mask.as_deref()),
        (Some((file, mask)), None) => (Some(file), Some(mask)),
        _ => (None, None),
    };
    let concept = argument.concept;
    if file.is_none() && is_special(text) {
        regular::open(Path::new(text)).with_context(|| format!("cannot read {text}"))?;
    }
    let Some(file) = file else {
        if argument.face_box.is_some() {
            bail!("there is no file {text}; a face box is for a file, a sample has its own");
        }
        let id = text.to_owned();
        let from = ImageSource::Sample { id };
        return Ok(NamedReference { concept, from });
    };
    if let Some(mask) = mask.filter(|mask| !is_file(mask)) {
        bail!("there is no file {mask}, which is the mask of {file}");
    }
    let from = ImageSource::File {
        name: file.to_owned(),
        sha256: String::new(),
        face_box: argument.face_box,
        mask: mask.map(|mask| MaskFile {
            name: mask.to_owned(),
            sha256: String::new(),
        }),
    };
    Ok(NamedReference { concept, from })
}

/// Whether a path is a pipe, a device or a socket. A directory may have the name of a sample.
fn is_special(path: &str) -> bool {
    std::fs::metadata(path).is_ok_and(|it| !it.is_file() && !it.is_dir())
}

/// What is assumed about files without face box or mask: a line for each.
pub(crate) fn assumptions(references: &[NamedReference]) -> Vec<String> {
    let line = |reference: &NamedReference| {
        let ImageSource::File { name, .. } = &reference.from else {
            return None;
        };
        Some(format!("{name}: {}", reference.assumption()?))
    };
    references.iter().filter_map(line).collect()
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
    let from_file = |it: &NamedReference| matches!(it.from, ImageSource::File { .. });
    if !references.iter().any(from_file) {
        return Ok(digests);
    }
    let trained_as = trained_work(trained)?;
    for reference in references {
        let ImageSource::File {
            name,
            sha256,
            face_box,
            mask,
        } = &reference.from
        else {
            continue;
        };
        // A file with a digest is already in the store.
        let read = |name: &str, sha256: &str| {
            let file = folder.join(name);
            let bytes = sha256
                .is_empty()
                .then(|| regular::read(&file, IMAGE_FILE_BYTES_MAX));
            let bytes = bytes.transpose();
            bytes.with_context(|| format!("cannot read {}", file.display()))
        };
        let bytes = read(name, sha256)?;
        let mask = match mask {
            Some(mask) => read(&mask.name, &mask.sha256)?.map(|bytes| (&mask.name, bytes)),
            None => None,
        };
        if let Some(bytes) = &bytes {
            let image = UserImage {
                name,
                bytes,
                face_box: *face_box,
                mask: mask
                    .as_ref()
                    .map(|(name, bytes)| (name.as_str(), bytes.as_slice())),
            };
            let mut changes = Vec::new();
            let size = image.decode(&mut changes)?.image.dimensions();
            let side = trained_as.data.resolution;
            let is_whole = face_box.is_none() && mask.is_none();
            let refused = trained_as.model.architecture.refuse_size(side, size);
            if let Some(why) = refused.filter(|_| is_whole) {
                bail!("sample.references: {name} {why}");
            }
            for change in changes {
                errln!("{name}: {}", change.sentence());
            }
        }
        for (name, bytes) in bytes.map(|bytes| (name, bytes)).into_iter().chain(mask) {
            let sha256 = hex_sha256(&bytes);
            if upload == Upload::Yes {
                put(trained, &sha256, bytes).await?;
            }
            digests.insert(name.clone(), sha256);
        }
    }
    Ok(digests)
}

/// What the trained job was.
fn trained_work(trained: &pb::JobView) -> Result<TrainWork> {
    let file = format!("job.toml of {}", trained.job);
    Ok(proto::job::parse_training(&file, &trained.job_toml)?)
}

/// Stores a file under its digest, where ranks look for it.
async fn put(trained: &pb::JobView, sha256: &str, bytes: Vec<u8>) -> Result<()> {
    let (store, prefix) = storage::open(&trained.store_url)?;
    let path = ["jobs", &trained.job, "references", sha256]
        .into_iter()
        .fold(prefix, |path, part| path.join(part));
    let put = store.put(&path, bytes.into()).await;
    put.with_context(|| format!("cannot write {path}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_reference_may_begin_with_its_concept() {
        let parse = |text: &str| text.parse::<ReferenceArgs>();
        let expect = |concept, id_or_file: &str| {
            Ok(ReferenceArgs(vec![ReferenceArg {
                concept,
                id_or_file: id_or_file.to_owned(),
                face_box: None,
                mask: None,
            }]))
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

    #[test]
    fn a_file_may_have_a_face_box_and_a_mask() {
        let parse = |text: &str| text.parse::<ReferenceArgs>().map(|list| flatten(&[list]));
        let found =
            parse("face:me@home.png@0.5,.25,0.1,0.2,12,clothes:b.png@1,2,3,4+m,13").unwrap();
        let of = |it: &ReferenceArg| (it.id_or_file.clone(), it.face_box, it.mask.clone());
        assert_eq!(
            found.iter().map(of).collect::<Vec<_>>(),
            [
                ("me@home.png".into(), Some([0.5, 0.25, 0.1, 0.2]), None),
                ("12".into(), None, None),
                ("b.png".into(), Some([1.0, 2.0, 3.0, 4.0]), Some("m".into())),
                ("13".into(), None, None),
            ]
        );
        for text in [
            "a.png@0.5",
            "a.png@0.5,1,2",
            "a.png@0.5,1,2,x",
            "a.png@0.5,1,2,3+",
        ] {
            let error = parse(text).unwrap_err();
            assert!(
                error.contains(text) && error.contains("four numbers"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_mask_belongs_to_a_file_that_exists() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        for name in ["a.png", "m.png", "a+b.png"] {
            std::fs::write(path(name), "").unwrap();
        }
        let resolve = |text: String| {
            let found = resolve(&flatten(&[text.parse().unwrap()]));
            found.map(|mut found| found.swap_remove(0).from)
        };
        let file = |name: &str, mask: Option<&str>| ImageSource::File {
            name: path(name),
            sha256: String::new(),
            face_box: None,
            mask: mask.map(|mask| MaskFile {
                name: path(mask),
                sha256: String::new(),
            }),
        };
        assert_eq!(resolve(path("a+b.png")).unwrap(), file("a+b.png", None));
        let masked = format!("{}+{}", path("a.png"), path("m.png"));
        assert_eq!(resolve(masked).unwrap(), file("a.png", Some("m.png")));
        let id = ImageSource::Sample { id: "1+2".into() };
        assert_eq!(resolve("1+2".into()).unwrap(), id);
        let error = |text: String| resolve(text).unwrap_err().to_string();
        let missing = error(format!("{}+{}", path("a.png"), path("x.png")));
        let expected = format!("there is no file {}, which is the mask of", path("x.png"));
        assert!(missing.contains(&expected), "{missing}");
        assert_eq!(
            error("12@0.5,0.5,0.1,0.1".into()),
            "there is no file 12; a face box is for a file, a sample has its own"
        );
    }

    fn trained_toml(architecture: &str) -> String {
        format!(
            "name = \"x\"\n[data]\ndataset = \"file:///d\"\nresolution = 32\n[model]\n\
             architecture = \"{architecture}\"\nsize = \"tiny\"\ninit = \"file:///b\"\n\
             [train]\nsteps = 1\nglobal_batch = 1\nmicro_batch = 1\n"
        )
    }

    #[tokio::test]
    async fn a_controlnet_takes_a_file_of_the_size_of_its_images_alone() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("me.png");
        let mut trained = pb::JobView {
            job: "demo-1".into(),
            store_url: format!("file://{}/store", dir.path().display()),
            job_toml: trained_toml("controlnet"),
            ..Default::default()
        };
        let store = async |argument: String, trained: &pb::JobView| {
            let references = resolve(&flatten(&[argument.parse().unwrap()]))?;
            store_files(&references, Path::new(""), trained, Upload::No).await
        };
        let whole = format!("figure:{}", image.display());
        image::RgbImage::new(32, 48).save(&image).unwrap();
        let error = store(whole.clone(), &trained)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("sample.references: ")
                && error.contains("me.png has 32x48 pixels")
                && error.contains("so it must have 32x32"),
            "{error}"
        );
        let boxed = format!("face:{}@0.5,0.5,0.5,0.5", image.display());
        store(boxed, &trained).await.unwrap();
        trained.job_toml = trained_toml("ip-adapter");
        store(whole.clone(), &trained).await.unwrap();
        trained.job_toml = trained_toml("controlnet");
        image::RgbImage::new(32, 32).save(&image).unwrap();
        store(whole, &trained).await.unwrap();
    }

    #[tokio::test]
    async fn files_are_uploaded_to_the_store_and_ids_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("me.png");
        image::RgbImage::new(2, 2).save(&image).unwrap();
        let trained = pb::JobView {
            job: "demo-1".into(),
            store_url: format!("file://{}/store", dir.path().display()),
            job_toml: trained_toml("retrinet"),
            ..Default::default()
        };
        let parse = |text: &str| flatten(&[text.parse().unwrap()]).swap_remove(0);
        let file = parse(&format!("face:{}", image.display()));
        let store = async |arguments: &[ReferenceArg]| {
            let references = resolve(arguments)?;
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
        // An image and its mask are stored, if they fit together.
        let mask = dir.path().join("mask.png");
        image::GrayImage::from_fn(2, 2, |x, _| image::Luma([if x == 1 { 255 } else { 0 }]))
            .save(&mask)
            .unwrap();
        let boxed = |numbers: &str| {
            let text = format!("face:{}@{numbers}+{}", image.display(), mask.display());
            parse(&text)
        };
        let (found, files) = store(&[boxed("0.5,0.5,0.5,0.5")]).await.unwrap();
        assert_eq!((found.len(), files.len()), (1, 2));
        let sha256 = &files[&mask.display().to_string()];
        let stored = dir.path().join("store/jobs/demo-1/references").join(sha256);
        assert_eq!(
            std::fs::read(stored).unwrap(),
            std::fs::read(&mask).unwrap()
        );
        let error = store(&[boxed("0.9,0.5,0.5,0.5")]).await.unwrap_err();
        let expected = "me.png: the face box 0.9,0.5,0.5,0.5 leaves the image of 2x2 pixels";
        assert!(error.to_string().contains(expected), "{error}");
        std::fs::write(&image, b"no picture").unwrap();
        let file = parse(&image.display().to_string());
        let error = format!("{:#}", store(&[file]).await.unwrap_err());
        assert!(
            error.contains("me.png: the reference cannot be decoded"),
            "{error}"
        );
        // A pipe has no end, and nobody may write into it.
        let pipe = dir.path().join("pipe.png");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let error = resolve(&[parse(&pipe.display().to_string())]).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("pipe.png: it is a named pipe"), "{error}");
    }
}
