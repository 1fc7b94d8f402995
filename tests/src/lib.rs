//! Test support: clusters of real processes on loopback, with or without random faults, simulated
//! clusters, a stand-in for a VQA model, and the maker of the monitoring files in `deploy/`.

pub mod chaos;
pub mod cluster;
pub mod flood;
pub mod monitoring;
pub mod vqa;
pub mod world;
