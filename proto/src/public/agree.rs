//! Checks whether the `config.json` of public weights agrees with a job's `[model]` tables. Detects
//! weights of another architecture at submission and again at load, before a tensor is read. Pure.

use super::config::{self, ConfigError};
use crate::layout::{AutoencoderLayout, TextLayout, UNetLayout};
use crate::spec::{AutoencoderConfig, Model};
use std::fmt::Debug;

/// Why weights do not fit a job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Disagreement {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{theirs} is {found}, but the job has {ours} = {expected}")]
    Field {
        /// The field in config.json.
        theirs: &'static str,
        found: String,
        /// The field in job.toml.
        ours: &'static str,
        expected: String,
    },
}

/// Compares the config of a component ("autoencoder", "text_encoder" or "unet") with a job's
/// tables.
///
/// # Errors
/// The first field that the networks do not support or that differs.
pub fn agree(component: &str, config: &str, model: &Model) -> Result<(), Disagreement> {
    let job = &model.architecture;
    match (component, job.autoencoder(), job.diffusion()) {
        ("autoencoder", Some(job), _) => {
            scaling(config, job)?;
            autoencoder(&config::autoencoder(config)?, &job.into())
        }
        // A component that the architecture does not have is not read.
        ("autoencoder", None, _) | (_, _, None) => Ok(()),
        ("text_encoder", _, Some(job)) => {
            text(&config::text(config, false)?, &(&job.text_encoder).into())
        }
        (_, _, Some(job)) => unet(&config::unet(config)?, &(&job.unet).into()),
    }
}

fn same<T: PartialEq + Debug>(
    theirs: &'static str,
    found: &T,
    ours: &'static str,
    expected: &T,
) -> Result<(), Disagreement> {
    if found == expected {
        return Ok(());
    }
    Err(Disagreement::Field {
        theirs,
        found: format!("{found:?}"),
        ours,
        expected: format!("{expected:?}"),
    })
}

fn unet(found: &UNetLayout, job: &UNetLayout) -> Result<(), Disagreement> {
    same(
        "block_out_channels",
        &found.widths,
        "model.unet.channels * channel_mult",
        &job.widths,
    )?;
    same(
        "layers_per_block",
        &found.res_blocks,
        "model.unet.res_blocks",
        &job.res_blocks,
    )?;
    let levels = |attends: &[bool]| -> Vec<usize> {
        let all = attends.iter().enumerate();
        all.filter_map(|(level, attends)| attends.then_some(level))
            .collect()
    };
    same(
        "down_block_types' list of levels that attend",
        &levels(&found.attends),
        "model.unet.attention_levels",
        &levels(&job.attends),
    )?;
    same(
        "attention_head_dim, by level,",
        &found.heads,
        "model.unet.heads",
        &job.heads,
    )?;
    same(
        "cross_attention_dim",
        &found.context_dim,
        "model.unet.context_dim",
        &job.context_dim,
    )?;
    same(
        "in_channels",
        &found.in_channels,
        "model.unet.latent_channels",
        &job.in_channels,
    )?;
    same(
        "out_channels",
        &found.out_channels,
        "model.unet.latent_channels",
        &job.out_channels,
    )?;
    arithmetic(found, job)
}

/// Compares fields that change the arithmetic but not the shapes.
fn arithmetic(found: &UNetLayout, job: &UNetLayout) -> Result<(), Disagreement> {
    same(
        "norm_num_groups",
        &found.norm_groups,
        "model.unet.norm_groups",
        &job.norm_groups,
    )?;
    same(
        "norm_eps",
        &found.norm_epsilon,
        "norms with epsilon",
        &job.norm_epsilon,
    )?;
    same(
        "flip_sin_to_cos",
        &found.frequencies.cosines_first,
        "flip_sin_to_cos",
        &job.frequencies.cosines_first,
    )?;
    same(
        "freq_shift",
        &found.frequencies.shift,
        "freq_shift",
        &job.frequencies.shift,
    )
}

fn autoencoder(found: &AutoencoderLayout, job: &AutoencoderLayout) -> Result<(), Disagreement> {
    same(
        "block_out_channels",
        &found.widths,
        "model.autoencoder.channels * channel_mult",
        &job.widths,
    )?;
    same(
        "layers_per_block",
        &found.res_blocks,
        "model.autoencoder.res_blocks",
        &job.res_blocks,
    )?;
    same(
        "latent_channels",
        &found.latent_channels,
        "model.autoencoder.latent_channels",
        &job.latent_channels,
    )?;
    same(
        "norm_num_groups",
        &found.norm_groups,
        "model.autoencoder.norm_groups",
        &job.norm_groups,
    )
}

