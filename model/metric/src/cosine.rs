//! Cosines between embeddings: CLIP-I, CLIP-T and the answers of the VQA score.

use crate::error::MetricError;
use serde::{Deserialize, Serialize};

/// The cosine of the angle between two embeddings, in [-1, 1]. They need not have length 1.
///
/// # Errors
/// Embeddings of different widths; one of length zero or with a value that is not finite.
pub fn cosine(first: &[f32], second: &[f32]) -> Result<f64, MetricError> {
    if first.len() != second.len() {
        return Err(MetricError::Lengths {
            first: first.len(),
            second: second.len(),
        });
    }
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let pairs = a.iter().zip(b);
        pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let lengths = dot(first, first).sqrt() * dot(second, second).sqrt();
    if !lengths.is_finite() || lengths <= 0.0 {
        return Err(MetricError::NoDirection);
    }
    // Rounding may exceed 1 by a bit.
    Ok((dot(first, second) / lengths).clamp(-1.0, 1.0))
}

/// How similar an image is to its references.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Similarity {
    /// Mean over the references.
    pub mean: f64,
    /// The most similar reference.
    pub max: f64,
}

/// The cosines of an image with its references. The paper does not say how several references
/// count; the mean is the headline, the maximum stands beside it (ours).
///
/// # Errors
/// No reference; as [`cosine`].
pub fn to_references<'a>(
    image: &[f32],
    references: impl IntoIterator<Item = &'a [f32]>,
) -> Result<Similarity, MetricError> {
    let cosines: Result<Vec<f64>, MetricError> =
        references.into_iter().map(|it| cosine(image, it)).collect();
    let cosines = cosines?;
    Ok(Similarity {
        mean: crate::mean(&cosines)?,
        max: cosines.iter().copied().fold(-1.0, f64::max),
    })
}

/// The number that torchmetrics' `CLIPScore` prints for these cosines: 100 times their mean, at
/// least 0. The clamp comes after the mean.
///
/// # Errors
/// No cosine, or one that is not finite.
pub fn clip_score(cosines: &[f64]) -> Result<f64, MetricError> {
    Ok((100.0 * crate::mean(cosines)?).max(0.0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn cosines_do_not_depend_on_lengths() {
        assert_eq!(cosine(&[3.0, 4.0], &[6.0, 8.0]), Ok(1.0));
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 5.0]), Ok(0.0));
        assert_eq!(cosine(&[1.0, 0.0], &[-2.0, 0.0]), Ok(-1.0));
        assert!((cosine(&[1.0, 1.0], &[1.0, 0.0]).unwrap() - 0.5f64.sqrt()).abs() < 1e-15);
    }

    #[test]
    fn embeddings_without_a_direction_are_refused() {
        assert_eq!(cosine(&[0.0], &[1.0]), Err(MetricError::NoDirection));
        assert_eq!(cosine(&[f32::NAN], &[1.0]), Err(MetricError::NoDirection));
        assert_eq!(
            cosine(&[f32::INFINITY], &[1.0]),
            Err(MetricError::NoDirection)
        );
        assert_eq!(cosine(&[], &[]), Err(MetricError::NoDirection));
        let error = cosine(&[1.0], &[1.0, 2.0]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "1 values are compared with 2; equal numbers are expected"
        );
    }

    #[test]
    fn several_references_count_by_mean_and_maximum() {
        let references: [&[f32]; 2] = [&[1.0, 0.0], &[0.0, 1.0]];
        let found = to_references(&[2.0, 0.0], references).unwrap();
        assert_eq!((found.mean, found.max), (0.5, 1.0));
        let none: [&[f32]; 0] = [];
        assert_eq!(to_references(&[1.0], none), Err(MetricError::Empty));
    }

    #[test]
    fn the_clip_score_is_clamped_after_the_mean() {
        assert_eq!(clip_score(&[0.5, -0.25]), Ok(12.5));
        assert_eq!(clip_score(&[-0.5, 0.25]), Ok(0.0));
        assert_eq!(clip_score(&[]), Err(MetricError::Empty));
    }
}
