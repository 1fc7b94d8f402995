//! The one decoder: every orientation in every format, every kind of mask at every depth, files
//! that are cut at every byte, colour profiles, animations, files that are no images. The files in
//! `../images` are written by Pillow; `make.py` beside them says how.
#![allow(clippy::unwrap_used)]

mod colours;
mod cut;
mod files;
mod kinds;
mod masks;
mod orientations;
