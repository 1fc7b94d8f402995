//! The basic layers of all networks: named weights and a forward pass. Images and feature maps are
//! [batch, channels, height, width], contiguous; token sequences are [batch, tokens, width]. A
//! layer computes in the input's dtype and casts its weights to it; norms always compute in fp32.
//! Channels-last is not used: on the CPU its convolutions are up to a third faster, but its group
//! norm is more than ten times slower.

use crate::parameter::{Init, Scope};
use tch::{Device, Kind, Tensor};

/// y = x W^T + b.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    #[must_use]
    pub fn new(scope: &Scope<'_>, inputs: i64, outputs: i64) -> Self {
        Self {
            bias: Some(scope.parameter("bias", &[outputs], Init::Zeros)),
            ..Self::unbiased(scope, inputs, outputs)
        }
    }

    #[must_use]
    pub fn unbiased(scope: &Scope<'_>, inputs: i64, outputs: i64) -> Self {
        Self {
            weight: scope.parameter("weight", &[outputs, inputs], Init::FanIn),
            bias: None,
        }
    }

    /// [..., inputs] -> [..., outputs].
    pub fn forward(&self, xs: &Tensor) -> Tensor {
        let bias = self.bias.as_ref().map(|bias| bias.to_kind(xs.kind()));
        xs.linear(&self.weight.to_kind(xs.kind()), bias)
    }
}

/// A 3x3 or 1x1 convolution with bias.
#[derive(Debug)]
pub struct Conv {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: i64,
}

impl Conv {
    /// 3x3, stride 1, same size.
    #[must_use]
    pub fn three(scope: &Scope<'_>, inputs: i64, outputs: i64) -> Self {
        Self::new(scope, [outputs, inputs, 3, 3], Init::FanIn, 1, 1)
    }

    /// 3x3, stride 1, same size, with weights initialized to zero.
    #[must_use]
    pub fn three_zero(scope: &Scope<'_>, inputs: i64, outputs: i64) -> Self {
        Self::new(scope, [outputs, inputs, 3, 3], Init::Zeros, 1, 1)
    }

    /// 3x3, stride 2, symmetric padding of 1: half the size.
    #[must_use]
    pub fn down(scope: &Scope<'_>, channels: i64) -> Self {
        Self::new(scope, [channels, channels, 3, 3], Init::FanIn, 2, 1)
    }

    /// [`Self::down`] to another number of channels.
    #[must_use]
    pub fn down_to(scope: &Scope<'_>, inputs: i64, outputs: i64) -> Self {
        Self::new(scope, [outputs, inputs, 3, 3], Init::FanIn, 2, 1)
    }

    /// 3x3, stride 2, no padding; the autoencoder pads its input itself.
    #[must_use]
    pub fn down_unpadded(scope: &Scope<'_>, channels: i64) -> Self {
        Self::new(scope, [channels, channels, 3, 3], Init::FanIn, 2, 0)
    }

    fn new(scope: &Scope<'_>, shape: [i64; 4], init: Init, stride: i64, padding: i64) -> Self {
        Self {
            weight: scope.parameter("weight", &shape, init),
            bias: scope.parameter("bias", &[shape[0]], Init::Zeros),
            stride,
            padding,
        }
    }

    /// [batch, inputs, h, w] -> [batch, outputs, h / stride, w / stride].
    pub fn forward(&self, xs: &Tensor) -> Tensor {
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        let (weight, bias) = (self.weight.to_kind(xs.kind()), self.bias.to_kind(xs.kind()));
        xs.conv2d(&weight, Some(&bias), stride, padding, [1, 1], 1)
    }
}

/// A pointwise (1x1) convolution, on a feature map or on its positions as tokens.
#[derive(Debug)]
pub struct PointConv {
    weight: Tensor,
    bias: Tensor,
}

impl PointConv {
    #[must_use]
    pub fn new(scope: &Scope<'_>, inputs: i64, outputs: i64) -> Self {
        Self::with_init(scope, inputs, outputs, Init::FanIn)
    }

    /// A zero convolution: its weights are initialized to zero, so it outputs zero until its first
    /// update.
    #[must_use]
    pub fn zero(scope: &Scope<'_>, inputs: i64, outputs: i64) -> Self {
        Self::with_init(scope, inputs, outputs, Init::Zeros)
    }

