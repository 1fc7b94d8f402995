//! Test support: clusters of real processes on loopback, with or without random faults, simulated
//! clusters, and a stand-in for a VQA model.

pub mod chaos;
pub mod cluster;
pub mod flood;
pub mod vqa;
pub mod world;
