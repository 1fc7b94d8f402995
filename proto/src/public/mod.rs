//! Public weights: how others name the tensors that we name after CompVis ([`names`]), and what their `config.json`
//! says ([`config`]). Text only: files are read by `model`, written by `coordinator`.

pub mod config;
pub mod names;
