//! `pipeline.toml`: parsed, checked and divided into stages. Pure: the files that it names are
//! listed by the caller. `deploy/pipelines/danbooru.toml` documents the fields for users.

use super::StagePlan;
use super::check::check;
use super::image_stages::{
    ImageInputs, PipelineFaces, PipelineFigures, PipelineMasks, PipelineTagger,
};
use super::raw::PipelineToml;
use super::settings::{
    FolderKind, ListedFolder, NamedFile, NearDuplicates, OnBadRow, OutfitQuestion, Publish,
    SourceFile, TagTypes,
};
use crate::job::faults::Faults;
use crate::job::{JobError, JobErrors};
use crate::location;
use crate::rating::Ratings;
use std::path::Path;

/// The list of cloth tags of this release.
pub const CLOTH_TAGS: &str = include_str!("../../../deploy/data/cloth_tags.txt");

/// A pipeline as its file says, with absolute URLs.
#[derive(Debug, Clone, PartialEq)]
pub struct Pipeline {
    /// The prefix of its jobs' names.
    pub name: String,
    pub out: String,
    pub on_bad_row: OnBadRow,
    /// Empty if there are folders.
    pub posts: Vec<PostsSource>,
    /// Empty if there are posts.
    pub folders: Vec<FolderSource>,
    /// None: [`CLOTH_TAGS`].
    pub cloth_tags: Option<String>,
    pub ratings: Ratings,
    pub deleted: bool,
    pub figures: Option<String>,
    pub signature: PipelineSignature,
    pub size_min: u32,
    /// A file of true clusters.
    pub clusters_truth: Option<String>,
    /// None: images are of single figures already.
    pub crops: Option<PipelineFigures>,
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
    pub figures_units: u32,
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

/// A folder of images that is used instead of posts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderSource {
    pub from: String,
    pub kind: Option<FolderKind>,
    pub artist: String,
    pub rating: String,
}

/// Whom to ask about outfits, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineOutfits {
    /// None: as [`PipelineDataset::images`].
    pub images: Option<String>,
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

/// Where images are, and what is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineDataset {
    /// None: those of the folders.
    pub images: Option<String>,
    pub masks: Option<String>,
    pub boxes: Option<String>,
    pub near_duplicates: NearDuplicates,
    pub near_bits: u32,
    pub publish: Publish,
    pub whole: bool,
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
    /// The outfits of the stage `folders`.
    Given,
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
    /// In the order of [`Pipeline::folders`].
    pub folders: Vec<ListedFolder>,
    /// The text of [`Pipeline::cloth_tags`], if it names a file.
    pub cloth_tags: Option<String>,
    pub figures: Option<Listing>,
    pub answers: Option<Listing>,
    pub clusters_truth: Option<Listing>,
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
            PipelineSignature::Answers { file, .. } => Some(file),
            PipelineSignature::Tags
            | PipelineSignature::Model
            | PipelineSignature::Tagger
            | PipelineSignature::Given => None,
        };
        let dataset = pipeline.dataset.as_ref();
        let boxes = dataset.and_then(|dataset| dataset.boxes.as_ref());
        let tables = [
            ("filter.figures", pipeline.figures.as_ref(), &self.figures),
            ("clusters.answers", answers, &self.answers),
            (
                "clusters.truth",
                pipeline.clusters_truth.as_ref(),
                &self.clusters_truth,
            ),
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
