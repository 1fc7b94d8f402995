//! Residual blocks of the U-Net (with the time step) and of the autoencoder (without): notes 3.1
//! and 5.2. They differ in names, in the norm's epsilon and in the time step; the arithmetic is
//! one.

use crate::layer::{Conv, GroupNorm, Linear, PointConv};
use crate::parameter::Scope;
use tch::Tensor;

/// norm, SiLU, convolution, + time step, norm, SiLU, convolution, + input.
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
    /// CompVis `ResBlock`; `time_width` is the width of the time embedding, `norm` the groups and
    /// the epsilon of its norms.
    #[must_use]
    pub fn unet(
        scope: &Scope<'_>,
        inputs: i64,
        outputs: i64,
        time_width: i64,
        (groups, epsilon): (i64, f64),
    ) -> Self {
        let (first, last) = (scope.sub("in_layers"), scope.sub("out_layers"));
        Self {
            norm1: GroupNorm::new(&first.sub(0), groups, inputs, epsilon),
            conv1: Conv::three(&first.sub(2), inputs, outputs),
            time: Some(Linear::new(
                &scope.sub("emb_layers").sub(1),
                time_width,
                outputs,
            )),
            norm2: GroupNorm::new(&last.sub(0), groups, outputs, epsilon),
            conv2: Conv::three_zero(&last.sub(3), outputs, outputs),
            shortcut: (inputs != outputs)
                .then(|| PointConv::new(&scope.sub("skip_connection"), inputs, outputs)),
        }
    }

    /// CompVis `ResnetBlock` of the autoencoder.
    #[must_use]
    pub fn autoencoder(scope: &Scope<'_>, inputs: i64, outputs: i64, groups: i64) -> Self {
        Self {
            norm1: GroupNorm::new(&scope.sub("norm1"), groups, inputs, 1e-6),
            conv1: Conv::three(&scope.sub("conv1"), inputs, outputs),
            time: None,
            norm2: GroupNorm::new(&scope.sub("norm2"), groups, outputs, 1e-6),
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

    /// The same with the input given twice: what is added at the end, and what goes through the
    /// block. Who computes the block again gives it so, and each use's gradient joins the input's
    /// others in the order in which it always did.
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
