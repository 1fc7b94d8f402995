//! The scores of an image, by whatever networks are at hand: CLIP-I and CLIP-T, LPIPS, and whose
//! face it is. Used by [`crate::evaluate`] and by `worker score`. The networks are in
//! [`model::metric`], the arithmetic in `metric`.

use crate::folder;
use anyhow::Context;
use image::RgbImage;
use metric::{Measure, Scores, cosine, mean, to_references};
use model::metric::{Clip, Faces, LongText, Lpips};
use proto::evaluate::{FACES_FILES, LPIPS_FILES};
use std::collections::BTreeMap;
use std::path::Path;
use tch::Device;

/// Prompts whose embeddings are kept.
const PROMPTS_MAX: usize = 4096;

/// Networks that score images; a measure without its network is absent.
#[derive(Default)]
pub(crate) struct Scorers {
    clip: Option<Loaded<Clip>>,
    lpips: Option<Loaded<Lpips>>,
    faces: Option<Loaded<Faces>>,
    prompts: BTreeMap<String, Prompt>,
}

struct Loaded<T> {
    network: T,
    /// SHA-256 of its weights.
    digest: String,
}

struct Prompt {
    embedding: Vec<f32>,
    /// Tokens of the whole prompt.
    tokens: usize,
    /// Of the prompt without its end token, if it is cut.
    sliced: Option<Vec<f32>>,
}

/// Which folder of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    Clip,
    Lpips,
    Faces,
}

/// A reference: an image of the character, and what the networks say of it.
pub(crate) struct Reference {
    image: RgbImage,
    clip: Option<Vec<f32>>,
    face: Option<Vec<f32>>,
}

/// The references of an image.
#[derive(Clone, Copy)]
pub(crate) struct References<'a> {
    /// As the model was shown them.
    pub(crate) shown: &'a [&'a Reference],
    /// The whole images from which they were cut.
    pub(crate) wholes: &'a [&'a Reference],
}

/// The scores of an image, and what stands beside them.
#[derive(Debug, Default)]
pub(crate) struct Scored {
    pub(crate) scores: Scores,
    pub(crate) clip_i_each: Vec<f64>,
    pub(crate) clip_i_whole_each: Vec<f64>,
    /// CLIP-T of a prompt that is sliced, as torchmetrics does, and so loses its end token.
    pub(crate) clip_t_sliced: Option<f64>,
    /// Of the whole prompt.
    pub(crate) prompt_tokens: Option<usize>,
    /// The prompt has more tokens than the text tower reads.
    pub(crate) prompt_cut: Option<bool>,
}

impl Network {
    pub(crate) const ALL: [Self; 3] = [Self::Clip, Self::Lpips, Self::Faces];

    /// The field of a plan that names the folder, and the option of `worker score`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Clip => "clip",
            Self::Lpips => "lpips",
            Self::Faces => "faces",
        }
    }

    /// The files of weights in its folder.
    fn files(self) -> Vec<&'static str> {
        match self {
            Self::Clip => vec!["model.safetensors"],
            Self::Lpips => LPIPS_FILES.to_vec(),
            Self::Faces => FACES_FILES.to_vec(),
        }
    }
}

impl Scorers {
    /// Loads the weights of a folder.
    ///
    /// # Errors
    /// A file is missing, or holds something else.
    pub(crate) fn load(
        &mut self,
        network: Network,
        folder: &Path,
        device: Device,
    ) -> anyhow::Result<()> {
        match network {
            Network::Clip => {
                self.clip = Some(loaded(network, folder, Clip::open(folder, device)?)?)
            }
            Network::Lpips => {
                self.lpips = Some(loaded(network, folder, Lpips::open(folder, device)?)?);
            }
            Network::Faces => {
                self.faces = Some(loaded(network, folder, Faces::open(folder, device)?)?);
            }
        }
        Ok(())
    }

    pub(crate) fn clip(&self) -> Option<&Clip> {
        self.clip.as_ref().map(|it| &it.network)
    }

