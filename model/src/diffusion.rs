//! A latent diffusion model put together: autoencoder, text encoder, U-Net and, for RetriNet, the retrieval
//! block. It turns batches into predictions and noise into pictures; it never computes a loss or an update
//! (the trainer does).

use crate::autoencoder::Autoencoder;
use crate::batch::{Batch, to_images};
use crate::error::ModelError;
use crate::latent::LatentCache;
use crate::noise::{self, Purpose};
use crate::parameter::Scope;
use crate::retrinet::{Conditions, References, RetrievalBlock, predict};
use crate::sampler::{Sampler, guide, guide_by_references};
use crate::text::{TextEncoder, token_ids};
use crate::unet::UNet;
use model_data::example::Concept;
use model_data::prompt::Prompts;
use proto::layout::UNetLayout;
use proto::sample::SampleMethod;
use proto::spec::{Architecture, Model};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// How pictures are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleOptions {
    pub method: SampleMethod,
    /// 1 to 500.
    pub steps: u32,
    /// Scale of classifier-free guidance; 1 draws with the prompt alone.
    pub guidance: f64,
    /// Scale of guidance by the references, where a retrieval block is: 1 takes them as in training, more moves
    /// further away from what would be predicted without prompt and references.
    pub reference_guidance: f64,
    /// With an example's position it fixes the noise that a picture begins from.
    pub seed: u64,
}

/// Where an input block of the retrieval encoder finds a word in a reference.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionMap {
    /// CompVis' number.
    pub block: usize,
    /// Places in a row.
    pub width: u32,
    /// Row by row.
    pub values: Vec<f32>,
}

#[derive(Debug)]
pub(crate) struct Diffusion {
    autoencoder: Autoencoder,
    text: TextEncoder,
    unet: UNet,
    retrieval: Option<RetrievalBlock>,
    prompts: Prompts,
    scaling: f64,
    /// States of concept words and of the empty prompt; used only while the text encoder is frozen.
    known: BTreeMap<String, Tensor>,
    text_frozen: bool,
    /// None: every picture is encoded every time.
    cache: Option<LatentCache>,
    /// What the networks compute in; latents, noise and predictions are fp32 outside of them.
    numbers: Kind,
    device: Device,
}

/// A batch's latents, scaled: targets [B, c, h, w] and references [B * N, c, h, w].
#[derive(Debug)]
pub(crate) struct Latents {
    pub(crate) targets: Tensor,
    references: Tensor,
}

impl Diffusion {
    pub(crate) fn new(
        scope: &Scope<'_>,
        model: &Model,
        text_frozen: bool,
        (numbers, device): (Kind, Device),
    ) -> Self {
        let unet = UNetLayout::from(&model.unet);
        let retrieval = (model.architecture == Architecture::Retrinet)
            .then(|| RetrievalBlock::new(scope, &unet, model.retrieval));
        Self {
            autoencoder: Autoencoder::new(&scope.sub("autoencoder"), &(&model.autoencoder).into()),
            text: TextEncoder::new(&scope.sub("text_encoder"), &(&model.text_encoder).into()),
            unet: UNet::new(&scope.sub("unet"), &unet),
            retrieval,
            prompts: Prompts::new(model.text_encoder.tokens),
            scaling: model.autoencoder.scaling_factor,
            known: BTreeMap::new(),
            text_frozen,
            cache: None,
            numbers,
            device,
        }
    }

    /// Keeps latents of pictures that come back, in so many bytes at most.
    pub(crate) fn caching(mut self, bytes: usize) -> Self {
        self.cache = (bytes > 0).then(|| LatentCache::new(bytes));
        self
    }

    /// Of all pictures of a batch; what is known already is not encoded. The posterior's mean, not a draw: the simplest
    /// that is the same on every device.
    pub(crate) fn latents(&mut self, batch: &Batch) -> Latents {
        let pictures = batch.pictures.to_kind(self.numbers);
        let company = pictures.size()[0] > 1;
        let encode = |pictures: &Tensor| encode(&self.autoencoder, pictures, company);
        let mean = match &mut self.cache {
            Some(cache) => cache.encode(&pictures, &batch.keys, encode),
            None => encode(&pictures),
        };
        let latents = mean.to_kind(Kind::Float) * self.scaling;
        let rest = latents.size()[0] - batch.count;
        Latents {
            targets: latents.narrow(0, 0, batch.count),
            references: latents.narrow(0, batch.count, rest),
        }
    }

    /// What the prediction for a batch depends on. `prompts` may hold several branches of the batch's size.
    pub(crate) fn conditions(&mut self, batch: &Batch, latents: &Latents, prompts: &[String]) -> Conditions {
        let context = self.text_states(prompts);
        let references = self.retrieval.is_some().then(|| {
            let words: Vec<String> = batch
                .concepts
                .iter()
                .map(|c: &Concept| c.word().to_owned())
                .collect();
            let words = self.text_states(&words);
            References {
                latents: latents.references.to_kind(self.numbers),
                words,
                each: batch.references,
            }
        });
        Conditions {
            timesteps: self.timesteps(&batch.timesteps),
            context,
            references,
        }
    }

    fn timesteps(&self, timesteps: &[i64]) -> Tensor {
        Tensor::from_slice(timesteps).to_device(self.device)
    }

    pub(crate) fn predict(&self, noisy: &Tensor, conditions: &Conditions) -> Tensor {
        let noisy = noisy.to_kind(self.numbers);
        predict(&self.unet, self.retrieval.as_ref(), &noisy, conditions).to_kind(Kind::Float)
    }

