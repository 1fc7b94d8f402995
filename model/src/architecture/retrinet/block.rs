//! RetriNet's retrieval block (paper, section 5.1 and figure 4; notes 3.3 and 3.4): a retrieval
//! encoder over the references and, for each of its blocks, a cross-attention from the target's
//! features with a zero convolution; the result is added to the skip connection on its way to the
//! decoder. Nothing here is frozen or trained: that is the trainer's choice.

use crate::attention::ReferenceAttention;
use crate::parameter::Scope;
use crate::recompute::ActivationCheckpoint;
use crate::unet::{Encoder, UNet, UNetInputs, repeated};
use proto::layout::UNetLayout;
use proto::spec::{Attend, Retrieval, RetrievalTime};
use tch::Tensor;

/// What RetriNet adds to a U-Net.
#[derive(Debug)]
pub struct RetrievalBlock {
    encoder: Encoder,
    /// One for each input block that attends to the references.
    attentions: Vec<Option<ActivationCheckpoint<ReferenceAttention>>>,
    time: RetrievalTime,
}

/// The references of a micro-batch, folded into the batch dimension: those of one target lie next
/// to each other.
#[derive(Debug)]
pub struct References {
    /// Clean scaled latents, [batch * n, c, h, w].
    pub latents: Tensor,
    /// Text states of the concept words, [batch * n, tokens, context_dim].
    pub words: Tensor,
    /// n, references of one target.
    pub each: i64,
}

impl RetrievalBlock {
    /// The encoder's weights lie under `retrieval.input_blocks`, the attentions' under
    /// `cross_attention.I` and `zero_convs.I` for input block I.
    #[must_use]
    pub fn new(scope: &Scope<'_>, layout: &UNetLayout, choices: Retrieval) -> Self {
        // A level ends with the block before the one that halves.
        let ends = |block: usize| block % (layout.res_blocks + 1) == layout.res_blocks;
        let (attention, zero) = (scope.sub("cross_attention"), scope.sub("zero_convs"));
        let attentions = layout
            .input_levels()
            .into_iter()
            .enumerate()
            .map(|(i, level)| {
                if choices.attend == Attend::EveryLevel && !ends(i) {
                    return None;
                }
                let (width, heads) = (layout.widths[level], layout.heads[level]);
                let (attention, zero) = (attention.sub(i), zero.sub(i));
                let inner = ReferenceAttention::new(&attention, &zero, width, heads);
                Some(ActivationCheckpoint::new(&[&attention, &zero], inner))
            });
        Self {
            attentions: attentions.collect(),
            encoder: Encoder::new(&scope.sub("retrieval"), layout),
            time: choices.time,
        }
    }

    /// What the encoder is told of the targets' time steps.
    pub fn timesteps(&self, timesteps: &Tensor) -> Tensor {
        match self.time {
            RetrievalTime::Target => timesteps.shallow_clone(),
            RetrievalTime::Zero => timesteps.zeros_like(),
        }
    }

    /// g_{i,n}: the references' features for each input block, [batch * n, C_i, H_i, W_i]. `time`
    /// is the SiLU of the embedding of [`Self::timesteps`], [batch, 4 * channels].
    #[must_use]
    pub fn encode(&self, references: &References, time: &Tensor) -> Vec<Tensor> {
        let time = time.repeat_interleave_self_int(references.each, 0, None);
        self.encoder
            .forward(&references.latents, &time, &references.words)
    }

    /// Where the encoder finds the words in the references: for each input block that attends to
    /// text, its number, its columns, and attention probabilities [batch * n, heads, cells, tokens]
    /// (the paper's figure 6).
    #[must_use]
    pub fn attention(&self, references: &References, time: &Tensor) -> Vec<(usize, i64, Tensor)> {
        let time = time.repeat_interleave_self_int(references.each, 0, None);
        self.encoder
            .attention(&references.latents, &time, &references.words)
    }

    /// u_i for every input block that attends: what the target's features find in the references,
    /// to be added to the skip connection.
    #[must_use]
    pub fn residuals(&self, features: &[Tensor], references: &[Tensor]) -> Vec<Option<Tensor>> {
        let found = self.attentions.iter().zip(features).zip(references);
        found
            .map(|((attention, h), g)| {
                let attention = attention.as_ref()?;
                Some(attention.run([h, g], |attention, [h, g]| attention.forward(h, g)))
            })
            .collect()
    }
}

/// What a prediction depends on, beside the noisy latents.
#[derive(Debug)]
pub struct Conditions {
    /// [batch]
    pub timesteps: Tensor,
    /// Text states, [branches * batch, tokens, context_dim]: one branch for training, two
    /// (unconditional first) for classifier-free guidance.
    pub text: Tensor,
    /// Kept in every branch and encoded once (notes 3.5). None: the U-Net alone predicts.
    pub references: Option<References>,
}

/// Predicted noise for latents [batch, c, h, w]: [branches * batch, c, h, w].
pub fn predict(
    unet: &UNet,
    block: &RetrievalBlock,
    latents: &Tensor,
    conditions: &Conditions,
) -> Tensor {
    let inputs = UNetInputs::new(latents, &conditions.timesteps, &conditions.text);
    let Some(references) = &conditions.references else {
        return unet.forward(&inputs);
    };
    // 1. time
    let time = unet.embed(&inputs);
    // 2. the references, before the branches part
    let seen = unet.embed_time(&block.timesteps(&conditions.timesteps), latents.kind());
    let features = block.encode(references, &seen);
    let features: Vec<Tensor> = features
        .iter()
        .map(|it| repeated(it, inputs.branches()))
        .collect();
    // 3. encoder and middle on the target
    let encoded = unet.encode(&inputs, time);
    // 4. what the references add to the skip connections, and the decoder
    let residuals = block.residuals(&encoded.skips, &features);
    let inputs = UNetInputs {
        skips: &residuals,
        ..inputs
    };
    unet.decode(encoded, &inputs)
}
