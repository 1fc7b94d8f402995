//! What the paper measures on generated images (section 5.2, equations 1 and 2), on plain numbers:
//! the list of measures, cosines of embeddings, SWD, the readings of the VQA score, means with
//! their intervals, and paired differences. No tensors, no I/O, no clock.
//!
//! One value belongs to one generated image. All values of one image are [`Scores`]; every table is
//! computed from such rows and from nothing else:
//!
//! ```
//! use metric::{Bootstrap, Measure, Pair, Scores, bootstrap};
//!
//! let image = |clip_i, clip_t| Scores::from([(Measure::ClipI, clip_i), (Measure::ClipT, clip_t)]);
//! let rows = [
//!     ("reimu", image(0.7, 0.2)),
//!     ("reimu", image(0.6, 0.3)),
//!     ("marisa", image(0.8, 0.1)),
//! ];
//! let pair = Pair { div: Measure::ClipT, sim: Measure::ClipI };
//! // The product of each image, then the mean: never the product of the means.
//! let products = rows.iter().filter_map(|(name, scores)| Some((*name, pair.of(scores)?)));
//! let swd = bootstrap(products, Bootstrap::default()).unwrap();
//! assert!((swd.mean - 0.4 / 3.0).abs() < 1e-12 && swd.low <= Some(swd.mean));
//! ```

mod answers;
mod cosine;
mod error;
mod measure;
mod statistics;
mod swd;

pub use answers::{AnswerTable, Reading};
pub use cosine::{Similarity, clip_score, cosine, to_references};
pub use error::MetricError;
pub use measure::{Measure, Pair, Role, Scores};
pub use statistics::{Bootstrap, Estimate, Paired, bootstrap, mean, paired};
pub use swd::{bound, correlation, covariance, swd};
