//! Compares the shapes of tensors in public weights with a job's `[model]` tables. Weights without
//! a `config.json`, such as single files, say in no other way what they are for. Pure.

use super::agree::Disagreement;
use crate::architecture::{CONTROLNET, IP_ADAPTER, IP_ADAPTER_TOKENS, POSTFUSE, PRIOR, UNCLIP};
use crate::layout::hint_widths;
use crate::spec::{AutoencoderConfig, Model};
use std::fmt::Debug;

/// Name prefixes of a component in files that hold several.
const PREFIXES: [&str; 12] = [
    "",
    "model.diffusion_model.",
    "unet.",
    "first_stage_model.",
    "vae.",
    "cond_stage_model.transformer.",
    "text_encoder.",
    "text_model.",
    "image_encoder.",
    "vision_model.",
    "control_model.",
    "postfuse_module.",
];

/// One side of a tensor, and the field of job.toml that it must equal.
struct Side {
    /// What the tensor's side is, for messages.
    what: &'static str,
    /// Its names in the known namings.
    names: &'static [&'static str],
    side: usize,
    ours: &'static str,
    expected: u64,
}

/// Compares the shapes of a component's tensors with a job's tables. `shape` finds the shape of a
/// tensor; a tensor that is missing is not compared here, because the loader names it.
///
/// # Errors
/// The first field that differs.
pub fn agree_by_shapes<'a>(
    component: &str,
    shape: impl Fn(&str) -> Option<&'a [u64]>,
    model: &Model,
) -> Result<(), Disagreement> {
    let find = |names: &[&str]| {
        let mut all = names
            .iter()
            .flat_map(|name| PREFIXES.iter().map(move |prefix| format!("{prefix}{name}")));
        all.find_map(|name| shape(&name))
    };
    for it in sides(component, model) {
        let found = find(it.names).and_then(|shape| shape.get(it.side));
        if let Some(found) = found.filter(|found| **found != it.expected) {
            return Err(differs(it.what, found, it.ours, &it.expected));
        }
    }
    match component {
        CONTROLNET => hint(&find, model),
        "image_encoder" => layers(&find, model),
        _ => Ok(()),
    }
}

fn side(
    what: &'static str,
    names: &'static [&'static str],
    side: usize,
    ours: &'static str,
    expected: u32,
) -> Side {
    Side {
        what,
        names,
        side,
        ours,
        expected: expected.into(),
    }
}

fn differs(
    theirs: &'static str,
    found: &impl Debug,
    ours: &'static str,
    expected: &impl Debug,
) -> Disagreement {
    Disagreement::Field {
        theirs,
        found: format!("{found:?}"),
        ours,
        expected: format!("{expected:?}"),
    }
}

fn sides(component: &str, model: &Model) -> Vec<Side> {
    let job = &model.architecture;
    let image = job.image_encoder();
    match component {
        "image_encoder" => image_sides(model),
        "unet" | CONTROLNET => unet_sides(model),
        "text_encoder" => text_sides(model),
        IP_ADAPTER => image
            .zip(job.unet())
            .map_or_else(Vec::new, |(image, unet)| {
                let names: &'static [&'static str] =
                    &["image_proj.proj.weight", "image_proj_model.proj.weight"];
                vec![
                    side(
                        "the width of the image embeddings that image_proj.proj reads",
                        names,
                        1,
                        "model.image_encoder.projection",
                        image.projection,
                    ),
                    side(
                        "the width of the tokens that image_proj.proj makes",
                        names,
                        0,
                        "4 * model.unet.context_dim",
                        IP_ADAPTER_TOKENS * unet.context_dim,
                    ),
                ]
            }),
        POSTFUSE => job.text_encoder().map_or_else(Vec::new, |it| {
            let names = &["mlp1.fc1.weight"];
            vec![side(
                "the width of mlp1.fc1",
                names,
                0,
                "model.text_encoder.width",
                it.width,
            )]
        }),
        UNCLIP => image.map_or_else(Vec::new, |image| {
            let names = &["encoder_hid_proj.image_embeds.weight"];
            vec![side(
                "the width of the image embeddings that encoder_hid_proj reads",
                names,
                1,
                "model.image_encoder.projection",
                image.projection,
            )]
        }),
        PRIOR => image
            .zip(job.prior())
            .map_or_else(Vec::new, |(image, prior)| {
                let names = &["proj_in.weight"];
                vec![
                    side(
                        "the width of proj_in",
                        names,
                        0,
                        "model.prior.width",
                        prior.width,
                    ),
                    side(
                        "the width of the image embeddings that proj_in reads",
                        names,
                        1,
                        "model.image_encoder.projection",
                        image.projection,
                    ),
                ]
            }),
        _ => Vec::new(),
    }
}