    /// SHA-256 of the weights; None: it is not loaded.
    pub(crate) fn digest(&self, network: Network) -> Option<&str> {
        match network {
            Network::Clip => self.clip.as_ref().map(|it| it.digest.as_str()),
            Network::Lpips => self.lpips.as_ref().map(|it| it.digest.as_str()),
            Network::Faces => self.faces.as_ref().map(|it| it.digest.as_str()),
        }
    }

    pub(crate) fn reference(&self, image: RgbImage) -> anyhow::Result<Reference> {
        Ok(Reference {
            clip: self.embed(&image)?,
            face: self.face(&image)?,
            image,
        })
    }

    pub(crate) fn score(
        &mut self,
        image: &RgbImage,
        references: References<'_>,
        prompt: Option<&str>,
    ) -> anyhow::Result<Scored> {
        let mut scored = Scored::default();
        if let Some(own) = self.embed(image)? {
            score_by_clip(&own, references, &mut scored)?;
            if let Some(prompt) = prompt {
                self.score_prompt(&own, prompt, &mut scored)?;
            }
        }
        // A copy would be one of the whole image, and faces are cut from it.
        if let Some(lpips) = &self.lpips {
            let all = references.wholes.iter();
            let distances = all.map(|it| lpips.network.distance(image, &it.image));
            let distances: Vec<f64> = distances.collect::<Result<_, _>>()?;
            if !distances.is_empty() {
                scored.scores.insert(Measure::Lpips, mean(&distances)?);
            }
        }
        let known: Vec<&[f32]> = faces_of(references.wholes).collect();
        if self.faces.is_some() && !known.is_empty() {
            score_face(self.face(image)?.as_deref(), &known, &mut scored.scores)?;
        }
        Ok(scored)
    }

    /// The faces in an image: left, top, right and bottom in pixels. None: nothing finds them.
    pub(crate) fn faces(&self, image: &RgbImage) -> anyhow::Result<Option<Vec<[f32; 4]>>> {
        let Some(faces) = &self.faces else {
            return Ok(None);
        };
        let found = faces.network.detect(image)?;
        Ok(Some(found.into_iter().map(|it| it.sides).collect()))
    }

    fn embed(&self, image: &RgbImage) -> anyhow::Result<Option<Vec<f32>>> {
        let clip = self.clip.as_ref();
        Ok(clip.map(|it| it.network.embed_image(image)).transpose()?)
    }

    /// The largest face. None: there is none, or nothing that finds it.
    fn face(&self, image: &RgbImage) -> anyhow::Result<Option<Vec<f32>>> {
        let faces = self.faces.as_ref();
        let found = faces.map(|it| it.network.embed(image)).transpose()?;
        Ok(found.flatten())
    }

    fn score_prompt(&mut self, own: &[f32], text: &str, scored: &mut Scored) -> anyhow::Result<()> {
        if !self.prompts.contains_key(text) {
            let clip = &self.clip.as_ref().context("no CLIP is loaded")?.network;
            let whole = clip.embed_text(text, LongText::KeepEnd)?;
            let sliced = if whole.cut {
                Some(clip.embed_text(text, LongText::Slice)?.embedding)
            } else {
                None
            };
            if PROMPTS_MAX <= self.prompts.len() {
                self.prompts.clear();
            }
            let prompt = Prompt {
                embedding: whole.embedding,
                tokens: whole.tokens,
                sliced,
            };
            self.prompts.insert(text.to_owned(), prompt);
        }
        let prompt = self.prompts.get(text).context("was just embedded")?;
        let clip_t = cosine(own, &prompt.embedding)?;
        scored.scores.insert(Measure::ClipT, clip_t);
        let sliced = prompt.sliced.as_ref().map(|it| cosine(own, it));
        scored.clip_t_sliced = sliced.transpose()?;
        scored.prompt_tokens = Some(prompt.tokens);
        scored.prompt_cut = Some(prompt.sliced.is_some());
        Ok(())
    }
}

