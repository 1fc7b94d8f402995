//! Widths and depths of networks, in the form from which the networks are built. There are two
//! sources: the tables of job.toml ([`crate::spec`]) and the `config.json` of public weights
//! ([`crate::public`]), which can express more than a job may.

use crate::spec::{
    AutoencoderConfig, ClipActivation, ImageEncoderConfig, TextEncoderConfig, UNetConfig,
};

/// The U-Net in CompVis block layout (notes 3.1).
#[derive(Debug, Clone, PartialEq)]
pub struct UNetLayout {
    /// Width of each level; level i works at latent side / 2^i.
    pub widths: Vec<i64>,
    /// Residual blocks of an encoder level; the decoder has one more.
    pub res_blocks: usize,
    /// For each level, whether it has spatial transformers.
    pub attends: Vec<bool>,
    /// Attention heads of each level; the middle block uses the number of the last level.
    pub heads: Vec<i64>,
    /// Width of the text states.
    pub context_dim: i64,
    pub in_channels: i64,
    pub out_channels: i64,
    /// Groups of every group norm.
    pub norm_groups: i64,
    /// Epsilon of the norms in residual blocks and of the output norm. A spatial transformer's is
    /// 1e-6.
    pub norm_epsilon: f64,
    pub frequencies: Frequencies,
}

/// Layout of the sinusoidal timestep embedding. The default is Stable Diffusion's. Public configs
/// call the fields `flip_sin_to_cos` and `freq_shift`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Frequencies {
    pub cosines_first: bool,
    /// Frequency i of h is 10000^(-i / (h - shift)).
    pub shift: f64,
}

impl Default for Frequencies {
    fn default() -> Self {
        Self {
            cosines_first: true,
            shift: 0.0,
        }
    }
}

impl UNetLayout {
    /// The level of every input block, in order. The decoder and the retrieval block connect to
    /// these blocks.
    #[must_use]
    pub fn input_levels(&self) -> Vec<usize> {
        let mut levels = vec![0];
        for level in 0..self.widths.len() {
            levels.extend(std::iter::repeat_n(level, self.res_blocks));
            if level + 1 < self.widths.len() {
                levels.push(level);
            }
        }
        levels
    }
}

impl From<&UNetConfig> for UNetLayout {
    fn from(config: &UNetConfig) -> Self {
        let levels = config.channel_mult.len();
        let attends = |level: usize| config.attention_levels.contains(&(level as u32));
        Self {
            widths: widths(config.channels, &config.channel_mult),
            res_blocks: config.res_blocks as usize,
            attends: (0..levels).map(attends).collect(),
            heads: vec![i64::from(config.heads); levels],
            context_dim: i64::from(config.context_dim),
            in_channels: i64::from(config.latent_channels),
            out_channels: i64::from(config.latent_channels),
            norm_groups: i64::from(config.norm_groups),
            norm_epsilon: 1e-5,
            frequencies: Frequencies::default(),
        }
    }
}

fn widths(first: u32, multiples: &[u32]) -> Vec<i64> {
    multiples
        .iter()
        .map(|mult| i64::from(first * mult))
        .collect()
}

/// Widths of the convolutions that bring ControlNet's hint from pixels to latent cells of `factor`
/// pixels: after the first the side halves before each. ControlNet's own, for 8: 16, 32, 96, 256.
#[must_use]
pub fn hint_widths(factor: u32) -> Vec<i64> {
    const WIDTHS: [i64; 4] = [16, 32, 96, 256];
    let count = 1 + factor.max(1).ilog2() as usize;
    let widths = WIDTHS.into_iter().chain(std::iter::repeat(256));
    widths.take(count).collect()
}

/// AutoencoderKL (notes 5.2).
#[derive(Debug, Clone, PartialEq)]
pub struct AutoencoderLayout {
    /// Width of each level; level i works at the image's side / 2^i.
    pub widths: Vec<i64>,
    /// Residual blocks of an encoder level; the decoder has one more.
    pub res_blocks: usize,
    pub latent_channels: i64,
    pub norm_groups: i64,
}

impl From<&AutoencoderConfig> for AutoencoderLayout {
    fn from(config: &AutoencoderConfig) -> Self {
        Self {
            widths: widths(config.channels, &config.channel_mult),
            res_blocks: config.res_blocks as usize,
            latent_channels: i64::from(config.latent_channels),
            norm_groups: i64::from(config.norm_groups),
        }
    }
}

/// The transformer of both CLIP towers.
#[derive(Debug, Clone, PartialEq)]
pub struct TransformerLayout {
    pub width: i64,
    /// Hidden width of the feed-forward networks.
    pub mlp_width: i64,
    pub layers: usize,
    pub heads: i64,
    pub activation: Activation,
    pub norm_epsilon: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x * sigmoid(1.702 x), as in OpenAI's CLIP.
    QuickGelu,
    /// The exact GELU.
    Gelu,
}

/// CLIP's text tower (notes 5.1).
#[derive(Debug, Clone, PartialEq)]
pub struct TextLayout {
    pub transformer: TransformerLayout,
    pub vocabulary: i64,
    /// Maximum number of tokens.
    pub tokens: i64,
    /// The pooled state is that of the first token with this id. None: that of the token with the
    /// largest id.
    pub end: Option<i64>,
    /// Width after the projection that the CLIP score uses, if there is one.
    pub projection: Option<i64>,
}

