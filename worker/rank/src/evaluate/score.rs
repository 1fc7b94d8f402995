//! CLIP-I and CLIP-T of an image. References and prompts are embedded once each.

use super::character::Subject;
use crate::folder;
use crate::process::{Permanent, Rank};
use anyhow::Context;
use image::RgbImage;
use metric::{Measure, Scores, cosine, to_references};
use model::metric::{Clip, LongText};
use proto::evaluate::MetricSettings;
use proto::spec::Precision;
use std::collections::BTreeMap;

/// Prompts whose embeddings are kept.
const PROMPTS_MAX: usize = 4096;

/// A CLIP that scores images.
pub(super) struct Scorer {
    clip: Clip,
    /// SHA-256 of its weights.
    digest: String,
    prompts: BTreeMap<String, Prompt>,
}

struct Prompt {
    embedding: Vec<f32>,
    /// Of the prompt without its end token, if it is cut.
    sliced: Option<Vec<f32>>,
}

/// CLIP's embeddings of a character's references.
pub(super) struct References {
    shown: Vec<Vec<f32>>,
    wholes: Vec<Vec<f32>>,
}

/// The scores of an image.
#[derive(Default)]
pub(super) struct Scored {
    pub(super) clip: Option<String>,
    pub(super) clip_i_each: Vec<f64>,
    pub(super) clip_i_whole_each: Vec<f64>,
    pub(super) clip_t_sliced: Option<f64>,
    pub(super) scores: Scores,
}

impl Scorer {
    /// None: the plan names no CLIP.
    pub(super) fn open(rank: &Rank<'_>, settings: &MetricSettings) -> anyhow::Result<Option<Self>> {
        let Some(url) = &settings.clip else {
            return Ok(None);
        };
        let cache = &rank.settings.cache_dir;
        let folder = rank
            .runtime
            .block_on(folder::fetch(url, cache))
            .with_context(|| format!("evaluate.clip {url}"))?;
        let kind = rank.job.resources.device;
        let device = crate::device::choose(kind, rank.task.device, Precision::Fp32)?;
        // A folder of another kind is the same for every rank.
        let clip = Clip::open(&folder, device).map_err(|error| {
            Permanent(format!(
                "evaluate.clip {url}: {}",
                proto::text::chain(&error)
            ))
        })?;
        let digest = folder::weights_digest(&folder)?;
        tracing::info!(
            url,
            digest,
            side = clip.side(),
            "loaded the CLIP that scores images"
        );
        Ok(Some(Self {
            clip,
            digest,
            prompts: BTreeMap::new(),
        }))
    }

    pub(super) fn references(&self, subject: &Subject) -> anyhow::Result<References> {
        let shown = subject.example.references.iter();
        let shown = shown.map(|it| self.clip.embed_image(&it.image));
        let wholes = subject.wholes.iter().map(|it| self.clip.embed_image(it));
        Ok(References {
            shown: shown.collect::<Result<_, _>>()?,
            wholes: wholes.collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn score(
        &mut self,
        image: &RgbImage,
        references: &References,
        prompt: &str,
    ) -> anyhow::Result<Scored> {
        let own = self.clip.embed_image(image)?;
        let prompt = self.prompt(prompt)?;
        let each = |embeddings: &[Vec<f32>]| {
            let cosines = embeddings.iter().map(|it| cosine(&own, it));
            cosines.collect::<Result<Vec<f64>, _>>()
        };
        let mut scores = Scores::new();
        let measures = [
            (&references.shown, Measure::ClipI, Measure::ClipIMax),
            (
                &references.wholes,
                Measure::ClipIWhole,
                Measure::ClipIWholeMax,
            ),
        ];
        for (embeddings, mean, max) in measures {
            // A model without references was shown none.
            if !embeddings.is_empty() {
                let found = to_references(&own, embeddings.iter().map(Vec::as_slice))?;
                scores.insert(mean, found.mean);
                scores.insert(max, found.max);
            }
        }
        scores.insert(Measure::ClipT, cosine(&own, &prompt.embedding)?);
        let sliced = prompt.sliced.as_ref().map(|it| cosine(&own, it));
        let clip_t_sliced = sliced.transpose()?;
        Ok(Scored {
            clip: Some(self.digest.clone()),
            clip_i_each: each(&references.shown)?,
            clip_i_whole_each: each(&references.wholes)?,
            clip_t_sliced,
            scores,
        })
    }

    fn prompt(&mut self, text: &str) -> anyhow::Result<&Prompt> {
        if !self.prompts.contains_key(text) {
            let whole = self.clip.embed_text(text, LongText::KeepEnd)?;
            let sliced = if whole.cut {
                Some(self.clip.embed_text(text, LongText::Slice)?.embedding)
            } else {
                None
            };
            if PROMPTS_MAX <= self.prompts.len() {
                self.prompts.clear();
            }
            let prompt = Prompt {
                embedding: whole.embedding,
                sliced,
            };
            self.prompts.insert(text.to_owned(), prompt);
        }
        self.prompts.get(text).context("was just embedded")
    }
}
