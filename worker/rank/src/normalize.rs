//! `worker normalize-latents`: measures the latents of an autoencoder on a data set and moves the
//! scaling into its weights. The computation is in [`model::normalize`]; this module has the
//! command.

use anyhow::{Context, bail};
use clap::ValueEnum;
use model::normalize::{Channels, LatentStatistics, normalize};
use model::weights::{self, Storage};
use model_data::loader::{Loader, LoaderOptions};
use model_data::prepare::ExampleConfig;
use proto::rating::Ratings;
use proto::spec::{Data, PromptOrder};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use tch::Device;

const CONFIG: &str = "vae/config.json";
const WEIGHTS: &str = "vae/diffusion_pytorch_model.safetensors";
/// Images of one forward pass.
const BATCH: usize = 16;
/// Memory for decoded images; each is read once.
const CACHE_BYTES: usize = 64 << 20;

/// Give the latents of an autoencoder mean 0 and standard deviation 1 in every channel, so that a
/// base model can be trained on them with `scaling_factor = 1`. Its images stay the same.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A folder that `coordinator checkpoint export` wrote, with vae/
    #[arg(long, value_name = "DIR")]
    weights: PathBuf,
    /// URL of the data set that it was trained on
    #[arg(long, value_name = "URL")]
    dataset: String,
    /// [data] resolution, holdout and seed of its job: only training characters are measured
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    resolution: u32,
    #[arg(long, default_value_t = 0.0)]
    holdout: f64,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Images to measure, spread evenly over the data set
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// Folder to write; it must not be the one that is read
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// fp16 halves the size
    #[arg(long, value_enum, default_value = "fp32")]
    storage: Dtype,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dtype {
    Fp32,
    Fp16,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let config = std::fs::read_to_string(options.weights.join(CONFIG))
        .with_context(|| format!("cannot read {}", options.weights.join(CONFIG).display()))?;
    check_scaling(&options.weights.join(CONFIG), &config)?;
    if !(0.0..1.0).contains(&options.holdout) {
        bail!(
            "--holdout is {}; it must be at least 0 and below 1",
            options.holdout
        );
    }
    let same = |path: &Path| path.canonicalize().ok();
    if options.out.exists() && same(&options.out) == same(&options.weights) {
        bail!("--out is the folder that is read; name another one");
    }
    let file = options.weights.join(WEIGHTS);
    let mut tensors = weights::read(&file)?;
    let (channels, version) = measure(options)?;
    normalize(&file, &mut tensors, &channels)?;
    let to = options.out.join(WEIGHTS);
    let folder = options.out.join("vae");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let storage = match options.storage {
        Dtype::Fp32 => Storage::Float32,
        Dtype::Fp16 => Storage::Float16,
    };
    weights::write(&to, &tensors, storage)?;
    let write = |name: &str, text: &str| {
        let path = options.out.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write(CONFIG, &config)?;
    let origin = json!({
        "from": sha256(&file)?,
        "dataset_version": version,
        "samples": options.samples,
        "means": channels.means,
        "deviations": channels.deviations,
        "file": sha256(&to)?,
    });
    write("normalized.json", &format!("{origin:#}\n"))?;
    shell::print::out_lines(&format!("{origin:#}"));
    Ok(())
}

/// A factor other than 1 would be applied on top of the normalisation.
fn check_scaling(path: &Path, config: &str) -> anyhow::Result<()> {
    let found: serde_json::Value =
        serde_json::from_str(config).with_context(|| format!("{} is not JSON", path.display()))?;
    let factor = found
        .get("scaling_factor")
        .and_then(serde_json::Value::as_f64);
    if factor != Some(1.0) {
        let found = factor.map_or("missing".to_owned(), |factor| factor.to_string());
        bail!(
            "{}: scaling_factor is {found}; it must be 1, so train the autoencoder with \
            model.autoencoder.scaling_factor = 1.0",
            path.display()
        );
    }
    Ok(())
}

/// The latents' channels on training characters, and the version of the data set.
fn measure(options: &Options) -> anyhow::Result<(Channels, String)> {
    let autoencoder = model::public::autoencoder(&options.weights.join("vae"), Device::Cpu)?;
    let data = Data {
        dataset: options.dataset.clone(),
        resolution: options.resolution,
        prompt_drop: 0.0,
        looks_drop: 0.0,
        prompt_order: PromptOrder::AsWritten,
        holdout: options.holdout,
        ratings: Ratings::default(),
        seed: options.seed,
    };
    let loading = LoaderOptions {
        examples: ExampleConfig {
            references: None,
            timesteps: 1000,
            view: None,
        },
        cache_bytes: CACHE_BYTES,
        version: None,
    };
    let runtime = tokio::runtime::Runtime::new()?;
    let loader = runtime.block_on(Loader::open(&data, loading))?;
    let training = loader.training();
    let count = (options.samples as usize).min(training.len());
    let positions: Vec<(u64, u64)> = (0..count)
        .map(|index| (0, training[index * training.len() / count]))
        .collect();
    let mut statistics = LatentStatistics::default();
    for part in positions.chunks(BATCH) {
        let examples = runtime.block_on(loader.examples_at(part.to_vec()))?;
        let images: Vec<_> = examples.into_iter().map(|example| example.target).collect();
        statistics.add(&autoencoder, &images);
    }
    let channels = statistics
        .channels()
        .with_context(|| format!("{} has no training samples", options.dataset))?;
    Ok((channels, loader.dataset().version().to_owned()))
}

fn sha256(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(format!("{:x}", Sha256::digest(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_scaling_factor_is_refused_with_what_would_be_right() {
        assert!(check_scaling(Path::new("c"), r#"{"scaling_factor": 1.0}"#).is_ok());
        for (config, found) in [
            (
                r#"{"scaling_factor": 0.486}"#,
                "scaling_factor is 0.486; it must be 1",
            ),
            ("{}", "scaling_factor is missing; it must be 1"),
            ("no", "is not JSON"),
        ] {
            let error = check_scaling(Path::new("c"), config).expect_err(config);
            assert!(error.to_string().contains(found), "{error}");
        }
    }
}
