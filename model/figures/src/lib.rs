//! Everything that draws: synthetic figures (a data set that needs no download), and grids, heat
//! maps and curves for people to look at. Used by command lines and ranks; nothing that
//! `coordinator serve` reaches names this crate.

pub mod curve;
pub mod grid;
pub mod heat;
pub mod synthetic;
mod text;
