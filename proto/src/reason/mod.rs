//! Why jobs wait, stop and fail, as data. The coordinator decides by these values, stores them and
//! sends them; a sentence is made (by `Display`) only where a person reads it. So a message can be
//! reworded without changing a decision or a stored byte.
//!
//! Text occurs in them only where it comes from elsewhere: the error of a rank, of the object
//! store, of the operating system.

mod ending;
mod failure;
mod fault;
mod pressure;
mod shortage;
mod stop;
mod violation;
mod waiting;

pub use ending::{Disagreement, Ending, WeightDisagreement};
pub use failure::{RankFailure, stage_kind};
pub use fault::{Blocked, Cause, Consequence, Fault, GenerationEnd, LastGood, RankOn, UnitError};
pub use pressure::{Excess, Pressure};
pub use shortage::{Constraint, Pairs, Reservation, Shortage, UnreachablePair};
pub use stop::{Overdue, StandbyLoss, StopCause, Stopped};
pub use violation::Violation;
pub use waiting::{Dependency, DependencyState, MissingSource, Waiting};

use serde::{Deserialize, Deserializer};

/// Maximum length of a foreign error in a record, in bytes.
const ERROR_BYTES_MAX: usize = 1200;

/// As much of the error as a record has room for; if it is cut, it says so.
fn shorten(error: &str) -> String {
    crate::limits::cut(error, ERROR_BYTES_MAX)
}

/// "1 device", "2 devices".
fn pluralize(number: u64, what: &str) -> String {
    if number == 1 {
        format!("1 {what}")
    } else {
        format!("{number} {what}s")
    }
}

/// Reads a value of this module as a record has it: data, or the sentence that older releases
/// stored.
///
/// # Errors
/// If it is neither.
pub fn data_or_sentence<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + From<String>,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Stored<T> {
        Sentence(String),
        Data(T),
    }
    Ok(match Stored::deserialize(deserializer)? {
        Stored::Sentence(text) => T::from(text),
        Stored::Data(data) => data,
    })
}

macro_rules! from_sentence {
    ($($name:ident),*) => {$(
        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self::Text { text }
            }
        }
    )*};
}

from_sentence!(Cause, Fault, Waiting);
