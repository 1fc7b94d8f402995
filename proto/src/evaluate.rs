//! `[evaluate]`: the paper's protocol (section 5.2), as numbered units. Models generate images of
//! the same characters with the same prompts, seeds and samples, and every image is scored. Plain
//! values and arithmetic. Text form and checks are in [`crate::job`]; a rank generates and scores.

use crate::architecture::references::{Pairing, Task};
use crate::id::JobId;
use crate::knobs::Knobs;
use crate::sample::{NamedReference, SampleMethod, SamplePrompt, SampleWork, Weights};
use crate::score::Expression;
use crate::spec::TrainWork;
use crate::text::{hex, hex_sha256};
use crate::units::{OnFailedUnit, UnitPlan};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// An evaluation, written to `jobs/<this job>/images/`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateWork {
    pub plan: EvaluationPlan,
    /// At least one, with different names. The data set is that of the first one's job.
    pub models: Vec<EvaluatedModel>,
    pub metrics: MetricSettings,
    /// The job pauses when more than this fraction of its images has failed for good.
    pub failed_share_max: f64,
}

/// What is the same for every model: its digest is the plan's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationPlan {
    /// Side of the images and references in pixels. None: as in each model's job.
    pub resolution: Option<u32>,
    /// None: no such characters.
    pub in_domain: Option<Characters>,
    pub out_of_domain: Option<Characters>,
    pub prompts: Prompts,
    pub seeds: Vec<u64>,
    /// Images per model, character, prompt and seed.
    pub samples: u32,
    /// How references are selected and cropped; None: as in each model's job.
    pub task: Option<Task>,
    /// Where references come from, for every model.
    pub pairing: Pairing,
}

/// A choice of characters. Each is one sample of the data set with the references that training
/// would choose for it, or a list of named references.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Characters {
    /// So many of those that are trained on, in an order that depends on the data set's size and
    /// on the first seed.
    Trained(u32),
    /// So many of those that `data.holdout` excludes from training, in such an order.
    HeldOut(u32),
    /// The characters of the samples with these ids.
    Ids(Vec<String>),
    Files(Vec<FileCharacter>),
}

/// A character of which the user has images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileCharacter {
    pub name: String,
    pub references: Vec<NamedReference>,
}

/// The prompts; the same for all characters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prompts {
    Texts(Vec<String>),
    /// The prompts of the first so many in-domain characters, as in the paper.
    Own {
        count: u32,
        prompt: SamplePrompt,
    },
}

/// A model, and how it generates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluatedModel {
    /// Its name in tables. Two models whose names differ only in the endings -a and -b are
    /// compared with each other.
    pub name: String,
    /// The job that trained it.
    pub job: JobId,
    pub weights: Weights,
    /// URL of weights that replace the job's base weights: an exported folder. Only with
    /// [`Weights::Base`].
    pub init: Option<String>,
    /// How its references are selected and cropped, as in the paper's "Multitask (recon)"; None: as
    /// in the plan.
    #[serde(default)]
    pub task: Option<Task>,
    pub method: SampleMethod,
    pub steps: u32,
    pub guidance: f64,
    pub reference_guidance: f64,
    pub negative_prompt: String,
    pub knobs: Knobs,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricSettings {
    /// URL of a folder with CLIP as `transformers` stores it. None: CLIP-I and CLIP-T are absent.
    pub clip: Option<String>,
    /// URL of a folder with LPIPS: `alexnet.safetensors` and `lpips.safetensors`. None: it is
    /// absent.
    #[serde(default)]
    pub lpips: Option<String>,
    /// URL of a folder with the weights of `facenet-pytorch`. None: scores of faces are absent.
    #[serde(default)]
    pub faces: Option<String>,
    /// None: the VQA score is absent.
    pub vqa: Option<VqaSettings>,
    /// An expression of scores, whose mean over the images of each model is in the summary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<Expression>,
}

/// Weights of LPIPS with AlexNet in their folder: torchvision's backbone (`alexnet-owt-*.pth`), and
/// the linear heads of the package `lpips` (`alex.pth`), converted by `coordinator convert`.
pub const LPIPS_FILES: [&str; 2] = ["alexnet.safetensors", "lpips.safetensors"];
/// Weights that find and embed faces in their folder: `facenet-pytorch`'s `pnet.pt`, `rnet.pt` and
/// `onet.pt`, and its release `20180402-114759-vggface2.pt`, converted likewise.
pub const FACES_FILES: [&str; 4] = [
    "pnet.safetensors",
    "rnet.safetensors",
    "onet.safetensors",
    "inception_resnet_v1.safetensors",
];

