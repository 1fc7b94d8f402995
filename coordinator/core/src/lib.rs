//! What the cluster should do next: a pure machine.

pub mod event;
