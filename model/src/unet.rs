//! The U-Net in CompVis block numbering (notes 3.1): `time_embed`, `input_blocks`, `middle_block`,
//! `output_blocks`, `out`. Encoder, middle and decoder are separate types, because RetriNet copies the first
//! and adds to what passes between the first and the last. Weight names are those of a CompVis single file
//! without its prefix.

use crate::attention::SpatialTransformer;
use crate::embedding::TimeEmbedding;
use crate::layer::{Conv, GroupNorm};
use crate::parameter::Scope;
use crate::resnet::ResBlock;
use proto::spec::UNetConfig;
use tch::Tensor;

/// Noise prediction from a noisy latent, a time step and text states.
#[derive(Debug)]
pub struct UNet {
    pub time: TimeEmbedding,
    pub encoder: Encoder,
    pub middle: Middle,
    pub decoder: Decoder,
}

impl UNet {
    #[must_use]
    pub fn new(scope: &Scope<'_>, config: &UNetConfig) -> Self {
        Self {
            time: TimeEmbedding::new(&scope.sub("time_embed"), i64::from(config.channels)),
            encoder: Encoder::new(scope, config),
            middle: Middle::new(scope, config),
            decoder: Decoder::new(scope, config),
        }
    }

    /// The SiLU of the time embedding, which every residual block takes: [batch] -> [batch, 4 * channels].
    pub fn embed_time(&self, timesteps: &Tensor) -> Tensor {
        self.time.forward(timesteps).silu()
    }

    /// Latents [batch, c, h, w], time steps [batch], text states [batch, tokens, context_dim] -> noise
    /// [batch, c, h, w].
    pub fn forward(&self, latents: &Tensor, timesteps: &Tensor, context: &Tensor) -> Tensor {
        let time = self.embed_time(timesteps);
        let features = self.encoder.forward(latents, &time, context);
        let middle = self.middle.forward(&features[features.len() - 1], &time, context);
        self.decoder.forward(&middle, features, &time, context)
    }
}

/// Widths of the input blocks' outputs, in order: what the decoder and the retrieval block connect to.
#[must_use]
pub fn encoder_widths(config: &UNetConfig) -> Vec<i64> {
    let mut widths = vec![i64::from(config.channels)];
    for level in 0..config.channel_mult.len() {
        widths.extend(std::iter::repeat_n(
            width(config, level),
            config.res_blocks as usize,
        ));
        if level + 1 < config.channel_mult.len() {
            widths.push(width(config, level));
        }
    }
    widths
}

fn width(config: &UNetConfig, level: usize) -> i64 {
    i64::from(config.channels * config.channel_mult[level])
}

fn time_width(config: &UNetConfig) -> i64 {
    4 * i64::from(config.channels)
}

fn res_block(scope: &Scope<'_>, inputs: i64, outputs: i64, config: &UNetConfig) -> ResBlock {
    ResBlock::unet(
        scope,
        inputs,
        outputs,
        time_width(config),
        i64::from(config.norm_groups),
    )
}

fn transformer(scope: &Scope<'_>, width: i64, config: &UNetConfig) -> SpatialTransformer {
    let (context, heads) = (i64::from(config.context_dim), i64::from(config.heads));
    SpatialTransformer::new(scope, width, context, heads, i64::from(config.norm_groups))
}

fn attends(config: &UNetConfig, level: usize) -> bool {
    config.attention_levels.contains(&(level as u32))
}

#[derive(Debug)]
enum InputBlock {
    /// The first convolution, or the one that halves the size.
    Conv(Conv),
    Res(Box<ResBlock>, Option<Box<SpatialTransformer>>),
}

/// `input_blocks`.
#[derive(Debug)]
pub struct Encoder {
    blocks: Vec<InputBlock>,
}

impl Encoder {
    #[must_use]
    pub fn new(scope: &Scope<'_>, config: &UNetConfig) -> Self {
        let scope = scope.sub("input_blocks");
        let first = i64::from(config.channels);
        let inward = Conv::three(&scope.sub(0).sub(0), i64::from(config.latent_channels), first);
        let mut blocks = vec![InputBlock::Conv(inward)];
        let mut inputs = first;
        for level in 0..config.channel_mult.len() {
            let outputs = width(config, level);
            for _ in 0..config.res_blocks {
                let at = scope.sub(blocks.len());
                let res = Box::new(res_block(&at.sub(0), inputs, outputs, config));
                let attention =
                    attends(config, level).then(|| Box::new(transformer(&at.sub(1), outputs, config)));
                blocks.push(InputBlock::Res(res, attention));
                inputs = outputs;
            }
            if level + 1 < config.channel_mult.len() {
                let at = scope.sub(blocks.len()).sub(0).sub("op");
                blocks.push(InputBlock::Conv(Conv::down(&at, outputs)));
            }
        }
        Self { blocks }
    }

