//! The stages that run ONNX models on images: the settings of `tagger`, `masks` and `faces`, and
//! their tables in `pipeline.toml`. Plain data and pure checks; `worker-build` runs the models.

use super::check::readable;
use super::pipeline::one;
use super::pipeline::{Inputs, Listing, Pipeline};
use super::settings::{ListedFolder, NamedFile, OnBadRow, Settings};
use super::{StageKey, StagePlan, UNITS_MAX};
use crate::job::check::data::absolute;
use crate::job::faults::Faults;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The segmentation model that `deploy/setup/onnx.py` installs on workers (U²-Net, Qin et al. 2020,
/// the small one), and the SHA-256 of its file.
pub const U2NETP: (&str, &str) = (
    "u2netp",
    "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
);
/// The face detector that it installs.
pub const ANIMEFACE: &str = "animeface";

/// Images that a model with a free batch size gets at a time.
const BATCH: u32 = 8;
/// Threshold of taggers, as their authors give it.
const TAGGER_THRESHOLD: f64 = 0.35;
/// Side of the square that detectors of any input size get, as yolov5 has it.
const SIDE: u32 = 640;
/// Figures and backgrounds that are smaller than this fraction of an image are taken for none.
/// Ours.
const AREA: f64 = 0.01;
/// How much the box of a figure is enlarged on each side. Ours.
const MARGIN: f64 = 0.05;

/// An ONNX model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Model {
    /// One that setup installs on workers.
    Installed {
        name: String,
        sha256: String,
    },
    File(NamedFile),
}

/// How a segmentation model wants its images, and what its output means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaskLayout {
    /// 320 pixels, divided by the largest value, ImageNet's mean and standard deviation.
    U2net,
    /// 1024 pixels, from -0.5 to 0.5 (Qin et al. 2022, the reference's `Inference.py`).
    IsNet,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MasksSettings {
    /// Images whose file names begin with the number of their post. None: those of the stage
    /// `folders`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<ListedFolder>,
    pub model: Model,
    /// None: by the size of the model's input.
    pub layout: Option<MaskLayout>,
    /// Masks that cover less of their image are empty, and those that cover more are full.
    pub area_min: f64,
    pub area_max: f64,
    pub batch: u32,
    pub on_bad_row: OnBadRow,
    /// True masks of some figures, or images with alpha: the report compares with them.
    pub truth: Option<ListedFolder>,
}

