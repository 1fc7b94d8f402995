//! Kandinsky's MoVQ (`VQModel` of `diffusers` with spatial norms): an autoencoder whose decoder
//! reads the latents again in each norm. Training and sampling of the decoder use its latents
//! before quantization. Weight names are those of `diffusers`.

use crate::attention::attend;
use crate::layer::{Conv, GroupNorm, GroupNormOptions, Linear, PointConv, to_map, to_tokens};
use crate::parameter::{Init, Scope};
use proto::layout::MovqLayout;
use tch::Tensor;

/// Epsilon of all norms.
const EPSILON: f64 = 1e-6;
/// Groups of a spatial norm, which `diffusers` does not configure.
const SPATIAL_GROUPS: i64 = 32;

/// A group norm, in the decoder scaled and shifted by the latents.
#[derive(Debug)]
struct Norm {
    norm: GroupNorm,
    /// Scale and shift.
    spatial: Option<[PointConv; 2]>,
}

impl Norm {
    /// `latents`: the channels of latents; None in the encoder.
    fn new(scope: &Scope<'_>, width: i64, groups: i64, latents: Option<i64>) -> Self {
        let Some(latents) = latents else {
            let options = GroupNormOptions {
                groups,
                epsilon: EPSILON,
            };
            return Self {
                norm: GroupNorm::new(scope, width, options),
                spatial: None,
            };
        };
        let options = GroupNormOptions {
            groups: SPATIAL_GROUPS,
            epsilon: EPSILON,
        };
        Self {
            norm: GroupNorm::new(&scope.sub("norm_layer"), width, options),
            spatial: Some(
                ["conv_y", "conv_b"].map(|name| PointConv::new(&scope.sub(name), latents, width)),
            ),
        }
    }

    /// `latents` are None in the encoder.
    fn forward(&self, xs: &Tensor, latents: Option<&Tensor>) -> Tensor {
        let normed = self.norm.forward(xs);
        match (&self.spatial, latents) {
            (Some([scale, shift]), Some(latents)) => {
                let size = xs.size();
                let latents = latents.upsample_nearest2d([size[2], size[3]], None, None);
                normed * scale.forward(&latents) + shift.forward(&latents)
            }
            _ => normed,
        }
    }
}

#[derive(Debug)]
struct ResBlock {
    norm1: Norm,
    conv1: Conv,
    norm2: Norm,
    conv2: Conv,
    shortcut: Option<PointConv>,
}

impl ResBlock {
    fn new(scope: &Scope<'_>, [inputs, outputs]: [i64; 2], tower: Tower) -> Self {
        Self {
            norm1: tower.norm(&scope.sub("norm1"), inputs),
            conv1: Conv::three(&scope.sub("conv1"), inputs, outputs),
            norm2: tower.norm(&scope.sub("norm2"), outputs),
            conv2: Conv::three(&scope.sub("conv2"), outputs, outputs),
            shortcut: (inputs != outputs)
                .then(|| PointConv::new(&scope.sub("conv_shortcut"), inputs, outputs)),
        }
    }

    fn forward(&self, xs: &Tensor, latents: Option<&Tensor>) -> Tensor {
        let hidden = self.conv1.forward(&self.norm1.forward(xs, latents).silu());
        let hidden = self
            .conv2
            .forward(&self.norm2.forward(&hidden, latents).silu());
        match &self.shortcut {
            Some(shortcut) => shortcut.forward(xs) + hidden,
            None => xs + hidden,
        }
    }
}

/// Self-attention with one head.
#[derive(Debug)]
struct Attention {
    norm: Norm,
    queries: Linear,
    keys: Linear,
    values: Linear,
    out: Linear,
}

impl Attention {
    fn new(scope: &Scope<'_>, width: i64, tower: Tower) -> Self {
        let name = if tower.latents.is_some() {
            "spatial_norm"
        } else {
            "group_norm"
        };
        let linear = |name: &str| Linear::new(&scope.sub(name), width, width);
        Self {
            norm: tower.norm(&scope.sub(name), width),
            queries: linear("to_q"),
            keys: linear("to_k"),
            values: linear("to_v"),
            out: Linear::new(&scope.sub("to_out").sub(0), width, width),
        }
    }

