//! RetriNet's retrieval block (paper, section 5.1 and figure 4; notes 3.3 and 3.4): a retrieval
//! encoder for the references and, for each of its blocks, a cross-attention from the target's
//! features with a zero convolution. The result is added to the skip connection to the decoder. The
//! trainer decides which parameters are frozen.

use crate::attention::ReferenceAttention;
use crate::parameter::Scope;
use crate::recompute::ActivationCheckpoint;
use crate::unet::{BlockAttention, Encoder, UNet, UNetInputs, repeat_batch};
use proto::layout::UNetLayout;
use proto::spec::{Attend, Retrieval, RetrievalTime};
use tch::{Kind, Tensor};

/// The layers that RetriNet adds to a U-Net.
#[derive(Debug)]
pub struct RetrievalBlock {
    encoder: Encoder,
    /// One entry for each input block; None for blocks that do not attend to the references.
    attentions: Vec<Option<ActivationCheckpoint<ReferenceAttention>>>,
    time: RetrievalTime,
}

/// The references of a micro-batch, folded into the batch dimension; the references of one target
/// are adjacent.
#[derive(Debug)]
pub struct References {
    /// Clean scaled latents, [batch * n, c, h, w].
    pub latents: Tensor,
    /// Text states of the concept words, [batch * n, tokens, context_dim].
    pub words: Tensor,
    /// n, the number of references of one target.
    pub per_target: i64,
    /// [batch, 1, 1, 1]: 0 for targets that are predicted without their references, as the U-Net
    /// alone predicts, 1 for the others. None: all are predicted with them.
    pub kept: Option<Tensor>,
    /// The result of [`RetrievalBlock::encode`], if it is known already.
    pub features: Option<Vec<Tensor>>,
}

impl RetrievalBlock {
    /// The encoder's weights are under `retrieval.input_blocks`, those of the attention of input
    /// block I under `cross_attention.I` and `zero_convs.I`.
    #[must_use]
    pub fn new(scope: &Scope<'_>, layout: &UNetLayout, retrieval: Retrieval) -> Self {
        // The last block of a level is the one before the downsampling block.
        let ends_level = |block: usize| block % (layout.res_blocks + 1) == layout.res_blocks;
        let (attention, zero) = (scope.sub("cross_attention"), scope.sub("zero_convs"));
        let attentions = layout
            .input_levels()
            .into_iter()
            .enumerate()
            .map(|(i, level)| {
                if retrieval.attend == Attend::EveryLevel && !ends_level(i) {
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
            time: retrieval.time,
        }
    }

    /// The time steps for the retrieval encoder, from those of the targets.
    pub fn timesteps(&self, timesteps: &Tensor) -> Tensor {
        match self.time {
            RetrievalTime::Target => timesteps.shallow_clone(),
            RetrievalTime::Zero => timesteps.zeros_like(),
        }
    }

    /// The features of the references if they are the same at every time step, so that sampling
    /// encodes them once.
    #[must_use]
    pub fn constant_features(&self, unet: &UNet, references: &References) -> Option<Vec<Tensor>> {
        (self.time == RetrievalTime::Zero).then(|| {
            let targets = references.latents.size()[0] / references.per_target.max(1);
            let options = (Kind::Int64, references.latents.device());
            let timesteps = Tensor::zeros([targets], options);
            self.encode(
                references,
                &unet.embed_time(&timesteps, references.latents.kind()),
            )
        })
    }

    /// g_{i,n}: the reference features of each input block, [batch * n, C_i, H_i, W_i]. `time` is
    /// the SiLU of the embedding of [`Self::timesteps`], [batch, 4 * channels].
    #[must_use]
    pub fn encode(&self, references: &References, time: &Tensor) -> Vec<Tensor> {
        let time = time.repeat_interleave_self_int(references.per_target, 0, None);
        self.encoder
            .forward(&references.latents, &time, &references.words)
    }

    /// The attention probabilities from the references' cells to their words, for each input block
    /// that attends to text (the paper's figure 6).
    #[must_use]
    pub fn attention(&self, references: &References, time: &Tensor) -> Vec<BlockAttention> {
        let time = time.repeat_interleave_self_int(references.per_target, 0, None);
        self.encoder
            .attention(&references.latents, &time, &references.words)
    }

    /// u_i for every input block with a cross-attention: the residual from the references for the
    /// block's skip connection.
    #[must_use]
    pub fn residuals(&self, features: &[Tensor], references: &[Tensor]) -> Vec<Option<Tensor>> {
        let blocks = self.attentions.iter().zip(features).zip(references);
        blocks
            .map(|((attention, h), g)| {
                let attention = attention.as_ref()?;
                Some(attention.run([h, g], |attention, [h, g]| attention.forward(h, g)))
            })
            .collect()
    }
}

/// The inputs of a prediction other than the noisy latents.
#[derive(Debug)]
pub struct Conditions {
    /// [batch]
    pub timesteps: Tensor,
    /// Text states, [branches * batch, tokens, context_dim]: one branch for training, two
    /// (unconditional first) for classifier-free guidance.
    pub text: Tensor,
    /// Shared by all branches and encoded once (notes 3.5). None: only the U-Net predicts.
    pub references: Option<References>,
}

/// The prediction for latents [batch, c, h, w]: [branches * batch, c, h, w].
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
    // 2. the references, encoded once for all branches
    let computed;
    let features = match &references.features {
        Some(known) => known,
        None => {
            let time = block.timesteps(&conditions.timesteps);
            computed = block.encode(references, &unet.embed_time(&time, latents.kind()));
            &computed
        }
    };
    let features: Vec<Tensor> = features
        .iter()
        .map(|it| repeat_batch(it, inputs.branches()))
        .collect();
    // 3. encoder and middle on the target
    let encoded = unet.encode(&inputs, time);
    // 4. the residuals for the skip connections, and the decoder
    let mut residuals = block.residuals(&encoded.skips, &features);
    if let Some(kept) = &references.kept {
        // Every parameter stays in the graph, because DDP's Reducer waits for all gradients.
        let kept = repeat_batch(kept, inputs.branches()).to_kind(latents.kind());
        for residual in residuals.iter_mut().flatten() {
            *residual = &*residual * &kept;
        }
    }
    let inputs = UNetInputs {
        skips: &residuals,
        ..inputs
    };
    unet.decode(encoded, &inputs)
}
