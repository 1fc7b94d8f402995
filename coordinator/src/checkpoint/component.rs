//! The tensors of one component of a model, under the names and in the shapes of `diffusers` and
//! `transformers`, read from any layout that a base may have. Called by the export.

use super::CheckpointError;
use base_weights::base::Base;
use half::{bf16, f16};
use object_store::ObjectStoreExt;
use proto::architecture::{CONTROLNET, IP_ADAPTER, POSTFUSE, PRIOR, UNCLIP};
use proto::layout::UNetLayout;
use proto::layout::hint_widths;
use proto::public::base::Part;
use proto::public::names::{
    autoencoder_of_today, diffusers_autoencoder, diffusers_controlnet, diffusers_unet,
    encoder_from_diffusers,
};
use proto::spec::Model;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use std::collections::BTreeMap;

/// Longest accepted safetensors header.
const HEADER_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Weights {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Vec<u8>,
}

impl Weights {
    pub(super) fn new(dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Self {
        Self {
            dtype,
            shape: shape.to_vec(),
            bytes,
        }
    }

    /// Rounds floats to the nearest f16; other dtypes stay unchanged.
    pub(super) fn convert_to_f16(&mut self) {
        if self.dtype == Dtype::BF16 {
            self.convert_to_f32();
        }
        if self.dtype != Dtype::F32 {
            return;
        }
        let halves = self.bytes.chunks_exact(4).flat_map(|it| {
            let value = f32::from_le_bytes(it.try_into().expect("the chunks have four bytes"));
            f16::from_f32(value).to_le_bytes()
        });
        self.bytes = halves.collect();
        self.dtype = Dtype::F16;
    }

    /// Converts a base's 16-bit floats to f32, the dtype of trained weights, so that a file has one
    /// dtype.
    pub(super) fn convert_to_f32(&mut self) {
        let value: fn([u8; 2]) -> f32 = match self.dtype {
            Dtype::F16 => |bytes| f16::from_le_bytes(bytes).to_f32(),
            Dtype::BF16 => |bytes| bf16::from_le_bytes(bytes).to_f32(),
            _ => return,
        };
        let floats = self.bytes.chunks_exact(2).flat_map(|it| {
            let bytes = it.try_into().expect("the chunks have two bytes");
            value(bytes).to_le_bytes()
        });
        self.bytes = floats.collect();
        self.dtype = Dtype::F32;
    }
}

/// A component of a job's model.
pub(super) struct Component {
    part: Part,
    unet: Option<UNetLayout>,
    levels: usize,
    /// Widths of a ControlNet's hint.
    hint: usize,
    /// Its parameters have the names of `diffusers`.
    is_kandinsky: bool,
}

impl Component {
    pub(super) fn new(part: Part, model: &Model) -> Self {
        Self {
            part,
            unet: model.architecture.unet().map(Into::into),
            levels: model
                .architecture
                .autoencoder()
                .map_or(1, |it| it.channel_mult.len()),
            hint: hint_widths(model.architecture.autoencoder().map_or(1, |it| it.factor())).len(),
            is_kandinsky: model.architecture.kandinsky().is_some()
                && ["unet", "autoencoder"].contains(&part.name),
        }
    }

