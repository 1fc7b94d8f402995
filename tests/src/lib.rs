//! What the tests of whole clusters stand on: real processes on loopback, and simulated worlds.

pub mod cluster;
pub mod world;
