//! The errors of this crate: numbers that have no mean, no angle or no partner.

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MetricError {
    #[error("there are no values; a mean needs at least one")]
    Empty,
    #[error("value {index} is {value}; a finite number is expected")]
    NotFinite { index: usize, value: f64 },
    #[error("{first} values are compared with {second}; equal numbers are expected")]
    Lengths { first: usize, second: usize },
    #[error("an embedding has length zero or is not finite, so it has no direction")]
    NoDirection,
    #[error("image {image:?} has {found} answers to {expected} questions")]
    Answers {
        image: String,
        found: usize,
        expected: usize,
    },
    #[error("image {image:?} has answers already")]
    Repeated { image: String },
    #[error("image {image:?} has no answers")]
    NoAnswers { image: String },
    #[error("the answer {answer:?} has no embedding")]
    NoEmbedding { answer: String },
    #[error("the interval's level is {level}; a number between 0 and 1 is expected")]
    Level { level: f64 },
    #[error("{resamples} resamples are too few; at least {least} are expected")]
    Resamples { resamples: u32, least: u32 },
}