    /// Text states [strings, tokens, width]; each distinct string is encoded once.
    fn text_states(&mut self, strings: &[String]) -> Tensor {
        let distinct: BTreeMap<&str, i64> = {
            let mut sorted: Vec<&str> = strings.iter().map(String::as_str).collect();
            sorted.sort_unstable();
            sorted.dedup();
            sorted.into_iter().zip(0..).collect()
        };
        let texts: Vec<&str> = distinct.keys().copied().collect();
        let states = if self.text_frozen && texts.iter().all(|text| is_common(text)) {
            let known: Vec<Tensor> = texts.iter().map(|text| self.known_state(text)).collect();
            Tensor::stack(&known, 0)
        } else {
            let ids = token_ids(&self.prompts, &texts, self.device);
            self.text.forward(&ids, self.numbers)
        };
        let index: Vec<i64> = strings.iter().map(|text| distinct[text.as_str()]).collect();
        states.index_select(0, &Tensor::from_slice(&index).to_device(self.device))
    }

    fn known_state(&mut self, text: &str) -> Tensor {
        if let Some(state) = self.known.get(text) {
            return state.shallow_clone();
        }
        let ids = token_ids(&self.prompts, &[text], self.device);
        let state = self.text.forward(&ids, self.numbers).get(0);
        self.known.insert(text.to_owned(), state.shallow_clone());
        state
    }

    /// Shares of attention that the places of a reference give to a word in the retrieval encoder, mean over its heads.
    /// None without a retrieval encoder.
    pub(crate) fn attention(&mut self, batch: &Batch, word: Concept) -> Option<Vec<AttentionMap>> {
        let latents = self.latents(batch);
        let words = self.text_states(&[word.word().to_owned()]);
        let references = References {
            latents: latents.targets.to_kind(self.numbers),
            words,
            each: 1,
        };
        let block = self.retrieval.as_ref()?;
        let timesteps = block.timesteps(&self.timesteps(&batch.timesteps));
        let time = self.unet.embed_time(&timesteps, self.numbers);
        let found = block.shares(&references, &time);
        let maps = found.into_iter().map(|(block, width, shares)| {
            // Token 0 begins the line, token 1 is the word.
            let word = shares
                .select(3, 1)
                .mean_dim(1i64, false, Kind::Float)
                .flatten(0, 1);
            AttentionMap {
                block,
                width: width as u32,
                values: Vec::try_from(word.to_device(Device::Cpu)).expect("a line of numbers"),
            }
        });
        Some(maps.collect())
    }

    /// Draws one picture for each example of a batch; its targets are not looked at.
    pub(crate) fn draw(
        &mut self,
        batch: &Batch,
        seeds: &[u64],
        options: &SampleOptions,
    ) -> Result<Vec<image::RgbImage>, ModelError> {
        let mut sampler = Sampler::new(options.method, options.steps)?;
        let latents = self.latents(batch);
        let by_references = self.retrieval.is_some() && options.reference_guidance != 1.0;
        let guided = options.guidance != 1.0 || by_references;
        let empty = vec![String::new(); batch.prompts.len()];
        let mut prompts = batch.prompts.clone();
        if guided {
            prompts = [empty.clone(), prompts].concat();
        }
        let mut conditions = self.conditions(batch, &latents, &prompts);
        let mut bare = Conditions {
            timesteps: conditions.timesteps.shallow_clone(),
            context: self.text_states(&empty),
            references: None,
        };
        let shape = latents.targets.size();
        let mut xs = noise::normal(seeds, Purpose::Target, &shape[1..], self.device);
        for i in 0..sampler.timesteps().len() {
            let timestep = sampler.timesteps()[i];
            conditions.timesteps = self.timesteps(&vec![timestep as i64; seeds.len()]);
            let predicted = self.predict(&xs, &conditions);
            let noise = if by_references {
                bare.timesteps = conditions.timesteps.shallow_clone();
                let bare = self.predict(&xs, &bare);
                guide_by_references(&bare, &predicted, options.guidance, options.reference_guidance)
            } else if guided {
                guide(&predicted, options.guidance)
            } else {
                predicted
            };
            xs = sampler.advance(i, &xs, &noise);
        }
        let latents = (xs / self.scaling).to_kind(self.numbers);
        Ok(to_images(&self.autoencoder.decode(&latents).to_kind(Kind::Float)))
    }
}

/// Pictures of this side and larger are encoded one by one: each is work enough for any device, and five at 384 pixels
/// would take 3 GB for a moment.
const ALONE_SIDE: i64 = 256;

/// The posterior's means of pictures [P, 3, S, S]. A picture's bits do not depend on the others: kernels for a single one
/// sum in another order than those for several, so a small one that is left over from a batch (`company`) is given some.
fn encode(autoencoder: &Autoencoder, pictures: &Tensor, company: bool) -> Tensor {
    let means = |pictures: &Tensor| autoencoder.encode(pictures).mean;
    if pictures.size()[2] >= ALONE_SIDE {
        let alone: Vec<Tensor> = pictures.split(1, 0).iter().map(means).collect();
        Tensor::cat(&alone, 0)
    } else if company && pictures.size()[0] == 1 {
        means(&Tensor::cat(&[pictures, pictures], 0)).narrow(0, 0, 1)
    } else {
        means(pictures)
    }
}

/// Texts that come back in every batch.
fn is_common(text: &str) -> bool {
    text.is_empty()
        || [Concept::Face, Concept::Clothes, Concept::Figure]
            .iter()
            .any(|c| c.word() == text)
}
