//! The contract between coordinator, workers, ranks and the command line. No I/O.
//!
//! Read in this order: ids ([`id`]), job specifications ([`spec`], [`job`]), messages ([`message`],
//! [`wire`]), objects in the store ([`dataset`], [`checkpoint`]), the proof of what was trained
//! ([`ledger`]), network layouts ([`layout`], [`public`]), daemon settings ([`settings`]), limits
//! ([`limits`]), names of phases ([`phase`]) and shared text formats ([`text`], [`duration`]).

pub mod account;
pub mod architecture;
pub mod build;
pub mod checkpoint;
pub mod dataset;
pub mod duration;
pub mod during;
pub mod environment;
pub mod evaluate;
pub mod findings;
pub mod id;
pub mod job;
pub mod knobs;
pub mod layout;
pub mod ledger;
pub mod limits;
mod location;
pub mod message;
pub mod metric;
pub mod phase;
pub mod printable;
pub mod probe;
pub mod public;
pub mod rating;
pub mod reason;
pub mod sample;
pub mod score;
pub mod settings;
pub mod sharding;
pub mod size;
pub mod spec;
pub mod summary;
pub mod text;
pub mod twin;
pub mod units;
pub mod version;
pub mod wire;

/// Code generated from `train.proto`. Used only at the edge of a process; everything inside uses
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
