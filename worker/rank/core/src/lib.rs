//! The state machines of a rank. Pure: no clock, I/O, async, randomness or logging. The rank
//! process and the simulator run the same machines. A machine receives inputs and returns effects,
//! in order: [`gang`] for ranks that train together, [`units`] for ranks that work independently.
//!
//! All waiting is done by the shell, which reports the result as an input; the machines need no
//! time.

pub mod environment;
pub mod gang;
pub mod state;
pub mod units;