    /// The public name of a tensor of a base, in any layout; None if it belongs to another
    /// component.
    pub(super) fn public_name(&self, name: &str) -> Option<String> {
        // The names of these parts are public in every file.
        if self.is_kandinsky || [PRIOR, UNCLIP].contains(&self.part.name) {
            return Some(name.to_owned());
        }
        if self.part.name == IP_ADAPTER {
            let known = ["image_proj.", "ip_adapter."];
            let belongs = known.iter().any(|prefix| name.starts_with(prefix));
            return belongs.then(|| name.to_owned());
        }
        // Prefixes of the components in a single-file base. No name in a component's own file
        // starts with one of them.
        const SINGLE_FILE_PREFIXES: [&str; 3] = [
            "model.diffusion_model.",
            "first_stage_model.",
            "cond_stage_model.",
        ];
        // FastComposer's single file has the names of folders as prefixes.
        let folder = format!("{}.", self.part.folder);
        let prefixes = [self.part.prefix, &folder];
        let name = match prefixes.iter().find_map(|it| name.strip_prefix(it)) {
            Some(name) => name,
            None if SINGLE_FILE_PREFIXES
                .iter()
                .any(|prefix| name.starts_with(prefix)) =>
            {
                return None;
            }
            None => name,
        };
        match self.part.name {
            "unet" => {
                let layout = self.unet.as_ref()?;
                diffusers_unet(name, layout).or_else(|| is_unet(name).then(|| name.to_owned()))
            }
            CONTROLNET => {
                let layout = self.unet.as_ref()?;
                diffusers_controlnet(name, layout, self.hint)
                    .or_else(|| (is_unet(name) || is_branch(name)).then(|| name.to_owned()))
            }
            "image_encoder" => {
                let known = ["vision_model.", "visual_projection."];
                let belongs = known.iter().any(|prefix| name.starts_with(prefix));
                (belongs && !name.ends_with("position_ids")).then(|| name.to_owned())
            }
            POSTFUSE => {
                let known = ["mlp1.", "mlp2.", "layer_norm."];
                let belongs = known.iter().any(|prefix| name.starts_with(prefix));
                belongs.then(|| name.to_owned())
            }
            "autoencoder" => {
                let known = ["encoder.", "decoder.", "quant_conv.", "post_quant_conv."];
                let belongs = known.iter().any(|prefix| name.starts_with(prefix));
                let names = belongs.then(|| diffusers_autoencoder(name, self.levels));
                Some(autoencoder_of_today(names?.first()?))
            }
            // Trained here, so its names are those of `transformers` already.
            "clip" => Some(name.to_owned()),
            _ => {
                if name == "text_projection.weight" {
                    return Some(name.to_owned());
                }
                let known = ["embeddings.", "encoder.", "final_layer_norm."];
                let short = name.strip_prefix("text_model.").unwrap_or(name);
                let belongs = known.iter().any(|prefix| short.starts_with(prefix));
                (belongs && !short.ends_with("position_ids")).then(|| format!("text_model.{short}"))
            }
        }
    }

    /// A trained tensor under its public name and in its public shape.
    pub(super) fn to_public(&self, name: &str, weights: Weights) -> (String, Weights) {
        let public = self.public_name(name).unwrap_or_else(|| name.to_owned());
        self.with_public_shape(public, weights)
    }

