//! Base weights: where a base model's components lie behind a URL, and the digest by which a
//! checkpoint names them. Reads names, configs and headers, and whole files only to hash them;
//! tensors are `model`'s. No libtorch.

pub mod base;
pub mod init_digest;
