//! Public weights: the files of each component ([`base`]), the tensor names of other libraries,
//! where ours follow CompVis ([`names`]), reading their `config.json` ([`config`]) and writing ours
//! ([`write`](mod@write)), comparing it, or the shapes of tensors, with a job's tables ([`agree`],
//! [`shapes`]), and the same for the noise schedule ([`scheduler`]). Text only: `base-weights`,
//! `model` and `coordinator` locate and read the files.

pub mod agree;
pub mod base;
pub mod config;
pub mod names;
pub mod pipeline;
pub mod scheduler;
pub mod shapes;
pub mod write;
