//! `[sample]`: images generated with the weights of a trained job, as numbered units. Plain values
//! and arithmetic. Text form and checks are in [`crate::job`]; a rank generates the images.

use crate::architecture::references::{Pairing, Task};
use crate::id::{JobId, Step};
use crate::knobs::Knobs;
use crate::units::{OnFailedUnit, UnitPlan};
use serde::{Deserialize, Serialize};

/// Images of a trained job, written to `jobs/<this job>/images/`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleWork {
    /// The trained job.
    pub job: JobId,
    pub weights: Weights,
    /// Number of subjects, sampled from held-out characters if the job holds some out. With
    /// `references` there is one subject.
    pub count: u32,
    pub method: SampleMethod,
    pub steps: u32,
    /// Classifier-free guidance scale.
    pub guidance: f64,
    /// Guidance scale of the references.
    pub reference_guidance: f64,
    /// One image is generated for every subject, prompt and seed. The first seed also selects the
    /// subjects.
    pub seeds: Vec<u64>,
    /// Which prompt of a subject is used if no `prompts` are given.
    pub prompt: SamplePrompt,
    pub prompts: Vec<String>,
    /// The unconditional text of classifier-free guidance: what images are guided away from. Empty:
    /// the empty prompt. Has no effect on a model without prompts.
    pub negative_prompt: String,
    /// Settings of the trained job's architecture alone.
    #[serde(default, skip_serializing_if = "Knobs::is_empty")]
    pub knobs: Knobs,
    /// The reference images; empty: those that training would use for each subject.
    pub references: Vec<NamedReference>,
    /// Every subject gets the references of a subject of another character, while prompt and noise
    /// stay: the swap test. Ours.
    pub swap_references: bool,
    /// How references are selected and cropped; None: as in the job.
    pub task: Option<Task>,
    /// Where references come from; None: as in the job.
    pub pairing: Option<Pairing>,
    /// Words for which maps of the attention over the references are written.
    pub attention: Vec<Concept>,
    pub on_failed_unit: OnFailedUnit,
}

/// Which weights of a job to use, as requested by a user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weights {
    /// The newest committed checkpoint at the start of the job of images.
    #[default]
    Newest,
    /// The job's initial weights, untrained (for comparison).
    Base,
    /// The checkpoint of this step.
    Step(Step),
}

/// The content of one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleUnit {
    /// One image, with indices of the subject, of the prompt and of the seed.
    Image {
        subject: u32,
        prompt: usize,
        seed: usize,
    },
    /// The attention maps of one subject.
    Attention { subject: u32 },
    /// The image grid and the list of all images.
    Closing,
}

impl SampleWork {
    /// One image of one subject, with the defaults of `[sample]`.
    #[must_use]
    pub fn of(job: JobId) -> Self {
        Self {
            job,
            weights: Weights::Newest,
            count: 1,
            method: SampleMethod::Ddim,
            steps: 50,
            guidance: 7.5,
            reference_guidance: 1.0,
            seeds: vec![0],
            prompt: SamplePrompt::Full,
            prompts: Vec::new(),
            negative_prompt: String::new(),
            knobs: Knobs::default(),
            references: Vec::new(),
            swap_references: false,
            task: None,
            pairing: None,
            attention: Vec::new(),
            on_failed_unit: OnFailedUnit::Stop,
        }
    }

    /// Subjects times prompts times seeds: units 0 to `images - 1`.
    #[must_use]
    pub fn images(&self) -> u64 {
        u64::from(self.count) * self.prompts.len().max(1) as u64 * self.seeds.len() as u64
    }

    /// Number of subjects with attention maps. Each is a unit after the images.
    #[must_use]
    pub fn maps(&self) -> u64 {
        if self.attention.is_empty() {
            0
        } else {
            u64::from(self.count)
        }
    }

    #[must_use]
    pub fn units(&self) -> UnitPlan {
        UnitPlan {
            count: self.images() + self.maps() + 1,
            closing: true,
            on_failed: self.on_failed_unit,
            pause_above: None,
        }
    }

    /// The content of unit `number`; None past the last one. Seeds vary fastest, then prompts, then
    /// subjects.
    #[must_use]
    pub fn unit(&self, number: u64) -> Option<SampleUnit> {
        let (images, maps) = (self.images(), self.maps());
        if number < images {
            let (seeds, prompts) = (self.seeds.len() as u64, self.prompts.len().max(1) as u64);
            return Some(SampleUnit::Image {
                subject: u32::try_from(number / seeds / prompts).ok()?,
                prompt: usize::try_from(number / seeds % prompts).ok()?,
                seed: usize::try_from(number % seeds).ok()?,
            });
        }
        let subject = u32::try_from(number - images).ok();
        match number - images {
            map if map < maps => Some(SampleUnit::Attention { subject: subject? }),
            closing if closing == maps => Some(SampleUnit::Closing),
            _ => None,
        }
    }
}

impl SamplePrompt {
    /// The name in job.toml.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Pose => "pose",
            Self::Empty => "empty",
        }
    }
}

