//! The U-Net in CompVis block numbering (notes 3.1): `time_embed`, `input_blocks`, `middle_block`,
//! `output_blocks`, `out`. Encoder, middle and decoder are separate types because RetriNet copies
//! the encoder and adds residuals to the skip connections between encoder and decoder. Weight names
//! are those of a CompVis single file without its prefix.

use crate::attention::SpatialTransformer;
use crate::embedding::TimeEmbedding;
use crate::layer::{Conv, GroupNorm, GroupNormOptions};
use crate::parameter::Scope;
use crate::recompute::ActivationCheckpoint;
use crate::resnet::ResBlock;
use proto::layout::UNetLayout;
use std::cell::{Cell, RefCell};
use tch::{Kind, Tensor};

fn norm_options(layout: &UNetLayout) -> GroupNormOptions {
    GroupNormOptions {
        groups: layout.norm_groups,
        epsilon: layout.norm_epsilon,
    }
}

fn res_block(scope: &Scope<'_>, inputs: i64, outputs: i64, layout: &UNetLayout) -> ResBlock {
    let time_width = 4 * layout.widths[0];
    ResBlock::unet(scope, inputs, outputs, time_width, norm_options(layout))
}

fn transformer(scope: &Scope<'_>, level: usize, layout: &UNetLayout) -> SpatialTransformer {
    let (width, heads) = (layout.widths[level], layout.heads[level]);
    SpatialTransformer::new(scope, width, layout.context_dim, heads, layout.norm_groups)
}

/// The time embedding of a U-Net, for a branch that has its own.
#[derive(Debug)]
pub(crate) struct UNetTime(TimeEmbedding);

impl UNetTime {
    pub(crate) fn new(scope: &Scope<'_>, layout: &UNetLayout) -> Self {
        let (width, frequencies) = (layout.widths[0], layout.frequencies);
        Self(TimeEmbedding::new(
            &scope.sub("time_embed"),
            width,
            frequencies,
        ))
    }

    /// As [`UNet::embed_time`].
    pub(crate) fn embed(&self, timesteps: &Tensor, dtype: Kind) -> Tensor {
        self.0.forward(timesteps).silu().to_kind(dtype)
    }
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
            time: TimeEmbedding::new(
                &scope.sub("time_embed"),
                layout.widths[0],
                layout.frequencies,
            ),
            encoder: Encoder::new(scope, layout),
            middle: Middle::new(scope, layout),
            decoder: Decoder::new(scope, layout),
        }
    }

    /// The SiLU of the time embedding, an input of every residual block: [batch] -> [batch, 4 *
    /// channels]. Computed in fp32, like the sinusoids, and cast to `dtype`.
    pub fn embed_time(&self, timesteps: &Tensor, dtype: Kind) -> Tensor {
        self.time.forward(timesteps).silu().to_kind(dtype)
    }

    /// The prediction for the inputs: [branches * batch, c, h, w]. Runs [`Self::embed`],
    /// [`Self::encode`] and [`Self::decode`]; for models whose residuals do not depend on the
    /// encoder's features.
    pub fn forward(&self, inputs: &UNetInputs<'_>) -> Tensor {
        let time = self.embed(inputs);
        let encoded = self.encode(inputs, time);
        self.decode(encoded, inputs)
    }

    /// The time input of every residual block: [branches * batch, 4 * channels].
    pub fn embed(&self, inputs: &UNetInputs<'_>) -> Tensor {
        let (branches, dtype) = (inputs.branches(), inputs.latents.kind());
        match inputs.added {
            None => repeat_batch(&self.embed_time(inputs.timesteps, dtype), branches),
            Some(added) => {
                let time = repeat_batch(&self.time.forward(inputs.timesteps), branches);
                (time + added).silu().to_kind(dtype)
            }
        }
    }

    /// Runs encoder and middle with the result of [`Self::embed`]. The residuals of `inputs` are
    /// ignored.
    #[must_use]
    pub fn encode(&self, inputs: &UNetInputs<'_>, time: Tensor) -> Encoded {
        let latents = repeat_batch(inputs.latents, inputs.branches());
        let (mut image, text) = (inputs.image.iter(), inputs.text);
        let skips = match inputs.columns {
            None => self
                .encoder
                .forward_with_image(&latents, &time, text, &mut image),
            Some(columns) => self.encoder.forward_seen(&latents, &time, text, columns),
        };
        let last = &skips[skips.len() - 1];
        let middle = match inputs.columns {
            None => self.middle.forward(last, &time, text, image.next()),
            Some(columns) => self.middle.forward_seen(last, &time, text, columns),
        };
        Encoded {
            time,
            skips,
            middle,
        }
    }

    /// Runs the decoder on `encoded`, to which the residuals of `inputs` are added.
    pub fn decode(&self, encoded: Encoded, inputs: &UNetInputs<'_>) -> Tensor {
        let middle = match inputs.middle {
            Some(residual) => encoded.middle + residual,
            None => encoded.middle,
        };
        let mut skips = encoded.skips;
        for (skip, residual) in skips.iter_mut().zip(inputs.skips) {
            if let Some(residual) = residual {
                *skip = &*skip + residual;
            }
        }
        if let Some(columns) = inputs.columns {
            return self.decoder.forward_seen(
                &middle,
                skips,
                [&encoded.time, inputs.text],
                columns,
            );
        }
        let consumed = self.encoder.transformers() + 1;
        let image = inputs.image.get(consumed..).unwrap_or_default();
        self.decoder
            .forward(&middle, skips, &encoded.time, inputs.text, image)
    }
}

