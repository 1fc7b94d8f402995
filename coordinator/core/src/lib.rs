//! The coordinator's pure state machine. It decides what the cluster does next and holds the queue,
//! the workers' leases, generations and checkpoint commits. It has no async, clock, randomness,
//! sockets, files or logging; the coordinator's loop calls [`Coordinator::handle`] and performs the
//! effects in order.
//!
//! Its rules: every report is answered with the full desired state (law 5); no visible effect
//! depends on unsaved state (law 7); only the newest generation of a job publishes (law 4); every
//! wait has a deadline (law 9).
//!
//! Module dependencies point one way: values (records, events, deadlines, endings) <- jobs
//! ([`gang`], [`units`]) <- the machine's state ([`machine`]) <- the handlers of inputs.

mod account;
mod archive;
mod clock;
mod config;
mod control;
mod deadline;
mod depend;
mod during;
mod evaluation;
pub mod event;
mod explain;
mod fleet;
mod format;
mod gang;
mod handle;
mod head;
mod invariant;
mod job;
mod machine;
mod outbox;
mod partitions;
mod placement;
mod queue;
mod rank;
mod reading;
mod received;
mod record;
mod request;
mod retain;
mod schedule;
mod standby;
mod stored;
mod units;
mod view;
mod view_model;
mod why;

pub use config::{Config, WaitingQuotas};
pub use deadline::Deadlines;
pub use fleet::Displaced;
pub use machine::Coordinator;
pub use queue::QueuePlace;
pub use view::EndedJob;
pub use view_model::{JobView, RankView, SetAside, UnitsView, View, WaitsFor, Why, WorkerView};
