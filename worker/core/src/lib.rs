//! What a node should do next about its ranks: a pure machine.

pub mod event;
