//! Units: jobs of numbered, idempotent pieces of work. Each worker of such a job works alone, with
//! a generation of its own, so that workers come and go without touching each other; each of its
//! ranks is leased units in small groups. [`job`] says what a job of units holds in which phase;
//! the other modules are what happens to it. It knows nothing of other jobs.

mod assignment;
mod deadlines;
mod fail;
mod invariant;
mod job;
mod lease;
mod members;
mod pace;
mod part;
mod phase;
mod pool;
mod ranges;
mod receive;
mod view;
mod why;

pub(crate) use job::Units;