/// A server that answers questions about images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VqaSettings {
    /// URL up to and including `/v1`.
    pub endpoint: String,
    pub model: String,
    pub questions: Vec<String>,
    /// Requests at a time, of one rank.
    pub concurrency: u32,
    /// URL of a folder with the text encoder that embeds answers.
    pub embedder: String,
}

/// Which characters a row is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Domain {
    InDomain,
    OutOfDomain,
}

impl Domain {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::InDomain => "in-domain",
            Self::OutOfDomain => "out-of-domain",
        }
    }
}

/// The content of one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvaluateUnit {
    /// One image, with indices. Characters count through both domains, in-domain first.
    Image {
        model: usize,
        character: usize,
        prompt: usize,
        seed: usize,
        sample: u32,
    },
    /// The table of all images.
    Closing,
}

impl Characters {
    #[must_use]
    pub fn count(&self) -> u64 {
        match self {
            Self::Trained(count) | Self::HeldOut(count) => u64::from(*count),
            Self::Ids(ids) => ids.len() as u64,
            Self::Files(characters) => characters.len() as u64,
        }
    }
}

impl Prompts {
    #[must_use]
    pub fn count(&self) -> u64 {
        match self {
            Self::Texts(texts) => texts.len() as u64,
            Self::Own { count, .. } => u64::from(*count),
        }
    }
}

impl EvaluationPlan {
    /// SHA-256 of everything that the images of all models have in common, in hexadecimal.
    #[must_use]
    pub fn digest(&self, dataset_version: &str) -> String {
        let plan = serde_json::to_string(self).expect("plain values are JSON");
        hex_sha256(format!("{plan}\n{dataset_version}").as_bytes())
    }

    /// Both domains.
    #[must_use]
    pub fn characters(&self) -> u64 {
        let domains = [&self.in_domain, &self.out_of_domain];
        domains
            .into_iter()
            .flatten()
            .map(Characters::count)
            .fold(0, u64::saturating_add)
    }

    /// Makes a model's job that of the evaluation: resolution, task and pairing.
    pub fn adapt(&self, model: &EvaluatedModel, spec: &mut TrainWork) {
        spec.data.resolution = self.resolution.unwrap_or(spec.data.resolution);
        if let Some(references) = spec.model.architecture.references_mut() {
            references.task = model.task.or(self.task).unwrap_or(references.task);
            references.pairing = self.pairing;
        }
    }

    /// Images of one model.
    #[must_use]
    pub fn images(&self) -> u64 {
        [
            self.prompts.count(),
            self.seeds.len() as u64,
            u64::from(self.samples),
        ]
        .into_iter()
        .fold(self.characters(), u64::saturating_mul)
    }

    /// The domain of a character, by its index.
    #[must_use]
    pub fn domain(&self, character: usize) -> Domain {
        let inside = self.in_domain.as_ref().map_or(0, Characters::count);
        if (character as u64) < inside {
            Domain::InDomain
        } else {
            Domain::OutOfDomain
        }
    }

    /// The user's files of all characters: their names and digests.
    pub fn files_mut(&mut self) -> impl Iterator<Item = (&str, &mut String)> {
        self.file_characters_mut()
            .flat_map(|character| &mut character.references)
            .flat_map(|reference| reference.from.files_mut())
    }

    fn file_characters_mut(&mut self) -> impl Iterator<Item = &mut FileCharacter> {
        let domains = [&mut self.in_domain, &mut self.out_of_domain];
        domains
            .into_iter()
            .flatten()
            .flat_map(|characters| match characters {
                Characters::Files(files) => files.as_mut_slice(),
                Characters::Trained(_) | Characters::HeldOut(_) | Characters::Ids(_) => &mut [],
            })
    }