    fn forward(&self, xs: &Tensor, latents: Option<&Tensor>) -> Tensor {
        let tokens = to_tokens(&self.norm.forward(xs, latents));
        let attended = attend(
            &self.queries.forward(&tokens),
            &self.keys.forward(&tokens),
            &self.values.forward(&tokens),
            1,
            false,
        );
        xs + to_map(&self.out.forward(&attended), xs.size()[2])
    }
}

/// What differs between the encoder and the decoder.
#[derive(Debug, Clone, Copy)]
struct Tower {
    groups: i64,
    /// Channels of latents in the decoder's norms.
    latents: Option<i64>,
}

impl Tower {
    fn norm(self, scope: &Scope<'_>, width: i64) -> Norm {
        Norm::new(scope, width, self.groups, self.latents)
    }
}

/// Residual blocks, each followed by an attention in the last level, and a change of the size.
#[derive(Debug)]
struct Level {
    blocks: Vec<(ResBlock, Option<Attention>)>,
    resize: Option<Conv>,
}

impl Level {
    fn new(scope: &Scope<'_>, widths: [i64; 2], count: usize, attends: bool, tower: Tower) -> Self {
        let [inputs, outputs] = widths;
        let block = |i: usize| {
            let inputs = if i == 0 { inputs } else { outputs };
            let res = ResBlock::new(&scope.sub("resnets").sub(i), [inputs, outputs], tower);
            let attention =
                attends.then(|| Attention::new(&scope.sub("attentions").sub(i), outputs, tower));
            (res, attention)
        };
        Self {
            blocks: (0..count).map(block).collect(),
            resize: None,
        }
    }

    fn forward(&self, xs: &Tensor, latents: Option<&Tensor>) -> Tensor {
        let blocks = self.blocks.iter();
        blocks.fold(xs.shallow_clone(), |xs, (res, attention)| {
            let xs = res.forward(&xs, latents);
            match attention {
                Some(attention) => attention.forward(&xs, latents),
                None => xs,
            }
        })
    }
}

/// Residual block, attention, residual block.
#[derive(Debug)]
struct Middle {
    first: ResBlock,
    attention: Attention,
    second: ResBlock,
}

impl Middle {
    fn new(scope: &Scope<'_>, width: i64, tower: Tower) -> Self {
        let scope = scope.sub("mid_block");
        let res = |i: usize| ResBlock::new(&scope.sub("resnets").sub(i), [width, width], tower);
        Self {
            first: res(0),
            attention: Attention::new(&scope.sub("attentions").sub(0), width, tower),
            second: res(1),
        }
    }

    fn forward(&self, xs: &Tensor, latents: Option<&Tensor>) -> Tensor {
        let xs = self.first.forward(xs, latents);
        let xs = self.attention.forward(&xs, latents);
        self.second.forward(&xs, latents)
    }
}

/// The convolutions at both ends of a tower.
#[derive(Debug)]
struct Ends {
    conv_in: Conv,
    norm_out: Norm,
    conv_out: Conv,
}

/// See the module's header.
#[derive(Debug)]
pub struct Movq {
    encoder: (Ends, Vec<Level>, Middle),
    quant: PointConv,
    /// The codebook, [codes, latent channels]. Kept for export; nothing quantizes.
    pub codes: Tensor,
    post_quant: PointConv,
    decoder: (Ends, Middle, Vec<Level>),
}

impl Movq {
    #[must_use]
    pub fn new(scope: &Scope<'_>, layout: &MovqLayout) -> Self {
        let latent = layout.latent_channels;
        let codes = scope.sub("quantize").sub("embedding");
        Self {
            encoder: encoder(&scope.sub("encoder"), layout),
            quant: PointConv::new(&scope.sub("quant_conv"), latent, latent),
            codes: codes.parameter("weight", &[layout.codes, latent], Init::Normal(0.02)),
            post_quant: PointConv::new(&scope.sub("post_quant_conv"), latent, latent),
            decoder: decoder(&scope.sub("decoder"), layout),
        }
    }

