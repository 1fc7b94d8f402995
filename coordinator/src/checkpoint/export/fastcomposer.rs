//! FastComposer's `pytorch_model.bin`: the state dict of the one module that its authors' code
//! loads, with the names of the releases that it pins (diffusers 0.16, transformers 4.25).

use super::super::CheckpointError;
use super::super::component::Weights;
use base_weights::torch_file::TorchFile;
use proto::architecture::POSTFUSE;
use proto::public::base::Part;
use proto::spec::Model;
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// As its authors named it.
pub(super) const FILE: &str = "pytorch_model.bin";

/// The file while it is written, one component after the other.
pub(super) struct AuthorsFile {
    path: PathBuf,
    file: TorchFile,
    /// Number of positions of each tower, whose indexes are a buffer of it.
    positions: [(&'static str, &'static str, i64); 2],
}

impl AuthorsFile {
    /// None: the model is another, and has no such file.
    pub(super) fn create(out: &Path, model: &Model) -> Result<Option<Self>, CheckpointError> {
        let architecture = &model.architecture;
        let (Some(_), Some(image), Some(text)) = (
            architecture.subjects(),
            architecture.image_encoder(),
            architecture.text_encoder(),
        ) else {
            return Ok(None);
        };
        let path = out.join(FILE);
        super::create_parent(&path)?;
        let file = TorchFile::create(&path).map_err(|error| refused(&path, &error))?;
        let patches = i64::from(image.side / image.patch.max(1));
        Ok(Some(Self {
            path,
            file,
            positions: [
                (
                    "text_encoder",
                    "text_encoder.embeddings.position_ids",
                    text.tokens.into(),
                ),
                (
                    "image_encoder",
                    "image_encoder.vision_model.embeddings.position_ids",
                    patches * patches + 1,
                ),
            ],
        }))
    }

    /// Adds a component, whose names are those of today's `diffusers` and `transformers`.
    pub(super) fn put(
        &mut self,
        part: Part,
        weights: &BTreeMap<String, Weights>,
    ) -> Result<(), CheckpointError> {
        for (name, it) in weights {
            let shape: Vec<u64> = it.shape.iter().map(|side| *side as u64).collect();
            let dtype = format!("{:?}", it.dtype);
            self.write(&name_of(part, name), &dtype, &shape, &it.bytes)?;
        }
        let positions = self.positions;
        if let Some((_, name, count)) = positions.iter().find(|(of, ..)| *of == part.name) {
            let ids: Vec<u8> = (0..*count).flat_map(i64::to_le_bytes).collect();
            let dtype = format!("{:?}", Dtype::I64);
            self.write(name, &dtype, &[1, count.unsigned_abs()], &ids)?;
        }
        Ok(())
    }

    fn write(
        &mut self,
        name: &str,
        dtype: &str,
        shape: &[u64],
        bytes: &[u8],
    ) -> Result<(), CheckpointError> {
        let written = self.file.put(name, dtype, shape, bytes);
        written.map_err(|error| refused(&self.path, &error))
    }

    /// Closes the file; returns its path.
    pub(super) fn finish(self) -> Result<PathBuf, CheckpointError> {
        let finished = self.file.finish();
        finished.map_err(|error| refused(&self.path, &error))?;
        Ok(self.path)
    }
}

/// A tensor's name in the authors' module.
fn name_of(part: Part, name: &str) -> String {
    match part.name {
        "autoencoder" => {
            let old = [
                ("to_q", "query"),
                ("to_k", "key"),
                ("to_v", "value"),
                ("to_out.0", "proj_attn"),
            ];
            let renamed = old.iter().find_map(|(today, then)| {
                let (tower, kind) =
                    name.split_once(&format!(".mid_block.attentions.0.{today}."))?;
                Some(format!("{tower}.mid_block.attentions.0.{then}.{kind}"))
            });
            format!("vae.{}", renamed.as_deref().unwrap_or(name))
        }
        "text_encoder" => {
            let short = name.strip_prefix("text_model.").unwrap_or(name);
            format!("text_encoder.{short}")
        }
        POSTFUSE => format!("{POSTFUSE}.{name}"),
        other => format!("{other}.{name}"),
    }
}

fn refused(path: &Path, error: &impl std::fmt::Display) -> CheckpointError {
    CheckpointError::Refused(format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proto::public::base::part;

    #[test]
    fn names_are_those_of_the_authors_module() {
        for (component, name, expected) in [
            ("unet", "conv_in.bias", "unet.conv_in.bias"),
            (
                "autoencoder",
                "decoder.mid_block.attentions.0.to_out.0.bias",
                "vae.decoder.mid_block.attentions.0.proj_attn.bias",
            ),
            ("autoencoder", "quant_conv.bias", "vae.quant_conv.bias"),
            (
                "text_encoder",
                "text_model.final_layer_norm.bias",
                "text_encoder.final_layer_norm.bias",
            ),
            (
                "image_encoder",
                "vision_model.pre_layrnorm.bias",
                "image_encoder.vision_model.pre_layrnorm.bias",
            ),
            (
                "image_encoder",
                "visual_projection.weight",
                "image_encoder.visual_projection.weight",
            ),
            (POSTFUSE, "mlp1.fc1.bias", "postfuse_module.mlp1.fc1.bias"),
        ] {
            assert_eq!(name_of(part(component).unwrap(), name), expected);
        }
    }
}
