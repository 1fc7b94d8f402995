//! What a sample is, without libtorch: the Parquet data set, the order and randomness of training, reference choice, crops
//! and masks, and the two ways to come by data (synthetic figures, import). The `model` crate turns an
//! [`example::Example`] into tensors; the rank asks the loader for them.

pub mod columns;
pub mod dataset;
pub mod example;
pub mod holdout;
pub mod order;
mod parquet_object;
pub mod random;
pub mod sample;
pub mod store;
pub mod writer;
