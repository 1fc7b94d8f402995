//! Base weights: locates the components of a base model behind a URL, and computes the digest by
//! which a checkpoint names them. Reads names, configs and headers; whole files are read only to
//! hash them. Tensors are handled by `model`. No libtorch.

pub mod base;
mod header;
pub mod init_digest;
