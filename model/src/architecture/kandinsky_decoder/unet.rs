//! The U-Net of Kandinsky 2.2's decoder (`UNet2DConditionModel` of `diffusers` with its block
//! types): conditioned on an image embedding, which becomes tokens of the context and a part of the
//! time embedding. Residual blocks scale and shift by it; those that change the size do so inside.
//! Weight names are those of `diffusers`.

use crate::embedding::timestep_embedding;
use crate::layer::{
    Conv, GroupNorm, GroupNormOptions, LayerNorm, Linear, PointConv, to_map, to_tokens,
};
use crate::parameter::Scope;
use crate::recompute::ActivationCheckpoint;
use proto::layout::{Frequencies, ImageUNetLayout};
use tch::{Kind, Tensor};

/// How a residual block changes the size of its map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resize {
    None,
    /// The mean of 2x2 cells.
    Down,
    /// Nearest neighbours.
    Up,
}

impl Resize {
    fn apply(self, xs: &Tensor) -> Tensor {
        let size = xs.size();
        match self {
            Self::None => xs.shallow_clone(),
            Self::Down => xs.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None),
            Self::Up => xs.upsample_nearest2d([2 * size[2], 2 * size[3]], None, None),
        }
    }
}

#[derive(Debug)]
struct ResBlock {
    norm1: GroupNorm,
    conv1: Conv,
    time: Linear,
    norm2: GroupNorm,
    conv2: Conv,
    shortcut: Option<PointConv>,
    resize: Resize,
}

impl ResBlock {
    fn new(
        scope: &Scope<'_>,
        [inputs, outputs]: [i64; 2],
        layout: &ImageUNetLayout,
        resize: Resize,
    ) -> Self {
        let norm = GroupNormOptions {
            groups: layout.norm_groups,
            epsilon: 1e-5,
        };
        let time_width = 4 * layout.widths[0];
        Self {
            norm1: GroupNorm::new(&scope.sub("norm1"), inputs, norm),
            conv1: Conv::three(&scope.sub("conv1"), inputs, outputs),
            time: Linear::new(&scope.sub("time_emb_proj"), time_width, 2 * outputs),
            norm2: GroupNorm::new(&scope.sub("norm2"), outputs, norm),
            conv2: Conv::three(&scope.sub("conv2"), outputs, outputs),
            shortcut: (inputs != outputs)
                .then(|| PointConv::new(&scope.sub("conv_shortcut"), inputs, outputs)),
            resize,
        }
    }

    /// `time` is the SiLU of the time embedding.
    fn forward(&self, xs: &Tensor, time: &Tensor) -> Tensor {
        let hidden = self.resize.apply(&self.norm1.forward(xs).silu());
        let hidden = self.norm2.forward(&self.conv1.forward(&hidden));
        let time = self.time.forward(time).unsqueeze(-1).unsqueeze(-1);
        let halves = time.chunk(2, 1);
        let hidden: Tensor = hidden * (&halves[0] + 1.0) + &halves[1];
        let hidden = self.conv2.forward(&hidden.silu());
        let xs = self.resize.apply(xs);
        match &self.shortcut {
            Some(shortcut) => shortcut.forward(&xs) + hidden,
            None => xs + hidden,
        }
    }
}

/// Attention whose keys and values are those of the context, then its own.
#[derive(Debug)]
struct AddedAttention {
    norm: GroupNorm,
    queries: Linear,
    keys: Linear,
    values: Linear,
    context_keys: Linear,
    context_values: Linear,
    out: Linear,
    heads: i64,
}

impl AddedAttention {
    fn new(scope: &Scope<'_>, width: i64, layout: &ImageUNetLayout) -> Self {
        let norm = GroupNormOptions {
            groups: layout.norm_groups,
            epsilon: 1e-5,
        };
        let own = |name: &str| Linear::new(&scope.sub(name), width, width);
        let added = |name: &str| Linear::new(&scope.sub(name), layout.context_dim, width);
        Self {
            norm: GroupNorm::new(&scope.sub("group_norm"), width, norm),
            queries: own("to_q"),
            keys: own("to_k"),
            values: own("to_v"),
            context_keys: added("add_k_proj"),
            context_values: added("add_v_proj"),
            out: Linear::new(&scope.sub("to_out").sub(0), width, width),
            heads: width / layout.head_channels,
        }
    }

    fn forward(&self, xs: &Tensor, context: &Tensor) -> Tensor {
        let tokens = to_tokens(&self.norm.forward(xs));
        let joined = |added: &Linear, own: &Linear| {
            Tensor::cat(&[added.forward(context), own.forward(&tokens)], 1)
        };
        let attended = crate::attention::attend(
            &self.queries.forward(&tokens),
            &joined(&self.context_keys, &self.keys),
            &joined(&self.context_values, &self.values),
            self.heads,
            false,
        );
        xs + to_map(&self.out.forward(&attended), xs.size()[2])
    }
}