fn loaded<T>(network: Network, folder: &Path, opened: T) -> anyhow::Result<Loaded<T>> {
    Ok(Loaded {
        digest: folder::weights_digest(folder, &network.files())?,
        network: opened,
    })
}

fn score_by_clip(
    own: &[f32],
    references: References<'_>,
    scored: &mut Scored,
) -> anyhow::Result<()> {
    let measures = [
        (
            references.shown,
            &mut scored.clip_i_each,
            Measure::ClipI,
            Measure::ClipIMax,
        ),
        (
            references.wholes,
            &mut scored.clip_i_whole_each,
            Measure::ClipIWhole,
            Measure::ClipIWholeMax,
        ),
    ];
    for (references, each, mean, max) in measures {
        let embeddings = references.iter().filter_map(|it| it.clip.as_deref());
        let embeddings: Vec<&[f32]> = embeddings.collect();
        // A model without references was shown none.
        if embeddings.is_empty() {
            continue;
        }
        let cosines = embeddings.iter().map(|it| cosine(own, it));
        *each = cosines.collect::<Result<_, _>>()?;
        let found = to_references(own, embeddings)?;
        scored.scores.extend([(mean, found.mean), (max, found.max)]);
    }
    Ok(())
}

fn faces_of<'a>(references: &'a [&'a Reference]) -> impl Iterator<Item = &'a [f32]> {
    references.iter().filter_map(|it| it.face.as_deref())
}

/// As FastComposer's evaluation: no face in the image counts as 0, and so does a negative cosine.
fn score_face(own: Option<&[f32]>, known: &[&[f32]], scores: &mut Scores) -> anyhow::Result<()> {
    let Some(own) = own else {
        scores.insert(Measure::Face, 0.0);
        return Ok(());
    };
    let cosines = known.iter().map(|it| Ok(cosine(own, it)?.max(0.0)));
    let cosines: Vec<f64> = cosines.collect::<anyhow::Result<_>>()?;
    scores.insert(Measure::Face, mean(&cosines)?);
    let distances: Vec<f64> = known.iter().map(|it| distance(own, it)).collect();
    scores.insert(Measure::FaceDistance, mean(&distances)?);
    Ok(())
}

/// Euclidean, of embeddings of length 1.
fn distance(first: &[f32], second: &[f32]) -> f64 {
    let pairs = first.iter().zip(second);
    let squares = pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    squares.sum::<f64>().sqrt()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_a_face_has_no_identity_and_no_distance() {
        let (a, b): (&[f32], &[f32]) = (&[1.0, 0.0], &[0.0, 1.0]);
        let mut scores = Scores::new();
        score_face(None, &[a], &mut scores).unwrap();
        assert_eq!(scores, Scores::from([(Measure::Face, 0.0)]));
        let mut scores = Scores::new();
        let opposite: &[f32] = &[-1.0, 0.0];
        score_face(Some(a), &[a, b, opposite], &mut scores).unwrap();
        let identity = scores[&Measure::Face];
        assert!((identity - 1.0 / 3.0).abs() < 1e-12, "{identity}");
        let expected = f64::midpoint(2f64.sqrt(), 2.0) * 2.0 / 3.0;
        let found = scores[&Measure::FaceDistance];
        assert!((found - expected).abs() < 1e-7, "{found}");
    }

    #[test]
    fn without_networks_nothing_is_scored() {
        let mut scorers = Scorers::default();
        let image = RgbImage::new(32, 32);
        let reference = scorers.reference(image.clone()).unwrap();
        let all = References {
            shown: &[&reference],
            wholes: &[&reference],
        };
        let scored = scorers.score(&image, all, Some("solo")).unwrap();
        assert!(scored.scores.is_empty() && scored.clip_i_each.is_empty());
        for network in Network::ALL {
            assert_eq!(scorers.digest(network), None);
        }
    }
}