    /// Reshapes to the layers of `diffusers`: linear in the autoencoder's attention, 1x1
    /// convolutions around the U-Net's attention.
    pub(super) fn with_public_shape(
        &self,
        name: String,
        mut weights: Weights,
    ) -> (String, Weights) {
        let linear = self.part.name == "autoencoder"
            && !self.is_kandinsky
            && name.contains(".mid_block.attentions.0.");
        let convolution = ["unet", CONTROLNET].contains(&self.part.name)
            && !self.is_kandinsky
            && (name.ends_with(".proj_in.weight") || name.ends_with(".proj_out.weight"));
        match *weights.shape.as_slice() {
            [outputs, inputs, 1, 1] if linear => weights.shape = vec![outputs, inputs],
            [outputs, inputs] if convolution => weights.shape = vec![outputs, inputs, 1, 1],
            _ => {}
        }
        (name, weights)
    }
}

fn is_branch(name: &str) -> bool {
    const PARTS: [&str; 3] = [
        "controlnet_cond_embedding.",
        "controlnet_down_blocks.",
        "controlnet_mid_block.",
    ];
    PARTS.iter().any(|part| name.starts_with(part))
}

fn is_unet(name: &str) -> bool {
    const PARTS: [&str; 7] = [
        "time_embedding.",
        "conv_in.",
        "down_blocks.",
        "mid_block.",
        "up_blocks.",
        "conv_norm_out.",
        "conv_out.",
    ];
    PARTS.iter().any(|part| name.starts_with(part))
}

/// The initial retrieval encoder, a copy of the U-Net's encoder, under our full names.
pub(super) fn retrieval_encoder(
    unet: BTreeMap<String, Weights>,
    model: &Model,
) -> BTreeMap<String, Weights> {
    let layout = model.architecture.unet().map(UNetLayout::from);
    let copies = unet.into_iter().filter_map(|(name, weights)| {
        let encoder_name = encoder_from_diffusers(&name, layout.as_ref()?)?;
        Some((format!("retrieval.{encoder_name}"), weights))
    });
    copies.collect()
}

/// Reads the tensors of a base's file for which `rename` returns a name, under that name.
pub(super) async fn read_tensors(
    base: &Base,
    file: &str,
    rename: impl Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, Weights>, CheckpointError> {
    let (store, path) = base.object(file);
    let range = async |range: std::ops::Range<u64>| {
        if range.is_empty() {
            return Ok(bytes::Bytes::new());
        }
        let read = store.get_range(&path, range).await;
        read.map_err(|source| super::storage_error("read", &path, source))
    };
    let invalid = |reason: String| CheckpointError::Shard {
        path: path.to_string(),
        reason,
    };
    let length = range(0..8).await?;
    let length = u64::from_le_bytes(
        length
            .as_ref()
            .try_into()
            .map_err(|_| invalid("it is too short".into()))?,
    );
    if length > HEADER_BYTES_MAX {
        return Err(invalid(format!(
            "its header claims a length of {length} bytes"
        )));
    }
    let start = 8 + length;
    let header: Metadata = serde_json::from_slice(&range(8..start).await?)
        .map_err(|error| invalid(error.to_string()))?;
    let mut tensors = BTreeMap::new();
    for (stored_name, info) in header.tensors() {
        let Some(name) = rename(&stored_name) else {
            continue;
        };
        let (begin, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let bytes = range(start + begin..start + end).await?.to_vec();
        tensors.insert(name, Weights::new(info.dtype, &info.shape, bytes));
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proto::public::base::PARTS;

    fn component(name: &str) -> Component {
        let text = "name = \"x\"\n[data]\ndataset = \"file:///d\"\nresolution = 384\n\
                    [model]\narchitecture = \"retrinet\"\nsize = \"sd15\"\ninit = \"file:///b\"\n\
                    [train]\nsteps = 1\nglobal_batch = 1\nmicro_batch = 1\n";
        let model = proto::job::parse_training("job.toml", text).unwrap().model;
        let part = PARTS.iter().find(|part| part.name == name).unwrap();
        Component::new(*part, &model)
    }

    #[test]
    fn the_peers_own_parts_have_the_names_of_their_authors_or_of_diffusers() {
        let of = |architecture: &str, name: &str| {
            let text = format!(
                "name = \"x\"\n[data]\ndataset = \"file:///d\"\nresolution = 384\n[model]\n\
                 architecture = \"{architecture}\"\nsize = \"sd15\"\ninit = \"file:///b\"\n\
                 [train]\nsteps = 1\nglobal_batch = 1\nmicro_batch = 1\n"
            );
            let model = proto::job::parse_training("job.toml", &text).unwrap().model;
            Component::new(proto::public::base::part(name).unwrap(), &model)
        };
        let branch = of("controlnet", "controlnet");
        for alias in [
            "zero_convs.3.0.bias",
            "control_model.zero_convs.3.0.bias",
            "controlnet_down_blocks.3.bias",
        ] {
            let found = branch.public_name(alias);
            assert_eq!(
                found.as_deref(),
                Some("controlnet_down_blocks.3.bias"),
                "{alias}"
            );
        }
        let found = branch.public_name("input_hint_block.14.weight");
        assert_eq!(
            found.as_deref(),
            Some("controlnet_cond_embedding.conv_out.weight")
        );
        assert_eq!(branch.public_name("model.diffusion_model.out.0.bias"), None);
        let adapter = of("ip-adapter", "ip_adapter");
        for name in ["ip_adapter.31.to_v_ip.weight", "image_proj.norm.bias"] {
            assert_eq!(adapter.public_name(name).as_deref(), Some(name));
        }
        assert_eq!(adapter.public_name("unet.conv_in.bias"), None);
        let whole = of("fastcomposer", "unet").public_name("unet.conv_in.bias");
        assert_eq!(whole.as_deref(), Some("conv_in.bias"));
        let text = of("fastcomposer", "text_encoder");
        let found = text.public_name("text_encoder.final_layer_norm.bias");
        assert_eq!(found.as_deref(), Some("text_model.final_layer_norm.bias"));
        assert_eq!(text.public_name("vae.encoder.conv_in.bias"), None);
        let tower = of("fastcomposer", "image_encoder");
        let name = "vision_model.pre_layrnorm.bias";
        for alias in [name, "image_encoder.vision_model.pre_layrnorm.bias"] {
            assert_eq!(tower.public_name(alias).as_deref(), Some(name));
        }
        let prior = of("kandinsky-prior", "prior");
        assert_eq!(
            prior.public_name("prd_embedding").as_deref(),
            Some("prd_embedding")
        );
    }

    #[test]
    fn every_layout_maps_to_the_same_names() {
        let unet = component("unet");
        for alias in [
            "input_blocks.0.0.weight",
            "model.diffusion_model.input_blocks.0.0.weight",
            "conv_in.weight",
        ] {
            assert_eq!(unet.public_name(alias).as_deref(), Some("conv_in.weight"));
        }
        let autoencoder = component("autoencoder");
        for alias in [
            "encoder.mid.attn_1.q.bias",
            "first_stage_model.encoder.mid.attn_1.q.bias",
            "encoder.mid_block.attentions.0.query.bias",
            "encoder.mid_block.attentions.0.to_q.bias",
        ] {
            assert_eq!(
                autoencoder.public_name(alias).as_deref(),
                Some("encoder.mid_block.attentions.0.to_q.bias")
            );
        }
        let text = component("text_encoder");
        for alias in [
            "final_layer_norm.bias",
            "text_model.final_layer_norm.bias",
            "cond_stage_model.transformer.text_model.final_layer_norm.bias",
        ] {
            assert_eq!(
                text.public_name(alias).as_deref(),
                Some("text_model.final_layer_norm.bias")
            );
        }
        for other in [
            "model_ema.decay",
            "betas",
            "cond_stage_model.transformer.text_model.embeddings.position_ids",
            "logit_scale",
        ] {
            for component in [&unet, &autoencoder, &text] {
                assert_eq!(component.public_name(other), None, "{other}");
            }
        }
        assert_eq!(
            text.public_name("first_stage_model.encoder.conv_in.bias"),
            None
        );
        assert_eq!(unet.public_name("first_stage_model.quant_conv.bias"), None);
    }

    #[test]
    fn attention_has_the_shapes_that_diffusers_has() {
        let weights = |shape: &[usize]| Weights::new(Dtype::F32, shape, vec![0; 16]);
        let shape = |component: &str, name: &str, given: &[usize]| {
            self::component(component)
                .with_public_shape(name.to_owned(), weights(given))
                .1
                .shape
        };
        let name = "decoder.mid_block.attentions.0.to_out.0.weight";
        assert_eq!(shape("autoencoder", name, &[2, 2, 1, 1]), [2, 2]);
        assert_eq!(
            shape("autoencoder", "quant_conv.weight", &[2, 2, 1, 1]),
            [2, 2, 1, 1]
        );
        let name = "down_blocks.0.attentions.0.proj_in.weight";
        assert_eq!(shape("unet", name, &[2, 2]), [2, 2, 1, 1]);
    }

    #[test]
    fn conversion_to_f16_rounds_to_the_nearest() {
        let bytes = [1.0f32, -0.1, 65536.0]
            .iter()
            .flat_map(|it| it.to_le_bytes())
            .collect();
        let mut weights = Weights::new(Dtype::F32, &[3], bytes);
        weights.convert_to_f16();
        let halves: Vec<u16> = weights
            .bytes
            .chunks_exact(2)
            .map(|it| u16::from_le_bytes(it.try_into().unwrap()))
            .collect();
        assert_eq!(
            (weights.dtype, halves),
            (Dtype::F16, vec![0x3c00, 0xae66, 0x7c00])
        );
        let halved = weights.bytes.clone();
        weights.convert_to_f32();
        assert_eq!((weights.dtype, weights.bytes.len()), (Dtype::F32, 12));
        weights.convert_to_f16();
        assert_eq!(weights.bytes, halved, "the round trip through f32 is exact");
        let mut weights = Weights::new(
            Dtype::BF16,
            &[1],
            bf16::from_f32(1.5).to_le_bytes().to_vec(),
        );
        weights.convert_to_f16();
        assert_eq!(
            (weights.dtype, weights.bytes),
            (Dtype::F16, f16::from_f32(1.5).to_le_bytes().to_vec())
        );
    }
}
