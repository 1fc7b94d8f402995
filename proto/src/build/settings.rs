//! The settings of stages, as they are stored in a job and digested into keys. Plain data.

use super::Stage;
use super::image_stages::{FacesSettings, FiguresSettings, MasksSettings, TaggerSettings};
use crate::rating::Ratings;
use serde::{Deserialize, Serialize};

/// The settings of a stage. The variant is the stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Settings {
    Sources(SourcesSettings),
    Posts(PostsSettings),
    Filter(Box<FilterSettings>),
    Folders(Box<FoldersSettings>),
    Figures(Box<FiguresSettings>),
    Outfits(Box<OutfitsSettings>),
    Tagger(Box<TaggerSettings>),
    Clusters(ClustersSettings),
    Masks(Box<MasksSettings>),
    Faces(Box<FacesSettings>),
    Dataset(DatasetSettings),
}

impl Settings {
    #[must_use]
    pub fn stage(&self) -> Stage {
        match self {
            Self::Sources(_) => Stage::Sources,
            Self::Posts(_) => Stage::Posts,
            Self::Filter(_) => Stage::Filter,
            Self::Folders(_) => Stage::Folders,
            Self::Figures(_) => Stage::Figures,
            Self::Outfits(_) => Stage::Outfits,
            Self::Tagger(_) => Stage::Tagger,
            Self::Clusters(_) => Stage::Clusters,
            Self::Masks(_) => Stage::Masks,
            Self::Faces(_) => Stage::Faces,
            Self::Dataset(_) => Stage::Dataset,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourcesSettings {
    /// In the order of precedence: of posts with the same id, that of the last source counts.
    pub sources: Vec<Source>,
    /// Bytes of JSON lines that are one piece.
    pub piece_bytes: u64,
    /// Rows of a database that are one piece.
    pub piece_rows: u64,
}

/// A file or folder with metadata of posts, as it was when the pipeline was planned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// URL of the folder that the files are in.
    pub folder: String,
    /// In the order of their paths.
    pub files: Vec<SourceFile>,
    /// How a database without other evidence numbers the types of tags.
    pub tag_types: Option<TagTypes>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceFile {
    /// Relative to the folder.
    pub path: String,
    pub size: u64,
    /// The store's entity tag. It changes when the file does.
    pub tag: String,
}

/// The numbers of tag types in a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TagTypes {
    /// 0 general, 1 artist, 3 copyright, 4 character, 5 meta.
    Danbooru,
    /// 0 general, 1 artist, 2 character, 3 copyright, 4 meta.
    Consecutive,
}

/// What happens to a row that cannot be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnBadRow {
    /// It is counted, and named in the report.
    #[default]
    Skip,
    /// The stage fails, and names it.
    Stop,
}

impl OnBadRow {
    pub(super) fn is_skip(&self) -> bool {
        *self == Self::Skip
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostsSettings {
    pub on_bad_row: OnBadRow,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilterSettings {
    /// The text of the list of cloth tags.
    pub cloth_tags: String,
    pub ratings: Ratings,
    /// Whether posts that were deleted or banned are used.
    pub deleted: bool,
    /// The posts that have a picture of a figure. None: all.
    pub figures: Option<Figures>,
}

/// A list of ids, one in a line: a number, or the path of a file whose name begins with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    pub folder: String,
    pub file: SourceFile,
}

/// What a folder of images is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FolderKind {
    /// `IDENTITY/NAME.jpg`: one folder for each person or character.
    Identities,
    /// `[N_]CHARACTER/NAME.png` with a caption in `NAME.txt`, as trainers of LoRA read it.
    Captions,
    /// `identity_CelebA.txt`, with `list_bbox_celeba.txt` if it is there (Liu et al. 2015).
    CelebA,
    /// `train.rec` and `train.idx` of MXNet, as Glint360K is published (An et al. 2021).
    RecordIo,
    /// `samples.jsonl`, the form of `coordinator dataset import`, with or without images.
    Import,
}

impl FolderKind {
    #[must_use]
    pub fn description(self) -> &'static str {
        match self {
            Self::Identities => "a folder for each identity",
            Self::Captions => "a folder for each character, with captions",
            Self::CelebA => "CelebA (identity_CelebA.txt)",
            Self::RecordIo => "RecordIO (train.rec and train.idx)",
            Self::Import => "rows of samples.jsonl",
        }
    }
}

/// A folder of images of characters or people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageFolder {
    pub listed: ListedFolder,
    /// None: as its files tell.
    pub kind: Option<FolderKind>,
    /// The artist of all its images; "" if there is none.
    pub artist: String,
    /// The rating of all its images, one of [`crate::rating::Rating`]'s words; "" if unknown.
    pub rating: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FoldersSettings {
    pub folders: Vec<ImageFolder>,
    /// The text of the list of cloth tags.
    pub cloth_tags: String,
    /// Whether rows without an image of their own are used: the stages after this one have a folder
    /// of images, which are named by the rows' ids.
    pub joined: bool,
    pub on_bad_row: OnBadRow,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClustersSettings {
    pub signature: Signature,
    /// Fewest figures of a cluster; at least 2.
    pub size_min: u32,
    /// JSON lines of `{"id": 1, "cluster": "name"}`: the true clusters of some figures. The report
    /// compares with them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truth: Option<NamedFile>,
}

/// What tells the outfits of a character apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Signature {
    /// The set of a post's cloth tags. Ours: the paper asks a model.
    Tags,
    /// Answers to questions about the figure, which must all be equal (paper section 3), from the
    /// stage `outfits`.
    Model { questions: Vec<String> },
    /// The same, from a file.
    Answers(Answers),
    /// The set of cloth tags that a tagger finds, from the stage `tagger`. Ours.
    Tagger,
    /// The outfit that the folder's rows have, from the stage `folders`. Rows without one are
    /// grouped by identity alone.
    Given,
}

/// JSON lines of `{"id": 1, "question": "colours", "answer": "blue and white"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answers {
    pub folder: String,
    pub file: SourceFile,
    /// The questions that must be answered equally.
    pub questions: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutfitsSettings {
    /// Images whose file names begin with the number of their post. None: those of the stage
    /// `folders`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<ListedFolder>,
    /// URL of a server that speaks OpenAI's `/v1/chat/completions`.
    pub endpoint: String,
    pub model: String,
    pub questions: Vec<OutfitQuestion>,
    /// Requests at a time, of one rank.
    pub concurrency: u32,
    #[serde(default, skip_serializing_if = "OnBadRow::is_skip")]
    pub on_bad_row: OnBadRow,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutfitQuestion {
    pub name: String,
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetSettings {
    /// Images whose file names begin with the number of their post. None: those of the stage
    /// `folders`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<ListedFolder>,
    /// Masks, named in the same way. None: those of the stage `masks`, or else the alpha channels
    /// of the images.
    pub masks: Option<ListedFolder>,
    /// JSON lines of `{"id": 1, "bbox": [0.5, 0.3, 0.2, 0.2]}`. None: those of the stage `faces`,
    /// or else faces are guessed from masks.
    pub boxes: Option<NamedFile>,
    pub near_duplicates: NearDuplicates,
    /// Bits in which the hashes of near-duplicates differ at most, of 128.
    pub near_bits: u32,
    #[serde(default, skip_serializing_if = "OnBadRow::is_skip")]
    pub on_bad_row: OnBadRow,
    #[serde(default, skip_serializing_if = "Publish::is_all")]
    pub publish: Publish,
    /// Whether images without a mask are used whole. Otherwise the alpha channel must be one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole: bool,
}

/// What a data set is to contain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Publish {
    /// Everything, for training.
    #[default]
    Images,
    /// Ids and annotations alone: images are often not theirs to publish who annotate them. They
    /// are the rows of `samples.jsonl`, which the stage `folders` joins with images that somebody
    /// has.
    Annotations,
}

impl Publish {
    pub(super) fn is_all(&self) -> bool {
        *self == Self::Images
    }
}

/// What happens to images of a cluster that are variants of another one in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NearDuplicates {
    /// They are counted.
    #[default]
    Keep,
    /// All but the one with the lowest number are left out.
    Drop,
}

/// A folder with too many files to list in a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListedFolder {
    pub folder: String,
    pub files: u64,
    /// Of the paths, sizes and entity tags of the files.
    pub digest: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedFile {
    pub folder: String,
    pub file: SourceFile,
}
