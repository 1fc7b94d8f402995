//! The U-Net in CompVis block numbering (notes 3.1): `time_embed`, `input_blocks`, `middle_block`,
//! `output_blocks`, `out`. Encoder, middle and decoder are separate types, because RetriNet copies
//! the first and adds to what passes between the first and the last. Weight names are those of a
//! CompVis single file without its prefix.

use crate::attention::SpatialTransformer;
use crate::embedding::TimeEmbedding;
use crate::layer::{Conv, GroupNorm};
use crate::parameter::Scope;
use crate::recompute::ActivationCheckpoint;
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

    /// The SiLU of the time embedding, which every residual block takes: [batch] -> [batch, 4 *
    /// channels]. It is computed in fp32, because its sines are.
    pub fn embed_time(&self, timesteps: &Tensor, dtype: Kind) -> Tensor {
        self.time.forward(timesteps).silu().to_kind(dtype)
    }

    /// What the network answers to its inputs: [branches * batch, c, h, w]. It is [`Self::embed`],
    /// [`Self::encode`] and [`Self::decode`], for models whose residuals do not depend on the
    /// encoder's features.
    pub fn forward(&self, inputs: &UNetInputs<'_>) -> Tensor {
        let time = self.embed(inputs);
        let encoded = self.encode(inputs, time);
        self.decode(encoded, inputs)
    }

    /// What every residual block is told: [branches * batch, 4 * channels].
    pub fn embed(&self, inputs: &UNetInputs<'_>) -> Tensor {
        let (branches, dtype) = (inputs.branches(), inputs.latents.kind());
        match inputs.added {
            None => repeated(&self.embed_time(inputs.timesteps, dtype), branches),
            Some(added) => {
                let time = repeated(&self.time.forward(inputs.timesteps), branches);
                (time + added).silu().to_kind(dtype)
            }
        }
    }

    /// Encoder and middle, with what [`Self::embed`] gave. Residuals are not looked at.
    #[must_use]
    pub fn encode(&self, inputs: &UNetInputs<'_>, time: Tensor) -> Encoded {
        let latents = repeated(inputs.latents, inputs.branches());
        let (mut image, text) = (inputs.image.iter(), inputs.text);
        let skips = self.encoder.run(&latents, &time, text, &mut image);
        let last = &skips[skips.len() - 1];
        let middle = self.middle.forward(last, &time, text, image.next());
        Encoded {
            time,
            skips,
            middle,
        }
    }

    /// The decoder, with the residuals of `inputs` added to what it is given.
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
        let done = self.encoder.transformers() + 1;
        let image = inputs.image.get(done..).unwrap_or_default();
        self.decoder
            .forward(&middle, skips, (&encoded.time, inputs.text), image)
    }
}

/// All that a U-Net's answer depends on. What a model adds to a U-Net comes in here: the U-Net
/// itself knows of no such model.
#[derive(Debug, Clone, Copy)]
pub struct UNetInputs<'a> {
    /// Noisy latents, [batch, c, h, w].
    pub latents: &'a Tensor,
    /// [batch]
    pub timesteps: &'a Tensor,
    /// Text states, [branches * batch, tokens, context_dim]: one branch for training, two
    /// (unconditional first) for classifier-free guidance. Latents and time steps are the same in
    /// each.
    pub text: &'a Tensor,
    /// Image context: further keys and values for each spatial transformer, in the order of
    /// [`transformer_widths`]; or none at all.
    pub image: &'a [ImageContext],
    /// Added to the time embedding before its SiLU, [branches * batch, 4 * channels].
    pub added: Option<&'a Tensor>,
    /// Added to the output of each input block on its way to the decoder, [branches * batch, C_i,
    /// H_i, W_i]; or none at all.
    pub skips: &'a [Option<Tensor>],
    /// Added to the middle's output on its way to the decoder.
    pub middle: Option<&'a Tensor>,
}

/// Keys and values that the queries of a spatial transformer's attention to the text attend to as
/// well; what they find is added to what they find in the text. Whoever makes them multiplies the
/// values by the scale that they are to have.
#[derive(Debug)]
pub struct ImageContext {
    /// [branches * batch, tokens, width of the transformer]
    pub keys: Tensor,
    /// Same shape.
    pub values: Tensor,
}

impl ImageContext {
    fn pair(&self) -> [&Tensor; 2] {
        [&self.keys, &self.values]
    }
}

impl<'a> UNetInputs<'a> {
    /// Latents, time steps and text states alone.
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
        }
    }

    /// How many predictions are made for the same latents.
    #[must_use]
    pub fn branches(&self) -> i64 {
        self.text.size()[0] / self.latents.size()[0]
    }
}

/// What the encoder and the middle made of their inputs.
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

/// The batch as often as said, one after the other; no copy for once.
pub(crate) fn repeated(xs: &Tensor, times: i64) -> Tensor {
    match times {
        1 => xs.shallow_clone(),
        _ => Tensor::cat(&vec![xs; times as usize], 0),
    }
}

#[derive(Debug)]
enum InputBlock {
    /// The first convolution, or the one that halves the size.
    Conv(Conv),
    Attended(ActivationCheckpoint<Attended>),
}

/// A residual block, and a spatial transformer behind it where the level has them.
#[derive(Debug)]
struct Attended {
    res: ResBlock,
    attention: Option<SpatialTransformer>,
}

