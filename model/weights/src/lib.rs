//! Base weights: locates the components of a base model behind a URL, and computes the digest by
//! which a checkpoint names them. Reads names, configs and headers; whole files are read only to
//! hash them, and files of `torch.save` to convert them. Tensors are handled by `model`. No
//! libtorch.

mod archive;
pub mod base;
pub mod convert;
mod header;
pub mod init_digest;
pub mod pickle;
pub mod torch_file;
