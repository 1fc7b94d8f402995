//! The components of base weights and the files that may hold them. Three layouts are supported:
//! our own folder (`unet.safetensors`, …), a `diffusers` folder (`unet/config.json` and its
//! weights, …) and a Stable Diffusion single file with all components. `base_weights::base` locates
//! the files; `model` reads them.

use super::names::{
    SINGLE_FILE_AUTOENCODER, SINGLE_FILE_CONTROLNET, SINGLE_FILE_TEXT, SINGLE_FILE_UNET,
};
use crate::architecture::{CONTROLNET, IP_ADAPTER, POSTFUSE, PRIOR, UNCLIP};

/// One component of a base model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Our name: that of the table in job.toml, and the prefix of its parameter names.
    pub name: &'static str,
    /// Its folder in the layout of `diffusers`.
    pub folder: &'static str,
    /// The folder's name in Kandinsky's, if it differs.
    pub also: Option<&'static str>,
    /// Prefix of its tensor names in a single file.
    pub prefix: &'static str,
}

impl Part {
    /// Its file in our own layout.
    #[must_use]
    pub fn file(&self) -> String {
        format!("{}.safetensors", self.name)
    }
}

/// A CLIP's two towers, in the layout of a `CLIPModel`. No base model has it.
pub const CLIP: Part = Part {
    name: "clip",
    folder: "clip",
    also: None,
    prefix: "clip.",
};

/// The components of a base model.
pub const PARTS: [Part; 3] = [
    Part {
        name: "autoencoder",
        folder: "vae",
        also: Some("movq"),
        prefix: SINGLE_FILE_AUTOENCODER,
    },
    Part {
        name: "text_encoder",
        folder: "text_encoder",
        also: None,
        prefix: SINGLE_FILE_TEXT,
    },
    Part {
        name: "unet",
        folder: "unet",
        also: None,
        prefix: SINGLE_FILE_UNET,
    },
];

/// The components that only single architectures have ([`crate::architecture::Facts::own_file`]).
/// They lie beside the base model's, or in a file of their own.
pub const OWN_PARTS: [Part; 6] = [
    Part {
        name: CONTROLNET,
        folder: "controlnet",
        also: None,
        prefix: SINGLE_FILE_CONTROLNET,
    },
    Part {
        name: "image_encoder",
        folder: "image_encoder",
        also: None,
        prefix: "image_encoder.",
    },
    Part {
        name: IP_ADAPTER,
        folder: "ip_adapter",
        also: None,
        prefix: "ip_adapter.",
    },
    Part {
        name: POSTFUSE,
        folder: "postfuse_module",
        also: None,
        prefix: "postfuse_module.",
    },
    Part {
        name: PRIOR,
        folder: "prior",
        also: None,
        prefix: "prior.",
    },
    Part {
        name: UNCLIP,
        folder: "unclip",
        also: None,
        prefix: "unclip.",
    },
];

/// The part of this name, of a base model or of a single architecture.
#[must_use]
pub fn part(name: &str) -> Option<Part> {
    let mut all = PARTS.into_iter().chain(OWN_PARTS);
    all.find(|part| part.name == name)
}

/// Names of the weight file in a component's folder, in order of preference. Each may also be split
/// into several files, listed in `<name>.index.json`.
pub const WEIGHT_FILES: [&str; 4] = [
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors",
];

/// The configuration file in a component's folder.
pub const CONFIG_FILE: &str = "config.json";
