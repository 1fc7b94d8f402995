//! What a sample is, without libtorch: the Parquet data set, the order and randomness of training, reference
//! choice, crops and masks, the two ways to come by data (synthetic figures, import), and where base weights lie. The `model` crate
//! turns an [`example::Example`] into tensors; the rank asks the [`loader::Loader`] for them.

pub mod base;
mod cache;
mod clean;
pub mod columns;
pub mod curve;
pub mod dataset;
pub mod describe;
pub mod example;
#[cfg(test)]
mod example_data;
pub mod figure;
pub mod grid;
pub mod heat;
pub mod holdout;
pub mod identity;
pub mod import;
pub mod init_digest;
pub mod loader;
pub mod order;
mod parquet_object;
pub mod picture;
pub mod prepare;
pub mod prompt;
pub mod random;
pub mod reference;
pub mod sample;
pub mod store;
pub mod text;
pub mod verify;
pub mod writer;