/// A residual block, and an attention in the levels that have one.
#[derive(Debug)]
struct Layer {
    res: ResBlock,
    attention: Option<AddedAttention>,
}

impl Layer {
    fn forward(&self, [xs, time, context]: [&Tensor; 3]) -> Tensor {
        let xs = self.res.forward(xs, time);
        match &self.attention {
            Some(attention) => attention.forward(&xs, context),
            None => xs,
        }
    }
}

impl ActivationCheckpoint<Layer> {
    fn forward_checkpointed(&self, inputs: [&Tensor; 3]) -> Tensor {
        self.run(inputs, |layer, inputs| layer.forward(inputs.each_ref()))
    }
}

/// The image embedding as tokens of a context, and as a part of the time embedding. Names:
/// `encoder_hid_proj`, `add_embedding`.
#[derive(Debug)]
pub struct ImageConditions {
    tokens: Linear,
    token_norm: LayerNorm,
    added: Linear,
    added_norm: LayerNorm,
    context_dim: i64,
}

impl ImageConditions {
    /// `tokens` of `context_dim` values each, and `time_width` for the time embedding.
    #[must_use]
    pub fn new(
        scope: &Scope<'_>,
        embedding: i64,
        [tokens, context_dim, time_width]: [i64; 3],
    ) -> Self {
        let (context, added) = (scope.sub("encoder_hid_proj"), scope.sub("add_embedding"));
        Self {
            tokens: Linear::new(
                &context.sub("image_embeds"),
                embedding,
                tokens * context_dim,
            ),
            token_norm: LayerNorm::new(&context.sub("norm"), context_dim),
            added: Linear::new(&added.sub("image_proj"), embedding, time_width),
            added_norm: LayerNorm::new(&added.sub("image_norm"), time_width),
            context_dim,
        }
    }

    /// [batch, embedding] -> [batch, tokens, context_dim].
    pub fn context(&self, embeddings: &Tensor) -> Tensor {
        let tokens = self.tokens.forward(embeddings);
        self.token_norm
            .forward(&tokens.reshape([embeddings.size()[0], -1, self.context_dim]))
    }

    /// [batch, embedding] -> [batch, time_width].
    pub fn added(&self, embeddings: &Tensor) -> Tensor {
        self.added_norm.forward(&self.added.forward(embeddings))
    }
}

/// Layers with a skip connection, and the block that doubles the size.
type UpLevel = (
    Vec<ActivationCheckpoint<Layer>>,
    Option<ActivationCheckpoint<Layer>>,
);

/// See the module's header.
#[derive(Debug)]
pub struct ImageUNet {
    time: [Linear; 2],
    conditions: ImageConditions,
    conv_in: Conv,
    /// Each level's layers, then its block that halves the size.
    down: Vec<Vec<ActivationCheckpoint<Layer>>>,
    middle: [ActivationCheckpoint<Layer>; 2],
    /// From the last level to the first: layers with a skip connection, then the block that
    /// doubles the size.
    up: Vec<UpLevel>,
    norm_out: GroupNorm,
    conv_out: Conv,
    width: i64,
}

impl ImageUNet {
    #[must_use]
    pub fn new(scope: &Scope<'_>, layout: &ImageUNetLayout) -> Self {
        let (width, time_width) = (layout.widths[0], 4 * layout.widths[0]);
        let time = scope.sub("time_embedding");
        let mut skips = vec![width];
        let down = down(scope, layout, &mut skips);
        let last = layout.widths[layout.widths.len() - 1];
        let mid = scope.sub("mid_block");
        let (resnets, attentions) = (mid.sub("resnets"), mid.sub("attentions"));
        let middle = [0, 1].map(|i| {
            let scope = resnets.sub(i);
            let attends = attentions.sub(0);
            let layer = Layer {
                res: ResBlock::new(&scope, [last, last], layout, Resize::None),
                attention: (i == 0).then(|| AddedAttention::new(&attends, last, layout)),
            };
            ActivationCheckpoint::new(&[&scope, &attends], layer)
        });
        Self {
            time: [
                Linear::new(&time.sub("linear_1"), width, time_width),
                Linear::new(&time.sub("linear_2"), time_width, time_width),
            ],
            conditions: ImageConditions::new(
                scope,
                layout.embedding,
                [layout.tokens, layout.context_dim, time_width],
            ),
            conv_in: Conv::three(&scope.sub("conv_in"), layout.latent_channels, width),
            down,
            middle,
            up: up(scope, layout, skips),
            norm_out: GroupNorm::new(
                &scope.sub("conv_norm_out"),
                width,
                GroupNormOptions {
                    groups: layout.norm_groups,
                    epsilon: 1e-5,
                },
            ),
            // The noise and a variance, which nothing uses.
            conv_out: Conv::three(&scope.sub("conv_out"), width, 2 * layout.latent_channels),
            width,
        }
    }