/// All inputs of a U-Net. Models that extend a U-Net pass their additions here; the U-Net itself
/// does not depend on these models.
#[derive(Debug, Clone, Copy)]
pub struct UNetInputs<'a> {
    /// Noisy latents, [batch, c, h, w].
    pub latents: &'a Tensor,
    /// [batch]
    pub timesteps: &'a Tensor,
    /// Text states, [branches * batch, tokens, context_dim]: one branch for training, two
    /// (unconditional first) for classifier-free guidance. All branches share the latents and time
    /// steps.
    pub text: &'a Tensor,
    /// Image context: further keys and values for each spatial transformer, in the order of
    /// [`transformer_widths`]; may be empty.
    pub image: &'a [ImageContext],
    /// Added to the time embedding before its SiLU, [branches * batch, 4 * channels].
    pub added: Option<&'a Tensor>,
    /// Residuals for the skip connection of each input block, [branches * batch, C_i, H_i, W_i];
    /// may be empty.
    pub skips: &'a [Option<Tensor>],
    /// Residual for the middle's output, the decoder's input.
    pub middle: Option<&'a Tensor>,
    /// Collects attention probabilities. Blocks then keep their activations, even where activation
    /// checkpointing is enabled, and image context is ignored.
    pub columns: Option<&'a Columns>,
}

/// Attention probabilities from cells to one token of the text, as collected in a forward pass.
#[derive(Debug)]
pub struct Columns {
    /// The token of each sample, [branches * batch].
    token: Tensor,
    /// For each spatial transformer, in the order of [`transformer_widths`], whether its
    /// probabilities are collected.
    wanted: Vec<bool>,
    next: Cell<usize>,
    found: RefCell<Vec<Tensor>>,
}

impl Columns {
    /// Of the spatial transformers below the first level that has some: 11 of SD 1.5's 16. Of the
    /// middle alone if there is only one such level.
    #[must_use]
    pub fn below_first_level(token: Tensor, layout: &UNetLayout) -> Self {
        let attending: Vec<usize> = (0..layout.widths.len())
            .filter(|level| layout.attends[*level])
            .collect();
        let wanted = |level: &usize| Some(level) != attending.first();
        let repeated = |level: &usize, blocks| std::iter::repeat_n(wanted(level), blocks);
        let encoder = attending
            .iter()
            .flat_map(|level| repeated(level, layout.res_blocks));
        let decoder = attending
            .iter()
            .rev()
            .flat_map(|level| repeated(level, layout.res_blocks + 1));
        Self {
            token,
            wanted: encoder.chain([true]).chain(decoder).collect(),
            next: Cell::new(0),
            found: RefCell::new(Vec::new()),
        }
    }

