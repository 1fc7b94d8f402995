//! Means over images, how sure they are, and differences between two models. Images of one
//! character resemble each other, so an interval resamples characters and not images (ours; the
//! paper gives none).

use crate::error::MetricError;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Resamples below which a quantile of 95 % would be a few values.
const RESAMPLES_MIN: u32 = 100;

/// The mean. The sum is compensated, so that the mean of 120,000 values is exact to a few units of
/// the last place.
///
/// # Errors
/// No value, or one that is not finite.
pub fn mean(values: &[f64]) -> Result<f64, MetricError> {
    if values.is_empty() {
        return Err(MetricError::Empty);
    }
    let nonfinite = values.iter().position(|it| !it.is_finite());
    match nonfinite {
        Some(index) => Err(MetricError::NotFinite {
            index,
            value: values[index],
        }),
        None => Ok(sum(values.iter().copied()) / values.len() as f64),
    }
}

/// Neumaier's compensated sum.
fn sum(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut lost) = (0.0f64, 0.0f64);
    for value in values {
        let next = sum + value;
        lost += if sum.abs() >= value.abs() {
            (sum - next) + value
        } else {
            (value - next) + sum
        };
        sum = next;
    }
    sum + lost
}

/// How an interval is computed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Number of resampled data sets.
    pub resamples: u32,
    /// Probability that the interval should contain the true mean, for instance 0.95.
    pub level: f64,
    pub seed: u64,
}

impl Default for Bootstrap {
    /// 2,000 resamples, 95 %.
    fn default() -> Self {
        Self {
            resamples: 2000,
            level: 0.95,
            seed: 0,
        }
    }
}

/// A mean with its interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Mean over all images; every image counts the same.
    pub mean: f64,
    /// Bounds of the interval; None if there is only one character.
    pub low: Option<f64>,
    pub high: Option<f64>,
    pub images: u64,
    pub characters: u64,
}

/// The mean over images and its percentile interval. A resampled data set has as many characters,
/// drawn with replacement, each with all of its images. The result depends on the values, their
/// characters and `options`, not on their order.
///
/// `values` are (character, value) of each image. A product of two measures gives SWD's interval,
/// a paired difference that of the difference.
///
/// # Errors
/// No value, one that is not finite (its index is that in `values`), or options out of range.
pub fn bootstrap<C: Ord>(
    values: impl IntoIterator<Item = (C, f64)>,
    options: Bootstrap,
) -> Result<Estimate, MetricError> {
    if !(0.0 < options.level && options.level < 1.0) {
        return Err(MetricError::Level {
            level: options.level,
        });
    }
    if options.resamples < RESAMPLES_MIN {
        return Err(MetricError::Resamples {
            resamples: options.resamples,
            least: RESAMPLES_MIN,
        });
    }
    let mut characters: BTreeMap<C, Vec<f64>> = BTreeMap::new();
    for (index, (character, value)) in values.into_iter().enumerate() {
        if !value.is_finite() {
            return Err(MetricError::NotFinite { index, value });
        }
        characters.entry(character).or_default().push(value);
    }
    // A sum depends on the order of its terms.
    let totals: Vec<(f64, f64)> = characters
        .into_values()
        .map(|mut values| {
            values.sort_by(f64::total_cmp);
            (sum(values.iter().copied()), values.len() as f64)
        })
        .collect();
    let Some(all) = of_totals(totals.iter().copied()) else {
        return Err(MetricError::Empty);
    };
    let interval = (totals.len() > 1).then(|| interval(&totals, options));
    Ok(Estimate {
        mean: all,
        low: interval.map(|(low, _)| low),
        high: interval.map(|(_, high)| high),
        images: totals.iter().map(|(_, count)| *count as u64).sum(),
        characters: totals.len() as u64,
    })
}

/// Sums and counts of characters -> the mean over their images; None without images.
fn of_totals(totals: impl Iterator<Item = (f64, f64)> + Clone) -> Option<f64> {
    let count: f64 = totals.clone().map(|(_, count)| count).sum();
    (count > 0.0).then(|| sum(totals.map(|(sum, _)| sum)) / count)
}

