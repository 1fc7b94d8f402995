//! The tabular stages on synthetic figures that are published as a fake Danbooru.
#![allow(clippy::unwrap_used)]

mod answers;
mod asked;
mod bad_input;
#[path = "../danbooru/mod.rs"]
mod danbooru;
mod editions;
mod faces;
mod figures;
mod folders;
mod kills;
mod masks;
mod mirrors;
mod resume;
mod run;
mod tagged;
mod tars;
mod unfit;
mod web_server;
mod written;
