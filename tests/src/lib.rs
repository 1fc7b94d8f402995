pub mod cluster;
pub mod world;