    /// [branches * batch, heads, h, w], fp32, for each transformer whose probabilities are
    /// collected.
    #[must_use]
    pub fn into_found(self) -> Vec<Tensor> {
        self.found.into_inner()
    }

    /// Runs a spatial transformer.
    fn run(&self, transformer: &SpatialTransformer, xs: &Tensor, text: &Tensor) -> Tensor {
        let place = self.next.replace(self.next.get() + 1);
        if !self.wanted.get(place).copied().unwrap_or(false) {
            return transformer.forward(xs, text, None);
        }
        let (out, column) = transformer.forward_with_column(xs, text, &self.token);
        self.found.borrow_mut().push(column);
        out
    }
}

/// Further keys and values for the queries of a spatial transformer's attention to the text. The
/// two results are added. The caller multiplies the values by their scale.
#[derive(Debug)]
pub struct ImageContext {
    /// [branches * batch, tokens, width of the transformer]
    pub keys: Tensor,
    /// Same shape.
    pub values: Tensor,
}

impl ImageContext {
    fn keys_values(&self) -> [&Tensor; 2] {
        [&self.keys, &self.values]
    }
}

impl<'a> UNetInputs<'a> {
    /// Only latents, time steps and text states.
    #[must_use]
    pub fn new(latents: &'a Tensor, timesteps: &'a Tensor, text: &'a Tensor) -> Self {
        Self {
            latents,
            timesteps,
            text,
            image: &[],
            added: None,
            skips: &[],
            middle: None,
            columns: None,
        }
    }

    /// The number of predictions for the same latents.
    #[must_use]
    pub fn branches(&self) -> i64 {
        self.text.size()[0] / self.latents.size()[0]
    }
}

/// The outputs of the encoder and the middle.
#[derive(Debug)]
pub struct Encoded {
    time: Tensor,
    /// The outputs of all input blocks, [branches * batch, C_i, H_i, W_i].
    pub skips: Vec<Tensor>,
    middle: Tensor,
}

/// The widths of all spatial transformers: the encoder's, the middle's, the decoder's.
#[must_use]
pub fn transformer_widths(layout: &UNetLayout) -> Vec<i64> {
    let level = |level: usize, blocks: usize| {
        let blocks = if layout.attends[level] { blocks } else { 0 };
        std::iter::repeat_n(layout.widths[level], blocks)
    };
    let levels = layout.widths.len();
    let encoder = (0..levels).flat_map(|it| level(it, layout.res_blocks));
    let decoder = (0..levels)
        .rev()
        .flat_map(|it| level(it, layout.res_blocks + 1));
    encoder
        .chain([layout.widths[levels - 1]])
        .chain(decoder)
        .collect()
}

/// The name prefixes of all spatial transformers, in the order of [`transformer_widths`].
#[must_use]
pub fn transformer_names(layout: &UNetLayout) -> Vec<String> {
    let levels = layout.widths.len();
    let mut names = Vec::new();
    let mut block = 1;
    for level in 0..levels {
        for _ in 0..layout.res_blocks {
            names.extend(layout.attends[level].then(|| format!("input_blocks.{block}.1.")));
            block += 1;
        }
        // The downsampling block.
        block += 1;
    }
    names.push("middle_block.1.".to_owned());
    let mut block = 0;
    for level in (0..levels).rev() {
        for _ in 0..=layout.res_blocks {
            names.extend(layout.attends[level].then(|| format!("output_blocks.{block}.1.")));
            block += 1;
        }
    }
    names
}

/// Repeats the batch `times` times along dimension 0; does not copy if `times` is 1.
pub(crate) fn repeat_batch(xs: &Tensor, times: i64) -> Tensor {
    match times {
        1 => xs.shallow_clone(),
        _ => Tensor::cat(&vec![xs; times as usize], 0),
    }
}

#[derive(Debug)]
enum InputBlock {
    /// The first convolution, or a downsampling one.
    Conv(Conv),
    ResAttention(ActivationCheckpoint<ResAttention>),
}

/// A residual block, followed by a spatial transformer in the levels that have attention.
#[derive(Debug)]
struct ResAttention {
    res: ResBlock,
    attention: Option<SpatialTransformer>,
}

