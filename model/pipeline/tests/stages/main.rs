//! The tabular stages on synthetic figures that are published as a fake Danbooru.
#![allow(clippy::unwrap_used)]

#[path = "../danbooru/mod.rs"]
mod danbooru;
mod answers;
mod bad_input;
mod editions;
mod resume;
mod run;
