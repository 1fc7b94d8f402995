//! Evaluations: which characters and prompts a plan means in a data set, and the table of results.
//! Used by the rank, which generates and scores, and by the command line, which checks plans before
//! they are submitted and makes reports. No libtorch.

mod choice;
mod row;
mod table;

pub use choice::{Character, ChoiceError, characters, prompts};
pub use row::{Answers, Row};
pub use table::{TableError, read, write};