    /// The references that users named, of all characters.
    pub fn named_references(&self) -> impl Iterator<Item = &NamedReference> {
        let domains = [&self.in_domain, &self.out_of_domain];
        domains
            .into_iter()
            .flatten()
            .flat_map(|characters| match characters {
                Characters::Files(files) => files.as_slice(),
                Characters::Trained(_) | Characters::HeldOut(_) | Characters::Ids(_) => &[],
            })
            .flat_map(|character| &character.references)
    }
}

impl EvaluateWork {
    #[must_use]
    pub fn images(&self) -> u64 {
        self.plan.images().saturating_mul(self.models.len() as u64)
    }

    #[must_use]
    pub fn units(&self) -> UnitPlan {
        let images = self.images();
        UnitPlan {
            count: images + 1,
            closing: true,
            on_failed: OnFailedUnit::SetAside,
            pause_above: Some((images as f64 * self.failed_share_max) as u64),
        }
    }

    /// The content of unit `number`; None past the last one. Samples vary fastest, then seeds,
    /// prompts, characters and models: a rank changes its model as seldom as possible.
    #[must_use]
    pub fn unit(&self, number: u64) -> Option<EvaluateUnit> {
        let images = self.images();
        if images <= number {
            return (number == images).then_some(EvaluateUnit::Closing);
        }
        let mut rest = number;
        let mut next = |count: u64| {
            let index = rest % count;
            rest /= count;
            index
        };
        let sample = next(u64::from(self.plan.samples));
        let seed = next(self.plan.seeds.len() as u64);
        let prompt = next(self.plan.prompts.count());
        let character = next(self.plan.characters());
        Some(EvaluateUnit::Image {
            model: usize::try_from(rest).ok()?,
            character: usize::try_from(character).ok()?,
            prompt: usize::try_from(prompt).ok()?,
            seed: usize::try_from(seed).ok()?,
            sample: u32::try_from(sample).ok()?,
        })
    }
}

impl EvaluatedModel {
    /// The job of images that would generate with this model: what its architecture is checked
    /// for.
    #[must_use]
    pub fn as_sample(&self, plan: &EvaluationPlan) -> SampleWork {
        SampleWork {
            weights: self.weights,
            task: self.task,
            method: self.method,
            steps: self.steps,
            guidance: self.guidance,
            reference_guidance: self.reference_guidance,
            negative_prompt: self.negative_prompt.clone(),
            knobs: self.knobs.clone(),
            seeds: plan.seeds.clone(),
            prompts: match &plan.prompts {
                Prompts::Texts(texts) => texts.clone(),
                Prompts::Own { .. } => Vec::new(),
            },
            ..SampleWork::of(self.job.clone())
        }
    }

    /// Makes the spec of the job that trained it what a rank of the evaluation builds.
    pub fn read_by(&self, plan: &EvaluationPlan, spec: &mut TrainWork) {
        plan.adapt(self, spec);
        if self.init.is_some() {
            spec.model.init.clone_from(&self.init);
        }
        spec.model.architecture.prepare_for_sampling(&self.knobs);
    }

    /// SHA-256 of what determines its images apart from the plan, in hexadecimal. `weights`: the
    /// digest of the weights that it generates with.
    #[must_use]
    pub fn digest(&self, weights: &str) -> String {
        let settings = (
            self.method,
            self.steps,
            self.guidance,
            self.reference_guidance,
            &self.negative_prompt,
            &self.knobs,
        );
        let mut settings = serde_json::to_string(&settings).expect("plain values are JSON");
        // Not of a model without one: images of earlier releases keep their keys.
        if let Some(task) = self.task {
            settings = format!("{settings}\n{task:?}");
        }
        hex_sha256(format!("{weights}\n{settings}").as_bytes())
    }
}

/// What identifies one image of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageKey<'a> {
    /// Digest of the plan.
    pub plan: &'a str,
    /// Digest of the model.
    pub model: &'a str,
    pub character: &'a str,
    pub prompt: &'a str,
    pub seed: u64,
    pub sample: u32,
}

