//! What base weights consist of: the components, and the files in which each may lie. Three layouts
//! are known: our own folder (`unet.safetensors`, …), a `diffusers` folder (`unet/config.json` and
//! its weights, …) and one Stable Diffusion file with everything in it. Who looks for the files is
//! `base_weights::base`; who reads them is `model`.

use super::names::{SINGLE_FILE_AUTOENCODER, SINGLE_FILE_TEXT, SINGLE_FILE_UNET};

/// One component of a base model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Ours: of job.toml's tables and before the names of its parameters.
    pub name: &'static str,
    /// Its folder where `diffusers` wrote the model.
    pub folder: &'static str,
    /// Before the names of its tensors in a single file.
    pub prefix: &'static str,
}

impl Part {
    /// Its file in a folder of ours.
    #[must_use]
    pub fn file(&self) -> String {
        format!("{}.safetensors", self.name)
    }
}

pub const PARTS: [Part; 3] = [
    Part {
        name: "autoencoder",
        folder: "vae",
        prefix: SINGLE_FILE_AUTOENCODER,
    },
    Part {
        name: "text_encoder",
        folder: "text_encoder",
        prefix: SINGLE_FILE_TEXT,
    },
    Part {
        name: "unet",
        folder: "unet",
        prefix: SINGLE_FILE_UNET,
    },
];

/// What a component's folder calls its weights, the preferred first; each may also be cut into
/// several files that `<name>.index.json` lists.
pub const WEIGHT_FILES: [&str; 4] = [
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors",
];

/// What a component's folder says of itself.
pub const CONFIG_FILE: &str = "config.json";
