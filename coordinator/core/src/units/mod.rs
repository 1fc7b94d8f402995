//! Jobs of units: numbered, idempotent pieces of work. Each worker of such a job works alone, in a
//! generation of its own, so that workers join and leave without affecting each other. Each of its
//! ranks is leased units in small groups. [`job`] defines the state of such a job in each phase;
//! the other modules implement its transitions. It does not know about other jobs.

mod assignment;
mod deadlines;
mod fail;
mod holdings;
mod invariant;
mod job;
mod lease;
mod members;
mod pace;
mod participant;
mod phase;
mod pool;
mod ranges;
mod receive;
mod view;
mod why;

pub(crate) use job::Units;
