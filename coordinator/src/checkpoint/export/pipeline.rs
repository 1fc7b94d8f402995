//! The files that make an exported folder a pipeline of `diffusers`: its index, scheduler and
//! tokenizer, and the model card.

use super::super::CheckpointError;
use super::{Export, write};
use model_data::tokenizer;
use proto::architecture::UNCLIP;
use proto::public::scheduler::{self, SCHEDULER_FILE};
use proto::public::{pipeline, write as configs};
use proto::text::hex_sha256;
use std::collections::BTreeMap;

/// The files of CLIP's tokenizer in a folder of `diffusers`.
const TOKENIZER: [&str; 4] = [
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
];

impl Export<'_> {
    /// What `DiffusionPipeline.from_pretrained` needs beside the weights.
    pub(super) async fn write_pipeline(
        &self,
        files: &mut BTreeMap<String, String>,
    ) -> Result<(), CheckpointError> {
        self.write_tokenizer(files).await?;
        match pipeline::files(&self.spec.model) {
            Some(texts) => {
                for (name, text) in &texts {
                    self.write_text(name, text, files)?;
                }
            }
            None => {
                let noise = self.spec.model.architecture.noise().unwrap_or_default();
                self.write_text(SCHEDULER_FILE, &scheduler::write(&noise), files)?;
                self.write_unclip(files).await?;
            }
        }
        self.write_text("README.md", &self.card(), files)
    }

    /// The tokenizer of the base's folder, or CLIP's, which is the same for every base that this
    /// program reads. Not for a decoder, whose pipeline reads no prompts.
    async fn write_tokenizer(
        &self,
        files: &mut BTreeMap<String, String>,
    ) -> Result<(), CheckpointError> {
        let architecture = &self.spec.model.architecture;
        if architecture.facts().own_file == Some(UNCLIP) {
            return Ok(());
        }
        let mut from_base = false;
        for name in TOKENIZER {
            let Some(base) = self.base else { break };
            let name = format!("tokenizer/{name}");
            if !base.exists(&name).await? {
                continue;
            }
            let bytes = base.read(&name).await?;
            write(&self.out.join(&name), &bytes)?;
            files.insert(name, hex_sha256(&bytes));
            from_base = true;
        }
        let own = architecture.text_encoder().filter(|_| !from_base);
        let own = own.into_iter().flat_map(|it| tokenizer::files(it.tokens));
        for (name, text) in own {
            self.write_text(&format!("tokenizer/{name}"), &text, files)?;
        }
        Ok(())
    }

    /// The model card.
    fn card(&self) -> String {
        let facts = self.spec.model.architecture.facts();
        let train = &self.spec.train;
        let base = self.spec.model.init.as_deref().unwrap_or("random weights");
        let is_unclip = configs::unclip(&self.spec.model, self.spec.data.resolution).is_some();
        let opened = if is_unclip {
            "`DiffusionPipeline.from_pretrained` opens the folder `pipeline`; it draws image \
             embeddings, which `image_encoder` makes."
        } else {
            "`DiffusionPipeline.from_pretrained` opens this folder."
        };
        format!(
            "---\nlibrary_name: diffusers\n---\n# {}\n\nTrained for {} steps of {} samples at {} \
             pixels from {base}. `export.json` names the checkpoint and the SHA-256 of every file. \
             {opened}\n",
            facts.name, train.steps, train.global_batch, self.spec.data.resolution
        )
    }
}
