//! AutoencoderKL (notes 5.2), CompVis names: pictures in [-1, 1] <-> latents. Knows nothing of the
//! scaling factor; the trainer and the sampler multiply and divide by it.

use crate::attention::attend;
use crate::layer::{Conv, GroupNorm, PointConv, to_map, to_tokens};
use crate::parameter::Scope;
use crate::recompute::ActivationCheckpoint;
use crate::resnet::ResBlock;
use proto::layout::AutoencoderLayout;
use tch::{Kind, Tensor};

#[derive(Debug)]
pub struct Autoencoder {
    encoder: ImageEncoder,
    quant: PointConv,
    post_quant: PointConv,
    decoder: ImageDecoder,
}

/// The posterior of a picture's latent: a diagonal normal distribution.
#[derive(Debug)]
pub struct Moments {
    /// [batch, latent channels, h, w]
    pub mean: Tensor,
    /// Same shape; clamped to [-30, 20].
    pub log_variance: Tensor,
}

impl Moments {
    /// Divergence from the standard normal, mean over a picture's latent values: [batch].
    pub fn divergence(&self) -> Tensor {
        let terms = &self.mean * &self.mean + self.log_variance.exp() - 1.0 - &self.log_variance;
        terms.flatten(1, 3).mean_dim(1i64, false, None) * 0.5
    }

    /// The same as fp32.
    #[must_use]
    pub fn fp32(&self) -> Self {
        Self {
            mean: self.mean.to_kind(Kind::Float),
            log_variance: self.log_variance.to_kind(Kind::Float),
        }
    }

