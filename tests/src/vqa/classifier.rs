//! Guesses the attributes of a figure from its pixels alone: softmax regression on a small copy of
//! the image, one for each attribute. Weak, and said to be so: [`Classifier::accuracy`] is measured
//! on characters that it was not trained on. It stands for a VQA model in tests because its answers
//! depend on what an image shows and on nothing else.

use super::attributes::Attribute;
use image::RgbImage;
use model_data::resample::resize_bicubic;

/// Side of the copy.
const SIDE: u32 = 20;
const FEATURES: usize = (SIDE * SIDE * 3) as usize;
const EPOCHS: u32 = 30;
const BATCH: usize = 16;
const RATE: f32 = 0.02;
/// Shrinks weights at each step, so that they do not memorize single images.
const DECAY: f32 = 2e-3;

/// An image and its tags.
pub type Labelled = (RgbImage, String);

#[derive(Debug)]
pub struct Classifier {
    /// Of each feature over the training images.
    mean: Vec<f32>,
    deviation: Vec<f32>,
    /// For each attribute, FEATURES + 1 weights for each class.
    weights: Vec<Vec<f32>>,
    accuracy: Vec<Accuracy>,
}

/// How often the classifier is right on images that it has not seen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Accuracy {
    pub attribute: Attribute,
    pub images: usize,
    pub right: f64,
    /// Always saying the most frequent answer of the training images.
    pub most_frequent: f64,
}

impl Classifier {
    /// Trains on some images and measures on others. The same images give the same classifier.
    #[must_use]
    pub fn train(training: &[Labelled], held_out: &[Labelled]) -> Self {
        let raw: Vec<Vec<f32>> = training.iter().map(|(image, _)| pixels(image)).collect();
        let count = raw.len().max(1) as f32;
        let sum = |of: &dyn Fn(usize) -> f32| (0..raw.len()).map(of).sum::<f32>() / count;
        let mean: Vec<f32> = (0..FEATURES).map(|f| sum(&|row| raw[row][f])).collect();
        let deviation = (0..FEATURES)
            .map(|f| sum(&|row| (raw[row][f] - mean[f]).powi(2)).sqrt().max(1e-3))
            .collect();
        let mut found = Self {
            mean,
            deviation,
            weights: Vec::new(),
            accuracy: Vec::new(),
        };
        let features: Vec<Vec<f32>> = raw.iter().map(|it| found.normalized(it)).collect();
        for attribute in Attribute::ALL {
            let labels = training.iter().map(|(_, tags)| attribute.class(tags));
            let labels: Vec<usize> = labels.collect();
            let weights = regression(&features, &labels, attribute.classes());
            found.weights.push(weights);
        }
        found.accuracy = Attribute::ALL
            .map(|attribute| found.measure(attribute, training, held_out))
            .to_vec();
        found
    }

    fn measure(
        &self,
        attribute: Attribute,
        training: &[Labelled],
        held_out: &[Labelled],
    ) -> Accuracy {
        let mut counts = vec![0usize; attribute.classes()];
        for (_, tags) in training {
            counts[attribute.class(tags)] += 1;
        }
        let most = (0..counts.len()).max_by_key(|class| counts[*class]);
        let images = held_out.len().max(1) as f64;
        let fraction = |is_right: &dyn Fn(&Labelled) -> bool| {
            held_out.iter().filter(|it| is_right(it)).count() as f64 / images
        };
        Accuracy {
            attribute,
            images: held_out.len(),
            right: fraction(&|(image, tags)| self.class(attribute, image) == attribute.class(tags)),
            most_frequent: fraction(&|(_, tags)| Some(attribute.class(tags)) == most),
        }
    }

    /// The number of the most probable answer.
    #[must_use]
    pub fn class(&self, attribute: Attribute, image: &RgbImage) -> usize {
        let features = self.normalized(&pixels(image));
        let weights = &self.weights[attribute as usize];
        let scores = scores(weights, &features);
        let better = |a: &usize, b: &usize| scores[*a].total_cmp(&scores[*b]);
        (0..scores.len()).max_by(better).unwrap_or_default()
    }

    /// On images that it has not seen, by attribute.
    #[must_use]
    pub fn accuracy(&self) -> &[Accuracy] {
        &self.accuracy
    }

    fn normalized(&self, pixels: &[f32]) -> Vec<f32> {
        let scaled = pixels.iter().zip(&self.mean).zip(&self.deviation);
        scaled
            .map(|((value, mean), deviation)| (value - mean) / deviation)
            .collect()
    }
}

fn pixels(image: &RgbImage) -> Vec<f32> {
    let small = resize_bicubic(image, SIDE, SIDE);
    small
        .as_raw()
        .iter()
        .map(|it| f32::from(*it) / 255.0)
        .collect()
}

fn scores(weights: &[f32], features: &[f32]) -> Vec<f32> {
    let rows = weights.chunks_exact(FEATURES + 1);
    rows.map(|row| {
        let products = row.iter().zip(features).map(|(a, b)| a * b);
        products.sum::<f32>() + row[FEATURES]
    })
    .collect()
}

/// Minimizes the cross-entropy by stochastic gradient descent, in an order that is always the same.
fn regression(features: &[Vec<f32>], labels: &[usize], classes: usize) -> Vec<f32> {
    let mut weights = vec![0f32; classes * (FEATURES + 1)];
    let mut order: Vec<usize> = (0..features.len()).collect();
    let mut state = 1u64;
    for epoch in 0..EPOCHS {
        for index in (1..order.len()).rev() {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            order.swap(index, (state >> 33) as usize % (index + 1));
        }
        let rate = RATE * (1.0 - epoch as f32 / EPOCHS as f32) / BATCH as f32;
        for batch in order.chunks(BATCH) {
            weights
                .iter_mut()
                .for_each(|it| *it *= 1.0 - DECAY * rate * BATCH as f32);
            for &row in batch {
                let mut errors = scores(&weights, &features[row]);
                let largest = errors.iter().copied().fold(f32::MIN, f32::max);
                errors.iter_mut().for_each(|it| *it = (*it - largest).exp());
                let sum: f32 = errors.iter().sum();
                errors.iter_mut().for_each(|it| *it /= sum);
                errors[labels[row]] -= 1.0;
                for (weights, error) in weights.chunks_exact_mut(FEATURES + 1).zip(&errors) {
                    let step = rate * error;
                    let pairs = weights.iter_mut().zip(&features[row]);
                    pairs.for_each(|(weight, feature)| *weight -= step * feature);
                    weights[FEATURES] -= step;
                }
            }
        }
    }
    weights
}
