//! SWD on random scores: its difference from the product of the means, and its bound.
#![allow(clippy::unwrap_used)]

use metric::{bound, covariance, mean, swd};
use proptest::prelude::*;

/// Scores of up to a thousand images, as cosines.
fn scores() -> impl Strategy<Value = (Vec<f64>, Vec<f64>)> {
    let value = || -1.0..=1.0f64;
    prop::collection::vec((value(), value()), 1..1000).prop_map(|pairs| pairs.into_iter().unzip())
}

proptest! {
    #[test]
    fn swd_minus_the_product_of_means_is_the_population_covariance((div, sim) in scores()) {
        let difference = swd(&div, &sim).unwrap() - mean(&div).unwrap() * mean(&sim).unwrap();
        let covariance = covariance(&div, &sim).unwrap();
        prop_assert!((difference - covariance).abs() < 1e-12, "{difference:e} {covariance:e}");
    }

    #[test]
    fn swd_is_within_the_bound_of_cauchy_and_schwarz((div, sim) in scores()) {
        let (swd, bound) = (swd(&div, &sim).unwrap(), bound(&div, &sim).unwrap());
        prop_assert!(swd.abs() <= bound + 1e-12, "{swd} {bound}");
    }

    #[test]
    fn the_bound_is_reached_by_proportional_scores((div, _) in scores(), factor in 0.1..1.0f64) {
        let sim: Vec<f64> = div.iter().map(|it| it * factor).collect();
        let (swd, bound) = (swd(&div, &sim).unwrap(), bound(&div, &sim).unwrap());
        prop_assert!((swd - bound).abs() < 1e-12, "{swd} {bound}");
    }
}

/// At the size of the paper's benchmark: 24 models, 5,000 images each.
#[test]
fn the_identity_holds_for_120_000_images() {
    let of = |i: u64, factor: u64| (i.wrapping_mul(factor) >> 33) as f64 / 2f64.powi(31);
    let images = 0..120_000u64;
    let div: Vec<f64> = images
        .clone()
        .map(|i| of(i, 0x9e37_79b9_7f4a_7c15))
        .collect();
    let sim: Vec<f64> = images.map(|i| of(i + 7, 0xbf58_476d_1ce4_e5b9)).collect();
    let difference = swd(&div, &sim).unwrap() - mean(&div).unwrap() * mean(&sim).unwrap();
    let covariance = covariance(&div, &sim).unwrap();
    assert!(
        (difference - covariance).abs() < 1e-12,
        "{difference:e} {covariance:e}"
    );
}