/// What the outputs of a face detector mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaceLayout {
    /// One output `[1, N, 5 + classes]`: centre, size, objectness, classes. As yolov5_anime.
    Yolov5,
    /// `cls`, `obj` and `bbox` of the strides 8, 16 and 32. As YuNet (Wu et al. 2023).
    Yunet,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaceDetector {
    /// The Python package of this name.
    Animeface,
    Onnx {
        model: NamedFile,
        /// None: by the model's outputs.
        layout: Option<FaceLayout>,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FacesSettings {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<ListedFolder>,
    pub detector: FaceDetector,
    /// Faces with a lower score are none. None: as the detector's authors give it.
    pub score_min: Option<f64>,
    /// Of two faces whose intersection over union is larger, that with the lower score is none.
    /// None: as the detector's authors give it.
    pub overlap_max: Option<f64>,
    /// Longest side in pixels of what a detector of any input size gets.
    pub side: u32,
    pub on_bad_row: OnBadRow,
    /// True boxes of some figures, as [`super::settings::DatasetSettings::boxes`].
    pub truth: Option<NamedFile>,
}

/// Crops of single figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FiguresSettings {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<ListedFolder>,
    /// A detector of figures, whose outputs are those of a face detector.
    pub model: NamedFile,
    /// None: by the model's outputs.
    pub layout: Option<FaceLayout>,
    /// As [`FacesSettings`].
    pub score_min: Option<f64>,
    pub overlap_max: Option<f64>,
    pub side: u32,
    /// How much a box is enlarged on each side, as a fraction of it.
    pub margin: f64,
    pub on_bad_row: OnBadRow,
}

/// How a tagger wants its images, and what its outputs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaggerLayout {
    /// `[N, H, W, 3]`, BGR from 0 to 255; probabilities.
    Wd14,
    /// `[N, 3, H, W]`, BGR from -1 to 1; logits.
    ClTagger,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaggerSettings {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<ListedFolder>,
    pub model: NamedFile,
    /// The names of its outputs: `selected_tags.csv` of WD14, or `tag_mapping.json` of cl_tagger.
    pub labels: NamedFile,
    /// None: by the shape of the model's input.
    pub layout: Option<TaggerLayout>,
    pub threshold: f64,
    /// The text of the list of cloth tags.
    pub cloth_tags: String,
    pub batch: u32,
    pub on_bad_row: OnBadRow,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MasksToml {
    model: Option<String>,
    layout: Option<MaskLayout>,
    area_min: Option<f64>,
    area_max: Option<f64>,
    batch: Option<u32>,
    truth: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FacesToml {
    model: Option<String>,
    layout: Option<FaceLayout>,
    score_min: Option<f64>,
    overlap_max: Option<f64>,
    side: Option<u32>,
    truth: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FiguresToml {
    model: String,
    layout: Option<FaceLayout>,
    score_min: Option<f64>,
    overlap_max: Option<f64>,
    side: Option<u32>,
    margin: Option<f64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TaggerToml {
    images: Option<String>,
    model: String,
    labels: String,
    layout: Option<TaggerLayout>,
    threshold: Option<f64>,
    batch: Option<u32>,
}

/// `[masks]`, with absolute URLs.
#[derive(Debug, Clone, PartialEq)]
pub struct PipelineMasks {
    /// None: [`U2NETP`].
    pub model: Option<String>,
    pub layout: Option<MaskLayout>,
    pub area_min: f64,
    pub area_max: f64,
    pub batch: u32,
    pub truth: Option<String>,
}

/// `[faces]`, with absolute URLs.
#[derive(Debug, Clone, PartialEq)]
pub struct PipelineFaces {
    /// None: [`ANIMEFACE`].
    pub model: Option<String>,
    pub layout: Option<FaceLayout>,
    pub score_min: Option<f64>,
    pub overlap_max: Option<f64>,
    pub side: u32,
    pub truth: Option<String>,
}

/// `[figures]`, with absolute URLs.
#[derive(Debug, Clone, PartialEq)]
pub struct PipelineFigures {
    pub model: String,
    pub layout: Option<FaceLayout>,
    pub score_min: Option<f64>,
    pub overlap_max: Option<f64>,
    pub side: u32,
    pub margin: f64,
}

/// `[tagger]`, with absolute URLs.
#[derive(Debug, Clone, PartialEq)]
pub struct PipelineTagger {
    /// None: as [`super::pipeline::PipelineDataset::images`].
    pub images: Option<String>,
    pub model: String,
    pub labels: String,
    pub layout: Option<TaggerLayout>,
    pub threshold: f64,
    pub batch: u32,
}

/// What [`Inputs`] has of these stages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageInputs {
    pub masks_model: Option<Listing>,
    pub masks_truth: Option<ListedFolder>,
    pub faces_model: Option<Listing>,
    pub faces_truth: Option<Listing>,
    pub figures_model: Option<Listing>,
    pub tagged: Option<ListedFolder>,
    pub tagger_model: Option<Listing>,
    pub tagger_labels: Option<Listing>,
}

fn fraction(field: &str, value: Option<f64>, faults: &mut Faults) {
    if let Some(value) = value {
        faults.need((0.0..=1.0).contains(&value), field, || {
            format!("is {value}; it must be from 0 to 1")
        });
    }
}

pub(super) fn masks(
    raw: MasksToml,
    directory: Option<&Path>,
    faults: &mut Faults,
) -> PipelineMasks {
    fraction("masks.area_min", raw.area_min, faults);
    fraction("masks.area_max", raw.area_max, faults);
    let (area_min, area_max) = (
        raw.area_min.unwrap_or(AREA),
        raw.area_max.unwrap_or(1.0 - AREA),
    );
    faults.need(area_min < area_max, "masks.area_max", || {
        format!("is {area_max}; it must be more than masks.area_min, which is {area_min}")
    });
    let batch = raw.batch.unwrap_or(BATCH);
    faults.count("masks.batch", batch, 1024);
    let mut url = |field: &str, value: Option<String>| {
        value.map(|value| absolute(field, &value, directory, faults))
    };
    PipelineMasks {
        model: url("masks.model", raw.model.filter(|it| it != U2NETP.0)),
        truth: url("masks.truth", raw.truth),
        layout: raw.layout,
        area_min,
        area_max,
        batch,
    }
}

fn side(field: &str, value: Option<u32>, faults: &mut Faults) -> u32 {
    let side = value.unwrap_or(SIDE);
    let is_side = (32..=4096).contains(&side) && side.is_multiple_of(32);
    faults.need(is_side, field, || {
        format!("is {side}; it must be a multiple of 32 from 32 to 4096")
    });
    side
}

pub(super) fn figures(
    raw: FiguresToml,
    directory: Option<&Path>,
    faults: &mut Faults,
) -> PipelineFigures {
    fraction("figures.score_min", raw.score_min, faults);
    fraction("figures.overlap_max", raw.overlap_max, faults);
    fraction("figures.margin", raw.margin, faults);
    PipelineFigures {
        model: absolute("figures.model", &raw.model, directory, faults),
        layout: raw.layout,
        score_min: raw.score_min,
        overlap_max: raw.overlap_max,
        side: side("figures.side", raw.side, faults),
        margin: raw.margin.unwrap_or(MARGIN),
    }
}

pub(super) fn faces(
    raw: FacesToml,
    directory: Option<&Path>,
    faults: &mut Faults,
) -> PipelineFaces {
    fraction("faces.score_min", raw.score_min, faults);
    fraction("faces.overlap_max", raw.overlap_max, faults);
    let side = side("faces.side", raw.side, faults);
    let model = raw.model.filter(|it| it != ANIMEFACE);
    let is_of_onnx = raw.layout.is_some() || raw.overlap_max.is_some();
    faults.need(model.is_some() || !is_of_onnx, "faces.model", || {
        "is \"animeface\", but there is a layout or overlap_max, which only an ONNX model has: \
         name the model, or leave them out"
            .into()
    });
    let mut url = |field: &str, value: Option<String>| {
        value.map(|value| absolute(field, &value, directory, faults))
    };
    PipelineFaces {
        model: url("faces.model", model),
        truth: url("faces.truth", raw.truth),
        layout: raw.layout,
        score_min: raw.score_min,
        overlap_max: raw.overlap_max,
        side,
    }
}

pub(super) fn tagger(
    raw: TaggerToml,
    directory: Option<&Path>,
    faults: &mut Faults,
) -> PipelineTagger {
    fraction("tagger.threshold", raw.threshold, faults);
    let batch = raw.batch.unwrap_or(BATCH);
    faults.count("tagger.batch", batch, 1024);
    PipelineTagger {
        images: raw
            .images
            .map(|url| readable("tagger.images", &url, directory, faults)),
        model: absolute("tagger.model", &raw.model, directory, faults),
        labels: absolute("tagger.labels", &raw.labels, directory, faults),
        layout: raw.layout,
        threshold: raw.threshold.unwrap_or(TAGGER_THRESHOLD),
        batch,
    }
}

/// What other tables say against these.
pub(super) fn check(pipeline: &Pipeline, faults: &mut Faults) {
    let dataset = pipeline.dataset.as_ref();
    for (field, is_set, other, is_other_set) in [
        (
            "masks",
            pipeline.masks.is_some(),
            "dataset.masks",
            dataset.is_some_and(|it| it.masks.is_some()),
        ),
        (
            "faces",
            pipeline.faces.is_some(),
            "dataset.boxes",
            dataset.is_some_and(|it| it.boxes.is_some()),
        ),
    ] {
        faults.need(!is_set || dataset.is_some(), field, || {
            "needs a table [dataset], whose images it reads".into()
        });
        faults.need(!is_set || !is_other_set, other, || {
            format!("is given, and there is a table [{field}] that makes them: leave one out")
        });
    }
    for (field, units) in [
        ("units.figures", pipeline.figures_units),
        ("units.tagger", pipeline.tagger_units),
        ("units.masks", pipeline.masks_units),
        ("units.faces", pipeline.faces_units),
    ] {
        faults.count(field, units, UNITS_MAX);
    }
}

impl Pipeline {
    /// Files that must each be one: field, URL, what was listed.
    pub(super) fn image_files<'a>(
        &'a self,
        inputs: &'a ImageInputs,
    ) -> [(&'static str, Option<&'a String>, &'a Option<Listing>); 6] {
        let (masks, faces) = (self.masks.as_ref(), self.faces.as_ref());
        let tagger = self.tagger.as_ref();
        [
            (
                "figures.model",
                self.crops.as_ref().map(|it| &it.model),
                &inputs.figures_model,
            ),
            (
                "masks.model",
                masks.and_then(|it| it.model.as_ref()),
                &inputs.masks_model,
            ),
            (
                "faces.model",
                faces.and_then(|it| it.model.as_ref()),
                &inputs.faces_model,
            ),
            (
                "faces.truth",
                faces.and_then(|it| it.truth.as_ref()),
                &inputs.faces_truth,
            ),
            (
                "tagger.model",
                tagger.map(|it| &it.model),
                &inputs.tagger_model,
            ),
            (
                "tagger.labels",
                tagger.map(|it| &it.labels),
                &inputs.tagger_labels,
            ),
        ]
    }

    /// Crops the figures that the stages of `found` name.
    pub(super) fn crop(&self, inputs: &Inputs, found: &StagePlan) -> Option<StagePlan> {
        let crops = self.crops.as_ref()?;
        Some(StagePlan {
            settings: Settings::Figures(Box::new(FiguresSettings {
                images: inputs.images.clone(),
                model: one(inputs.image.figures_model.as_ref())?,
                layout: crops.layout,
                score_min: crops.score_min,
                overlap_max: crops.overlap_max,
                side: crops.side,
                margin: crops.margin,
                on_bad_row: self.on_bad_row,
            })),
            inputs: vec![found.key()],
        })
    }

    pub(super) fn tag(
        &self,
        inputs: &Inputs,
        found: &[StageKey],
        cloth_tags: &str,
    ) -> Option<StagePlan> {
        let tagger = self.tagger.as_ref()?;
        Some(StagePlan {
            settings: Settings::Tagger(Box::new(TaggerSettings {
                images: inputs.image.tagged.clone(),
                model: one(inputs.image.tagger_model.as_ref())?,
                labels: one(inputs.image.tagger_labels.as_ref())?,
                layout: tagger.layout,
                threshold: tagger.threshold,
                cloth_tags: cloth_tags.to_owned(),
                batch: tagger.batch,
                on_bad_row: self.on_bad_row,
            })),
            inputs: found.to_vec(),
        })
    }

    /// `images` are the stages that have images of their own.
    pub(super) fn segment(
        &self,
        inputs: &Inputs,
        clusters: &StagePlan,
        images: &[StageKey],
    ) -> Option<StagePlan> {
        let masks = self.masks.as_ref()?;
        let model = match one(inputs.image.masks_model.as_ref()) {
            Some(file) => Model::File(file),
            None => Model::Installed {
                name: U2NETP.0.to_owned(),
                sha256: U2NETP.1.to_owned(),
            },
        };
        Some(StagePlan {
            settings: Settings::Masks(Box::new(MasksSettings {
                images: inputs.images.clone(),
                model,
                layout: masks.layout,
                area_min: masks.area_min,
                area_max: masks.area_max,
                batch: masks.batch,
                on_bad_row: self.on_bad_row,
                truth: inputs.image.masks_truth.clone(),
            })),
            inputs: [&[clusters.key()], images].concat(),
        })
    }

    /// `figures` is the stage whose figures are looked at, and `images` those with images.
    pub(super) fn detect(
        &self,
        inputs: &Inputs,
        figures: &StagePlan,
        images: &[StageKey],
    ) -> Option<StagePlan> {
        let faces = self.faces.as_ref()?;
        let detector = match one(inputs.image.faces_model.as_ref()) {
            Some(model) => FaceDetector::Onnx {
                model,
                layout: faces.layout,
            },
            None => FaceDetector::Animeface,
        };
        Some(StagePlan {
            settings: Settings::Faces(Box::new(FacesSettings {
                images: inputs.images.clone(),
                detector,
                score_min: faces.score_min,
                overlap_max: faces.overlap_max,
                side: faces.side,
                on_bad_row: self.on_bad_row,
                truth: one(inputs.image.faces_truth.as_ref()),
            })),
            inputs: [&[figures.key()], images].concat(),
        })
    }
}
