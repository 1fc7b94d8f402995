//! Residual blocks of the U-Net (notes 3.1) and of the autoencoder (notes 5.2). They differ in
//! weight names, in the norm's epsilon and in the time embedding, which only the U-Net's have; the
//! rest is shared.

use crate::layer::{Conv, GroupNorm, GroupNormOptions, Linear, PointConv};
use crate::parameter::Scope;
use tch::Tensor;

/// Norm, SiLU, convolution, + time embedding, norm, SiLU, convolution, + input.
#[derive(Debug)]
pub struct ResBlock {
    norm1: GroupNorm,
    conv1: Conv,
    time: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv,
    shortcut: Option<PointConv>,
}

impl ResBlock {
    /// CompVis `ResBlock`; `time_width` is the width of the time embedding.
    #[must_use]
    pub fn unet(
        scope: &Scope<'_>,
        inputs: i64,
        outputs: i64,
        time_width: i64,
        norm: GroupNormOptions,
    ) -> Self {
        let (first, last) = (scope.sub("in_layers"), scope.sub("out_layers"));
        Self {
            norm1: GroupNorm::new(&first.sub(0), inputs, norm),
            conv1: Conv::three(&first.sub(2), inputs, outputs),
            time: Some(Linear::new(
                &scope.sub("emb_layers").sub(1),
                time_width,
                outputs,
            )),
            norm2: GroupNorm::new(&last.sub(0), outputs, norm),
            conv2: Conv::three_zero(&last.sub(3), outputs, outputs),
            shortcut: (inputs != outputs)
                .then(|| PointConv::new(&scope.sub("skip_connection"), inputs, outputs)),
        }
    }

    /// CompVis `ResnetBlock` of the autoencoder.
    #[must_use]
    pub fn autoencoder(
        scope: &Scope<'_>,
        inputs: i64,
        outputs: i64,
        norm: GroupNormOptions,
    ) -> Self {
        Self {
            norm1: GroupNorm::new(&scope.sub("norm1"), inputs, norm),
            conv1: Conv::three(&scope.sub("conv1"), inputs, outputs),
            time: None,
            norm2: GroupNorm::new(&scope.sub("norm2"), outputs, norm),
            conv2: Conv::three(&scope.sub("conv2"), outputs, outputs),
            shortcut: (inputs != outputs)
                .then(|| PointConv::new(&scope.sub("nin_shortcut"), inputs, outputs)),
        }
    }

    /// [batch, inputs, h, w], and the SiLU of the time embedding [batch, time_width] -> [batch,
    /// outputs, h, w].
    pub fn forward(&self, xs: &Tensor, time: Option<&Tensor>) -> Tensor {
        self.forward_with_skip(xs, xs, time)
    }

    /// [`Self::forward`] with the input passed twice: `shortcut_xs` for the residual connection,
    /// `xs` for the layers. Recomputation passes the input twice so that gradients accumulate in
    /// the original order.
    pub(crate) fn forward_with_skip(
        &self,
        shortcut_xs: &Tensor,
        xs: &Tensor,
        time: Option<&Tensor>,
    ) -> Tensor {
        let mut hidden = self.conv1.forward(&self.norm1.forward(xs).silu());
        if let (Some(layer), Some(time)) = (&self.time, time) {
            hidden += layer.forward(time).unsqueeze(-1).unsqueeze(-1);
        }
        let hidden = self.conv2.forward(&self.norm2.forward(&hidden).silu());
        match &self.shortcut {
            Some(shortcut) => shortcut.forward(shortcut_xs) + hidden,
            None => shortcut_xs + hidden,
        }
    }
}
