//! RetriNet and the networks it is built from, on libtorch. Only this crate and the rank process
//! use tensors. This crate knows nothing of workers, job queues or RPC. Suggested reading order:
//! [`trainer`], `architecture`, `diffusion`, [`unet`], then the layers.

pub mod ancestral;
mod architecture;
pub mod attention;
pub mod autoencoder;
mod batch;
pub mod clip;
pub mod component;
pub mod device;
mod diffusion;
pub mod embedding;
pub mod error;
pub mod forward;
pub mod init;
mod latent;
pub mod layer;
pub mod loss;
pub mod mapped;
pub mod metric;
pub mod movq;
pub mod noise;
mod nonfinite;
pub mod normalize;
pub mod optimizer;
pub mod parameter;
pub mod public;
mod recompute;
pub mod resnet;
pub mod sampler;
pub mod schedule;
pub mod text;
pub mod trainer;
pub mod unet;
pub mod validation;
pub mod vision;
pub mod weights;

pub use architecture::interface::{AttentionMap, SampleOptions};
pub use architecture::{
    controlnet, fastcomposer, ip_adapter, kandinsky_decoder, kandinsky_prior, retrinet,
};
