//! The stages of `[build]`: from published metadata of Danbooru to a data set like the paper's
//! (section 3; appendix A.1). The program `worker-build` runs one unit of a stage; a rank starts it
//! for each unit of its lease.
//!
//! Tabular stages run on an embedded engine, SQLite ([`engine`]). It was compared with DataFusion
//! and DuckDB: the table is in `ARCHITECTURE.md`. Rows move between stages as Parquet in object
//! storage ([`output`]).
//!
//! Read in this order: [`post`] (a row), [`sources`] (where rows come from), [`cloths`],
//! [`filter`], [`folders`] (images without posts), [`crops`], [`outfits`], [`onnx`] and [`tagger`]
//! (models that run here), [`clusters`], [`images`], [`masks`], [`faces`], [`dataset`], [`unit`]
//! (which stage a unit is of), [`preview`].

mod batches;
pub mod cloths;
pub mod clusters;
pub mod crops;
pub mod dataset;
pub mod engine;
pub mod error;
pub mod faces;
pub mod figure;
pub mod filter;
pub mod folders;
pub mod images;
pub mod masks;
pub mod near;
pub mod onnx;
pub mod outfits;
pub mod output;
pub mod post;
pub mod preview;
mod scratch;
mod sheet;
pub mod sources;
pub mod table;
pub mod tagger;
mod tar;
mod truth;
pub mod unit;
