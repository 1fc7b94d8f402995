//! Gangs: jobs whose ranks train together. A gang has generations, of which one runs at a time,
//! standbys for the next, a ledger, and checkpoints on their way into the store. [`job`] says what
//! a gang holds in which phase; the other modules are what happens to it. It knows nothing of other
//! jobs.

mod assignment;
mod blame;
mod change;
mod commit;
mod deadlines;
mod graceful_stop;
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
mod view;
mod why;
mod writing;

pub(crate) use change::Change;
pub(crate) use job::{Gang, Plan};
pub(crate) use report::{Class, classify};
pub(crate) use stopping::Planned;
