//! What the tests of whole clusters stand on: real processes on loopback, quiet or in chaos, and
//! simulated worlds.

pub mod chaos;
pub mod cluster;
pub mod world;