    /// Images [batch, 3, S, S] in [-1, 1] -> latents [batch, c, s, s], not quantized.
    pub fn encode(&self, images: &Tensor) -> Tensor {
        let (ends, levels, middle) = &self.encoder;
        let mut xs = ends.conv_in.forward(images);
        for level in levels {
            xs = level.forward(&xs, None);
            if let Some(down) = &level.resize {
                xs = down.forward(&xs.constant_pad_nd([0, 1, 0, 1]));
            }
        }
        let xs = middle.forward(&xs, None);
        let xs = ends.norm_out.forward(&xs, None).silu();
        self.quant.forward(&ends.conv_out.forward(&xs))
    }

    /// Latents [batch, c, s, s], not quantized -> images [batch, 3, S, S].
    pub fn decode(&self, latents: &Tensor) -> Tensor {
        let (ends, middle, levels) = &self.decoder;
        let xs = ends.conv_in.forward(&self.post_quant.forward(latents));
        let mut xs = middle.forward(&xs, Some(latents));
        for level in levels {
            xs = level.forward(&xs, Some(latents));
            if let Some(up) = &level.resize {
                let size = xs.size();
                let larger = xs.upsample_nearest2d([2 * size[2], 2 * size[3]], None, None);
                xs = up.forward(&larger);
            }
        }
        let xs = ends.norm_out.forward(&xs, Some(latents)).silu();
        ends.conv_out.forward(&xs)
    }
}

fn encoder(scope: &Scope<'_>, layout: &MovqLayout) -> (Ends, Vec<Level>, Middle) {
    let tower = Tower {
        groups: layout.norm_groups,
        latents: None,
    };
    let (widths, count) = (&layout.widths, layout.widths.len());
    let last = widths[count - 1];
    let levels = (0..count).map(|level| {
        let scope = scope.sub("down_blocks").sub(level);
        let inputs = widths[level.saturating_sub(1)];
        let is_last = level + 1 == count;
        let pair = [inputs, widths[level]];
        let mut found = Level::new(&scope, pair, layout.res_blocks, is_last, tower);
        found.resize = (!is_last).then(|| {
            let scope = scope.sub("downsamplers").sub(0).sub("conv");
            Conv::down_unpadded(&scope, widths[level])
        });
        found
    });
    let levels = levels.collect();
    let ends = Ends {
        conv_in: Conv::three(&scope.sub("conv_in"), 3, widths[0]),
        norm_out: tower.norm(&scope.sub("conv_norm_out"), last),
        conv_out: Conv::three(&scope.sub("conv_out"), last, layout.latent_channels),
    };
    (ends, levels, Middle::new(scope, last, tower))
}

fn decoder(scope: &Scope<'_>, layout: &MovqLayout) -> (Ends, Middle, Vec<Level>) {
    let tower = Tower {
        groups: layout.norm_groups,
        latents: Some(layout.latent_channels),
    };
    let reversed: Vec<i64> = layout.widths.iter().copied().rev().collect();
    let (count, first) = (reversed.len(), reversed[reversed.len() - 1]);
    let levels = (0..count).map(|level| {
        let scope = scope.sub("up_blocks").sub(level);
        let inputs = reversed[level.saturating_sub(1)];
        let pair = [inputs, reversed[level]];
        let mut found = Level::new(&scope, pair, layout.res_blocks + 1, level == 0, tower);
        found.resize = (level + 1 < count).then(|| {
            let scope = scope.sub("upsamplers").sub(0).sub("conv");
            Conv::three(&scope, reversed[level], reversed[level])
        });
        found
    });
    let levels = levels.collect();
    let ends = Ends {
        conv_in: Conv::three(&scope.sub("conv_in"), layout.latent_channels, reversed[0]),
        norm_out: tower.norm(&scope.sub("conv_norm_out"), first),
        conv_out: Conv::three(&scope.sub("conv_out"), first, 3),
    };
    (ends, Middle::new(scope, reversed[0], tower), levels)
}
