//! The components of base weights and the files that may hold them. Three layouts are supported:
//! our own folder (`unet.safetensors`, …), a `diffusers` folder (`unet/config.json` and its
//! weights, …) and a Stable Diffusion single file with all components. Peers of the paper also have
//! files that their authors published. `base_weights::base` locates
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
    /// Another folder that may hold it: Kandinsky's name, or that of a whole CLIP, of which a text
    /// encoder and an image encoder are one tower each.
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
        also: Some(CLIP.folder),
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
        also: Some(CLIP.folder),
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

/// Names of `torch.save`'s file in a component's folder, if there is no other.
pub const PICKLE_FILES: [&str; 2] = ["diffusion_pytorch_model.bin", "pytorch_model.bin"];

/// Whether a file has one of the names that `torch.save` gives.
#[must_use]
pub fn is_pickle(file: &str) -> bool {
    [".bin", ".pth", ".pt", ".ckpt"]
        .iter()
        .any(|it| file.ends_with(it))
}

/// The name of a file after its conversion to safetensors, under which it is found in its folder;
/// other names stay.
#[must_use]
pub fn converted_name(file: &str) -> String {
    if !is_pickle(file) {
        return file.to_owned();
    }
    let (folder, name) = match file.rsplit_once('/') {
        Some((folder, name)) => (format!("{folder}/"), name),
        None => (String::new(), file),
    };
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let stem = if folder.is_empty() || stem != "pytorch_model" {
        stem
    } else {
        "model"
    };
    format!("{folder}{stem}.safetensors")
}

/// Names of a component's file as its authors published it, beside its own.
#[must_use]
pub fn published_files(component: &str) -> &'static [&'static str] {
    match component {
        IP_ADAPTER => &["ip-adapter_sd15.safetensors", "ip-adapter_sd15.bin"],
        _ => &[],
    }
}

/// The components in a single file, by the names of its tensors.
#[must_use]
pub fn in_file(names: &[&str]) -> Vec<Part> {
    let has = |prefix: &str| names.iter().any(|name| name.starts_with(prefix));
    // FastComposer's components have the names of diffusers' folders.
    let is_fastcomposer = has("postfuse_module.") && has("unet.");
    let published = |part: &Part| match part.name {
        CONTROLNET => has("controlnet_cond_embedding.") || has("input_hint_block."),
        // A training checkpoint of its authors.
        IP_ADAPTER => has("image_proj_model.") && has("adapter_modules."),
        _ => false,
    };
    let mut parts: Vec<Part> = PARTS.into_iter().chain(OWN_PARTS).collect();
    parts.retain(|part| {
        let in_folder = is_fastcomposer && has(&format!("{}.", part.folder));
        has(part.prefix) || in_folder || published(part)
    });
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_converted_file_has_the_name_under_which_its_folder_is_read() {
        for (name, expected) in [
            ("ip-adapter_sd15.bin", "ip-adapter_sd15.safetensors"),
            ("control_sd15_canny.pth", "control_sd15_canny.safetensors"),
            // FastComposer's, alone.
            ("pytorch_model.bin", "pytorch_model.safetensors"),
            (
                "text_encoder/pytorch_model.bin",
                "text_encoder/model.safetensors",
            ),
            (
                "unet/diffusion_pytorch_model.bin",
                "unet/diffusion_pytorch_model.safetensors",
            ),
            ("unet/config.json", "unet/config.json"),
        ] {
            assert_eq!(converted_name(name), expected);
        }
        for file in PICKLE_FILES {
            let name = converted_name(&format!("x/{file}"));
            assert!(WEIGHT_FILES.contains(&&name[2..]), "{name}");
        }
    }

    #[test]
    fn components_are_known_by_the_names_that_their_authors_gave() {
        let of =
            |names: &[&str]| -> Vec<&str> { in_file(names).iter().map(|it| it.name).collect() };
        let control = [
            "control_model.zero_convs.0.0.bias",
            "model.diffusion_model.out.0.bias",
            "first_stage_model.quant_conv.bias",
            "cond_stage_model.transformer.text_model.final_layer_norm.bias",
        ];
        let all = ["autoencoder", "text_encoder", "unet", CONTROLNET];
        assert_eq!(of(&control), all);
        for own in ["control_model.x", "input_hint_block.0.bias"] {
            assert_eq!(of(&[own]), [CONTROLNET]);
        }
        let adapter = ["image_proj.norm.bias", "ip_adapter.1.to_k_ip.weight"];
        assert_eq!(of(&adapter), [IP_ADAPTER]);
        let trained = [
            "adapter_modules.1.x",
            "image_proj_model.norm.bias",
            "unet.x",
        ];
        assert_eq!(of(&trained), [IP_ADAPTER]);
        let fused = [
            "postfuse_module.x",
            "unet.x",
            "vae.x",
            "text_encoder.x",
            "image_encoder.x",
        ];
        let all = [
            "autoencoder",
            "text_encoder",
            "unet",
            "image_encoder",
            POSTFUSE,
        ];
        assert_eq!(of(&fused), all);
        assert!(of(&["unet.x", "vae.x", "lora.a"]).is_empty());
    }
}
