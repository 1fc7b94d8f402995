//! What the cluster should do next: a pure machine. It keeps the queue, the workers' leases,
//! generations and checkpoint commits. It has no async, clock, randomness, sockets, files or
//! logging; the coordinator's loop calls [`Coordinator::handle`] and performs the effects in order.
//!
//! Its rules: what should be is said again on every report (law 5); nothing visible tells of what
//! is not saved (law 7); only the newest generation of a job publishes (law 4); every wait has a
//! deadline (law 9).
//!
//! Modules use each other one way: values (records, events, deadlines, why things end) <- what a
//! job is ([`gang`], [`units`]) <- what the machine holds ([`machine`]) <- what happens to it.

mod clock;
mod config;
mod control;
mod deadline;
mod depend;
pub mod event;
mod explain;
mod fleet;
mod gang;
mod handle;
mod head;
mod invariant;
mod job;
mod machine;
mod outbox;
mod partitions;
mod placement;
mod rank;
mod received;
mod record;
mod request;
mod retain;
mod schedule;
mod shown;
mod standby;
mod stored;
mod units;
mod view;
mod violation;
mod why;
mod words;

pub use config::Config;
pub use deadline::Deadlines;
pub use machine::Coordinator;
pub use shown::{JobView, RankView, SetAside, UnitsView, View, WaitsFor, Why, WorkerView};