impl Attended {
    /// `shortcut_xs` and `xs` are the same input, see [`ResBlock::forward_with_skip`].
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

impl ActivationCheckpoint<Attended> {
    fn attended(&self, [xs, time, text]: [&Tensor; 3], image: Option<&ImageContext>) -> Tensor {
        let inputs = [xs, xs, time, text];
        match image.map(ImageContext::pair) {
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
        let inward = Conv::three(&scope.sub(0).sub(0), layout.in_channels, inputs);
        let mut blocks = vec![InputBlock::Conv(inward)];
        for (level, outputs) in layout.widths.iter().copied().enumerate() {
            for _ in 0..layout.res_blocks {
                let at = scope.sub(blocks.len());
                let block = Attended {
                    res: res_block(&at.sub(0), inputs, outputs, layout),
                    attention: layout.attends[level]
                        .then(|| transformer(&at.sub(1), level, layout)),
                };
                blocks.push(InputBlock::Attended(ActivationCheckpoint::new(
                    &[&at],
                    block,
                )));
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
    pub fn forward(&self, latents: &Tensor, time: &Tensor, text: &Tensor) -> Vec<Tensor> {
        self.run(latents, time, text, &mut [].iter())
    }

    /// The same with image context, of which every spatial transformer takes the next where there
    /// is any.
    fn run(
        &self,
        latents: &Tensor,
        time: &Tensor,
        text: &Tensor,
        image: &mut std::slice::Iter<'_, ImageContext>,
    ) -> Vec<Tensor> {
        let mut features: Vec<Tensor> = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let xs = features.last().unwrap_or(latents);
            features.push(match block {
                InputBlock::Conv(conv) => conv.forward(xs),
                InputBlock::Attended(block) => {
                    let image = block.attention.as_ref().and_then(|_| image.next());
                    block.attended([xs, time, text], image)
                }
            });
        }
        features
    }

    /// How many spatial transformers there are.
    fn transformers(&self) -> usize {
        let attends = |block: &&InputBlock| match block {
            InputBlock::Conv(_) => false,
            InputBlock::Attended(block) => block.attention.is_some(),
        };
        self.blocks.iter().filter(attends).count()
    }

    /// For each block that attends to text, its number, its columns, and the probabilities of that
    /// attention, [batch, heads, cells, tokens].
    #[must_use]
    pub fn attention(
        &self,
        latents: &Tensor,
        time: &Tensor,
        text: &Tensor,
    ) -> Vec<(usize, i64, Tensor)> {
        let mut found = Vec::new();
        let mut xs = latents.shallow_clone();
        for (number, block) in self.blocks.iter().enumerate() {
            xs = match block {
                InputBlock::Conv(conv) => conv.forward(&xs),
                InputBlock::Attended(block) => {
                    let inner = block.res.forward(&xs, Some(time));
                    match &block.attention {
                        Some(attention) => {
                            let probabilities = attention.probabilities(&inner, text);
                            found.push((number, inner.size()[3], probabilities));
                            attention.forward(&inner, text, None)
                        }
                        None => inner,
                    }
                }
            };
        }
        found
    }
}

/// `middle_block`: residual block, spatial transformer, residual block.
#[derive(Debug)]
pub struct Middle {
    first: ActivationCheckpoint<Attended>,
    second: ActivationCheckpoint<ResBlock>,
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
            first: ActivationCheckpoint::new(&[&at[0], &at[1]], first),
            second: ActivationCheckpoint::new(&[&at[2]], second),
        }
    }

    fn forward(
        &self,
        xs: &Tensor,
        time: &Tensor,
        text: &Tensor,
        image: Option<&ImageContext>,
    ) -> Tensor {
        let xs = self.first.attended([xs, time, text], image);
        self.second.run([&xs, time], |second, [xs, time]| {
            second.forward(xs, Some(time))
        })
    }
}

#[derive(Debug)]
struct OutputBlock {
    attended: Attended,
    up: Option<Conv>,
}

impl OutputBlock {
    /// `size` is the side of what comes next: twice the side, or one less where halving rounded up.
    fn forward(
        &self,
        [xs, skip, time, text]: [&Tensor; 4],
        image: Option<[&Tensor; 2]>,
        size: Option<[i64; 2]>,
    ) -> Tensor {
        let xs = &Tensor::cat(&[xs, skip], 1);
        let xs = self.attended.forward([xs, xs, time, text], image);
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
                    attention: layout.attends[level]
                        .then(|| transformer(&at.sub(1), level, layout)),
                };
                let up_at = 1 + usize::from(attended.attention.is_some());
                let up = (level > 0 && repeat == layout.res_blocks)
                    .then(|| Conv::three(&at.sub(up_at).sub("conv"), outputs, outputs));
                let block = OutputBlock { attended, up };
                blocks.push(ActivationCheckpoint::new(&[&at], block));
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

    /// From the middle's output and the encoder's features (taken from the last), noise [batch,
    /// latent channels, h, w].
    fn forward(
        &self,
        middle: &Tensor,
        features: Vec<Tensor>,
        (time, text): (&Tensor, &Tensor),
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
            let image = block.attended.attention.as_ref().and_then(|_| image.next());
            let inputs = [&xs, &skip, time, text];
            xs = match image.map(ImageContext::pair) {
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
}
