//! Checks a `pipeline.toml` that was parsed, table by table. Pure.

use super::UNITS_MAX;
use super::image_stages::{self, PipelineTagger};
use super::pipeline::{
    FolderSource, Pipeline, PipelineDataset, PipelineOutfits, PipelineSignature, PostsSource,
    QUESTIONS,
};
use super::raw::{
    ClustersToml, DatasetToml, FilterToml, FolderToml, OutfitsToml, PipelineToml, PostsToml,
    SignatureToml, UnitsToml,
};
use super::settings::OutfitQuestion;
use crate::job::check::data::absolute;
use crate::job::faults::Faults;
use crate::limits::LIST;
use crate::rating::{Rating, Ratings};
use std::collections::BTreeSet;
use std::path::Path;

/// Bits of 128 in which the hashes of near-duplicates differ at most. Ours.
const NEAR_BITS: u32 = 8;

/// The URL of a folder of images, which is only read: a web server's is one, too.
pub(super) fn readable(
    field: &str,
    value: &str,
    directory: Option<&Path>,
    faults: &mut Faults,
) -> String {
    if value.starts_with("http://") || value.starts_with("https://") {
        return value.to_owned();
    }
    absolute(field, value, directory, faults)
}

pub(super) fn check(raw: PipelineToml, directory: &Path, faults: &mut Faults) -> Pipeline {
    let directory = Some(directory);
    one_kind(&raw, faults);
    let posts = posts(&raw.posts, directory, faults);
    let folders = folders(raw.folders, directory, faults);
    let name = name(raw.name, faults);
    let signature = signature((&raw.clusters, !folders.is_empty()), directory, faults);
    let outfits = raw.outfits.map(|raw| outfits(raw, directory, faults));
    let tagger = raw
        .tagger
        .map(|raw| image_stages::tagger(raw, directory, faults));
    signed(&signature, outfits.as_ref(), tagger.as_ref(), faults);
    let size_min = raw.clusters.size_min.unwrap_or(2);
    faults.need((2..=1024).contains(&size_min), "clusters.size_min", || {
        format!("is {size_min}; a cluster has at least 2 figures, a target and a reference")
    });
    let crops = raw
        .figures
        .map(|raw| image_stages::figures(raw, directory, faults));
    let masks = raw
        .masks
        .map(|raw| image_stages::masks(raw, directory, faults));
    let faces = raw
        .faces
        .map(|raw| image_stages::faces(raw, directory, faults));
    let ratings = ratings(&raw.filter, faults);
    let has_folders = !folders.is_empty();
    let dataset = raw
        .dataset
        .map(|raw| dataset((raw, has_folders), directory, faults));
    let mut url = |field: &str, value: Option<String>| {
        value.map(|value| absolute(field, &value, directory, faults))
    };
    let mut pipeline = Pipeline {
        outfits,
        tagger,
        crops,
        masks,
        faces,
        dataset,
        out: url("out", Some(raw.out)).unwrap_or_default(),
        cloth_tags: url("filter.cloth_tags", raw.filter.cloth_tags),
        figures: url("filter.figures", raw.filter.figures),
        clusters_truth: url("clusters.truth", raw.clusters.truth),
        name,
        on_bad_row: raw.on_bad_row.unwrap_or_default(),
        posts,
        folders,
        ratings,
        deleted: raw.filter.deleted.unwrap_or(false),
        signature,
        size_min,
        posts_units: 0,
        figures_units: 0,
        outfits_units: 0,
        tagger_units: 0,
        masks_units: 0,
        faces_units: 0,
        piece_bytes: 0,
        piece_rows: 0,
    };
    units(&raw.units, &mut pipeline, faults);
    image_stages::check(&pipeline, faults);
    pipeline
}

/// A pipeline begins with metadata of posts or with folders.
fn one_kind(raw: &PipelineToml, faults: &mut Faults) {
    let count = raw.posts.len();
    if raw.folders.is_empty() {
        faults.need((1..=LIST).contains(&count), "posts", || {
            format!(
                "has {count} sources; name 1 to {LIST}, each as [[posts]] with from = \"FOLDER or \
                 FILE\", or folders of images as [[folders]]"
            )
        });
        return;
    }
    let folders = raw.folders.len();
    faults.need(folders <= LIST, "folders", || {
        format!("has {folders} folders; name at most {LIST}")
    });
    faults.need(count == 0, "folders", || {
        "is given, and there are [[posts]]: make one data set of each".into()
    });
    let filter = &raw.filter;
    let filtered = filter.figures.is_some() || filter.deleted.is_some();
    faults.need(!filtered && filter.ratings.is_none(), "filter", || {
        "filters posts, and there are none: of folders, only cloth_tags is used".into()
    });
}

