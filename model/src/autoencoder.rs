//! AutoencoderKL (notes 5.2) with CompVis weight names: images in [-1, 1] <-> latents. It does not
//! apply the scaling factor; its callers do.

use crate::attention::attend;
use crate::layer::{Conv, GroupNorm, GroupNormOptions, PointConv, to_map, to_tokens};
use crate::parameter::Scope;
use crate::recompute::ActivationCheckpoint;
use crate::resnet::ResBlock;
use proto::layout::AutoencoderLayout;
use tch::{Kind, Tensor};

/// See the module's header.
#[derive(Debug)]
pub struct Autoencoder {
    encoder: ImageEncoder,
    quant: PointConv,
    post_quant: PointConv,
    decoder: ImageDecoder,
}

/// The posterior of an image's latent: a diagonal normal distribution.
#[derive(Debug)]
pub struct Moments {
    /// [batch, latent channels, h, w]
    pub mean: Tensor,
    /// Same shape; clamped to [-30, 20].
    pub log_variance: Tensor,
}

impl Moments {
    /// KL divergence from the standard normal, mean over an image's latent values: [batch].
    pub fn divergence(&self) -> Tensor {
        let terms = &self.mean * &self.mean + self.log_variance.exp() - 1.0 - &self.log_variance;
        terms.flatten(1, 3).mean_dim(1i64, false, None) * 0.5
    }

    /// Casts to fp32.
    #[must_use]
    pub fn fp32(&self) -> Self {
        Self {
            mean: self.mean.to_kind(Kind::Float),
            log_variance: self.log_variance.to_kind(Kind::Float),
        }
    }

    /// A sample from the distribution: mean + standard deviation * noise.
    pub fn sample(&self, noise: &Tensor) -> Tensor {
        &self.mean + (&self.log_variance * 0.5).exp() * noise
    }
}

impl Autoencoder {
    #[must_use]
    pub fn new(scope: &Scope<'_>, layout: &AutoencoderLayout) -> Self {
        let latent = layout.latent_channels;
        Self {
            encoder: ImageEncoder::new(&scope.sub("encoder"), layout),
            quant: PointConv::new(&scope.sub("quant_conv"), 2 * latent, 2 * latent),
            post_quant: PointConv::new(&scope.sub("post_quant_conv"), latent, latent),
            decoder: ImageDecoder::new(&scope.sub("decoder"), layout),
        }
    }

    /// Images [batch, 3, H, W] in [-1, 1] -> moments of shape [batch, latent channels, H / factor,
    /// W / factor].
    #[must_use]
    pub fn encode(&self, images: &Tensor) -> Moments {
        let halves = self
            .quant
            .forward(&self.encoder.forward(images))
            .chunk(2, 1);
        Moments {
            mean: halves[0].shallow_clone(),
            log_variance: halves[1].clamp(-30.0, 20.0),
        }
    }

    /// Unscaled latents -> images [batch, 3, H, W], about [-1, 1].
    pub fn decode(&self, latents: &Tensor) -> Tensor {
        self.decoder.forward(&self.post_quant.forward(latents))
    }
}

/// Single-head self-attention with a residual: `attn_1` of the mid blocks.
#[derive(Debug)]
struct MidAttention {
    norm: GroupNorm,
    queries: PointConv,
    keys: PointConv,
    values: PointConv,
    out: PointConv,
}

impl MidAttention {
    fn new(scope: &Scope<'_>, width: i64, norm: GroupNormOptions) -> Self {
        let projection = |name: &str| PointConv::new(&scope.sub(name), width, width);
        Self {
            norm: GroupNorm::new(&scope.sub("norm"), width, norm),
            queries: projection("q"),
            keys: projection("k"),
            values: projection("v"),
            out: projection("proj_out"),
        }
    }

    fn forward(&self, xs: &Tensor) -> Tensor {
        let tokens = to_tokens(&self.norm.forward(xs));
        let (queries, keys) = (self.queries.tokens(&tokens), self.keys.tokens(&tokens));
        let attended = attend(&queries, &keys, &self.values.tokens(&tokens), 1, false);
        xs + to_map(&self.out.tokens(&attended), xs.size()[2])
    }
}

/// `mid`: residual block, attention, residual block.
#[derive(Debug)]
struct Mid {
    first: ActivationCheckpoint<ResBlock>,
    attention: ActivationCheckpoint<MidAttention>,
    second: ActivationCheckpoint<ResBlock>,
}

impl Mid {
    fn new(scope: &Scope<'_>, width: i64, norm: GroupNormOptions) -> Self {
        let scope = scope.sub("mid");
        let attention_scope = scope.sub("attn_1");
        let attention = MidAttention::new(&attention_scope, width, norm);
        Self {
            first: res_block(&scope.sub("block_1"), width, width, norm),
            attention: ActivationCheckpoint::new(&[&attention_scope], attention),
            second: res_block(&scope.sub("block_2"), width, width, norm),
        }
    }

    fn forward(&self, xs: &Tensor) -> Tensor {
        let xs = run_block(&self.first, xs);
        let xs = self
            .attention
            .run([&xs], |attention, [xs]| attention.forward(xs));
        run_block(&self.second, &xs)
    }
}

