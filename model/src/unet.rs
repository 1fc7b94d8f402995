//! The U-Net in CompVis block numbering (notes 3.1): `time_embed`, `input_blocks`, `middle_block`,
//! `output_blocks`, `out`. Encoder, middle and decoder are separate types, because RetriNet copies the first
//! and adds to what passes between the first and the last. Weight names are those of a CompVis single file
//! without its prefix.

use crate::attention::SpatialTransformer;
use crate::embedding::TimeEmbedding;
use crate::layer::{Conv, GroupNorm};
use crate::parameter::Scope;
use crate::recompute::Recomputed;
use crate::resnet::ResBlock;
use proto::layout::UNetLayout;
use tch::{Kind, Tensor};

fn res_block(scope: &Scope<'_>, inputs: i64, outputs: i64, layout: &UNetLayout) -> ResBlock {
    let norm = (layout.norm_groups, layout.norm_epsilon);
    ResBlock::unet(scope, inputs, outputs, 4 * layout.widths[0], norm)
}

fn transformer(scope: &Scope<'_>, level: usize, layout: &UNetLayout) -> SpatialTransformer {
    let (width, heads) = (layout.widths[level], layout.heads[level]);
    SpatialTransformer::new(scope, width, layout.context_dim, heads, layout.norm_groups)
}

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
    pub fn new(scope: &Scope<'_>, layout: &UNetLayout) -> Self {
        Self {
            time: TimeEmbedding::new(&scope.sub("time_embed"), layout.widths[0], layout.frequencies),
            encoder: Encoder::new(scope, layout),
            middle: Middle::new(scope, layout),
            decoder: Decoder::new(scope, layout),
        }
    }

    /// The SiLU of the time embedding, which every residual block takes: [batch] -> [batch, 4 * channels]. It is computed
    /// in fp32, because its sines are.
    pub fn embed_time(&self, timesteps: &Tensor, numbers: Kind) -> Tensor {
        self.time.forward(timesteps).silu().to_kind(numbers)
    }

    /// Latents [batch, c, h, w], time steps [batch], text states [batch, tokens, context_dim] -> noise
    /// [batch, c, h, w].
    pub fn forward(&self, latents: &Tensor, timesteps: &Tensor, context: &Tensor) -> Tensor {
        let time = self.embed_time(timesteps, latents.kind());
        let features = self.encoder.forward(latents, &time, context);
        let middle = self.middle.forward(&features[features.len() - 1], &time, context);
        self.decoder.forward(&middle, features, &time, context)
    }
}

#[derive(Debug)]
enum InputBlock {
    /// The first convolution, or the one that halves the size.
    Conv(Conv),
    Attended(Recomputed<Attended>),
}

/// A residual block, and a spatial transformer behind it where the level has them.
#[derive(Debug)]
struct Attended {
    res: ResBlock,
    attention: Option<SpatialTransformer>,
}

impl Attended {
    /// `shortcut_xs` and `xs` are the same input, see [`ResBlock::apart`].
    fn forward(&self, [shortcut_xs, xs, time, context]: [&Tensor; 4]) -> Tensor {
        let xs = self.res.apart(shortcut_xs, xs, Some(time));
        match &self.attention {
            Some(attention) => attention.forward(&xs, context),
            None => xs,
        }
    }
}

/// `input_blocks`.
#[derive(Debug)]
pub struct Encoder {
    blocks: Vec<InputBlock>,
}

impl Encoder {
    #[must_use]
    pub fn new(scope: &Scope<'_>, layout: &UNetLayout) -> Self {
        let scope = scope.sub("input_blocks");
        let mut inputs = layout.widths[0];
        let inward = Conv::three(&scope.sub(0).sub(0), layout.in_channels, inputs);
        let mut blocks = vec![InputBlock::Conv(inward)];
        for (level, outputs) in layout.widths.iter().copied().enumerate() {
            for _ in 0..layout.res_blocks {
                let at = scope.sub(blocks.len());
                let block = Attended {
                    res: res_block(&at.sub(0), inputs, outputs, layout),
                    attention: layout.attends[level].then(|| transformer(&at.sub(1), level, layout)),
                };
                blocks.push(InputBlock::Attended(Recomputed::new(&[&at], block)));
                inputs = outputs;
            }
            if level + 1 < layout.widths.len() {
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
                InputBlock::Attended(block) => block.run([xs, xs, time, context], |block, inputs| {
                    block.forward(inputs.each_ref())
                }),
            });
        }
        features
    }
}

