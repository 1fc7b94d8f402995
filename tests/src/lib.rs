//! Test support: clusters of real processes on loopback, with or without random faults, and
//! simulated clusters.

pub mod chaos;
pub mod cluster;
pub mod flood;
pub mod world;
