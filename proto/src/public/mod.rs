//! Public weights: which files hold what ([`base`]), how others name the tensors that we name after
//! CompVis ([`names`]), what their `config.json` says ([`config`]) and ours must say
//! ([`write`](mod@write)), and whether a job's tables say the same ([`agree`]). Text only: files
//! are found and read by `base-weights`, `model` and `coordinator`.

pub mod agree;
pub mod base;
pub mod config;
pub mod names;
pub mod write;
