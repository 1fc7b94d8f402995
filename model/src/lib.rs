//! RetriNet and what it is made of, on libtorch: the only crate, with the rank process, that knows
//! tensors. It knows nothing of workers, jobs' queues or rpc. Read in this order: [`trainer`],
//! `architecture`, `diffusion`, [`unet`], then the layers.

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
mod guard;
pub mod init;
mod latent;
pub mod layer;
pub mod loss;
pub mod mapped;
pub mod noise;
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
pub mod vision;
pub mod weights;

pub use architecture::interface::{AttentionMap, SampleOptions};
pub use architecture::retrinet;
