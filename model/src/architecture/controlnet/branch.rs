//! ControlNet's branch (`cldm.py` of its authors): a copy of the U-Net's time embedding, encoder
//! and middle, convolutions that bring the hint to the size of the latents, and a zero convolution
//! for each of its outputs. Weight names are the authors', without their prefix `control_model.`.

use crate::layer::{Conv, PointConv};
use crate::parameter::Scope;
use crate::unet::{Encoder, Middle, UNet, UNetInputs, UNetTime, repeat_batch};
use proto::layout::UNetLayout;
use tch::Tensor;

/// Convolutions from a hint's pixels to the first level's features, with SiLU in between. The last
/// one begins at zero.
#[derive(Debug)]
struct Hint {
    layers: Vec<Conv>,
}

impl Hint {
    /// `widths` are [`proto::layout::hint_widths`].
    fn new(scope: &Scope<'_>, widths: &[i64], outputs: i64) -> Self {
        let scope = scope.sub("input_hint_block");
        // Activations have the odd numbers.
        let numbered = |layer: usize| scope.sub(2 * layer);
        let mut layers = vec![Conv::three(&numbered(0), 3, widths[0])];
        for pair in widths.windows(2) {
            let (inputs, outputs) = (pair[0], pair[1]);
            let same = Conv::three(&numbered(layers.len()), inputs, inputs);
            layers.push(same);
            layers.push(Conv::down_to(&numbered(layers.len()), inputs, outputs));
        }
        let last = widths[widths.len() - 1];
        let zero = Conv::three_zero(&numbered(layers.len()), last, outputs);
        layers.push(zero);
        Self { layers }
    }

    /// [batch, 3, S, S] in [0, 1] -> [batch, outputs, s, s].
    fn forward(&self, hint: &Tensor) -> Tensor {
        let (first, rest) = self.layers.split_first().expect("a hint has layers");
        rest.iter()
            .fold(first.forward(hint), |xs, layer| layer.forward(&xs.silu()))
    }
}

/// See the module's header.
#[derive(Debug)]
pub struct ControlBranch {
    time: UNetTime,
    encoder: Encoder,
    middle: Middle,
    hint: Hint,
    zero: Vec<PointConv>,
    zero_middle: PointConv,
}

/// The inputs of a branch.
#[derive(Debug)]
pub struct Control<'a> {
    /// [batch, 3, S, S] in [0, 1], in the dtype of the latents. All branches of guidance share it.
    pub hint: &'a Tensor,
    /// One factor for each output, the middle's last.
    pub scales: &'a [f64],
    /// Factors of all outputs, [branches * batch, 1, 1, 1]; None: 1.
    pub kept: Option<&'a Tensor>,
}

impl ControlBranch {
    #[must_use]
    pub fn new(scope: &Scope<'_>, layout: &UNetLayout, hint_widths: &[i64]) -> Self {
        let zero = scope.sub("zero_convs");
        let last = layout.widths[layout.widths.len() - 1];
        let convolution = |(i, level): (usize, usize)| {
            let width = layout.widths[level];
            PointConv::zero(&zero.sub(i).sub(0), width, width)
        };
        Self {
            time: UNetTime::new(scope, layout),
            encoder: Encoder::new(scope, layout),
            middle: Middle::new(scope, layout),
            hint: Hint::new(scope, hint_widths, layout.widths[0]),
            zero: layout
                .input_levels()
                .into_iter()
                .enumerate()
                .map(convolution)
                .collect(),
            zero_middle: PointConv::zero(&scope.sub("middle_block_out").sub(0), last, last),
        }
    }

    /// The number of outputs: one for each input block, and the middle's.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.zero.len() + 1
    }

    /// The residuals for the U-Net's skip connections and, last, for its middle: [branches * batch,
    /// C_i, H_i, W_i].
    #[must_use]
    pub fn forward(&self, inputs: &UNetInputs<'_>, control: &Control<'_>) -> Vec<Tensor> {
        let branches = inputs.branches();
        let latents = repeat_batch(inputs.latents, branches);
        let time = self.time.embed(inputs.timesteps, latents.kind());
        let time = repeat_batch(&time, branches);
        let hint = repeat_batch(&self.hint.forward(control.hint), branches);
        let features = self
            .encoder
            .forward_with_hint(&latents, &time, inputs.text, Some(&hint));
        let last = &features[features.len() - 1];
        let middle = self.middle.forward(last, &time, inputs.text, None);
        let outputs = self.zero.iter().zip(&features);
        let outputs = outputs
            .map(|(zero, xs)| zero.forward(xs))
            .chain([self.zero_middle.forward(&middle)]);
        outputs
            .zip(control.scales)
            .map(|(xs, scale)| {
                let xs = if *scale == 1.0 { xs } else { xs * *scale };
                match control.kept {
                    // Every parameter stays in the graph, because DDP's Reducer waits for all
                    // gradients.
                    Some(kept) => &xs * kept.to_kind(xs.kind()),
                    None => xs,
                }
            })
            .collect()
    }
}

/// The U-Net's prediction with the branch's residuals: [branches * batch, c, h, w].
pub fn predict(
    unet: &UNet,
    branch: &ControlBranch,
    inputs: &UNetInputs<'_>,
    control: &Control<'_>,
) -> Tensor {
    let mut residuals = branch.forward(inputs, control);
    let middle = residuals.pop().expect("the middle has an output");
    let skips: Vec<Option<Tensor>> = residuals.into_iter().map(Some).collect();
    unet.forward(&UNetInputs {
        skips: &skips,
        middle: Some(&middle),
        ..*inputs
    })
}
