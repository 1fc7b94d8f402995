//! How the references of a sample are selected and cropped: fields of `[data]` for architectures
//! that use references.

use super::fields::{Fields, Written, reject_unless_default};
use crate::job::faults::Faults;
use serde::{Deserialize, Serialize};
use toml::Value;

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct References {
    pub task: Task,
    pub pairing: Pairing,
    /// N, the number of references per sample. The paper: 4.
    pub count: u32,
    /// Probability that all references of a training sample are dropped, independently of its
    /// prompt. The model then predicts as the U-Net alone does, which is what
    /// `sample.reference_guidance` guides away from. Ours: 0.
    pub drop: f64,
    /// None: prompt and references are dropped independently. Some: at most one of three things
    /// happens to a sample, its prompt is dropped (`data.prompt_drop`), its references are
    /// (`drop`), or both are, with this probability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joint_drop: Option<f64>,
    /// The random transforms of pairing a. Pairing b never uses them.
    pub transform: Transform,
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
const FIELDS: [&str; 16] = [
    "data.task",
    "data.pairing",
    "data.references",
    "data.reference_drop",
    "data.joint_drop",
    "data.transform.crop",
    "data.transform.flip",
    "data.transform.target_scale",
    "data.reference_scale",
    // From here on, unused by reconstruction.
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

/// Defaults that depend on the architecture.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReferenceDefaults {
    pub(super) count: u32,
    pub(super) task: Task,
    /// None: its prompts and references are dropped independently. Some: the probabilities that
    /// its references alone, and that prompt and references are dropped.
    pub(super) joint_drop: Option<[f64; 2]>,
}

impl References {
    pub(super) fn read(
        fields: &mut Fields,
        defaults: ReferenceDefaults,
        faults: &mut Faults,
    ) -> Self {
        let pairing = fields.read("data.pairing");
        let references = Self {
            task: fields.written("data.task").unwrap_or(defaults.task),
            pairing,
            count: fields.written("data.references").unwrap_or(defaults.count),
            drop: match defaults.joint_drop {
                None => fields.read("data.reference_drop"),
                Some([alone, _]) => fields.written("data.reference_drop").unwrap_or(alone),
            },
            joint_drop: defaults
                .joint_drop
                .map(|[_, both]| fields.written("data.joint_drop").unwrap_or(both)),
            transform: Transform::read(fields, pairing, faults),
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

    /// The random transforms of target and references; None: pairing b, or a job that turns them
    /// off.
    #[must_use]
    pub fn transform(&self) -> Option<Transform> {
        let used = self.pairing == Pairing::A && self.transform != Transform::OFF;
        used.then_some(self.transform)
    }

    fn check(&self, faults: &mut Faults) {
        faults.fraction("data.reference_drop", self.drop);
        faults.fraction("data.joint_drop", self.joint_drop.unwrap_or(0.0));
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
            Task::Reconstruction => ("reconstruction", &FIELDS[9..]),
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
        // Older releases know neither field, so only jobs that use them name them.
        if self.drop > 0.0 || self.joint_drop.is_some() {
            written.put("data.reference_drop", self.drop);
        }
        if let Some(joint) = self.joint_drop {
            written.put("data.joint_drop", joint);
        }
        if self.pairing == Pairing::A {
            written.put("data.transform", self.transform);
        }
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

/// The random transforms of pairing a, `[data.transform]`. The paper applies "two different
/// transforms" to one image and names none (section 4.1), so all of this is ours. Target and
/// references each draw their own: a random resized crop, a horizontal flip, and a position on the
/// pad.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Transform {
    /// Smallest and largest fraction that a crop keeps of each side of the image (not of its area),
    /// one fraction for both sides, uniform in between. It is placed anywhere in the image with
    /// equal probability. References are cropped after their concept is cut out. Ours: 0.8 to 1.
    pub crop: [f64; 2],
    /// Probability of a horizontal flip. Ours: 0.5.
    pub flip: f64,
    /// Minimum fraction of its square that the longer side of a target fills; the rest is pad, on
    /// which the target is placed at random. For references this is [`References::scale`]. Ours:
    /// 0.8.
    pub target_scale: f64,
}

impl Default for Transform {
    fn default() -> Self {
        Self {
            crop: [0.8, 1.0],
            flip: 0.5,
            target_scale: 0.8,
        }
    }
}

impl Transform {
    /// No transform beyond those of pairing b. A whole image that is its own reference is still a
    /// random part of it.
    pub const OFF: Self = Self {
        crop: [1.0, 1.0],
        flip: 0.0,
        target_scale: 1.0,
    };

    fn read(fields: &mut Fields, pairing: Pairing, faults: &mut Faults) -> Self {
        // A job of pairing a that an older release stored names no transform and had none. It must
        // not change while it runs.
        if pairing == Pairing::A && fields.is_stored() && !fields.has("data.transform.crop") {
            return Self::OFF;
        }
        let transform = Self {
            crop: fields.read("data.transform.crop"),
            flip: fields.read("data.transform.flip"),
            target_scale: fields.read("data.transform.target_scale"),
        };
        if pairing == Pairing::B {
            transform.reject_unused(faults);
        } else {
            transform.check(faults);
        }
        transform
    }

    fn check(&self, faults: &mut Faults) {
        let [least, most] = self.crop;
        // The comparisons also reject NaN.
        let valid = 0.1 <= least && least <= most && most <= 1.0;
        faults.need(valid, "data.transform.crop", || {
            format!(
                "is [{least}, {most}]; it must be the smallest and the largest fraction of each \
                side that is kept, both between 0.1 and 1"
            )
        });
        faults.fraction("data.transform.flip", self.flip);
        let scale = self.target_scale;
        faults.need(
            (0.1..=1.0).contains(&scale),
            "data.transform.target_scale",
            || format!("is {scale}; it must lie between 0.1 and 1"),
        );
    }

    fn reject_unused(&self, faults: &mut Faults) {
        let values: [(_, Value); 3] = [
            ("data.transform.crop", self.crop.to_vec().into()),
            ("data.transform.flip", self.flip.into()),
            ("data.transform.target_scale", self.target_scale.into()),
        ];
        for (field, value) in values {
            reject_unless_default(field, &value, "data.pairing is b", faults);
        }
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