    /// Latents [batch, c, h, w], time steps [batch] and image embeddings [batch, embedding] ->
    /// [batch, 2c, h, w]: the noise, and a variance that is never trained.
    pub fn forward(&self, latents: &Tensor, timesteps: &Tensor, embeddings: &Tensor) -> Tensor {
        let dtype = latents.kind();
        let time = timestep_embedding(timesteps, self.width, Frequencies::default());
        let time = self.time[1].forward(&self.time[0].forward(&time).silu());
        let time = (time + self.conditions.added(embeddings))
            .silu()
            .to_kind(dtype);
        let context = self.conditions.context(embeddings);
        let mut skips = vec![self.conv_in.forward(latents)];
        for layer in self.down.iter().flatten() {
            let last = &skips[skips.len() - 1];
            let next = layer.forward_checkpointed([last, &time, &context]);
            skips.push(next);
        }
        let mut xs = skips[skips.len() - 1].shallow_clone();
        for layer in &self.middle {
            xs = layer.forward_checkpointed([&xs, &time, &context]);
        }
        for (layers, resize) in &self.up {
            for layer in layers {
                let skip = skips.pop().expect("one skip connection for each layer");
                let joined = Tensor::cat(&[&xs, &skip], 1);
                xs = layer.forward_checkpointed([&joined, &time, &context]);
            }
            if let Some(resize) = resize {
                xs = resize.forward_checkpointed([&xs, &time, &context]);
            }
        }
        self.conv_out.forward(&self.norm_out.forward(&xs).silu())
    }

    /// The noise of [`Self::forward`], fp32.
    pub fn noise(&self, latents: &Tensor, timesteps: &Tensor, embeddings: &Tensor) -> Tensor {
        let channels = latents.size()[1];
        let out = self.forward(latents, timesteps, embeddings);
        out.narrow(1, 0, channels).to_kind(Kind::Float)
    }
}

/// The encoder; pushes the width of each output.
fn down(
    scope: &Scope<'_>,
    layout: &ImageUNetLayout,
    skips: &mut Vec<i64>,
) -> Vec<Vec<ActivationCheckpoint<Layer>>> {
    let mut inputs = layout.widths[0];
    let levels = layout.widths.iter().copied().enumerate();
    levels
        .map(|(level, width)| {
            let scope = scope.sub("down_blocks").sub(level);
            let mut layers = Vec::new();
            for i in 0..layout.res_blocks {
                let (res, attention) =
                    (scope.sub("resnets").sub(i), scope.sub("attentions").sub(i));
                let layer = Layer {
                    res: ResBlock::new(&res, [inputs, width], layout, Resize::None),
                    attention: (level > 0).then(|| AddedAttention::new(&attention, width, layout)),
                };
                layers.push(ActivationCheckpoint::new(&[&res, &attention], layer));
                inputs = width;
                skips.push(width);
            }
            if level + 1 < layout.widths.len() {
                layers.push(resizing(
                    &scope.sub("downsamplers").sub(0),
                    width,
                    layout,
                    Resize::Down,
                ));
                skips.push(width);
            }
            layers
        })
        .collect()
}

fn resizing(
    scope: &Scope<'_>,
    width: i64,
    layout: &ImageUNetLayout,
    resize: Resize,
) -> ActivationCheckpoint<Layer> {
    let layer = Layer {
        res: ResBlock::new(scope, [width, width], layout, resize),
        attention: None,
    };
    ActivationCheckpoint::new(&[scope], layer)
}

/// The decoder; `skips` are the widths of the encoder's outputs.
fn up(scope: &Scope<'_>, layout: &ImageUNetLayout, mut skips: Vec<i64>) -> Vec<UpLevel> {
    let mut inputs = layout.widths[layout.widths.len() - 1];
    let levels = layout.widths.iter().copied().enumerate().rev().enumerate();
    levels
        .map(|(block, (level, width))| {
            let scope = scope.sub("up_blocks").sub(block);
            let mut layers = Vec::new();
            for i in 0..=layout.res_blocks {
                let (res, attention) =
                    (scope.sub("resnets").sub(i), scope.sub("attentions").sub(i));
                let skip = skips.pop().expect("one skip connection for each layer");
                let layer = Layer {
                    res: ResBlock::new(&res, [inputs + skip, width], layout, Resize::None),
                    attention: (level > 0).then(|| AddedAttention::new(&attention, width, layout)),
                };
                layers.push(ActivationCheckpoint::new(&[&res, &attention], layer));
                inputs = width;
            }
            let resize = (level > 0)
                .then(|| resizing(&scope.sub("upsamplers").sub(0), width, layout, Resize::Up));
            (layers, resize)
        })
        .collect()
}
