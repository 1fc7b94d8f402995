//! The stages of `[build]`: from published metadata of Danbooru to a data set like the paper's
//! (section 3; appendix A.1). The program `worker-build` runs one unit of a stage; a rank starts it
//! for each unit of its lease.
//!
//! Tabular stages run on an embedded engine, SQLite ([`engine`]). It was compared with DataFusion
//! and DuckDB: the table is in `ARCHITECTURE.md`. Rows move between stages as Parquet in object
//! storage ([`output`]).
//!
//! Read in this order: [`post`] (a row), [`sources`] (where rows come from), [`cloths`],
//! [`filter`], [`outfits`], [`clusters`], [`images`], [`dataset`], [`unit`] (which stage a unit is
//! of).

pub mod cloths;
pub mod clusters;
pub mod dataset;
pub mod engine;
pub mod error;
pub mod figure;
pub mod filter;
pub mod images;
pub mod near;
pub mod outfits;
pub mod output;
pub mod post;
mod scratch;
pub mod sources;
pub mod table;
pub mod unit;