/// The text tower.
fn text_sides(model: &Model) -> Vec<Side> {
    let Some(it) = model.architecture.text_encoder() else {
        return Vec::new();
    };
    vec![
        side(
            "the width of embeddings.token_embedding",
            &[
                "text_model.embeddings.token_embedding.weight",
                "embeddings.token_embedding.weight",
            ],
            1,
            "model.text_encoder.width",
            it.width,
        ),
        side(
            "the length of embeddings.position_embedding",
            &[
                "text_model.embeddings.position_embedding.weight",
                "embeddings.position_embedding.weight",
            ],
            0,
            "model.text_encoder.tokens",
            it.tokens,
        ),
    ]
}

/// The image tower.
fn image_sides(model: &Model) -> Vec<Side> {
    let Some(job) = model.architecture.image_encoder() else {
        return Vec::new();
    };
    // The class token is one more.
    let positions = (job.side / job.patch.max(1)).pow(2) + 1;
    vec![
        side(
            "the width of embeddings.class_embedding",
            &[
                "vision_model.embeddings.class_embedding",
                "embeddings.class_embedding",
            ],
            0,
            "model.image_encoder.width",
            job.width,
        ),
        side(
            "the side of the patches of embeddings.patch_embedding",
            &[
                "vision_model.embeddings.patch_embedding.weight",
                "embeddings.patch_embedding.weight",
            ],
            2,
            "model.image_encoder.patch",
            job.patch,
        ),
        side(
            "the number of positions of embeddings.position_embedding",
            &["vision_model.embeddings.position_embedding.weight"],
            0,
            "(model.image_encoder.side / patch)^2 + 1",
            positions,
        ),
        side(
            "the hidden width of encoder.layers.0.mlp",
            &["vision_model.encoder.layers.0.mlp.fc1.weight"],
            0,
            "model.image_encoder.mlp_width",
            job.mlp_width,
        ),
        side(
            "the width of the embedding that visual_projection makes",
            &["visual_projection.weight"],
            0,
            "model.image_encoder.projection",
            job.projection,
        ),
    ]
}

/// A U-Net, or a ControlNet's copy of one.
fn unet_sides(model: &Model) -> Vec<Side> {
    let Some(job) = model.architecture.unet() else {
        return Vec::new();
    };
    let first = &["conv_in.weight", "input_blocks.0.0.weight"];
    vec![
        side(
            "the width of the first convolution",
            first,
            0,
            "model.unet.channels",
            job.channels,
        ),
        side(
            "the number of channels that the first convolution reads",
            first,
            1,
            "model.unet.latent_channels",
            job.latent_channels,
        ),
        side(
            "the width of the text states that the middle block attends to",
            &[
                "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
                "middle_block.1.transformer_blocks.0.attn2.to_k.weight",
            ],
            1,
            "model.unet.context_dim",
            job.context_dim,
        ),
    ]
}

/// The number of layers of the image tower.
fn layers<'a>(
    find: &impl Fn(&[&str]) -> Option<&'a [u64]>,
    model: &Model,
) -> Result<(), Disagreement> {
    let Some(job) = model.architecture.image_encoder() else {
        return Ok(());
    };
    let has = |layer: u32| {
        let name = format!("vision_model.encoder.layers.{layer}.layer_norm1.weight");
        find(&[&name]).is_some()
    };
    if !has(0) {
        return Ok(());
    }
    let found = (0..).take_while(|layer| has(*layer)).count();
    if found == job.layers as usize {
        return Ok(());
    }
    let ours = "model.image_encoder.layers";
    Err(differs(
        "the number of encoder.layers",
        &found,
        ours,
        &job.layers,
    ))
}