/// Size of CLIP's vocabulary.
pub const CLIP_VOCABULARY: i64 = 49_408;
/// The token that ends a prompt and pads it to its full length.
pub const CLIP_END: i64 = 49_407;

impl From<&TextEncoderConfig> for TextLayout {
    fn from(config: &TextEncoderConfig) -> Self {
        let width = i64::from(config.width);
        Self {
            transformer: TransformerLayout {
                width,
                mlp_width: 4 * width,
                layers: config.layers as usize,
                heads: i64::from(config.heads),
                activation: Activation::QuickGelu,
                norm_epsilon: 1e-5,
            },
            vocabulary: CLIP_VOCABULARY,
            tokens: i64::from(config.tokens),
            end: Some(CLIP_END),
            projection: None,
        }
    }
}

/// CLIP's image tower with its projection (notes 5.1).
#[derive(Debug, Clone, PartialEq)]
pub struct ImageLayout {
    pub transformer: TransformerLayout,
    /// Side of the square images, in pixels.
    pub side: i64,
    /// Side of a patch, in pixels.
    pub patch: i64,
    /// Width of the embedding.
    pub projection: i64,
}

impl From<&ImageEncoderConfig> for ImageLayout {
    fn from(config: &ImageEncoderConfig) -> Self {
        Self {
            transformer: TransformerLayout {
                width: i64::from(config.width),
                mlp_width: i64::from(config.mlp_width),
                layers: config.layers as usize,
                heads: i64::from(config.heads),
                activation: match config.activation {
                    ClipActivation::QuickGelu => Activation::QuickGelu,
                    ClipActivation::Gelu => Activation::Gelu,
                },
                norm_epsilon: 1e-5,
            },
            side: i64::from(config.side),
            patch: i64::from(config.patch),
            projection: i64::from(config.projection),
        }
    }
}

/// How an image encoder's input is made of pixels in [0, 1]: (pixel - mean) / deviation of each
/// channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Colours {
    pub means: [f32; 3],
    pub deviations: [f32; 3],
}

impl Colours {
    /// OpenAI's; every CLIP in the layout of `transformers` expects them unless its
    /// `preprocessor_config.json` says otherwise.
    pub const CLIP: Self = Self {
        means: [0.481_454_66, 0.457_827_5, 0.408_210_73],
        deviations: [0.268_629_54, 0.261_302_6, 0.275_777_1],
    };
}

/// A BERT without its pooler, as sentence encoders such as MiniLM use it.
#[derive(Debug, Clone, PartialEq)]
pub struct BertLayout {
    /// Its norms come after the residual sum, unlike CLIP's.
    pub transformer: TransformerLayout,
    pub vocabulary: i64,
    /// Maximum number of tokens that have a position.
    pub tokens: i64,
    /// Kinds of segments; a single text has kind 0.
    pub types: i64,
}

/// Kandinsky 2.2's prior, a `PriorTransformer` (tensors.md).
#[derive(Debug, Clone, PartialEq)]
pub struct PriorLayout {
    /// Width of the transformer.
    pub width: i64,
    pub layers: usize,
    pub heads: i64,
    /// Tokens of a prompt.
    pub tokens: i64,
    /// Width of image and text embeddings and of text states.
    pub embedding: i64,
}

impl PriorLayout {
    /// The published one.
    pub const KANDINSKY_2_2: Self = Self {
        width: 2048,
        layers: 20,
        heads: 32,
        tokens: 77,
        embedding: 1280,
    };
}

/// The U-Net of Kandinsky 2.2's decoder: conditioned on an image embedding, with attention that
/// appends the context's keys and values to its own (tensors.md).
#[derive(Debug, Clone, PartialEq)]
pub struct ImageUNetLayout {
    /// Width of each level. All but the first attend.
    pub widths: Vec<i64>,
    /// Residual blocks of an encoder level; the decoder has one more.
    pub res_blocks: usize,
    /// Channels of each attention head.
    pub head_channels: i64,
    /// Width of a token of the image embedding.
    pub context_dim: i64,
    /// Tokens of the image embedding.
    pub tokens: i64,
    /// Width of the image embedding.
    pub embedding: i64,
    pub latent_channels: i64,
    pub norm_groups: i64,
}

impl ImageUNetLayout {
    /// The published one.
    #[must_use]
    pub fn kandinsky_2_2() -> Self {
        Self {
            widths: vec![384, 768, 1152, 1536],
            res_blocks: 3,
            head_channels: 64,
            context_dim: 768,
            tokens: 32,
            embedding: 1280,
            latent_channels: 4,
            norm_groups: 32,
        }
    }
}

/// Kandinsky's MoVQ autoencoder, a `VQModel` with spatial norms (tensors.md). The last level of the
/// encoder and the first of the decoder attend.
#[derive(Debug, Clone, PartialEq)]
pub struct MovqLayout {
    /// Width of each level.
    pub widths: Vec<i64>,
    /// Residual blocks of an encoder level; the decoder has one more.
    pub res_blocks: usize,
    pub latent_channels: i64,
    /// Entries of the codebook.
    pub codes: i64,
    pub norm_groups: i64,
}

impl MovqLayout {
    /// The published one.
    #[must_use]
    pub fn kandinsky_2_2() -> Self {
        Self {
            widths: vec![128, 256, 256, 512],
            res_blocks: 2,
            latent_channels: 4,
            codes: 16_384,
            norm_groups: 32,
        }
    }
}