fn posts(raw: &[PostsToml], directory: Option<&Path>, faults: &mut Faults) -> Vec<PostsSource> {
    let posts = raw.iter().map(|source| PostsSource {
        from: absolute("posts.from", &source.from, directory, faults),
        tag_types: source.tag_types,
    });
    let posts: Vec<PostsSource> = posts.collect();
    once("posts.from", posts.iter().map(|it| &it.from), faults);
    posts
}

fn folders(
    raw: Vec<FolderToml>,
    directory: Option<&Path>,
    faults: &mut Faults,
) -> Vec<FolderSource> {
    let folders = raw.into_iter().map(|source| FolderSource {
        from: readable("folders.from", &source.from, directory, faults),
        kind: source.kind,
        artist: source.artist.unwrap_or_default(),
        rating: match source.rating {
            None | Some(Rating::Unrated) => String::new(),
            Some(rating) => rating.word().to_owned(),
        },
    });
    let folders: Vec<FolderSource> = folders.collect();
    once("folders.from", folders.iter().map(|it| &it.from), faults);
    folders
}

fn once<'a>(field: &str, urls: impl Iterator<Item = &'a String>, faults: &mut Faults) {
    let mut seen = BTreeSet::new();
    for url in urls {
        faults.need(seen.insert(url), field, || {
            format!("names {url} twice: leave one out")
        });
    }
}

fn name(raw: Option<String>, faults: &mut Faults) -> String {
    let name = raw.unwrap_or_else(|| "build".to_owned());
    let is_name = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '-';
    let begins = name.starts_with(|it: char| it.is_ascii_lowercase());
    // Jobs are named after it and a stage.
    let is_valid = begins && name.len() <= 24 && name.chars().all(is_name);
    faults.need(is_valid, "name", || {
        format!(
            "is {name:?}; it must be 1 to 24 lower-case letters, digits and dashes, starting with \
             a letter"
        )
    });
    name
}

/// The signature and the table that makes it are both there, or neither is.
fn signed(
    signature: &PipelineSignature,
    outfits: Option<&PipelineOutfits>,
    tagger: Option<&PipelineTagger>,
    faults: &mut Faults,
) {
    for (table, word, is_asked, is_there) in [
        (
            "outfits",
            "model",
            *signature == PipelineSignature::Model,
            outfits.is_some(),
        ),
        (
            "tagger",
            "tagger",
            *signature == PipelineSignature::Tagger,
            tagger.is_some(),
        ),
    ] {
        faults.need(is_asked == is_there, "clusters.signature", || {
            if is_asked {
                format!("is \"{word}\", but there is no table [{table}] that says what to ask")
            } else {
                format!("is not \"{word}\", but there is a table [{table}]: leave one of them out")
            }
        });
    }
}

fn ratings(filter: &FilterToml, faults: &mut Faults) -> Ratings {
    let ratings = filter.ratings.clone();
    let ratings = ratings.map_or_else(Ratings::default, Ratings::new);
    faults.need(!ratings.list().is_empty(), "filter.ratings", || {
        "is empty; name at least one, such as [\"general\", \"sensitive\"]".into()
    });
    ratings
}

fn dataset(
    (raw, has_folders): (DatasetToml, bool),
    directory: Option<&Path>,
    faults: &mut Faults,
) -> PipelineDataset {
    let near_bits = raw.near_bits.unwrap_or(NEAR_BITS);
    faults.need(near_bits <= 32, "dataset.near_bits", || {
        format!("is {near_bits}; it must be at most 32 of the 128 bits of a hash")
    });
    let is_found = raw.images.is_some() || has_folders;
    faults.need(is_found, "dataset.images", || {
        "is missing; name the folder with the images of posts".into()
    });
    let mut url = |field: &str, value: Option<String>| {
        value.map(|value| readable(field, &value, directory, faults))
    };
    PipelineDataset {
        images: url("dataset.images", raw.images),
        masks: url("dataset.masks", raw.masks),
        boxes: raw
            .boxes
            .map(|value| absolute("dataset.boxes", &value, directory, faults)),
        near_duplicates: raw.near_duplicates.unwrap_or_default(),
        near_bits,
        publish: raw.publish.unwrap_or_default(),
        // Photographs of people have no alpha.
        whole: raw.whole.unwrap_or(has_folders),
    }
}