impl ResAttention {
    /// `shortcut_xs` and `xs` are the same tensor; see [`ResBlock::forward_with_skip`].
    fn forward(
        &self,
        [shortcut_xs, xs, time, text]: [&Tensor; 4],
        image: Option<[&Tensor; 2]>,
    ) -> Tensor {
        let xs = self.res.forward_with_skip(shortcut_xs, xs, Some(time));
        match &self.attention {
            Some(attention) => attention.forward(&xs, text, image),
            None => xs,
        }
    }
}

impl ResAttention {
    /// [`Self::forward`], with its attention to the text collected.
    fn forward_seen(&self, [xs, time, text]: [&Tensor; 3], columns: &Columns) -> Tensor {
        let xs = self.res.forward(xs, Some(time));
        match &self.attention {
            Some(attention) => columns.run(attention, &xs, text),
            None => xs,
        }
    }
}

impl ActivationCheckpoint<ResAttention> {
    fn forward_checkpointed(
        &self,
        [xs, time, text]: [&Tensor; 3],
        image: Option<&ImageContext>,
    ) -> Tensor {
        let inputs = [xs, xs, time, text];
        match image.map(ImageContext::keys_values) {
            None => self.run(inputs, |block, inputs| {
                block.forward(inputs.each_ref(), None)
            }),
            Some([keys, values]) => {
                let [a, b, c, d] = inputs;
                self.run(
                    [a, b, c, d, keys, values],
                    |block, [a, b, c, d, keys, values]| {
                        block.forward([a, b, c, d], Some([keys, values]))
                    },
                )
            }
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
        let conv_in = Conv::three(&scope.sub(0).sub(0), layout.in_channels, inputs);
        let mut blocks = vec![InputBlock::Conv(conv_in)];
        for (level, outputs) in layout.widths.iter().copied().enumerate() {
            for _ in 0..layout.res_blocks {
                let scope = scope.sub(blocks.len());
                let block = ResAttention {
                    res: res_block(&scope.sub(0), inputs, outputs, layout),
                    attention: layout.attends[level]
                        .then(|| transformer(&scope.sub(1), level, layout)),
                };
                let block = ActivationCheckpoint::new(&[&scope], block);
                blocks.push(InputBlock::ResAttention(block));
                inputs = outputs;
            }
            if level + 1 < layout.widths.len() {
                let scope = scope.sub(blocks.len()).sub(0).sub("op");
                blocks.push(InputBlock::Conv(Conv::down(&scope, outputs)));
            }
        }
        Self { blocks }
    }

    /// The outputs of all blocks, first to last: [batch, widths[i], h_i, w_i].
    #[must_use]
    pub fn forward(&self, latents: &Tensor, time: &Tensor, text: &Tensor) -> Vec<Tensor> {
        self.forward_with_image(latents, time, text, &mut [].iter())
    }

    /// [`Self::forward`] with image context; each spatial transformer consumes the next entry, if
    /// any.
    fn forward_with_image(
        &self,
        latents: &Tensor,
        time: &Tensor,
        text: &Tensor,
        image: &mut std::slice::Iter<'_, ImageContext>,
    ) -> Vec<Tensor> {
        self.run(latents, [time, text], None, image)
    }

    /// [`Self::forward`] with a hint of the size of the first block's output, to which it is added.
    pub(crate) fn forward_with_hint(
        &self,
        latents: &Tensor,
        time: &Tensor,
        text: &Tensor,
        hint: Option<&Tensor>,
    ) -> Vec<Tensor> {
        self.run(latents, [time, text], hint, &mut [].iter())
    }

    fn run(
        &self,
        latents: &Tensor,
        [time, text]: [&Tensor; 2],
        mut hint: Option<&Tensor>,
        image: &mut std::slice::Iter<'_, ImageContext>,
    ) -> Vec<Tensor> {
        let mut features: Vec<Tensor> = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let xs = features.last().unwrap_or(latents);
            features.push(match block {
                InputBlock::Conv(conv) => conv.forward(xs),
                InputBlock::ResAttention(block) => {
                    let image = block.attention.as_ref().and_then(|_| image.next());
                    block.forward_checkpointed([xs, time, text], image)
                }
            });
            if let (Some(hint), Some(first)) = (hint.take(), features.last_mut()) {
                *first = &*first + hint;
            }
        }
        features
    }

