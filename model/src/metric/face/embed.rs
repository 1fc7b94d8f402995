//! Inception-ResNet v1 (Szegedy et al. 2017) with the names and sizes of `facenet-pytorch`: a face
//! -> a vector. FaceNet's embedding, which FastComposer's evaluation compares.

use crate::parameter::{Init, Scope};
use tch::{Kind, Tensor};

/// Of TensorFlow, where the weights come from.
const EPSILON: f64 = 0.001;

/// [faces, 3, side, side] -> [faces, 512], each of length 1.
#[derive(Debug)]
pub(super) struct InceptionResnet {
    stem: Vec<Convolution>,
    /// After the first three convolutions.
    after_pool: Vec<Convolution>,
    first: Vec<Residual>,
    first_reduction: Branches,
    second: Vec<Residual>,
    second_reduction: Branches,
    third: Vec<Residual>,
    linear: Tensor,
    norm: BatchNorm,
}

/// A convolution without bias, its batch normalization and a ReLU.
#[derive(Debug)]
struct Convolution {
    weight: Tensor,
    norm: BatchNorm,
    stride: i64,
    padding: [i64; 2],
}

/// With the averages of training.
#[derive(Debug)]
struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
}

/// Sequences of convolutions side by side, whose outputs are concatenated; the last one may be a
/// max pooling of 3 with stride 2.
#[derive(Debug)]
struct Branches {
    convolutions: Vec<Vec<Convolution>>,
    pools: bool,
}

/// x + scale * branches of x.
#[derive(Debug)]
struct Residual {
    branches: Branches,
    weight: Tensor,
    bias: Tensor,
    scale: f64,
    /// A ReLU at the end.
    activated: bool,
}

/// Outputs, kernel, stride, padding.
type Shape = (i64, [i64; 2], i64, [i64; 2]);

const fn square(outputs: i64, kernel: i64, stride: i64, padding: i64) -> Shape {
    (outputs, [kernel; 2], stride, [padding; 2])
}

/// 1 x `length`, then `length` x 1: the same size.
const fn row(outputs: i64, length: i64) -> Shape {
    (outputs, [1, length], 1, [0, length / 2])
}

const fn column(outputs: i64, length: i64) -> Shape {
    (outputs, [length, 1], 1, [length / 2, 0])
}

impl InceptionResnet {
    pub(super) fn new(root: &Scope<'_>) -> Self {
        let convolution = |name: &str, inputs: i64, shape: Shape| {
            Convolution::new(&root.sub(name), inputs, shape)
        };
        let repeat = |name: &str, count: usize, kind: fn(&Scope<'_>) -> Residual| {
            let scope = root.sub(name);
            (0..count).map(|it| kind(&scope.sub(it))).collect()
        };
        let (small, middle) = (root.sub("mixed_6a"), root.sub("mixed_7a"));
        let mut third: Vec<Residual> = repeat("repeat_3", 5, |it| block8(it, 0.2));
        third.push(Residual {
            activated: false,
            ..block8(&root.sub("block8"), 1.0)
        });
        Self {
            stem: vec![
                convolution("conv2d_1a", 3, square(32, 3, 2, 0)),
                convolution("conv2d_2a", 32, square(32, 3, 1, 0)),
                convolution("conv2d_2b", 32, square(64, 3, 1, 1)),
            ],
            after_pool: vec![
                convolution("conv2d_3b", 64, square(80, 1, 1, 0)),
                convolution("conv2d_4a", 80, square(192, 3, 1, 0)),
                convolution("conv2d_4b", 192, square(256, 3, 2, 0)),
            ],
            first: repeat("repeat_1", 5, block35),
            first_reduction: Branches::reduction(
                &small,
                256,
                &[
                    &[square(384, 3, 2, 0)],
                    &[
                        square(192, 1, 1, 0),
                        square(192, 3, 1, 1),
                        square(256, 3, 2, 0),
                    ],
                ],
            ),
            second: repeat("repeat_2", 10, block17),
            second_reduction: Branches::reduction(
                &middle,
                896,
                &[
                    &[square(256, 1, 1, 0), square(384, 3, 2, 0)],
                    &[square(256, 1, 1, 0), square(256, 3, 2, 0)],
                    &[
                        square(256, 1, 1, 0),
                        square(256, 3, 1, 1),
                        square(256, 3, 2, 0),
                    ],
                ],
            ),
            third,
            linear: root
                .sub("last_linear")
                .parameter("weight", &[512, 1792], Init::FanIn),
            norm: BatchNorm::new(&root.sub("last_bn"), 512),
        }
    }

    /// `faces`: values in [-1, 1], at least 75 pixels on a side; FaceNet's have 160.
    pub(super) fn forward(&self, faces: &Tensor) -> Tensor {
        let xs = sequence(&self.stem, faces);
        let mut xs = sequence(&self.after_pool, &pool(&xs));
        for (blocks, reduction) in [
            (&self.first, Some(&self.first_reduction)),
            (&self.second, Some(&self.second_reduction)),
            (&self.third, None),
        ] {
            xs = blocks.iter().fold(xs, |xs, block| block.forward(&xs));
            xs = reduction.map_or(xs.shallow_clone(), |it| it.forward(&xs));
        }
        let averages = xs.mean_dim([2i64, 3].as_slice(), false, Kind::Float);
        let out = self.norm.forward(&averages.matmul(&self.linear.tr()));
        let squares = out.square();
        let lengths = squares.sum_dim_intlist([1i64].as_slice(), true, Kind::Float);
        out / lengths.sqrt().clamp_min(1e-12)
    }
}