fn interval(totals: &[(f64, f64)], options: Bootstrap) -> (f64, f64) {
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let mut means: Vec<f64> = (0..options.resamples)
        .filter_map(|_| {
            let drawn: Vec<(f64, f64)> = totals
                .iter()
                .map(|_| totals[rng.random_range(0..totals.len())])
                .collect();
            of_totals(drawn.into_iter())
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let tail = (1.0 - options.level) / 2.0;
    (quantile(&means, tail), quantile(&means, 1.0 - tail))
}

/// Of sorted values, with linear interpolation as NumPy's default.
fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let at = fraction * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// Differences of two models on the images that both have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Paired<K> {
    /// second - first of each common key, by key.
    pub differences: Vec<(K, f64)>,
    /// Images of the first model without a partner, left out.
    pub only_first: u64,
    /// Images of the second model without a partner, left out.
    pub only_second: u64,
}

/// Pairs the values of two models by the key of an image (character, prompt, seed, sample, but not
/// the model). For -b minus -a, `first` is -a.
#[must_use]
pub fn paired<K: Ord + Clone>(first: &BTreeMap<K, f64>, second: &BTreeMap<K, f64>) -> Paired<K> {
    let differences: Vec<(K, f64)> = first
        .iter()
        .filter_map(|(key, value)| Some((key.clone(), second.get(key)? - value)))
        .collect();
    let common = differences.len();
    Paired {
        only_first: (first.len() - common) as u64,
        only_second: (second.len() - common) as u64,
        differences,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_keeps_what_rounding_would_lose() {
        assert_eq!(mean(&[1e16, 1.0, -1e16, 1.0]), Ok(0.5));
        let tenth = mean(&vec![0.1; 120_000]).unwrap();
        assert!((tenth - 0.1).abs() < 1e-16, "{tenth:e}");
    }

    #[test]
    fn an_interval_resamples_characters_and_not_images() {
        // A thousand equal images of each of two characters are two values, not two thousand.
        let images = |value: f64, character: &'static str| vec![(character, value); 1000];
        let both = [images(0.0, "a"), images(1.0, "b")].concat();
        let found = bootstrap(both.clone(), Bootstrap::default()).unwrap();
        assert_eq!(
            (found.mean, found.low, found.high),
            (0.5, Some(0.0), Some(1.0))
        );
        assert_eq!((found.images, found.characters), (2000, 2));
        let single = bootstrap(images(1.0, "b"), Bootstrap::default()).unwrap();
        assert_eq!((single.mean, single.low, single.high), (1.0, None, None));
        // The same values with an image as its own character are far surer.
        let apart = both.into_iter().map(|(_, value)| value).enumerate();
        let apart = bootstrap(apart, Bootstrap::default()).unwrap();
        assert!(
            apart.low > Some(0.47) && apart.high < Some(0.53),
            "{apart:?}"
        );
    }

    #[test]
    fn an_interval_depends_on_its_seed_and_not_on_the_order_of_rows() {
        let mut rows: Vec<(u64, f64)> = (0..300u64)
            .map(|i| (i % 10, ((i * 7919) % 1000) as f64 / 997.0))
            .collect();
        let options = Bootstrap {
            seed: 3,
            ..Bootstrap::default()
        };
        let first = bootstrap(rows.clone(), options).unwrap();
        rows.reverse();
        rows.swap(5, 200);
        assert_eq!(bootstrap(rows.clone(), options).unwrap(), first);
        let other = Bootstrap { seed: 4, ..options };
        assert_ne!(bootstrap(rows, other).unwrap(), first);
        assert!(first.low < Some(first.mean) && Some(first.mean) < first.high);
    }

    /// With many characters the percentile interval is the normal one.
    #[test]
    fn the_interval_has_the_width_of_the_standard_error() {
        let count = 400;
        let values: Vec<(usize, f64)> = (0..count)
            .map(|i| (i, (i as f64 + 0.5) / count as f64))
            .collect();
        let options = Bootstrap {
            resamples: 20_000,
            ..Bootstrap::default()
        };
        let found = bootstrap(values, options).unwrap();
        let deviation = (1.0f64 / 12.0).sqrt() / (count as f64).sqrt();
        for bound in [
            (found.high.unwrap() - found.mean) / deviation,
            (found.mean - found.low.unwrap()) / deviation,
        ] {
            assert!((bound - 1.96).abs() < 0.06, "{bound}");
        }
    }

    #[test]
    fn options_and_values_out_of_range_are_refused() {
        let with = |options: Bootstrap| bootstrap([(0, 1.0)], options).unwrap_err();
        let default = Bootstrap::default();
        let level = Bootstrap {
            level: 95.0,
            ..default
        };
        assert_eq!(with(level), MetricError::Level { level: 95.0 });
        let few = Bootstrap {
            resamples: 1,
            ..default
        };
        assert_eq!(
            with(few).to_string(),
            "1 resamples are too few; at least 100 are expected"
        );
        let none: [(u8, f64); 0] = [];
        assert_eq!(bootstrap(none, default), Err(MetricError::Empty));
        assert!(matches!(
            bootstrap([(0, 1.0), (1, f64::NAN)], default),
            Err(MetricError::NotFinite { index: 1, .. })
        ));
    }

    #[test]
    fn models_are_compared_on_common_images_and_the_others_are_counted() {
        let a = BTreeMap::from([("x", 0.5), ("y", 0.5), ("only a", 9.0)]);
        let b = BTreeMap::from([("x", 0.75), ("y", 0.25), ("b", 9.0), ("c", 9.0)]);
        let found = paired(&a, &b);
        assert_eq!(found.differences, [("x", 0.25), ("y", -0.25)]);
        assert_eq!((found.only_first, found.only_second), (1, 2));
    }
}