    /// mean + standard deviation * noise.
    pub fn draw(&self, noise: &Tensor) -> Tensor {
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

    /// Pictures [batch, 3, H, W] in [-1, 1] -> moments of [batch, latent channels, H / factor, W /
    /// factor].
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

    /// Unscaled latents -> pictures [batch, 3, H, W], about [-1, 1].
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
    fn new(scope: &Scope<'_>, width: i64, groups: i64) -> Self {
        let point = |name: &str| PointConv::new(&scope.sub(name), width, width);
        Self {
            norm: GroupNorm::new(&scope.sub("norm"), groups, width, 1e-6),
            queries: point("q"),
            keys: point("k"),
            values: point("v"),
            out: point("proj_out"),
        }
    }

    fn forward(&self, xs: &Tensor) -> Tensor {
        let tokens = to_tokens(&self.norm.forward(xs));
        let (queries, keys) = (self.queries.tokens(&tokens), self.keys.tokens(&tokens));
        let found = attend(&queries, &keys, &self.values.tokens(&tokens), 1, false);
        xs + to_map(&self.out.tokens(&found), xs.size()[2])
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
    fn new(scope: &Scope<'_>, width: i64, groups: i64) -> Self {
        let scope = scope.sub("mid");
        let at = scope.sub("attn_1");
        let attention = MidAttention::new(&at, width, groups);
        Self {
            first: residual(&scope.sub("block_1"), width, width, groups),
            attention: ActivationCheckpoint::new(&[&at], attention),
            second: residual(&scope.sub("block_2"), width, width, groups),
        }
    }

    fn forward(&self, xs: &Tensor) -> Tensor {
        let xs = again(&self.first, xs);
        let xs = self
            .attention
            .run([&xs], |attention, [xs]| attention.forward(xs));
        again(&self.second, &xs)
    }
}

/// A level of the encoder or the decoder: its residual blocks, then a change of size except at the
/// end.
#[derive(Debug)]
struct Level {
    blocks: Vec<ActivationCheckpoint<ResBlock>>,
    resize: Option<Conv>,
}

fn residual(
    scope: &Scope<'_>,
    inputs: i64,
    outputs: i64,
    groups: i64,
) -> ActivationCheckpoint<ResBlock> {
    let block = ResBlock::autoencoder(scope, inputs, outputs, groups);
    ActivationCheckpoint::new(&[scope], block)
}

fn again(block: &ActivationCheckpoint<ResBlock>, xs: &Tensor) -> Tensor {
    block.run([xs], |block, [xs]| block.forward(xs, None))
}

#[derive(Debug)]
struct ImageEncoder {
    inward: Conv,
    levels: Vec<Level>,
    mid: Mid,
    norm: GroupNorm,
    out: Conv,
}

impl ImageEncoder {
    fn new(scope: &Scope<'_>, layout: &AutoencoderLayout) -> Self {
        let groups = layout.norm_groups;
        let count = layout.widths.len();
        let mut inputs = layout.widths[0];
        let inward = Conv::three(&scope.sub("conv_in"), 3, inputs);
        let mut levels = Vec::new();
        for (level, outputs) in layout.widths.iter().copied().enumerate() {
            let at = scope.sub("down").sub(level);
            let mut blocks = Vec::new();
            for block in 0..layout.res_blocks {
                blocks.push(residual(
                    &at.sub("block").sub(block),
                    inputs,
                    outputs,
                    groups,
                ));
                inputs = outputs;
            }
            let resize = (level + 1 < count)
                .then(|| Conv::down_unpadded(&at.sub("downsample").sub("conv"), outputs));
            levels.push(Level { blocks, resize });
        }
        Self {
            inward,
            levels,
            mid: Mid::new(scope, inputs, groups),
            norm: GroupNorm::new(&scope.sub("norm_out"), groups, inputs, 1e-6),
            out: Conv::three(&scope.sub("conv_out"), inputs, 2 * layout.latent_channels),
        }
    }

    fn forward(&self, images: &Tensor) -> Tensor {
        let mut xs = self.inward.forward(images);
        for level in &self.levels {
            xs = level.blocks.iter().fold(xs, |xs, block| again(block, &xs));
            if let Some(down) = &level.resize {
                // One more column on the right and row at the bottom, and none on the other sides.
                xs = down.forward(&xs.constant_pad_nd([0, 1, 0, 1]));
            }
        }
        self.out
            .forward(&self.norm.forward(&self.mid.forward(&xs)).silu())
    }
}

/// Nearest-neighbour enlargement by two: [batch, c, h, w] -> [batch, c, 2h, 2w].
fn double(xs: &Tensor) -> Tensor {
    let size = xs.size();
    xs.upsample_nearest2d([2 * size[2], 2 * size[3]], None, None)
}

#[derive(Debug)]
struct ImageDecoder {
    inward: Conv,
    mid: Mid,
    /// From the smallest size to the largest; names count the other way.
    levels: Vec<Level>,
    norm: GroupNorm,
    out: Conv,
}

impl ImageDecoder {
    fn new(scope: &Scope<'_>, layout: &AutoencoderLayout) -> Self {
        let groups = layout.norm_groups;
        let mut inputs = layout.widths[layout.widths.len() - 1];
        let inward = Conv::three(&scope.sub("conv_in"), layout.latent_channels, inputs);
        let mid = Mid::new(scope, inputs, groups);
        let mut levels = Vec::new();
        for (level, outputs) in layout.widths.iter().copied().enumerate().rev() {
            let at = scope.sub("up").sub(level);
            let mut blocks = Vec::new();
            for block in 0..=layout.res_blocks {
                blocks.push(residual(
                    &at.sub("block").sub(block),
                    inputs,
                    outputs,
                    groups,
                ));
                inputs = outputs;
            }
            let resize =
                (level > 0).then(|| Conv::three(&at.sub("upsample").sub("conv"), outputs, outputs));
            levels.push(Level { blocks, resize });
        }
        Self {
            inward,
            mid,
            levels,
            norm: GroupNorm::new(&scope.sub("norm_out"), groups, inputs, 1e-6),
            out: Conv::three(&scope.sub("conv_out"), inputs, 3),
        }
    }

    fn forward(&self, latents: &Tensor) -> Tensor {
        let mut xs = self.mid.forward(&self.inward.forward(latents));
        for level in &self.levels {
            xs = level.blocks.iter().fold(xs, |xs, block| again(block, &xs));
            if let Some(up) = &level.resize {
                xs = up.forward(&double(&xs));
            }
        }
        self.out.forward(&self.norm.forward(&xs).silu())
    }
}
