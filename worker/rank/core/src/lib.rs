//! What a rank should do next: pure machines. The rank process and the simulated world run the same
//! ones. They have no clock, I/O, async, randomness or logging. A machine is told what happened and
//! answers with what is to be done, in order: [`gang`] for ranks that step together, [`units`] for
//! ranks that work alone.
//!
//! Every wait belongs to the shell, which ends it with an event: the machines need no time.

pub mod gang;
pub mod state;
pub mod units;