/// The convolutions with a stride of 2 that a ControlNet's hint passes: the side of its references
/// divided by that of the latents. A branch of another autoencoder takes references of another
/// size.
fn hint<'a>(
    find: &impl Fn(&[&str]) -> Option<&'a [u64]>,
    model: &Model,
) -> Result<(), Disagreement> {
    let factor = model
        .architecture
        .autoencoder()
        .map_or(1, AutoencoderConfig::factor);
    let expected = hint_widths(factor).len();
    // Convolutions have even numbers in its authors' naming, and are blocks in diffusers'.
    let has = |halvings: usize| {
        let compvis = format!("input_hint_block.{}.weight", 4 * halvings);
        let diffusers = format!(
            "controlnet_cond_embedding.blocks.{}.weight",
            2 * halvings - 1
        );
        find(&[&compvis, &diffusers]).is_some()
    };
    let any = find(&[
        "input_hint_block.0.weight",
        "controlnet_cond_embedding.conv_in.weight",
    ]);
    if any.is_none() {
        return Ok(());
    }
    let halvings = (1..32).take_while(|it| has(*it)).count();
    if halvings + 1 == expected {
        return Ok(());
    }
    Err(differs(
        "the factor between the side of its references and that of the latents",
        &(1_u64 << halvings),
        "model.autoencoder.channel_mult for a factor",
        &factor,
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn model(architecture: &str, size: &str) -> Model {
        let text = format!(
            "name = \"x\"\n[data]\ndataset = \"file:///d\"\nresolution = 256\n[model]\n\
             architecture = \"{architecture}\"\nsize = \"{size}\"\ninit = \"file:///b\"\n\
             [train]\nsteps = 1\nglobal_batch = 1\nmicro_batch = 1\n"
        );
        crate::job::parse_training("job.toml", &text).unwrap().model
    }

    fn compared(component: &str, model: &Model, tensors: &[(&str, &[u64])]) -> Result<(), String> {
        let tensors: BTreeMap<&str, &[u64]> = tensors.iter().copied().collect();
        agree_by_shapes(component, |name| tensors.get(name).copied(), model)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn an_image_tower_of_another_width_is_recognized_under_every_prefix() {
        let model = model("ip-adapter", "sd15");
        let of = |prefix: &str, width, projection, layers| {
            let mut names = vec![
                (
                    format!("{prefix}vision_model.embeddings.class_embedding"),
                    vec![width],
                ),
                (
                    format!("{prefix}visual_projection.weight"),
                    vec![projection, width],
                ),
            ];
            names.extend((0..layers).map(|layer| {
                let layer = format!("vision_model.encoder.layers.{layer}.layer_norm1.weight");
                (format!("{prefix}{layer}"), vec![width])
            }));
            let tensors: Vec<(&str, &[u64])> = names
                .iter()
                .map(|(name, shape)| (name.as_str(), shape.as_slice()))
                .collect();
            compared("image_encoder", &model, &tensors)
        };
        for prefix in ["", "image_encoder."] {
            of(prefix, 1280, 1024, 32).unwrap();
            assert_eq!(
                of(prefix, 1024, 768, 24).unwrap_err(),
                "the width of embeddings.class_embedding is 1024, but the job has \
                 model.image_encoder.width = 1280"
            );
            let error = of(prefix, 1280, 768, 32).unwrap_err();
            assert!(
                error.contains("model.image_encoder.projection = 1024"),
                "{error}"
            );
            let error = of(prefix, 1280, 1024, 24).unwrap_err();
            assert!(error.contains("encoder.layers is 24, but"), "{error}");
        }
        compared("image_encoder", &model, &[("a", &[1])]).unwrap();
    }

    #[test]
    fn a_controlnet_for_references_of_another_size_is_recognized_in_both_namings() {
        let convolution: &[u64] = &[16, 3, 3, 3];
        let compvis = |last: usize| -> Vec<String> {
            let all = (0..=last).step_by(2);
            all.map(|n| format!("control_model.input_hint_block.{n}.weight"))
                .collect()
        };
        let diffusers = |blocks: usize| -> Vec<String> {
            let name = |name: String| format!("controlnet_cond_embedding.{name}.weight");
            let all = (0..blocks).map(|n| name(format!("blocks.{n}")));
            all.chain([name("conv_in".to_owned()), name("conv_out".to_owned())])
                .collect()
        };
        let compared = |size: &str, names: Vec<String>| {
            let tensors: Vec<(&str, &[u64])> = names
                .iter()
                .map(|name| (name.as_str(), convolution))
                .collect();
            compared(CONTROLNET, &model("controlnet", size), &tensors)
        };
        compared("sd15", compvis(14)).unwrap();
        compared("sd15", diffusers(6)).unwrap();
        compared("small", compvis(10)).unwrap();
        compared("small", diffusers(4)).unwrap();
        for names in [compvis(14), diffusers(6)] {
            let error = compared("small", names).unwrap_err();
            let expected = "the factor between the side of its references and that of the latents \
                            is 8, but the job has model.autoencoder.channel_mult for a factor = 4";
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn other_components_are_compared_too() {
        let adapter = model("ip-adapter", "sd15");
        let shape: &[u64] = &[3072, 1024];
        compared(IP_ADAPTER, &adapter, &[("image_proj.proj.weight", shape)]).unwrap();
        let error = compared(
            IP_ADAPTER,
            &adapter,
            &[("image_proj.proj.weight", &[3072, 1280])],
        );
        assert!(
            error
                .unwrap_err()
                .contains("is 1280, but the job has model.image_encoder")
        );
        let name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight";
        let error = compared("unet", &adapter, &[(name, &[1280, 1024])]).unwrap_err();
        assert!(
            error.contains("is 1024, but the job has model.unet.context_dim = 768"),
            "{error}"
        );
        let name = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight";
        let error = compared("text_encoder", &adapter, &[(name, &[49408, 1024])]).unwrap_err();
        assert!(error.contains("model.text_encoder.width = 768"), "{error}");
    }
}
