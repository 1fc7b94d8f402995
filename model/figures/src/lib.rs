//! Rendering: synthetic figures (a data set that needs no download), and image grids, heat maps and
//! loss curves. Used by command lines and ranks. No code that `coordinator serve` reaches depends
//! on this crate.

pub mod curve;
pub mod grid;
pub mod heat;
pub mod scatter;
pub mod synthetic;
mod text;
