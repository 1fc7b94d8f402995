//! LPIPS with AlexNet (Zhang et al. 2018, version 0.1): how different two images look. The `div` of
//! "Trusted Div." (paper section 4.1). No package ships the backbone's weights, so both files are
//! named by the user.

use crate::error::{ModelError, catch_panic};
use crate::parameter::{Init, Parameters};
use crate::public::Source;
use image::RgbImage;
use model_data::resample::resize_bicubic;
use proto::evaluate::LPIPS_FILES;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Each convolution: its number in torchvision, inputs, outputs, kernel, stride, padding.
const CONVOLUTIONS: [(i64, i64, i64, i64, i64, i64); 5] = [
    (0, 3, 64, 11, 4, 2),
    (3, 64, 192, 5, 1, 2),
    (6, 192, 384, 3, 1, 1),
    (8, 384, 256, 3, 1, 1),
    (10, 256, 256, 3, 1, 1),
];
/// Colours in [-1, 1] -> the backbone's, (x - shift) / scale.
const SHIFT: [f32; 3] = [-0.030, -0.088, -0.188];
const SCALE: [f32; 3] = [0.458, 0.448, 0.450];
/// The third convolution's input is empty below.
const SIDE_MIN: u32 = 32;

/// The network. Computes in fp32.
#[derive(Debug)]
pub struct Lpips {
    layers: Vec<Layer>,
    device: Device,
}

#[derive(Debug)]
struct Layer {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: i64,
    /// A max pooling of 3 with stride 2 comes before it.
    pooled: bool,
    /// [1, channels, 1, 1].
    head: Tensor,
}

impl Lpips {
    /// Opens a folder with [`LPIPS_FILES`].
    ///
    /// # Errors
    /// A missing file, or a tensor that is missing, unexpected, of the wrong shape or not finite.
    pub fn open(folder: &Path, device: Device) -> Result<Self, ModelError> {
        let (backbone, heads) = (
            Parameters::seeded(0, device).skip_init(String::new()),
            Parameters::seeded(0, device).skip_init(String::new()),
        );
        let (features, root) = (backbone.root().sub("features"), heads.root());
        let numbered = CONVOLUTIONS.iter().enumerate();
        let layers = numbered.map(|(index, it)| {
            let (number, inputs, outputs, kernel, stride, padding) = *it;
            let scope = features.sub(number);
            let shape = [outputs, inputs, kernel, kernel];
            let head = root.sub(format!("lin{index}")).sub("model").sub(1);
            Layer {
                weight: scope.parameter("weight", &shape, Init::FanIn),
                bias: scope.parameter("bias", &[outputs], Init::Zeros),
                stride,
                padding,
                pooled: matches!(index, 1 | 2),
                head: head.parameter("weight", &[1, outputs, 1, 1], Init::FanIn),
            }
        });
        let layers = layers.collect();
        let named = |name: &str| vec![name.to_owned()];
        let load = |file: &str, into: &Parameters, prefix: &str| {
            let source = Source::open(&folder.join(file))?;
            let loaded = source.load(&into.tensors(), named, |name| name.starts_with(prefix));
            loaded.map(drop)
        };
        let [features, linear] = LPIPS_FILES;
        load(features, &backbone, "features.")?;
        load(linear, &heads, "lin")?;
        Ok(Self { layers, device })
    }

    /// The distance of two images, 0 for equal ones. The second is resized to the size of the first
    /// if it has another.
    ///
    /// # Errors
    /// An image of fewer than 32 pixels in a direction; libtorch fails.
    pub fn distance(&self, first: &RgbImage, second: &RgbImage) -> Result<f64, ModelError> {
        let (width, height) = first.dimensions();
        if width.min(height) < SIDE_MIN {
            return Err(ModelError::ImageSize {
                width,
                height,
                least: SIDE_MIN,
            });
        }
        let resized;
        let second = if second.dimensions() == (width, height) {
            second
        } else {
            resized = resize_bicubic(second, width, height);
            &resized
        };
        catch_panic("comparing images", || {
            tch::no_grad(|| Ok(self.compare(&self.input(first), &self.input(second))))
        })
    }

    /// [1, 3, height, width].
    fn input(&self, image: &RgbImage) -> Tensor {
        let (width, height) = image.dimensions();
        let channels = |values: [f32; 3]| {
            let values = Tensor::from_slice(&values).view([1, 3, 1, 1]);
            values.to_device(self.device)
        };
        let pixels = Tensor::from_slice(image.as_raw().as_slice())
            .view([1, i64::from(height), i64::from(width), 3])
            .to_device(self.device)
            .permute([0, 3, 1, 2])
            .contiguous()
            .to_kind(Kind::Float);
        (pixels * (2.0 / 255.0) - 1.0 - channels(SHIFT)) / channels(SCALE)
    }

    fn compare(&self, first: &Tensor, second: &Tensor) -> f64 {
        let (mut a, mut b) = (first.shallow_clone(), second.shallow_clone());
        let mut sum = 0.0;
        for layer in &self.layers {
            (a, b) = (layer.forward(&a), layer.forward(&b));
            let difference = (unit_channels(&a) - unit_channels(&b)).square();
            let weighted =
                (difference * &layer.head).sum_dim_intlist([1i64].as_slice(), true, Kind::Float);
            sum += weighted.mean(Kind::Float).double_value(&[]);
        }
        sum
    }
}

impl Layer {
    fn forward(&self, xs: &Tensor) -> Tensor {
        let pooled = self
            .pooled
            .then(|| xs.max_pool2d([3, 3], [2, 2], [0, 0], [1, 1], false));
        let xs = pooled.as_ref().unwrap_or(xs);
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        xs.conv2d(&self.weight, Some(&self.bias), stride, padding, [1, 1], 1)
            .relu()
    }
}

/// Scales the channels of each position to length 1.
fn unit_channels(xs: &Tensor) -> Tensor {
    let squares = xs.square();
    let sums = squares.sum_dim_intlist([1i64].as_slice(), true, Kind::Float);
    xs / (sums + 1e-8).sqrt()
}
