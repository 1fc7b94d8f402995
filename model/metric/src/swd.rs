//! Similarity weighted diversity (section 4): the mean of products of each image, its bound, and
//! what tells it from the product of the means.

use crate::error::MetricError;
use crate::statistics::mean;

/// SWD(div, sim) of equation 1: the mean over images of div * sim. `div[i]` and `sim[i]` belong to
/// image i.
///
/// # Errors
/// No image, lists of different lengths, or a value that is not finite.
pub fn swd(div: &[f64], sim: &[f64]) -> Result<f64, MetricError> {
    mean(&products(div, sim, |div, sim| div * sim)?)
}

/// The most that |SWD| can be for images with these values: the square root of mean(div^2) *
/// mean(sim^2), by the inequality of Cauchy and Schwarz (equation 2).
///
/// # Errors
/// As [`swd`].
pub fn bound(div: &[f64], sim: &[f64]) -> Result<f64, MetricError> {
    let squares = |values: &[f64]| swd(values, values);
    // Checks the lengths.
    products(div, sim, |_, _| 0.0)?;
    Ok((squares(div)? * squares(sim)?).sqrt())
}

/// The population covariance: the mean of the products of the deviations from the means. It equals
/// SWD - mean(div) * mean(sim), so it is what SWD adds to the two means.
///
/// # Errors
/// As [`swd`].
pub fn covariance(first: &[f64], second: &[f64]) -> Result<f64, MetricError> {
    let (of_first, of_second) = (mean(first)?, mean(second)?);
    mean(&products(first, second, |a, b| {
        (a - of_first) * (b - of_second)
    })?)
}

/// Pearson's correlation, in [-1, 1]; None if one of the lists does not vary.
///
/// # Errors
/// As [`swd`].
pub fn correlation(first: &[f64], second: &[f64]) -> Result<Option<f64>, MetricError> {
    let common = covariance(first, second)?;
    let own = (covariance(first, first)? * covariance(second, second)?).sqrt();
    Ok((own > 0.0).then(|| (common / own).clamp(-1.0, 1.0)))
}

fn products(
    first: &[f64],
    second: &[f64],
    of: impl Fn(f64, f64) -> f64,
) -> Result<Vec<f64>, MetricError> {
    if first.len() != second.len() {
        return Err(MetricError::Lengths {
            first: first.len(),
            second: second.len(),
        });
    }
    Ok(first.iter().zip(second).map(|(a, b)| of(*a, *b)).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The example of section 1: one half keeps the identity, the other follows the prompt.
    #[test]
    fn halves_that_are_good_at_one_thing_each_score_low() {
        let (div, sim) = ([0.0, 0.8], [0.8, 0.0]);
        assert_eq!(swd(&div, &sim), Ok(0.0));
        let balanced = swd(&[0.4, 0.4], &[0.4, 0.4]).unwrap();
        assert!(balanced > 0.159);
        assert!((bound(&[0.4, 0.4], &[0.4, 0.4]).unwrap() - balanced).abs() < 1e-15);
        assert_eq!(correlation(&div, &sim), Ok(Some(-1.0)));
        assert_eq!(correlation(&[0.5, 0.5], &sim), Ok(None));
    }

    #[test]
    fn what_is_no_number_or_has_no_partner_is_refused() {
        assert_eq!(swd(&[], &[]), Err(MetricError::Empty));
        let lengths = MetricError::Lengths {
            first: 2,
            second: 1,
        };
        assert_eq!(swd(&[1.0, 1.0], &[1.0]), Err(lengths.clone()));
        assert_eq!(bound(&[1.0, 1.0], &[1.0]), Err(lengths.clone()));
        assert_eq!(covariance(&[1.0, 1.0], &[1.0]), Err(lengths));
        assert!(matches!(
            swd(&[1.0, f64::NAN], &[1.0, 1.0]),
            Err(MetricError::NotFinite { index: 1, .. })
        ));
    }
}