/// A level of the encoder or the decoder: residual blocks, then a resampling convolution except in
/// the last level.
#[derive(Debug)]
struct Level {
    blocks: Vec<ActivationCheckpoint<ResBlock>>,
    resample: Option<Conv>,
}

/// The options of all group norms of the autoencoder.
fn norm_options(layout: &AutoencoderLayout) -> GroupNormOptions {
    GroupNormOptions {
        groups: layout.norm_groups,
        epsilon: 1e-6,
    }
}

fn res_block(
    scope: &Scope<'_>,
    inputs: i64,
    outputs: i64,
    norm: GroupNormOptions,
) -> ActivationCheckpoint<ResBlock> {
    let block = ResBlock::autoencoder(scope, inputs, outputs, norm);
    ActivationCheckpoint::new(&[scope], block)
}

fn run_block(block: &ActivationCheckpoint<ResBlock>, xs: &Tensor) -> Tensor {
    block.run([xs], |block, [xs]| block.forward(xs, None))
}

#[derive(Debug)]
struct ImageEncoder {
    conv_in: Conv,
    levels: Vec<Level>,
    mid: Mid,
    norm_out: GroupNorm,
    conv_out: Conv,
}

impl ImageEncoder {
    fn new(scope: &Scope<'_>, layout: &AutoencoderLayout) -> Self {
        let norm = norm_options(layout);
        let count = layout.widths.len();
        let mut inputs = layout.widths[0];
        let conv_in = Conv::three(&scope.sub("conv_in"), 3, inputs);
        let mut levels = Vec::new();
        for (level, outputs) in layout.widths.iter().copied().enumerate() {
            let level_scope = scope.sub("down").sub(level);
            let mut blocks = Vec::new();
            for block in 0..layout.res_blocks {
                let scope = level_scope.sub("block").sub(block);
                blocks.push(res_block(&scope, inputs, outputs, norm));
                inputs = outputs;
            }
            let resample = (level + 1 < count)
                .then(|| Conv::down_unpadded(&level_scope.sub("downsample").sub("conv"), outputs));
            levels.push(Level { blocks, resample });
        }
        Self {
            conv_in,
            levels,
            mid: Mid::new(scope, inputs, norm),
            norm_out: GroupNorm::new(&scope.sub("norm_out"), inputs, norm),
            conv_out: Conv::three(&scope.sub("conv_out"), inputs, 2 * layout.latent_channels),
        }
    }

    fn forward(&self, images: &Tensor) -> Tensor {
        let mut xs = self.conv_in.forward(images);
        for level in &self.levels {
            xs = level
                .blocks
                .iter()
                .fold(xs, |xs, block| run_block(block, &xs));
            if let Some(down) = &level.resample {
                // Asymmetric padding: one column on the right and one row at the bottom.
                xs = down.forward(&xs.constant_pad_nd([0, 1, 0, 1]));
            }
        }
        self.conv_out
            .forward(&self.norm_out.forward(&self.mid.forward(&xs)).silu())
    }
}

/// Nearest-neighbour upsampling by two: [batch, c, h, w] -> [batch, c, 2h, 2w].
fn upsample(xs: &Tensor) -> Tensor {
    let size = xs.size();
    xs.upsample_nearest2d([2 * size[2], 2 * size[3]], None, None)
}

#[derive(Debug)]
struct ImageDecoder {
    conv_in: Conv,
    mid: Mid,
    /// From the lowest resolution to the highest; the indices in weight names run the other way.
    levels: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv,
}

impl ImageDecoder {
    fn new(scope: &Scope<'_>, layout: &AutoencoderLayout) -> Self {
        let norm = norm_options(layout);
        let mut inputs = layout.widths[layout.widths.len() - 1];
        let conv_in = Conv::three(&scope.sub("conv_in"), layout.latent_channels, inputs);
        let mid = Mid::new(scope, inputs, norm);
        let mut levels = Vec::new();
        for (level, outputs) in layout.widths.iter().copied().enumerate().rev() {
            let level_scope = scope.sub("up").sub(level);
            let mut blocks = Vec::new();
            for block in 0..=layout.res_blocks {
                let scope = level_scope.sub("block").sub(block);
                blocks.push(res_block(&scope, inputs, outputs, norm));
                inputs = outputs;
            }
            let resample = (level > 0)
                .then(|| Conv::three(&level_scope.sub("upsample").sub("conv"), outputs, outputs));
            levels.push(Level { blocks, resample });
        }
        Self {
            conv_in,
            mid,
            levels,
            norm_out: GroupNorm::new(&scope.sub("norm_out"), inputs, norm),
            conv_out: Conv::three(&scope.sub("conv_out"), inputs, 3),
        }
    }

    fn forward(&self, latents: &Tensor) -> Tensor {
        let mut xs = self.mid.forward(&self.conv_in.forward(latents));
        for level in &self.levels {
            xs = level
                .blocks
                .iter()
                .fold(xs, |xs, block| run_block(block, &xs));
            if let Some(up) = &level.resample {
                xs = up.forward(&upsample(&xs));
            }
        }
        self.conv_out.forward(&self.norm_out.forward(&xs).silu())
    }
}
