//! Gangs: jobs whose ranks train together. A gang has generations, of which one runs at a time,
//! standbys for the next one, a ledger, and checkpoints that are being written. [`job`] defines the
//! state of a gang in each phase; the other modules implement its transitions. A gang does not know
//! about other jobs.

mod assignment;
mod blame;
mod change;
mod commit;
mod deadlines;
mod graceful_stop;
mod holdings;
mod invariant;
mod job;
mod ledger;
mod newest;
mod partition;
mod phase;
mod receive;
mod report;
mod running;
mod standby;
mod standbys;
mod steps;
mod stopping;
mod time_limit;
mod view;
mod why;
mod writing;

pub(crate) use change::Change;
pub(crate) use job::{Gang, Plan};
pub(crate) use report::{Class, classify};
