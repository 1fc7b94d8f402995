//! Test support: clusters of real processes on loopback, with or without random faults, simulated
//! clusters, a stand-in for a VQA model, the maker of the monitoring files in `deploy/`, and the
//! load of a large cluster.

pub mod chaos;
pub mod cluster;
pub mod control;
pub mod flood;
pub mod monitoring;
pub mod vqa;
pub mod world;