fn scaling(config: &str, job: &AutoencoderConfig) -> Result<(), Disagreement> {
    let found = config::scaling_factor(config)?;
    let ours = "model.autoencoder.scaling_factor";
    same("scaling_factor", &found, ours, &job.scaling_factor)
}

fn text(found: &TextLayout, job: &TextLayout) -> Result<(), Disagreement> {
    let (theirs, ours) = (&found.transformer, &job.transformer);
    same(
        "hidden_size",
        &theirs.width,
        "model.text_encoder.width",
        &ours.width,
    )?;
    same(
        "num_hidden_layers",
        &theirs.layers,
        "model.text_encoder.layers",
        &ours.layers,
    )?;
    same(
        "num_attention_heads",
        &theirs.heads,
        "model.text_encoder.heads",
        &ours.heads,
    )?;
    same(
        "max_position_embeddings",
        &found.tokens,
        "model.text_encoder.tokens",
        &job.tokens,
    )?;
    same(
        "vocab_size",
        &found.vocabulary,
        "CLIP's vocabulary",
        &job.vocabulary,
    )?;
    same(
        "intermediate_size",
        &theirs.mlp_width,
        "4 * model.text_encoder.width",
        &ours.mlp_width,
    )?;
    same(
        "hidden_act",
        &theirs.activation,
        "the activation",
        &ours.activation,
    )?;
    same(
        "layer_norm_eps",
        &theirs.norm_epsilon,
        "norms with epsilon",
        &ours.norm_epsilon,
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::spec::ArchitectureSpec;

    fn model() -> Model {
        let text = "name = \"x\"\n[data]\ndataset = \"file:///d\"\nresolution = 384\n\
                    [model]\narchitecture = \"retrinet\"\nsize = \"sd15\"\ninit = \"file:///b\"\n\
                    [train]\nsteps = 1\nglobal_batch = 1\nmicro_batch = 1\n";
        crate::job::parse("job.toml", text, None)
            .unwrap()
            .training()
            .unwrap()
            .model
            .clone()
    }

    fn refusal(component: &str, config: &str) -> String {
        agree(component, config, &model()).unwrap_err().to_string()
    }

    #[test]
    fn stable_diffusion_s_defaults_are_the_size_sd15() {
        agree("unet", r#"{"cross_attention_dim": 768}"#, &model()).unwrap();
        let vae = r#"{"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
            "scaling_factor": 0.18215,
            "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D",
            "DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D",
            "UpDecoderBlock2D"]}"#;
        agree("autoencoder", vae, &model()).unwrap();
        let error = refusal("autoencoder", &vae.replace("0.18215", "0.13025"));
        assert_eq!(
            error,
            "scaling_factor is 0.13025, but the job has model.autoencoder.scaling_factor = 0.18215"
        );
        let mut other = model();
        if let ArchitectureSpec::Retrinet(it) = &mut other.architecture {
            it.diffusion.autoencoder.scaling_factor = 0.5;
        }
        let absent = vae.replace("\"scaling_factor\": 0.18215,", "");
        agree("autoencoder", &absent, &model()).unwrap();
        let error = agree("autoencoder", &absent, &other).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("scaling_factor is 0.18215, but")
        );
        let clip = r#"{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12}"#;
        agree("text_encoder", clip, &model()).unwrap();
    }

    #[test]
    fn another_architecture_is_detected_by_its_first_field() {
        // Stable Diffusion 2.1
        let config = r#"{"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
            "use_linear_projection": true}"#;
        assert_eq!(
            refusal("unet", config),
            "attention_head_dim, by level, is [5, 10, 20, 20], but the job has model.unet.heads = \
            [8, 8, 8, 8]"
        );
        let config = r#"{"block_out_channels": [320, 640], "cross_attention_dim": 768,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}"#;
        assert_eq!(
            refusal("unet", config),
            "block_out_channels is [320, 640], but the job has model.unet.channels * channel_mult \
            = [320, 640, 1280, 1280]"
        );
        assert!(
            refusal(
                "text_encoder",
                r#"{"hidden_size": 1024, "num_attention_heads": 16}"#
            )
            .contains("model.text_encoder.width = 768")
        );
        assert_eq!(
            refusal("unet", r#"{"_class_name": "FluxTransformer2DModel"}"#),
            "_class_name is \"FluxTransformer2DModel\"; \"UNet2DConditionModel\" is expected"
        );
    }
}
