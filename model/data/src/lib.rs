//! Training data without libtorch: the Parquet data set, sample order and randomness, choice of
//! references, crops and masks, import and verification. The rank requests [`example::Example`]s
//! from the [`loader::Loader`]; the `model` crate turns them into tensors. Rendering of images is
//! in `figures`.

mod cache;
mod clean;
pub mod columns;
pub mod dataset;
pub mod decode;
pub mod decoded;
pub mod describe;
pub mod evaluation;
pub mod example;
#[cfg(test)]
mod example_data;
pub mod holdout;
pub mod identity;
pub mod image_file;
pub mod image_sizes;
pub mod import;
mod load_error;
pub mod loader;
mod names;
pub mod order;
mod parquet_object;
pub mod pipeline_inputs;
pub mod prepare;
pub mod prompt;
pub mod prompt_length;
pub mod prompt_order;
pub mod random;
pub mod reference;
pub mod resample;
pub mod roles;
pub mod sample;
pub mod tags;
mod text_set;
mod thrift;
pub mod tokenizer;
mod transform;
pub mod user_image;
pub mod verify;
pub mod view;
pub mod wordpiece;
pub mod writer;
