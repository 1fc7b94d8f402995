//! `pipeline.toml`: parsed, checked and divided into stages. Pure: the files that it names are
//! listed by the caller. `deploy/pipelines/danbooru.toml` documents the fields for users.

use super::image_stages::{
    self, FacesToml, ImageInputs, MasksToml, PipelineFaces, PipelineMasks, PipelineTagger,
    TaggerToml,
};
use super::settings::{
    ListedFolder, NamedFile, NearDuplicates, OnBadRow, OutfitQuestion, SourceFile, TagTypes,
};
use super::{StagePlan, UNITS_MAX};
use crate::job::check::data::absolute;
use crate::job::faults::Faults;
use crate::job::{JobError, JobErrors};
use crate::limits::LIST;
use crate::location;
use crate::rating::{Rating, Ratings};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::Path;

/// The list of cloth tags of this release.
pub const CLOTH_TAGS: &str = include_str!("../../../deploy/data/cloth_tags.txt");

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct PipelineToml {
    name: Option<String>,
    out: String,
    on_bad_row: Option<OnBadRow>,
    #[serde(default)]
    posts: Vec<PostsToml>,
    #[serde(default)]
    filter: FilterToml,
    #[serde(default)]
    clusters: ClustersToml,
    outfits: Option<OutfitsToml>,
    tagger: Option<TaggerToml>,
    masks: Option<MasksToml>,
    faces: Option<FacesToml>,
    dataset: Option<DatasetToml>,
    #[serde(default)]
    units: UnitsToml,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct OutfitsToml {
    images: String,
    endpoint: String,
    model: String,
    questions: Option<Vec<OutfitQuestion>>,
    concurrency: Option<u32>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct DatasetToml {
    images: String,
    masks: Option<String>,
    boxes: Option<String>,
    near_duplicates: Option<NearDuplicates>,
    near_bits: Option<u32>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct PostsToml {
    from: String,
    tag_types: Option<TagTypes>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FilterToml {
    cloth_tags: Option<String>,
    ratings: Option<Vec<Rating>>,
    deleted: Option<bool>,
    figures: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClustersToml {
    signature: Option<SignatureToml>,
    answers: Option<String>,
    #[serde(default)]
    questions: Vec<String>,
    size_min: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum SignatureToml {
    Tags,
    Model,
    Answers,
    Tagger,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnitsToml {
    posts: Option<u32>,
    outfits: Option<u32>,
    tagger: Option<u32>,
    masks: Option<u32>,
    faces: Option<u32>,
    piece_mib: Option<u32>,
    piece_rows: Option<u32>,
}

/// A pipeline as its file says, with absolute URLs.
#[derive(Debug, Clone, PartialEq)]
pub struct Pipeline {
    /// The prefix of its jobs' names.
    pub name: String,
    pub out: String,
    pub on_bad_row: OnBadRow,
    pub posts: Vec<PostsSource>,
    /// None: [`CLOTH_TAGS`].
    pub cloth_tags: Option<String>,
    pub ratings: Ratings,
    pub deleted: bool,
    pub figures: Option<String>,
    pub signature: PipelineSignature,
    pub size_min: u32,
    /// None: no model is asked.
    pub outfits: Option<PipelineOutfits>,
    /// None: no tagger runs.
    pub tagger: Option<PipelineTagger>,
    /// None: masks are given.
    pub masks: Option<PipelineMasks>,
    /// None: face boxes are given, or guessed.
    pub faces: Option<PipelineFaces>,
    /// None: the pipeline ends with clusters.
    pub dataset: Option<PipelineDataset>,
    pub posts_units: u32,
    pub outfits_units: u32,
    pub tagger_units: u32,
    pub masks_units: u32,
    pub faces_units: u32,
    pub piece_bytes: u64,
    pub piece_rows: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostsSource {
    pub from: String,
    pub tag_types: Option<TagTypes>,
}

/// Whom to ask about outfits, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineOutfits {
    pub images: String,
    pub endpoint: String,
    pub model: String,
    pub questions: Vec<OutfitQuestion>,
    pub concurrency: u32,
}

/// Questions about outfits: the name of each, and what is asked. The second is the paper's; its
/// other questions are unknown, so the first is ours.
pub const QUESTIONS: [(&str, &str); 2] = [
    (
        "clothes",
        "What clothes does the character wear? Answer with a short list.",
    ),
    ("colours", "What are the top two colours of the clothing?"),
];

/// Bits of 128 in which the hashes of near-duplicates differ at most. Ours.
const NEAR_BITS: u32 = 8;

/// Where images are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineDataset {
    pub images: String,
    pub masks: Option<String>,
    pub boxes: Option<String>,
    pub near_duplicates: NearDuplicates,
    pub near_bits: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PipelineSignature {
    Tags,
    /// The answers of the stage `outfits`.
    Model,
    Answers {
        file: String,
        questions: Vec<String>,
    },
    /// The tags of the stage `tagger`.
    Tagger,
}

/// A URL that was listed: its folder, and the files in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    pub folder: String,
    pub files: Vec<SourceFile>,
}

/// What a caller reads before a pipeline can be divided into stages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inputs {
    /// In the order of [`Pipeline::posts`].
    pub posts: Vec<Listing>,
    /// The text of [`Pipeline::cloth_tags`], if it names a file.
    pub cloth_tags: Option<String>,
    pub figures: Option<Listing>,
    pub answers: Option<Listing>,
    /// Of [`Pipeline::outfits`].
    pub asked: Option<ListedFolder>,
    pub images: Option<ListedFolder>,
    pub masks: Option<ListedFolder>,
    pub boxes: Option<Listing>,
    pub image: ImageInputs,
}

/// The file of a listing that has one.
pub(super) fn one(listing: Option<&Listing>) -> Option<NamedFile> {
    let listing = listing?;
    Some(NamedFile {
        folder: listing.folder.clone(),
        file: listing.files.first()?.clone(),
    })
}

/// A stage, and the number of its units.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    pub plan: StagePlan,
    pub units: u32,
}

impl Pipeline {
    /// `file` is for messages; paths without a scheme are relative to `directory`.
    ///
    /// # Errors
    /// All fields that are wrong, with their lines.
    pub fn parse(file: &str, text: &str, directory: &Path) -> Result<Self, JobErrors> {
        let raw: PipelineToml = toml::from_str(text).map_err(|error| {
            let (line, field, message) = location::of_toml_error(text, &error);
            JobErrors(vec![JobError {
                file: file.to_owned(),
                line,
                field,
                message,
            }])
        })?;
        let mut faults = Faults::default();
        let pipeline = check(raw, directory, &mut faults);
        if faults.0.is_empty() {
            return Ok(pipeline);
        }
        let errors = faults.0.into_iter().map(|fault| JobError {
            file: file.to_owned(),
            line: location::line_of(text, &fault.field),
            field: fault.field,
            message: fault.message,
        });
        let mut errors: Vec<JobError> = errors.collect();
        errors.sort_by_key(|error| error.line);
        Err(JobErrors(errors))
    }
}

impl Inputs {
    /// What is missing before these inputs can be those of a pipeline.
    ///
    /// # Errors
    /// A field that names a folder where one file is needed.
    pub fn check(&self, pipeline: &Pipeline) -> Result<(), String> {
        let answers = match &pipeline.signature {
            PipelineSignature::Tags | PipelineSignature::Model | PipelineSignature::Tagger => None,
            PipelineSignature::Answers { file, .. } => Some(file),
        };
        let dataset = pipeline.dataset.as_ref();
        let boxes = dataset.and_then(|dataset| dataset.boxes.as_ref());
        let tables = [
            ("filter.figures", pipeline.figures.as_ref(), &self.figures),
            ("clusters.answers", answers, &self.answers),
            ("dataset.boxes", boxes, &self.boxes),
        ];
        let images = pipeline.image_files(&self.image);
        for (field, url, listing) in tables.into_iter().chain(images) {
            let files = listing.as_ref().map_or(0, |listing| listing.files.len());
            if let Some(url) = url
                && files != 1
            {
                return Err(format!(
                    "{field}: {url} has {files} files; it must be one file"
                ));
            }
        }
        Ok(())
    }
}

fn check(raw: PipelineToml, directory: &Path, faults: &mut Faults) -> Pipeline {
    let directory = Some(directory);
    let count = raw.posts.len();
    faults.need((1..=LIST).contains(&count), "posts", || {
        format!(
            "has {count} sources; name 1 to {LIST}, each as [[posts]] with from = \"FOLDER or \
             FILE\""
        )
    });
    let posts = raw.posts.iter().map(|source| PostsSource {
        from: absolute("posts.from", &source.from, directory, faults),
        tag_types: source.tag_types,
    });
    let posts: Vec<PostsSource> = posts.collect();
    let mut seen = BTreeSet::new();
    for source in &posts {
        faults.need(seen.insert(&source.from), "posts.from", || {
            format!("names {} twice: leave one out", source.from)
        });
    }
    let name = raw.name.unwrap_or_else(|| "build".to_owned());
    let is_name = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '-';
    let begins = name.starts_with(|it: char| it.is_ascii_lowercase());
    // Jobs are named after it and a stage.
    faults.need(begins && name.len() <= 24 && name.chars().all(is_name), "name", || {
        format!(
            "is {name:?}; it must be 1 to 24 lower-case letters, digits and dashes, starting with \
             a letter"
        )
    });
    let signature = signature(&raw.clusters, directory, faults);
    let outfits = raw.outfits.map(|raw| outfits(raw, directory, faults));
    let tagger = raw
        .tagger
        .map(|raw| image_stages::tagger(raw, directory, faults));
    for (table, word, is_asked, is_there) in [
        (
            "outfits",
            "model",
            signature == PipelineSignature::Model,
            outfits.is_some(),
        ),
        (
            "tagger",
            "tagger",
            signature == PipelineSignature::Tagger,
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
    let size_min = raw.clusters.size_min.unwrap_or(2);
    faults.need((2..=1024).contains(&size_min), "clusters.size_min", || {
        format!("is {size_min}; a cluster has at least 2 figures, a target and a reference")
    });
    let posts_units = raw.units.posts.unwrap_or(16);
    faults.count("units.posts", posts_units, UNITS_MAX);
    let outfits_units = raw.units.outfits.unwrap_or(16);
    let image_units = |units: Option<u32>| units.unwrap_or(64);
    faults.count("units.outfits", outfits_units, UNITS_MAX);
    let piece_mib = raw.units.piece_mib.unwrap_or(64);
    faults.count("units.piece_mib", piece_mib, 4096);
    let piece_rows = raw.units.piece_rows.unwrap_or(250_000);
    faults.count("units.piece_rows", piece_rows, 100_000_000);
    let masks = raw
        .masks
        .map(|raw| image_stages::masks(raw, directory, faults));
    let faces = raw
        .faces
        .map(|raw| image_stages::faces(raw, directory, faults));
    let filter = raw.filter;
    let ratings = filter.ratings.map_or_else(Ratings::default, Ratings::new);
    faults.need(!ratings.list().is_empty(), "filter.ratings", || {
        "is empty; name at least one, such as [\"general\", \"sensitive\"]".into()
    });
    let bits = raw.dataset.as_ref().and_then(|dataset| dataset.near_bits);
    let bits = bits.unwrap_or(NEAR_BITS);
    faults.need(bits <= 32, "dataset.near_bits", || {
        format!("is {bits}; it must be at most 32 of the 128 bits of a hash")
    });
    let mut url = |field: &str, value: Option<String>| {
        value.map(|value| absolute(field, &value, directory, faults))
    };
    let dataset = raw.dataset.map(|raw| PipelineDataset {
        images: url("dataset.images", Some(raw.images)).unwrap_or_default(),
        masks: url("dataset.masks", raw.masks),
        boxes: url("dataset.boxes", raw.boxes),
        near_duplicates: raw.near_duplicates.unwrap_or_default(),
        near_bits: bits,
    });
    let pipeline = Pipeline {
        outfits,
        tagger,
        masks,
        faces,
        dataset,
        out: url("out", Some(raw.out)).unwrap_or_default(),
        cloth_tags: url("filter.cloth_tags", filter.cloth_tags),
        figures: url("filter.figures", filter.figures),
        name,
        on_bad_row: raw.on_bad_row.unwrap_or_default(),
        posts,
        ratings,
        deleted: filter.deleted.unwrap_or(false),
        signature,
        size_min,
        posts_units,
        outfits_units,
        tagger_units: image_units(raw.units.tagger),
        masks_units: image_units(raw.units.masks),
        faces_units: image_units(raw.units.faces),
        piece_bytes: u64::from(piece_mib) << 20,
        piece_rows: piece_rows.into(),
    };
    image_stages::check(&pipeline, faults);
    pipeline
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
        images: absolute("outfits.images", &raw.images, directory, faults),
        endpoint: raw.endpoint,
        model: raw.model,
        questions,
        concurrency,
    }
}

fn signature(
    raw: &ClustersToml,
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TEXT: &str = "out = \"out\"\n[[posts]]\nfrom = \"meta\"\n";

    fn parse(text: &str) -> Result<Pipeline, String> {
        let parsed = Pipeline::parse("pipeline.toml", text, Path::new("/data"));
        parsed.map_err(|errors| errors.to_string())
    }

    fn inputs() -> Inputs {
        let file = SourceFile {
            path: "a.json".to_owned(),
            size: 1,
            tag: "t".to_owned(),
        };
        Inputs {
            posts: vec![Listing {
                folder: "file:///data/meta".to_owned(),
                files: vec![file],
            }],
            ..Inputs::default()
        }
    }

    #[test]
    fn paths_are_relative_to_the_file_and_the_paper_s_filter_is_the_default() {
        let pipeline = parse(TEXT).unwrap();
        assert_eq!(pipeline.out, "file:///data/out");
        assert_eq!(pipeline.posts[0].from, "file:///data/meta");
        assert_eq!((pipeline.size_min, pipeline.deleted), (2, false));
        assert_eq!(pipeline.signature, PipelineSignature::Tags);
    }

    #[test]
    fn a_changed_setting_changes_the_keys_of_its_stage_and_of_later_ones_alone() {
        let keys = |text: &str, inputs: &Inputs| -> Vec<String> {
            let stages = parse(text).unwrap().stages(inputs);
            stages.into_iter().map(|it| it.plan.key().key).collect()
        };
        let first = keys(TEXT, &inputs());
        let same = |other: &[String]| -> Vec<bool> {
            first.iter().zip(other).map(|(a, b)| a == b).collect()
        };
        let units = format!("{TEXT}[units]\nposts = 3\n");
        assert_eq!(same(&keys(&units, &inputs())), [true, true, true, true]);
        let clusters = format!("{TEXT}[clusters]\nsize_min = 3\n");
        assert_eq!(same(&keys(&clusters, &inputs())), [true, true, true, false]);
        let filter = format!("{TEXT}[filter]\nratings = [\"general\"]\n");
        assert_eq!(same(&keys(&filter, &inputs())), [true, true, false, false]);
        let mut changed = inputs();
        changed.posts[0].files[0].tag = "u".to_owned();
        assert_eq!(same(&keys(TEXT, &changed)), [false, false, false, false]);
    }

    #[test]
    fn faults_are_named_by_field_and_line() {
        let fault = |text: &str| parse(text).unwrap_err();
        assert!(fault("out = \"o\"\n").contains("posts: has 0 sources"));
        let twice = fault(&format!("{TEXT}[[posts]]\nfrom = \"meta\"\n"));
        assert!(twice.contains("names file:///data/meta twice"), "{twice}");
        let more = fault(&format!(
            "{TEXT}[clusters]\nsize_min = 1\nanswers = \"a\"\n[filter]\nratings = []\n"
        ));
        assert!(
            more.contains("pipeline.toml:5: clusters.size_min: is 1"),
            "{more}"
        );
        assert!(
            more.contains("pipeline.toml:6: clusters.answers: is set, but"),
            "{more}"
        );
        assert!(more.contains("filter.ratings: is empty"), "{more}");
        let unknown = fault(&format!("{TEXT}[filter]\nrating = 1\n"));
        assert!(unknown.contains("did you mean `ratings`"), "{unknown}");
        let none = fault(&format!("{TEXT}[clusters]\nsignature = \"answers\"\n"));
        assert!(
            none.contains("clusters.questions") && none.contains("clusters.answers"),
            "{none}"
        );
    }
}
