//! Imports of what the world's tools write, the same checked by `verify` in existing data sets, and
//! the ratings that a job uses.
#![allow(clippy::unwrap_used)]

mod folder;
mod images;
mod ratings;
mod text;
mod verified;