    fn forward_seen(
        &self,
        latents: &Tensor,
        time: &Tensor,
        text: &Tensor,
        columns: &Columns,
    ) -> Vec<Tensor> {
        let mut features: Vec<Tensor> = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let xs = features.last().unwrap_or(latents);
            features.push(match block {
                InputBlock::Conv(conv) => conv.forward(xs),
                InputBlock::ResAttention(block) => block.forward_seen([xs, time, text], columns),
            });
        }
        features
    }

    /// The number of spatial transformers.
    fn transformers(&self) -> usize {
        let attends = |block: &&InputBlock| match block {
            InputBlock::Conv(_) => false,
            InputBlock::ResAttention(block) => block.attention.is_some(),
        };
        self.blocks.iter().filter(attends).count()
    }

    /// The attention probabilities of each block that attends to text.
    #[must_use]
    pub fn attention(&self, latents: &Tensor, time: &Tensor, text: &Tensor) -> Vec<BlockAttention> {
        let mut maps = Vec::new();
        let mut xs = latents.shallow_clone();
        for (index, block) in self.blocks.iter().enumerate() {
            xs = match block {
                InputBlock::Conv(conv) => conv.forward(&xs),
                InputBlock::ResAttention(block) => {
                    let inner = block.res.forward(&xs, Some(time));
                    match &block.attention {
                        Some(attention) => {
                            maps.push(BlockAttention {
                                block: index,
                                width: inner.size()[3],
                                probabilities: attention.probabilities(&inner, text),
                            });
                            attention.forward(&inner, text, None)
                        }
                        None => inner,
                    }
                }
            };
        }
        maps
    }
}

/// The attention of one input block to the text.
#[derive(Debug)]
pub struct BlockAttention {
    /// Index of the input block.
    pub block: usize,
    /// Width of the feature map in cells.
    pub width: i64,
    /// [batch, heads, cells, tokens]
    pub probabilities: Tensor,
}

/// `middle_block`: residual block, spatial transformer, residual block.
#[derive(Debug)]
pub struct Middle {
    first: ActivationCheckpoint<ResAttention>,
    second: ActivationCheckpoint<ResBlock>,
}

impl Middle {
    #[must_use]
    pub fn new(scope: &Scope<'_>, layout: &UNetLayout) -> Self {
        let scope = scope.sub("middle_block");
        let last = layout.widths.len() - 1;
        let width = layout.widths[last];
        let scopes = [scope.sub(0), scope.sub(1), scope.sub(2)];
        let first = ResAttention {
            res: res_block(&scopes[0], width, width, layout),
            attention: Some(transformer(&scopes[1], last, layout)),
        };
        let second = res_block(&scopes[2], width, width, layout);
        Self {
            first: ActivationCheckpoint::new(&[&scopes[0], &scopes[1]], first),
            second: ActivationCheckpoint::new(&[&scopes[2]], second),
        }
    }

    pub(crate) fn forward(
        &self,
        xs: &Tensor,
        time: &Tensor,
        text: &Tensor,
        image: Option<&ImageContext>,
    ) -> Tensor {
        let xs = self.first.forward_checkpointed([xs, time, text], image);
        self.second.run([&xs, time], |second, [xs, time]| {
            second.forward(xs, Some(time))
        })
    }

    fn forward_seen(&self, xs: &Tensor, time: &Tensor, text: &Tensor, columns: &Columns) -> Tensor {
        let xs = self.first.forward_seen([xs, time, text], columns);
        self.second.forward(&xs, Some(time))
    }
}

#[derive(Debug)]
struct OutputBlock {
    inner: ResAttention,
    up: Option<Conv>,
}

impl OutputBlock {
    /// `size` is the upsampled [height, width]: twice the input's, or one less where downsampling
    /// rounded up.
    fn forward(
        &self,
        [xs, skip, time, text]: [&Tensor; 4],
        image: Option<[&Tensor; 2]>,
        size: Option<[i64; 2]>,
    ) -> Tensor {
        let xs = &Tensor::cat(&[xs, skip], 1);
        let xs = self.inner.forward([xs, xs, time, text], image);
        match (&self.up, size) {
            (Some(up), Some(size)) => up.forward(&xs.upsample_nearest2d(size, None, None)),
            _ => xs,
        }
    }
}