fn units(raw: &UnitsToml, pipeline: &mut Pipeline, faults: &mut Faults) {
    let posts = raw.posts.unwrap_or(16);
    let outfits = raw.outfits.unwrap_or(16);
    let piece_mib = raw.piece_mib.unwrap_or(64);
    let piece_rows = raw.piece_rows.unwrap_or(250_000);
    for (field, count, most) in [
        ("units.posts", posts, UNITS_MAX),
        ("units.outfits", outfits, UNITS_MAX),
        ("units.piece_mib", piece_mib, 4096),
        ("units.piece_rows", piece_rows, 100_000_000),
    ] {
        faults.count(field, count, most);
    }
    let of_images = |units: Option<u32>| units.unwrap_or(64);
    pipeline.posts_units = posts;
    pipeline.outfits_units = outfits;
    pipeline.figures_units = of_images(raw.figures);
    pipeline.tagger_units = of_images(raw.tagger);
    pipeline.masks_units = of_images(raw.masks);
    pipeline.faces_units = of_images(raw.faces);
    pipeline.piece_bytes = u64::from(piece_mib) << 20;
    pipeline.piece_rows = piece_rows.into();
}

fn outfits(raw: OutfitsToml, directory: Option<&Path>, faults: &mut Faults) -> PipelineOutfits {
    let questions = raw.questions.unwrap_or_else(|| {
        let shipped = QUESTIONS.iter().map(|(name, text)| OutfitQuestion {
            name: (*name).to_owned(),
            text: (*text).to_owned(),
        });
        shipped.collect()
    });
    let names: BTreeSet<&String> = questions.iter().map(|it| &it.name).collect();
    let valid = !questions.is_empty() && names.len() == questions.len() && names.len() <= 100;
    faults.need(valid, "outfits.questions", || {
        format!(
            "has {} questions with {} different names; ask 1 to 100, each with a name of its own",
            questions.len(),
            names.len()
        )
    });
    let is_http = raw.endpoint.starts_with("http://") || raw.endpoint.starts_with("https://");
    faults.need(is_http, "outfits.endpoint", || {
        format!(
            "is {:?}; it must be a URL such as http://host:8000/v1",
            raw.endpoint
        )
    });
    faults.need(!raw.model.is_empty(), "outfits.model", || {
        "is empty; name the model as its server does".into()
    });
    let concurrency = raw.concurrency.unwrap_or(4);
    faults.count("outfits.concurrency", concurrency, 256);
    PipelineOutfits {
        images: raw
            .images
            .map(|url| readable("outfits.images", &url, directory, faults)),
        endpoint: raw.endpoint,
        model: raw.model,
        questions,
        concurrency,
    }
}

/// Without a word, folders are grouped as they say.
fn signature(
    (raw, has_folders): (&ClustersToml, bool),
    directory: Option<&Path>,
    faults: &mut Faults,
) -> PipelineSignature {
    let Some(SignatureToml::Answers) = raw.signature else {
        for (field, given) in [
            ("clusters.answers", raw.answers.is_some()),
            ("clusters.questions", !raw.questions.is_empty()),
        ] {
            faults.need(!given, field, || {
                "is set, but clusters.signature is not \"answers\": set it, or leave this out"
                    .into()
            });
        }
        return match raw.signature {
            Some(SignatureToml::Model) => PipelineSignature::Model,
            Some(SignatureToml::Tagger) => PipelineSignature::Tagger,
            Some(SignatureToml::Given) => PipelineSignature::Given,
            None if has_folders => PipelineSignature::Given,
            Some(SignatureToml::Tags | SignatureToml::Answers) | None => PipelineSignature::Tags,
        };
    };
    let questions = raw.questions.clone();
    let different: BTreeSet<&String> = questions.iter().collect();
    let valid = !questions.is_empty() && different.len() == questions.len();
    faults.need(valid, "clusters.questions", || {
        format!(
            "has {} names, {} of them different; name each question of the answers that must be \
             answered equally once",
            questions.len(),
            different.len()
        )
    });
    let Some(file) = &raw.answers else {
        faults.add(
            "clusters.answers",
            "is missing; with signature = \"answers\" it names a file of JSON lines with id, \
             question and answer",
        );
        return PipelineSignature::Tags;
    };
    PipelineSignature::Answers {
        file: absolute("clusters.answers", file, directory, faults),
        questions,
    }
}