impl Encoder {
    /// For each block that attends to text, its number, its width in places, and [batch, heads, places, tokens] shares of
    /// that attention.
    #[must_use]
    pub fn shares(&self, latents: &Tensor, time: &Tensor, context: &Tensor) -> Vec<(usize, i64, Tensor)> {
        let mut shares = Vec::new();
        let mut xs = latents.shallow_clone();
        for (number, block) in self.blocks.iter().enumerate() {
            xs = match block {
                InputBlock::Conv(conv) => conv.forward(&xs),
                InputBlock::Attended(block) => {
                    let inner = block.res.forward(&xs, Some(time));
                    match &block.attention {
                        Some(attention) => {
                            shares.push((number, inner.size()[3], attention.shares(&inner, context)));
                            attention.forward(&inner, context)
                        }
                        None => inner,
                    }
                }
            };
        }
        shares
    }
}

/// `middle_block`: residual block, spatial transformer, residual block.
#[derive(Debug)]
pub struct Middle {
    first: Recomputed<Attended>,
    second: Recomputed<ResBlock>,
}

impl Middle {
    #[must_use]
    pub fn new(scope: &Scope<'_>, layout: &UNetLayout) -> Self {
        let scope = scope.sub("middle_block");
        let last = layout.widths.len() - 1;
        let width = layout.widths[last];
        let at = [scope.sub(0), scope.sub(1), scope.sub(2)];
        let first = Attended {
            res: res_block(&at[0], width, width, layout),
            attention: Some(transformer(&at[1], last, layout)),
        };
        let second = res_block(&at[2], width, width, layout);
        Self {
            first: Recomputed::new(&[&at[0], &at[1]], first),
            second: Recomputed::new(&[&at[2]], second),
        }
    }

    pub fn forward(&self, xs: &Tensor, time: &Tensor, context: &Tensor) -> Tensor {
        let xs = self.first.run([xs, xs, time, context], |first, inputs| {
            first.forward(inputs.each_ref())
        });
        self.second
            .run([&xs, time], |second, [xs, time]| second.forward(xs, Some(time)))
    }
}

#[derive(Debug)]
struct OutputBlock {
    attended: Attended,
    up: Option<Conv>,
}

impl OutputBlock {
    /// `size` is the side of what comes next: twice the side, or one less where halving rounded up.
    fn forward(&self, [xs, skip, time, context]: &[Tensor; 4], size: Option<[i64; 2]>) -> Tensor {
        let xs = &Tensor::cat(&[xs, skip], 1);
        let xs = self.attended.forward([xs, xs, time, context]);
        match (&self.up, size) {
            (Some(up), Some(size)) => up.forward(&xs.upsample_nearest2d(size, None, None)),
            _ => xs,
        }
    }
}

/// `output_blocks` and `out`.
#[derive(Debug)]
pub struct Decoder {
    blocks: Vec<Recomputed<OutputBlock>>,
    norm: GroupNorm,
    out: Conv,
}

impl Decoder {
    #[must_use]
    pub fn new(scope: &Scope<'_>, layout: &UNetLayout) -> Self {
        let at_blocks = scope.sub("output_blocks");
        let mut skips: Vec<i64> = layout
            .input_levels()
            .iter()
            .map(|level| layout.widths[*level])
            .collect();
        let mut inputs = skips[skips.len() - 1];
        let mut blocks = Vec::new();
        for (level, outputs) in layout.widths.iter().copied().enumerate().rev() {
            for repeat in 0..=layout.res_blocks {
                let at = at_blocks.sub(blocks.len());
                let skip = skips
                    .pop()
                    .expect("the encoder has one output for every output block");
                let attended = Attended {
                    res: res_block(&at.sub(0), inputs + skip, outputs, layout),
                    attention: layout.attends[level].then(|| transformer(&at.sub(1), level, layout)),
                };
                let up_at = 1 + usize::from(attended.attention.is_some());
                let up = (level > 0 && repeat == layout.res_blocks)
                    .then(|| Conv::three(&at.sub(up_at).sub("conv"), outputs, outputs));
                let block = OutputBlock { attended, up };
                blocks.push(Recomputed::new(&[&at], block));
                inputs = outputs;
            }
        }
        let out = scope.sub("out");
        Self {
            blocks,
            norm: GroupNorm::new(&out.sub(0), layout.norm_groups, inputs, layout.norm_epsilon),
            out: Conv::three_zero(&out.sub(2), inputs, layout.out_channels),
        }
    }

    /// From the middle's output and the encoder's features (taken from the last), noise [batch, latent
    /// channels, h, w].
    pub fn forward(&self, middle: &Tensor, features: Vec<Tensor>, time: &Tensor, context: &Tensor) -> Tensor {
        let mut xs = middle.shallow_clone();
        let mut skips = features.into_iter().rev().peekable();
        for block in &self.blocks {
            let skip = skips.next().expect("one feature map for every output block");
            let next = skips.peek().map(Tensor::size);
            let size = next.map(|size| [size[2], size[3]]);
            xs = block.run([&xs, &skip, time, context], move |block, inputs| {
                block.forward(inputs, size)
            });
        }
        self.out.forward(&self.norm.forward(&xs).silu())
    }
}