/// `output_blocks` and `out`.
#[derive(Debug)]
pub struct Decoder {
    blocks: Vec<ActivationCheckpoint<OutputBlock>>,
    norm: GroupNorm,
    out: Conv,
}

impl Decoder {
    #[must_use]
    pub fn new(scope: &Scope<'_>, layout: &UNetLayout) -> Self {
        let blocks_scope = scope.sub("output_blocks");
        let mut skips: Vec<i64> = layout
            .input_levels()
            .iter()
            .map(|level| layout.widths[*level])
            .collect();
        let mut inputs = skips[skips.len() - 1];
        let mut blocks = Vec::new();
        for (level, outputs) in layout.widths.iter().copied().enumerate().rev() {
            for repeat in 0..=layout.res_blocks {
                let scope = blocks_scope.sub(blocks.len());
                let skip = skips
                    .pop()
                    .expect("the encoder has one output for every output block");
                let inner = ResAttention {
                    res: res_block(&scope.sub(0), inputs + skip, outputs, layout),
                    attention: layout.attends[level]
                        .then(|| transformer(&scope.sub(1), level, layout)),
                };
                let up_index = 1 + usize::from(inner.attention.is_some());
                let up = (level > 0 && repeat == layout.res_blocks)
                    .then(|| Conv::three(&scope.sub(up_index).sub("conv"), outputs, outputs));
                let block = OutputBlock { inner, up };
                blocks.push(ActivationCheckpoint::new(&[&scope], block));
                inputs = outputs;
            }
        }
        let out = scope.sub("out");
        Self {
            blocks,
            norm: GroupNorm::new(&out.sub(0), inputs, norm_options(layout)),
            out: Conv::three_zero(&out.sub(2), inputs, layout.out_channels),
        }
    }

    /// Predicts [batch, latent channels, h, w] from the middle's output and the encoder's features,
    /// which are consumed from the last to the first.
    fn forward(
        &self,
        middle: &Tensor,
        features: Vec<Tensor>,
        time: &Tensor,
        text: &Tensor,
        image: &[ImageContext],
    ) -> Tensor {
        let mut xs = middle.shallow_clone();
        let mut image = image.iter();
        let mut skips = features.into_iter().rev().peekable();
        for block in &self.blocks {
            let skip = skips
                .next()
                .expect("one feature map for every output block");
            let next = skips.peek().map(Tensor::size);
            let size = next.map(|size| [size[2], size[3]]);
            let image = block.inner.attention.as_ref().and_then(|_| image.next());
            let inputs = [&xs, &skip, time, text];
            xs = match image.map(ImageContext::keys_values) {
                None => block.run(inputs, move |block, inputs| {
                    block.forward(inputs.each_ref(), None, size)
                }),
                Some([keys, values]) => {
                    let [a, b, c, d] = inputs;
                    block.run(
                        [a, b, c, d, keys, values],
                        move |block, [a, b, c, d, keys, values]| {
                            block.forward([a, b, c, d], Some([keys, values]), size)
                        },
                    )
                }
            };
        }
        self.out.forward(&self.norm.forward(&xs).silu())
    }

    /// [`Self::forward`], with its attention to the text collected.
    fn forward_seen(
        &self,
        middle: &Tensor,
        features: Vec<Tensor>,
        [time, text]: [&Tensor; 2],
        columns: &Columns,
    ) -> Tensor {
        let mut xs = middle.shallow_clone();
        let mut skips = features.into_iter().rev().peekable();
        for block in &self.blocks {
            let skip = skips
                .next()
                .expect("one feature map for every output block");
            let joined = Tensor::cat(&[&xs, &skip], 1);
            xs = block.inner.forward_seen([&joined, time, text], columns);
            if let (Some(up), Some(next)) = (&block.up, skips.peek()) {
                let size = next.size();
                xs = up.forward(&xs.upsample_nearest2d([size[2], size[3]], None, None));
            }
        }
        self.out.forward(&self.norm.forward(&xs).silu())
    }
}
