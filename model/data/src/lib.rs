//! What a sample is, without libtorch: the Parquet data set, the order and randomness of training,
//! reference choice, crops and masks, import and verification. The `model` crate turns an
//! [`example::Example`] into tensors; the rank asks the [`loader::Loader`] for them. Nothing here
//! draws: that is `figures`.

mod cache;
mod clean;
pub mod columns;
pub mod dataset;
pub mod describe;
pub mod example;
#[cfg(test)]
mod example_data;
pub mod holdout;
pub mod identity;
pub mod image_file;
pub mod import;
pub mod loader;
pub mod order;
mod parquet_object;
pub mod prepare;
pub mod prompt;
pub mod random;
pub mod reference;
pub mod sample;
pub mod tags;
pub mod verify;
pub mod writer;
