//! Runs real `worker-rank` processes with this test as their daemon. They train a tiny job over
//! Gloo, write checkpoint shards and resume from them. One file per topic.
#![allow(clippy::unwrap_used)]

mod elastic;
mod failures;
mod hang;
mod images;
mod peers;
mod steps;
mod validation;
mod world;
