//! How the references of a sample are selected and cropped: fields of `[data]` for architectures
//! that use references.

use super::fields::{Fields, Written, reject_unless_default};
use crate::job::faults::Faults;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct References {
    pub task: Task,
    pub pairing: Pairing,
    /// N, the number of references per sample. The paper: 4.
    pub count: u32,
    /// Probability that a reference shows the face (else the clothes). Ours: 0.5.
    pub face_probability: f64,
    /// Factor by which the annotated face box is enlarged in a reference. Ours: 1.33, measured on
    /// the paper's figure 2.
    pub face_enlargement: f64,
    /// If the face box covers more than this fraction of the image, it counts as "the majority" and
    /// the whole figure is shown instead of the clothes. Ours: 0.5.
    pub figure_threshold: f64,
    pub clothes: Clothes,
    /// Minimum fraction of its square that a reference fills. Below 1, so that its position never
    /// equals the target's. Ours: 0.8.
    pub scale: f64,
    /// Fraction of reconstruction samples if the task is multitask. Ours: 0.5.
    pub multitask_reconstruction: f64,
}

/// The fields of `[data]` about references.
const FIELDS: [&str; 11] = [
    "data.task",
    "data.pairing",
    "data.references",
    "data.reference_scale",
    "data.multitask_reconstruction",
    "data.face_probability",
    "data.face_enlargement",
    "data.figure_threshold",
    "data.clothes.cut_off",
    "data.clothes.cut_off_minimum",
    "data.clothes.background",
];

/// Whether a field is about references.
pub(super) fn has(field: &str) -> bool {
    FIELDS.contains(&field)
}

impl References {
    /// `count` is the default number of references.
    pub(super) fn read(fields: &mut Fields, count: u32, faults: &mut Faults) -> Self {
        let references = Self {
            task: fields.read("data.task"),
            pairing: fields.read("data.pairing"),
            count: fields.written("data.references").unwrap_or(count),
            face_probability: fields.read("data.face_probability"),
            face_enlargement: fields.read("data.face_enlargement"),
            figure_threshold: fields.read("data.figure_threshold"),
            clothes: Clothes {
                cut_off: fields.read("data.clothes.cut_off"),
                cut_off_minimum: fields.read("data.clothes.cut_off_minimum"),
                background: fields.read("data.clothes.background"),
            },
            scale: fields.read("data.reference_scale"),
            multitask_reconstruction: fields.read("data.multitask_reconstruction"),
        };
        references.check(faults);
        references.reject_unused(faults);
        references
    }

    fn check(&self, faults: &mut Faults) {
        for (field, value) in self.fractions() {
            faults.fraction(field, value);
        }
        faults.need(
            (0.1..=1.0).contains(&self.scale),
            "data.reference_scale",
            || format!("is {}; it must lie between 0.1 and 1", self.scale),
        );
        let enlargement = self.face_enlargement;
        faults.need(
            (1.0..=4.0).contains(&enlargement),
            "data.face_enlargement",
            || format!("is {enlargement}; it must lie between 1 and 4"),
        );
        faults.need(self.count <= 64, "data.references", || {
            format!("is {}; at most 64 are supported", self.count)
        });
    }

    fn fractions(&self) -> [(&'static str, f64); 6] {
        [
            ("data.face_probability", self.face_probability),
            ("data.figure_threshold", self.figure_threshold),
            ("data.clothes.cut_off", self.clothes.cut_off),
            ("data.clothes.cut_off_minimum", self.clothes.cut_off_minimum),
            ("data.clothes.background", self.clothes.background),
            (
                "data.multitask_reconstruction",
                self.multitask_reconstruction,
            ),
        ]
    }

    /// Rejects fields that have no effect with the configured task.
    fn reject_unused(&self, faults: &mut Faults) {
        let (task, unused): (_, &[&str]) = match self.task {
            Task::Multitask => return,
            Task::Composition => ("composition", &["data.multitask_reconstruction"]),
            Task::Reconstruction => ("reconstruction", &FIELDS[4..]),
        };
        let why = format!("data.task is {task}");
        let enlargement = [("data.face_enlargement", self.face_enlargement)];
        for (field, value) in self.fractions().into_iter().chain(enlargement) {
            if unused.contains(&field) {
                reject_unless_default(field, &value.into(), &why, faults);
            }
        }
    }

    pub(super) fn write(&self, written: &mut Written) {
        written.put("data.task", self.task);
        written.put("data.pairing", self.pairing);
        written.put("data.references", self.count);
        written.put("data.face_probability", self.face_probability);
        written.put("data.face_enlargement", self.face_enlargement);
        written.put("data.figure_threshold", self.figure_threshold);
        written.put("data.clothes", self.clothes);
        written.put("data.reference_scale", self.scale);
        written.put(
            "data.multitask_reconstruction",
            self.multitask_reconstruction,
        );
    }
}

/// How the face is removed from references of clothes (the paper's figures show both ways). All
/// values are ours.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Clothes {
    /// Probability that everything above the chin is cropped off; else the face box is filled with
    /// the padding colour.
    pub cut_off: f64,
    /// The image is cropped only if at least this fraction of its height is below the chin.
    pub cut_off_minimum: f64,
    /// Probability that the background is retained; else it is filled with the padding colour.
    pub background: f64,
}

impl Default for Clothes {
    fn default() -> Self {
        Self {
            cut_off: 0.5,
            cut_off_minimum: 0.3,
            background: 0.5,
        }
    }
}

/// What the references are (paper, section 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Whole images with the word "figure".
    Reconstruction,
    /// Faces and clothes, sampled per reference.
    Composition,
    /// Both, mixed per sample.
    Multitask,
}

/// Where the references come from (paper, section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pairing {
    /// The target itself under another random transform.
    A,
    /// Other images of the same character and outfit.
    B,
}