    fn with_init(scope: &Scope<'_>, inputs: i64, outputs: i64, init: Init) -> Self {
        Self {
            weight: scope.parameter("weight", &[outputs, inputs, 1, 1], init),
            bias: scope.parameter("bias", &[outputs], Init::Zeros),
        }
    }

    /// On tokens: [batch, tokens, inputs] -> [batch, tokens, outputs].
    pub fn tokens(&self, xs: &Tensor) -> Tensor {
        let (weight, bias) = (self.weight.to_kind(xs.kind()), self.bias.to_kind(xs.kind()));
        xs.linear(&weight.flatten(1, 3), Some(&bias))
    }

    /// On a feature map: [batch, inputs, h, w] -> [batch, outputs, h, w].
    pub fn forward(&self, xs: &Tensor) -> Tensor {
        let (weight, bias) = (self.weight.to_kind(xs.kind()), self.bias.to_kind(xs.kind()));
        xs.conv2d(&weight, Some(&bias), [1, 1], [0, 0], [1, 1], 1)
    }
}

/// Runs a norm in fp32; input and output have the dtype of `xs`. The CPU's kernels take half
/// precision with fp32 weights and compute in fp32 themselves, which saves two copies of the map;
/// those of a GPU want one dtype.
fn in_fp32(xs: &Tensor, norm: impl Fn(&Tensor) -> Tensor) -> Tensor {
    if xs.device() == Device::Cpu {
        return norm(xs);
    }
    norm(&xs.to_kind(Kind::Float)).to_kind(xs.kind())
}

/// The options of a [`GroupNorm`].
#[derive(Debug, Clone, Copy)]
pub struct GroupNormOptions {
    pub groups: i64,
    pub epsilon: f64,
}

/// Normalizes groups of channels.
#[derive(Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    options: GroupNormOptions,
}

impl GroupNorm {
    #[must_use]
    pub fn new(scope: &Scope<'_>, channels: i64, options: GroupNormOptions) -> Self {
        Self {
            weight: scope.parameter("weight", &[channels], Init::Ones),
            bias: scope.parameter("bias", &[channels], Init::Zeros),
            options,
        }
    }

    pub fn forward(&self, xs: &Tensor) -> Tensor {
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        let GroupNormOptions { groups, epsilon } = self.options;
        in_fp32(xs, |xs| xs.group_norm(groups, weight, bias, epsilon, true))
    }
}

/// Normalizes the last dimension; epsilon is 1e-5 by default.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Option<Tensor>,
    epsilon: f64,
}

impl LayerNorm {
    #[must_use]
    pub fn new(scope: &Scope<'_>, width: i64) -> Self {
        Self {
            bias: Some(scope.parameter("bias", &[width], Init::Zeros)),
            ..Self::unbiased(scope, width)
        }
    }

    /// With a scale and no bias.
    #[must_use]
    pub fn unbiased(scope: &Scope<'_>, width: i64) -> Self {
        Self {
            weight: scope.parameter("weight", &[width], Init::Ones),
            bias: None,
            epsilon: 1e-5,
        }
    }

    #[must_use]
    pub fn epsilon(self, epsilon: f64) -> Self {
        Self { epsilon, ..self }
    }

    pub fn forward(&self, xs: &Tensor) -> Tensor {
        let (weight, bias) = (Some(&self.weight), self.bias.as_ref());
        in_fp32(xs, |xs| {
            xs.layer_norm(self.weight.size(), weight, bias, self.epsilon, true)
        })
    }
}

/// Views a feature map's positions as tokens: [batch, c, h, w] -> [batch, h * w, c].
pub fn to_tokens(xs: &Tensor) -> Tensor {
    xs.flatten(2, 3).transpose(1, 2)
}

/// Inverse of [`to_tokens`] for a map of the given height: [batch, h * w, c] -> [batch, c, h, w],
/// contiguous.
pub fn to_map(xs: &Tensor, height: i64) -> Tensor {
    xs.transpose(1, 2).contiguous().unflatten(2, [height, -1])
}