impl ImageKey<'_> {
    /// SHA-256 of the key, in hexadecimal.
    #[must_use]
    pub fn digest(&self) -> String {
        hex(&self.hash(self.model))
    }

    /// The key without its model: images of two models with the same one are a pair.
    #[must_use]
    pub fn pair(&self) -> String {
        hex(&self.hash(""))
    }

    /// The seed of the image's noise. It does not depend on the model, so that the two images of a
    /// pair begin with the same noise, which lowers the variance of their difference.
    #[must_use]
    pub fn noise_seed(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.hash("");
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    fn hash(&self, model: &str) -> [u8; 32] {
        let mut hasher = Sha256::new();
        // Each part is preceded by its length, so that parts cannot run into each other.
        for part in [self.plan, model, self.character, self.prompt] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.update(self.seed.to_le_bytes());
        hasher.update(self.sample.to_le_bytes());
        hasher.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn model(name: &str) -> EvaluatedModel {
        EvaluatedModel {
            name: name.to_owned(),
            job: JobId(format!("{name}-1")),
            weights: Weights::Newest,
            init: None,
            task: None,
            method: SampleMethod::Ddim,
            steps: 50,
            guidance: 7.5,
            reference_guidance: 1.0,
            negative_prompt: String::new(),
            knobs: Knobs::default(),
        }
    }

    /// The paper's protocol for one of its tables.
    fn paper(models: usize) -> EvaluateWork {
        EvaluateWork {
            plan: EvaluationPlan {
                resolution: Some(384),
                in_domain: Some(Characters::Trained(40)),
                out_of_domain: Some(Characters::HeldOut(10)),
                prompts: Prompts::Own {
                    count: 5,
                    prompt: SamplePrompt::Full,
                },
                seeds: vec![0, 1, 2, 3, 4],
                samples: 4,
                task: None,
                pairing: Pairing::B,
            },
            models: (0..models).map(|it| model(&format!("m{it}"))).collect(),
            metrics: MetricSettings::default(),
            failed_share_max: 0.01,
        }
    }

    #[test]
    fn the_paper_s_benchmark_has_120_000_images_and_a_closing_unit() {
        let work = paper(24);
        assert_eq!(work.images(), 120_000);
        let plan = work.units();
        assert_eq!((plan.count, plan.pause_above), (120_001, Some(1200)));
        assert_eq!(work.unit(120_000), Some(EvaluateUnit::Closing));
        assert_eq!(work.unit(120_001), None);
    }

    #[test]
    fn every_combination_is_one_unit_and_units_are_ordered_by_model() {
        let work = paper(2);
        let mut previous = None;
        for number in 0..work.images() {
            let EvaluateUnit::Image {
                model,
                character,
                prompt,
                seed,
                sample,
            } = work.unit(number).unwrap()
            else {
                panic!("unit {number} closes");
            };
            let found = (model, character, prompt, seed, sample);
            assert!(previous < Some(found), "{previous:?} before {found:?}");
            assert!(model < 2 && character < 50 && prompt < 5 && seed < 5 && sample < 4);
            previous = Some(found);
        }
        assert_eq!(previous, Some((1, 49, 4, 4, 3)));
        assert_eq!(work.plan.domain(39), Domain::InDomain);
        assert_eq!(work.plan.domain(40), Domain::OutOfDomain);
    }

    #[test]
    fn noise_depends_on_every_part_of_the_key_but_the_model() {
        let key = ImageKey {
            plan: "p",
            model: "m",
            character: "c",
            prompt: "1girl",
            seed: 1,
            sample: 2,
        };
        let other_model = ImageKey { model: "n", ..key };
        assert_eq!(key.noise_seed(), other_model.noise_seed());
        assert_eq!(key.pair(), other_model.pair());
        assert_ne!(key.digest(), other_model.digest());
        let others = [
            ImageKey { plan: "q", ..key },
            ImageKey {
                character: "c1",
                prompt: "girl",
                ..key
            },
            ImageKey { seed: 2, ..key },
            ImageKey { sample: 1, ..key },
        ];
        for other in others {
            assert_ne!(key.noise_seed(), other.noise_seed(), "{other:?}");
            assert_ne!(key.pair(), other.pair(), "{other:?}");
        }
    }

    #[test]
    fn the_plan_s_digest_covers_the_data_set_and_no_model() {
        let (work, more) = (paper(1), paper(2));
        assert_eq!(work.plan.digest("v1"), more.plan.digest("v1"));
        assert_ne!(work.plan.digest("v1"), work.plan.digest("v2"));
        let mut other = paper(1);
        other.plan.seeds = vec![0];
        assert_ne!(work.plan.digest("v1"), other.plan.digest("v1"));
    }
}