impl SampleMethod {
    /// The name in job.toml.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ddim => "ddim",
            Self::Pndm => "pndm",
            Self::DpmSolver => "dpm-solver",
            Self::Ddpm => "ddpm",
        }
    }
}

/// What a reference shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Concept {
    Face,
    Clothes,
    Figure,
}

impl Concept {
    pub const ALL: [Self; 3] = [Self::Face, Self::Clothes, Self::Figure];

    /// The word that the text encoder reads (paper, section 5.1).
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Face => "face",
            Self::Clothes => "clothes",
            Self::Figure => "figure",
        }
    }
}

/// A reference that a user named.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedReference {
    /// None: as the task has it.
    pub concept: Option<Concept>,
    pub from: ImageSource,
}

impl NamedReference {
    /// What is assumed about a user's file because it is not annotated; None if nothing is.
    #[must_use]
    pub fn assumption(&self) -> Option<String> {
        let ImageSource::File { face_box, mask, .. } = &self.from else {
            return None;
        };
        let concept = self.concept.unwrap_or(Concept::Figure);
        match (face_box, mask) {
            (None, None) if concept == Concept::Figure => {
                Some("used whole, centred on white".to_owned())
            }
            (None, None) => Some(format!(
                "used whole, centred on white, as if it showed only {}: it has no face box",
                concept.word()
            )),
            (None, Some(_)) => Some("shows no face: it has no face box".to_owned()),
            (Some(_), None) if self.concept != Some(Concept::Face) => {
                Some("everything belongs to the figure: it has no mask".to_owned())
            }
            (Some(_), _) => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageSource {
    /// A sample of the job's data set, cropped to the concept.
    Sample { id: String },
    /// A file at `jobs/<job>/references/<sha256>` in the store. With a face box or a mask it is
    /// prepared as a sample of the data set is; without either it is used whole.
    File {
        name: String,
        sha256: String,
        /// The face: centre x, centre y, width and height, each divided by the image's width or
        /// height, as in the data set.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        face_box: Option<[f64; 4]>,
        /// The mask of the figure, of the image's size.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mask: Option<MaskFile>,
    },
}

/// The mask of a user's image: white on the figure, black on the background. It is stored as the
/// image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskFile {
    pub name: String,
    pub sha256: String,
}

impl ImageSource {
    /// The user's files of this source: their names and digests.
    pub fn files_mut(&mut self) -> Vec<(&str, &mut String)> {
        match self {
            Self::Sample { .. } => Vec::new(),
            Self::File {
                name, sha256, mask, ..
            } => {
                let mask = mask.iter_mut();
                let mask = mask.map(|mask| (mask.name.as_str(), &mut mask.sha256));
                std::iter::once((name.as_str(), sha256))
                    .chain(mask)
                    .collect()
            }
        }
    }
}

/// The sampler (notes 5.4).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SampleMethod {
    #[default]
    Ddim,
    Pndm,
    /// DPM-Solver++(2M).
    DpmSolver,
    /// DDPM with the smaller fixed variance, as `diffusers`' `DDPMScheduler`: each step adds noise.
    Ddpm,
}

impl SampleMethod {
    /// Maximum number of steps for a noise schedule of Stable Diffusion's length.
    #[must_use]
    pub fn steps_max(self) -> u32 {
        self.steps_max_of(1000)
    }

    /// Maximum number of steps for a noise schedule with this many time steps. More steps would
    /// start past its end.
    #[must_use]
    pub fn steps_max_of(self, timesteps: u32) -> u32 {
        match self {
            Self::Ddim | Self::Pndm => timesteps / 2,
            Self::DpmSolver => timesteps.saturating_sub(1),
            Self::Ddpm => timesteps,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SamplePrompt {
    /// The target's own prompt.
    Full,
    /// The target's prompt without the tags that name hair, eyes, skin, accessories or clothes, on
    /// a white background. These attributes of the generated image therefore come from the
    /// references, and the figure can be segmented.
    Pose,
    Empty,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_images_then_maps_then_the_closing_one() {
        let work = SampleWork {
            count: 2,
            seeds: vec![1, 2, 3],
            prompts: vec!["1girl".into(), String::new()],
            attention: vec![Concept::Face],
            ..SampleWork::of(JobId("demo-1".into()))
        };
        assert_eq!(
            (work.images(), work.maps(), work.units().count),
            (12, 2, 15)
        );
        let image = |subject, prompt, seed| {
            Some(SampleUnit::Image {
                subject,
                prompt,
                seed,
            })
        };
        assert_eq!(work.unit(0), image(0, 0, 0));
        assert_eq!(work.unit(4), image(0, 1, 1));
        assert_eq!(work.unit(11), image(1, 1, 2));
        assert_eq!(work.unit(12), Some(SampleUnit::Attention { subject: 0 }));
        assert_eq!(work.unit(14), Some(SampleUnit::Closing));
        assert_eq!(work.unit(15), None);
        let plain = SampleWork::of(JobId("demo-1".into()));
        assert_eq!(plain.unit(1), Some(SampleUnit::Closing));
    }
}