fn block35(scope: &Scope<'_>) -> Residual {
    let branches: [&[Shape]; 3] = [
        &[square(32, 1, 1, 0)],
        &[square(32, 1, 1, 0), square(32, 3, 1, 1)],
        &[
            square(32, 1, 1, 0),
            square(32, 3, 1, 1),
            square(32, 3, 1, 1),
        ],
    ];
    Residual::new(scope, 256, &branches, 0.17)
}

fn block17(scope: &Scope<'_>) -> Residual {
    let long: &[Shape] = &[square(128, 1, 1, 0), row(128, 7), column(128, 7)];
    Residual::new(scope, 896, &[&[square(128, 1, 1, 0)], long], 0.1)
}

fn block8(scope: &Scope<'_>, scale: f64) -> Residual {
    let long: &[Shape] = &[square(192, 1, 1, 0), row(192, 3), column(192, 3)];
    Residual::new(scope, 1792, &[&[square(192, 1, 1, 0)], long], scale)
}

impl Convolution {
    fn new(scope: &Scope<'_>, inputs: i64, (outputs, kernel, stride, padding): Shape) -> Self {
        let shape = [outputs, inputs, kernel[0], kernel[1]];
        Self {
            weight: scope.sub("conv").parameter("weight", &shape, Init::FanIn),
            norm: BatchNorm::new(&scope.sub("bn"), outputs),
            stride,
            padding,
        }
    }

    fn outputs(&self) -> i64 {
        self.weight.size()[0]
    }

    fn forward(&self, xs: &Tensor) -> Tensor {
        let none: Option<&Tensor> = None;
        let xs = xs.conv2d(
            &self.weight,
            none,
            [self.stride; 2],
            self.padding,
            [1, 1],
            1,
        );
        self.norm.forward(&xs).relu()
    }
}

impl BatchNorm {
    fn new(scope: &Scope<'_>, channels: i64) -> Self {
        let vector = |name: &str, init: Init| scope.parameter(name, &[channels], init);
        Self {
            weight: vector("weight", Init::Ones),
            bias: vector("bias", Init::Zeros),
            mean: vector("running_mean", Init::Zeros),
            variance: vector("running_var", Init::Ones),
        }
    }

    fn forward(&self, xs: &Tensor) -> Tensor {
        let (mean, variance) = (Some(&self.mean), Some(&self.variance));
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        xs.batch_norm(weight, bias, mean, variance, false, 0.0, EPSILON, false)
    }
}

impl Branches {
    /// Each branch's first convolution reads `inputs` channels. A branch of one convolution has its
    /// name, a longer one's have numbers.
    fn new(scope: &Scope<'_>, inputs: i64, shapes: &[&[Shape]], pools: bool) -> Self {
        let numbered = shapes.iter().enumerate();
        let convolutions = numbered.map(|(branch, shapes)| {
            let scope = scope.sub(format!("branch{branch}"));
            let mut inputs = inputs;
            let mut made = Vec::new();
            for (number, shape) in shapes.iter().enumerate() {
                let own = if shapes.len() == 1 {
                    Convolution::new(&scope, inputs, *shape)
                } else {
                    Convolution::new(&scope.sub(number), inputs, *shape)
                };
                inputs = own.outputs();
                made.push(own);
            }
            made
        });
        Self {
            convolutions: convolutions.collect(),
            pools,
        }
    }

    fn reduction(scope: &Scope<'_>, inputs: i64, shapes: &[&[Shape]]) -> Self {
        Self::new(scope, inputs, shapes, true)
    }

    fn outputs(&self) -> i64 {
        let last = self.convolutions.iter().filter_map(|it| it.last());
        last.map(Convolution::outputs).sum()
    }

    fn forward(&self, xs: &Tensor) -> Tensor {
        let branches = self.convolutions.iter();
        let mut outputs: Vec<Tensor> = branches.map(|it| sequence(it, xs)).collect();
        if self.pools {
            outputs.push(pool(xs));
        }
        Tensor::cat(&outputs, 1)
    }
}

impl Residual {
    fn new(scope: &Scope<'_>, channels: i64, shapes: &[&[Shape]], scale: f64) -> Self {
        let branches = Branches::new(scope, channels, shapes, false);
        let out = scope.sub("conv2d");
        let shape = [channels, branches.outputs(), 1, 1];
        Self {
            weight: out.parameter("weight", &shape, Init::FanIn),
            bias: out.parameter("bias", &[channels], Init::Zeros),
            branches,
            scale,
            activated: true,
        }
    }

    fn forward(&self, xs: &Tensor) -> Tensor {
        let (ones, bias) = ([1, 1], Some(&self.bias));
        let inner = self.branches.forward(xs);
        let inner = inner.conv2d(&self.weight, bias, ones, [0, 0], ones, 1);
        let out = inner * self.scale + xs;
        if self.activated { out.relu() } else { out }
    }
}

fn sequence(convolutions: &[Convolution], xs: &Tensor) -> Tensor {
    let xs = xs.shallow_clone();
    convolutions.iter().fold(xs, |xs, it| it.forward(&xs))
}

fn pool(xs: &Tensor) -> Tensor {
    xs.max_pool2d([3, 3], [2, 2], [0, 0], [1, 1], false)
}
