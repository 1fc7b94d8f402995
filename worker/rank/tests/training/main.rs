//! Real `worker-rank` processes, with this test as their daemon: they train a tiny job, meet over
//! Gloo, write their shares and come back from them. One file for each thing that can be asked of
//! them.
#![allow(clippy::unwrap_used)]

mod elastic;
mod failures;
mod hang;
mod images;
mod steps;
mod world;
