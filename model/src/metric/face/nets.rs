//! The three networks of MTCNN (Zhang et al. 2016) with the names and sizes of `facenet-pytorch`.

use crate::parameter::{Init, Scope};
use tch::{Kind, Tensor};

/// Proposes windows: at every second pixel, whether a window of 12 pixels shows a face.
#[derive(Debug)]
pub(super) struct Proposal {
    layers: Convolutions,
    face: Affine,
    offsets: Affine,
}

/// Refines windows: of 24 pixels (R-Net) or of 48 (O-Net).
#[derive(Debug)]
pub(super) struct Refinement {
    layers: Convolutions,
    dense: Affine,
    slopes: Tensor,
    face: Affine,
    offsets: Affine,
    /// Loaded with the others, and not used: where eyes, nose and mouth are.
    _points: Option<Affine>,
}

/// What a network says of each window.
pub(super) struct Seen {
    /// [windows]: probability of a face.
    pub(super) face: Tensor,
    /// [windows, 4]: how far its left, top, right and bottom are from the window's, in parts of the
    /// window's side.
    pub(super) offsets: Tensor,
}

#[derive(Debug)]
struct Affine {
    weight: Tensor,
    bias: Tensor,
}

/// Convolutions, each with a PReLU and perhaps a max pooling.
#[derive(Debug)]
struct Convolutions(Vec<(Affine, Tensor, Option<i64>)>);

impl Proposal {
    pub(super) fn new(root: &Scope<'_>) -> Self {
        let layers = [(3, 10, 3, Some(2)), (10, 16, 3, None), (16, 32, 3, None)];
        let one = |name: &str, outputs: i64| Affine::new(root, name, &[outputs, 32, 1, 1]);
        Self {
            layers: Convolutions::new(root, &layers),
            face: one("conv4_1", 2),
            offsets: one("conv4_2", 4),
        }
    }

    /// [1, 3, height, width] -> the probabilities [rows, columns] and the offsets [4, rows,
    /// columns].
    pub(super) fn forward(&self, xs: &Tensor) -> (Tensor, Tensor) {
        let xs = self.layers.forward(xs);
        let face = self.face.convolve(&xs).softmax(1, Kind::Float);
        (face.get(0).get(1), self.offsets.convolve(&xs).get(0))
    }
}

impl Refinement {
    /// R-Net.
    pub(super) fn small(root: &Scope<'_>) -> Self {
        let layers = [(3, 28, 3, Some(3)), (28, 48, 3, Some(3)), (48, 64, 2, None)];
        let dense = |name: &str, inputs, outputs| Affine::new(root, name, &[outputs, inputs]);
        Self {
            layers: Convolutions::new(root, &layers),
            dense: dense("dense4", 576, 128),
            slopes: slopes(root, 4, 128),
            face: dense("dense5_1", 128, 2),
            offsets: dense("dense5_2", 128, 4),
            _points: None,
        }
    }

    /// O-Net.
    pub(super) fn large(root: &Scope<'_>) -> Self {
        let layers = [
            (3, 32, 3, Some(3)),
            (32, 64, 3, Some(3)),
            (64, 64, 3, Some(2)),
            (64, 128, 2, None),
        ];
        let dense = |name: &str, inputs, outputs| Affine::new(root, name, &[outputs, inputs]);
        Self {
            layers: Convolutions::new(root, &layers),
            dense: dense("dense5", 1152, 256),
            slopes: slopes(root, 5, 256),
            face: dense("dense6_1", 256, 2),
            offsets: dense("dense6_2", 256, 4),
            _points: Some(dense("dense6_3", 256, 10)),
        }
    }

    /// Windows [windows, 3, side, side].
    pub(super) fn forward(&self, xs: &Tensor) -> Seen {
        // The original stores columns before rows.
        let xs = self.layers.forward(xs).permute([0, 3, 2, 1]);
        let xs = self.dense.apply(&xs.flatten(1, -1)).prelu(&self.slopes);
        Seen {
            face: self.face.apply(&xs).softmax(1, Kind::Float).select(1, 1),
            offsets: self.offsets.apply(&xs),
        }
    }
}

impl Affine {
    fn new(root: &Scope<'_>, name: &str, shape: &[i64]) -> Self {
        let scope = root.sub(name);
        Self {
            weight: scope.parameter("weight", shape, Init::FanIn),
            bias: scope.parameter("bias", &shape[..1], Init::Zeros),
        }
    }

    fn convolve(&self, xs: &Tensor) -> Tensor {
        let (ones, bias) = ([1, 1], Some(&self.bias));
        xs.conv2d(&self.weight, bias, ones, [0, 0], ones, 1)
    }

    fn apply(&self, xs: &Tensor) -> Tensor {
        xs.linear(&self.weight, Some(&self.bias))
    }
}

impl Convolutions {
    /// Inputs, outputs, kernel, and the pooling's kernel, whose stride is 2.
    fn new(root: &Scope<'_>, layers: &[(i64, i64, i64, Option<i64>)]) -> Self {
        let numbered = layers.iter().zip(1..);
        let layers = numbered.map(|((inputs, outputs, kernel, pool), number)| {
            let shape = [*outputs, *inputs, *kernel, *kernel];
            let convolution = Affine::new(root, &format!("conv{number}"), &shape);
            (convolution, slopes(root, number, *outputs), *pool)
        });
        Self(layers.collect())
    }

    fn forward(&self, xs: &Tensor) -> Tensor {
        let mut xs = xs.shallow_clone();
        for (convolution, slopes, pool) in &self.0 {
            xs = convolution.convolve(&xs).prelu(slopes);
            if let Some(kernel) = pool {
                xs = xs.max_pool2d([*kernel; 2], [2, 2], [0, 0], [1, 1], true);
            }
        }
        xs
    }
}

fn slopes(root: &Scope<'_>, number: usize, channels: i64) -> Tensor {
    let scope = root.sub(format!("prelu{number}"));
    scope.parameter("weight", &[channels], Init::Constant(0.25))
}
