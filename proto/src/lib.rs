//! The contract: what coordinator, workers, ranks and people say to each other. No I/O.
//!
//! Read in this order: ids, what a job is ([`spec`], [`job`]), what processes say ([`message`],
//! [`wire`]), what lies in object storage ([`dataset`], [`checkpoint`]), what proves it
//! ([`ledger`]), what networks are built from ([`layout`], [`public`]), how daemons read their
//! settings ([`settings`]), what phases are called ([`phase`]) and what else is written alike
//! everywhere ([`text`]).

pub mod architecture;
pub mod checkpoint;
pub mod dataset;
pub mod id;
pub mod job;
pub mod layout;
pub mod ledger;
pub mod message;
pub mod phase;
pub mod place;
pub mod public;
pub mod sample;
pub mod settings;
pub mod sharding;
pub mod size;
pub mod spec;
pub mod text;
pub mod units;
pub mod version;
pub mod wire;

/// What `train.proto` generates. Used at the edge of a process only; everything inside speaks
/// [`message`].
#[allow(
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    clippy::pedantic
)]
pub mod pb {
    tonic::include_proto!("retri.v1");
}
