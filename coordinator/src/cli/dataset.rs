//! `coordinator dataset …`: makes, reads and checks data sets. Speaks to object storage only; no coordinator is needed.

use super::{Global, Outcome, Output, print_json};
use crate::words::bytes;
use anyhow::{Context, Result, anyhow};
use clap::{Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget};
use model_data::figure::{Similar, SynthesizeOptions, identities};
use model_data::writer::{DatasetWriter, WriteOptions};
use proto::dataset::DatasetManifest;
use serde_json::json;

#[derive(Debug, Subcommand)]
pub(crate) enum DatasetCommand {
    /// Draw synthetic figures; the same options give the same bytes
    Synthesize(SynthesizeArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct SynthesizeArgs {
    #[arg(long, default_value_t = 64)]
    characters: u32,
    /// Outfits of each character
    #[arg(long, default_value_t = 2)]
    outfits: u32,
    /// Pictures of each character in each outfit, at least 2
    #[arg(long, default_value_t = 8)]
    images: u32,
    /// Width and height in pixels
    #[arg(long, default_value_t = 128)]
    size: u32,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many pictures of its own character and outfit a sample names: all, or as few as in the paper
    #[arg(long, value_enum, default_value = "all")]
    similar: SimilarArg,
    /// Folder of the data set: file:///…, s3://bucket/… or a path
    #[arg(long, value_name = "URL")]
    out: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SimilarArg {
    All,
    Paper,
}

pub(crate) async fn dataset(global: &Global, command: &DatasetCommand) -> Result<Outcome> {
    match command {
        DatasetCommand::Synthesize(args) => synthesize(global, args).await,
    }
}

/// A URL, or a path made into one.
fn url_of(text: &str) -> Result<String> {
    if text.contains("://") {
        return Ok(text.to_owned());
    }
    let path = std::path::absolute(text).with_context(|| format!("cannot tell where {text:?} is"))?;
    let url = url::Url::from_file_path(&path).map_err(|()| anyhow!("{} cannot be written as a URL", path.display()))?;
    Ok(url.into())
}

async fn synthesize(global: &Global, args: &SynthesizeArgs) -> Result<Outcome> {
    check(args)?;
    let url = url_of(&args.out)?;
    let options = SynthesizeOptions {
        characters: args.characters,
        outfits: args.outfits,
        images: args.images,
        size: args.size,
        seed: args.seed,
        similar: match args.similar {
            SimilarArg::All => Similar::All,
            SimilarArg::Paper => Similar::Paper,
        },
    };
    let mut writer = DatasetWriter::open(&url, WriteOptions::new(options.source()))?;
    let total = u64::from(args.characters) * u64::from(args.outfits);
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    for identity in identities(&options) {
        writer.add(identity).await?;
        bar.inc(1);
    }
    let manifest = writer.finish().await?;
    bar.finish_and_clear();
    print_written(global, &url, &manifest);
    Ok(Outcome::True)
}

fn check(args: &SynthesizeArgs) -> Result<()> {
    let need = |good: bool, name: &str, value: u32, allowed: &str| {
        if good { Ok(()) } else { Err(anyhow!("--{name} is {value}; {allowed}")) }
    };
    need(0 < args.characters, "characters", args.characters, "at least 1 is needed")?;
    need(0 < args.outfits, "outfits", args.outfits, "at least 1 is needed")?;
    need(2 <= args.images, "images", args.images, "at least 2 are needed, a target and a reference")?;
    need((16..=4096).contains(&args.size), "size", args.size, "16 to 4096 pixels can be drawn")
}

fn print_written(global: &Global, url: &str, manifest: &DatasetManifest) {
    let size: u64 = manifest.files.iter().map(|it| it.size_bytes).sum();
    match global.output {
        Output::Json => print_json(&json!({
            "url": url,
            "samples": manifest.samples,
            "characters": manifest.characters,
            "bytes": size,
        })),
        Output::Table => println!(
            "{url}: {} samples of {} characters, {}",
            manifest.samples,
            manifest.characters,
            bytes(size)
        ),
    }
}