    /// The outputs of all blocks, first to last: [batch, widths[i], h_i, w_i].
    #[must_use]
    pub fn forward(&self, latents: &Tensor, time: &Tensor, context: &Tensor) -> Vec<Tensor> {
        let mut features: Vec<Tensor> = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let xs = features.last().unwrap_or(latents);
            features.push(match block {
                InputBlock::Conv(conv) => conv.forward(xs),
                InputBlock::Res(res, None) => res.forward(xs, Some(time)),
                InputBlock::Res(res, Some(attention)) => {
                    attention.forward(&res.forward(xs, Some(time)), context)
                }
            });
        }
        features
    }
}

/// `middle_block`: residual block, spatial transformer, residual block.
#[derive(Debug)]
pub struct Middle {
    first: ResBlock,
    attention: SpatialTransformer,
    second: ResBlock,
}

impl Middle {
    #[must_use]
    pub fn new(scope: &Scope<'_>, config: &UNetConfig) -> Self {
        let scope = scope.sub("middle_block");
        let width = width(config, config.channel_mult.len() - 1);
        Self {
            first: res_block(&scope.sub(0), width, width, config),
            attention: transformer(&scope.sub(1), width, config),
            second: res_block(&scope.sub(2), width, width, config),
        }
    }

    pub fn forward(&self, xs: &Tensor, time: &Tensor, context: &Tensor) -> Tensor {
        let xs = self
            .attention
            .forward(&self.first.forward(xs, Some(time)), context);
        self.second.forward(&xs, Some(time))
    }
}

#[derive(Debug)]
struct OutputBlock {
    res: ResBlock,
    attention: Option<SpatialTransformer>,
    up: Option<Conv>,
}

/// `output_blocks` and `out`.
#[derive(Debug)]
pub struct Decoder {
    blocks: Vec<OutputBlock>,
    norm: GroupNorm,
    out: Conv,
}

impl Decoder {
    #[must_use]
    pub fn new(scope: &Scope<'_>, config: &UNetConfig) -> Self {
        let at_blocks = scope.sub("output_blocks");
        let mut skips = encoder_widths(config);
        let mut inputs = skips[skips.len() - 1];
        let mut blocks = Vec::new();
        for level in (0..config.channel_mult.len()).rev() {
            let outputs = width(config, level);
            for repeat in 0..=config.res_blocks {
                let at = at_blocks.sub(blocks.len());
                let skip = skips
                    .pop()
                    .expect("the encoder has one output for every output block");
                let res = res_block(&at.sub(0), inputs + skip, outputs, config);
                let attention = attends(config, level).then(|| transformer(&at.sub(1), outputs, config));
                let up_at = 1 + usize::from(attention.is_some());
                let up = (level > 0 && repeat == config.res_blocks)
                    .then(|| Conv::three(&at.sub(up_at).sub("conv"), outputs, outputs));
                blocks.push(OutputBlock { res, attention, up });
                inputs = outputs;
            }
        }
        let out = scope.sub("out");
        Self {
            blocks,
            norm: GroupNorm::new(&out.sub(0), i64::from(config.norm_groups), inputs, 1e-5),
            out: Conv::three_zero(&out.sub(2), inputs, i64::from(config.latent_channels)),
        }
    }

    /// From the middle's output and the encoder's features (taken from the last), noise [batch, latent
    /// channels, h, w].
    pub fn forward(&self, middle: &Tensor, features: Vec<Tensor>, time: &Tensor, context: &Tensor) -> Tensor {
        let mut xs = middle.shallow_clone();
        for (block, skip) in self.blocks.iter().zip(features.into_iter().rev()) {
            xs = block.res.forward(&Tensor::cat(&[xs, skip], 1), Some(time));
            if let Some(attention) = &block.attention {
                xs = attention.forward(&xs, context);
            }
            if let Some(up) = &block.up {
                xs = up.forward(&double(&xs));
            }
        }
        self.out.forward(&self.norm.forward(&xs).silu())
    }
}

/// Nearest-neighbour enlargement by two: [batch, c, h, w] -> [batch, c, 2h, 2w].
pub fn double(xs: &Tensor) -> Tensor {
    let size = xs.size();
    xs.upsample_nearest2d([2 * size[2], 2 * size[3]], None, None)
}
