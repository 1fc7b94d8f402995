//! `coordinator dataset …`: creates, reads and verifies data sets in object storage. Needs no
//! coordinator.

use super::build::{BuildArgs, build};
use super::patience::aloud;
use super::preview::{PreviewArgs, preview};
use super::{Global, Outcome, Output, print_json, table};
use crate::pin::LOST_TAGS;
use crate::text::{bytes, errln, outln};
use anyhow::{Context, Result, anyhow};
use clap::Subcommand;
use figures::synthetic::{Backgrounds, Similar, SynthesizeOptions, identities};
use indicatif::{ProgressBar, ProgressDrawTarget};
use model_data::dataset::Dataset;
use model_data::decode::ChangeCounts;
use model_data::image_sizes::ImageSizes;
use model_data::import::{ImportError, ImportOptions, ImportReport, SAMPLES_FILE};
use model_data::prompt_length::CutPrompts;
use model_data::writer::{DatasetWriter, WriteOptions, Written};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum DatasetCommand {
    /// Generate a data set of synthetic figures; equal options give equal bytes
    Synthesize(SynthesizeArgs),
    /// Create a data set from a folder of images, masks and samples.jsonl with the paper's fields
    Import(ImportArgs),
    /// Build a data set like the paper's from published metadata, as jobs on workers; a second run
    /// does only what is new
    Build(BuildArgs),
    /// Render a job's training samples (targets, masks, references with their concepts, prompts),
    /// or the figures of a stage of a pipeline
    Preview(PreviewArgs),
    /// Count samples, similar images, characters and clothing tags
    Describe {
        #[arg(value_name = "URL")]
        dataset: String,
    },
    /// Re-read everything and list every fault; exit code 0 only if there is none
    Verify {
        #[arg(value_name = "URL")]
        dataset: String,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct SynthesizeArgs {
    #[arg(long, default_value_t = 64)]
    characters: u32,
    /// Outfits of each character
    #[arg(long, default_value_t = 2)]
    outfits: u32,
    /// Images of each character in each outfit, at least 2
    #[arg(long, default_value_t = 8)]
    images: u32,
    /// Width and height in pixels
    #[arg(long, default_value_t = 128)]
    size: u32,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many similar images (same character and outfit) a sample lists: "all", "paper" (81 % of
    /// samples list fewer than 4, some 16), or weights by count, such as 1,2,1: of every four
    /// samples one lists none, two list one and one lists two
    #[arg(
        long,
        default_value = "all",
        value_parser = parse_similar,
        value_name = "all|paper|PARTS"
    )]
    similar: Similar,
    /// What is behind the figures: all kinds, or only pale colours, half of them white
    #[arg(long, value_enum, default_value = "all")]
    backgrounds: BackgroundsArg,
    #[command(flatten)]
    out: OutArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ImportArgs {
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    #[command(flatten)]
    out: OutArgs,
    /// Fail, and create no data set, if a row is rejected, a similar entry dropped or an identity
    /// split
    #[arg(long)]
    strict: bool,
    /// Description of where the images come from [default: the folder's name]
    #[arg(long)]
    source: Option<String>,
}

#[derive(Debug, clap::Args)]
struct OutArgs {
    /// Folder of the data set: file:///…, s3://bucket/… or a path
    #[arg(long, value_name = "URL")]
    out: String,
    /// Replace the data set that is there. Its files are kept, for jobs that were submitted with it
    #[arg(long)]
    replace: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum BackgroundsArg {
    All,
    Plain,
}

fn parse_similar(text: &str) -> Result<Similar, String> {
    match text {
        "all" => Ok(Similar::All),
        "paper" => Ok(Similar::Paper),
        parts => {
            let parts: Option<Vec<u32>> =
                parts.split(',').map(|it| it.trim().parse().ok()).collect();
            // Their sum must not overflow.
            let sum = parts
                .iter()
                .flatten()
                .try_fold(0u32, |sum, it| sum.checked_add(*it));
            match (parts, sum) {
                (Some(parts), Some(1..)) => Ok(Similar::Parts(parts)),
                _ => {
                    Err("it must be all, paper, or comma-separated whole numbers, not all 0".into())
                }
            }
        }
    }
}

pub(crate) async fn dataset(global: &Global, command: &DatasetCommand) -> Result<Outcome> {
    match command {
        DatasetCommand::Synthesize(args) => synthesize(global, args).await,
        DatasetCommand::Import(args) => import(global, args).await,
        DatasetCommand::Build(args) => build(global, args).await,
        DatasetCommand::Preview(args) => preview(global, args).await,
        DatasetCommand::Describe { dataset } => describe(global, &open(dataset).await?).await,
        DatasetCommand::Verify { dataset } => verify(global, &open(dataset).await?).await,
    }
}

/// Returns a URL unchanged; converts a path to a URL.
pub(super) fn url_of(text: &str) -> Result<String> {
    if text.contains("://") {
        return Ok(text.to_owned());
    }
    let path = std::path::absolute(text)
        .with_context(|| format!("cannot make the path {text:?} absolute"))?;
    let url = url::Url::from_file_path(&path)
        .map_err(|()| anyhow!("{} cannot be written as a URL", path.display()))?;
    Ok(url.into())
}

async fn synthesize(global: &Global, args: &SynthesizeArgs) -> Result<Outcome> {
    check(args)?;
    let url = url_of(&args.out.out)?;
    let options = SynthesizeOptions {
        characters: args.characters,
        outfits: args.outfits,
        images: args.images,
        size: args.size,
        seed: args.seed,
        similar: args.similar.clone(),
        backgrounds: match args.backgrounds {
            BackgroundsArg::All => Backgrounds::All,
            BackgroundsArg::Plain => Backgrounds::Plain,
        },
    };
    let write_options = WriteOptions {
        replace: args.out.replace,
        ..WriteOptions::new(options.source())
    };
    let mut writer = aloud(&url, DatasetWriter::open(&url, write_options)).await?;
    let total = u64::from(args.characters) * u64::from(args.outfits);
    let target = if shell::terminal::can_redraw() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    for identity in identities(&options) {
        writer.add(identity).await?;
        bar.inc(1);
    }
    let written = writer.finish().await?;
    bar.finish_and_clear();
    print_written(global, &url, &written);
    Ok(Outcome::True)
}

fn check(args: &SynthesizeArgs) -> Result<()> {
    let require = |valid: bool, name: &str, value: u32, allowed: &str| {
        if valid {
            Ok(())
        } else {
            Err(anyhow!("--{name} is {value}; {allowed}"))
        }
    };
    require(
        0 < args.characters,
        "characters",
        args.characters,
        "at least 1 is needed",
    )?;
    require(
        0 < args.outfits,
        "outfits",
        args.outfits,
        "at least 1 is needed",
    )?;
    require(
        2 <= args.images,
        "images",
        args.images,
        "at least 2 are needed, a target and a reference",
    )?;
    require(
        (16..=4096).contains(&args.size),
        "size",
        args.size,
        "it must be 16 to 4096 pixels",
    )?;
    let longest = args.similar.longest().unwrap_or(0);
    let allowed = format!(
        "--similar makes samples list {longest} others, so at least {} are needed",
        longest + 1
    );
    require(
        longest < args.images as usize,
        "images",
        args.images,
        &allowed,
    )
}

async fn import(global: &Global, args: &ImportArgs) -> Result<Outcome> {
    let (folder, url) = (&args.folder, &url_of(&args.out.out)?);
    let source = args.source.clone();
    let options = ImportOptions {
        source: source.unwrap_or_else(|| format!("imported from {}", folder.display())),
        strict: args.strict,
        replace: args.out.replace,
    };
    let work = model_data::import::import(folder, url, &options);
    let what = format!("the import of {} to {url}", folder.display());
    let (written, report) = match aloud(&what, work).await {
        Ok(done) => done,
        Err(error) => {
            // Print every reason, not only the first, so that all can be fixed at once.
            if let ImportError::Strict { report } | ImportError::Nothing { report, .. } = &error {
                print_rejects(report);
                report
                    .changes
                    .lines()
                    .iter()
                    .for_each(|line| errln!("{line}"));
            }
            return Err(error.into());
        }
    };
    print_rejects(&report);
    match global.output {
        Output::Json => print_json(&json!({
            "url": url,
            "samples": written.manifest.samples,
            "replaced": written.replaced,
            "report": report,
        })),
        Output::Table => {
            print_written(global, url, &written);
            outln!(
                "{} rows read, {} accepted, {} rejected, {} similar entries dropped, {} identities \
                split, {} face boxes guessed, {} without a similar image (pairing b cannot use \
                these)",
                report.rows,
                report.accepted,
                report.rejected.len(),
                report.dropped.len(),
                report.split.len(),
                report.guessed_boxes,
                report.alone
            );
            outln!("ratings: {}", counted(&report.ratings));
            outln!("{}", prompts_line(&report.cut_prompts));
            print_sizes(&report.sizes);
            print_changes(&report.changes);
        }
    }
    Ok(Outcome::True)
}

/// "3 general, 1 unrated".
fn counted(counts: &BTreeMap<String, u64>) -> String {
    let parts: Vec<String> = counts
        .iter()
        .map(|(word, count)| format!("{count} {word}"))
        .collect();
    parts.join(", ")
}

/// What an import changed or guessed: a line for each kind.
fn print_changes(changes: &ChangeCounts) {
    let lines = changes.lines();
    if !lines.is_empty() {
        outln!("changed or guessed, in samples:");
    }
    lines.iter().for_each(|line| outln!("  {line}"));
}

/// How many images are too small for common sizes, and how many are mostly padded.
fn print_sizes(sizes: &ImageSizes) {
    outln!("{}", sizes.small_line());
    if let Some(padded) = sizes.padded() {
        outln!("{padded}");
    }
}

/// How many prompts are cut, and which tags are lost most.
fn prompts_line(cut: &CutPrompts) -> String {
    let tokens = cut.tokens;
    cut.sentence(LOST_TAGS)
        .unwrap_or_else(|| format!("no prompt is longer than the {tokens} tokens of CLIP"))
}

fn print_rejects(report: &ImportReport) {
    for (what, list) in [
        ("rejected", &report.rejected),
        ("similar entry dropped", &report.dropped),
        ("identity split", &report.split),
    ] {
        for (line, reason) in list {
            errln!("{SAMPLES_FILE}:{line}: {what}: {reason}");
        }
    }
}

/// Opens an existing data set. Opening a missing local one would create its folder, so that case is
/// refused.
async fn open(text: &str) -> Result<Dataset> {
    let url = url_of(text)?;
    if let Some(folder) = storage::local_folder(&url)?
        && !folder.is_dir()
    {
        return Err(anyhow!("there is no folder {}", folder.display()));
    }
    Ok(aloud(&url, Dataset::open(&url)).await?)
}

async fn describe(global: &Global, dataset: &Dataset) -> Result<Outcome> {
    let it = aloud(dataset.url(), model_data::describe::describe(dataset)).await?;
    if global.output == Output::Json {
        print_json(&serde_json::to_value(&it)?);
        return Ok(Outcome::True);
    }
    let line = |name: &str, value: &str| outln!("{name:<12} {value}");
    line("source", &it.source);
    line("version", &it.version);
    line("samples", &it.samples.to_string());
    line(
        "characters",
        &format!(
            "{} in {} outfits by {} artists",
            it.characters, it.identities, it.artists
        ),
    );
    line(
        "files",
        &format!(
            "{} with {} row groups, {}",
            it.files,
            it.row_groups,
            bytes(it.size_bytes)
        ),
    );
    let ((narrow, wide), (low, high)) = (it.widths, it.heights);
    line(
        "images",
        &format!("{narrow} to {wide} pixels wide, {low} to {high} high"),
    );
    line("small", &it.sizes.small_line());
    if let Some(padded) = it.sizes.padded() {
        line("padded", &padded);
    }
    line("ratings", &counted(&it.ratings));
    line("prompts", &prompts_line(&it.cut_prompts));
    print_changes(&it.changes);
    let mut similar = table(&["SIMILAR", "SAMPLES", "SHARE"]);
    for (count, samples) in &it.similar {
        similar.add_row([
            count.to_string(),
            samples.to_string(),
            percent(*samples, it.samples),
        ]);
    }
    similar.print_below();
    for (name, list) in [
        ("CHARACTER", &it.frequent_characters),
        ("CLOTHES", &it.frequent_cloths),
        ("LOST TAG", &it.cut_prompts.lost),
    ] {
        if list.is_empty() {
            continue;
        }
        let mut frequent = table(&[name, "SAMPLES", "SHARE"]);
        for (word, samples) in list {
            frequent.add_row([
                word.clone(),
                samples.to_string(),
                percent(*samples, it.samples),
            ]);
        }
        frequent.print_below();
    }
    Ok(Outcome::True)
}

#[allow(clippy::cast_precision_loss)] // One decimal is printed.
fn percent(count: u64, total: u64) -> String {
    format!("{:.1} %", 100.0 * count as f64 / total.max(1) as f64)
}

async fn verify(global: &Global, dataset: &Dataset) -> Result<Outcome> {
    let it = aloud(dataset.url(), model_data::verify::verify(dataset)).await?;
    let good = it.findings.is_empty();
    match global.output {
        Output::Json => print_json(&serde_json::to_value(&it)?),
        Output::Table => {
            for finding in &it.findings {
                outln!("{finding}");
            }
            let result = if good {
                "all good".into()
            } else {
                format!("{} faults", it.findings.len())
            };
            print_changes(&it.changes);
            print_sizes(&it.sizes);
            outln!("{}: {} samples read: {result}", dataset.url(), it.samples);
        }
    }
    Ok(if good { Outcome::True } else { Outcome::False })
}

fn print_written(global: &Global, url: &str, written: &Written) {
    let Written { manifest, replaced } = written;
    let size: u64 = manifest.files.iter().map(|it| it.size_bytes).sum();
    match global.output {
        Output::Json => print_json(&json!({
            "url": url,
            "samples": manifest.samples,
            "characters": manifest.characters,
            "bytes": size,
            "replaced": replaced,
        })),
        Output::Table => {
            outln!(
                "{url}: {} samples of {} characters, {}",
                manifest.samples,
                manifest.characters,
                bytes(size)
            );
            if let Some(version) = replaced {
                outln!(
                    "replaced version {}: its files stay, and jobs that were submitted with it go \
                     on with them",
                    &version[..12]
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn similar_is_parsed_and_must_not_need_more_images_than_there_are() {
        assert_eq!(parse_similar("all"), Ok(Similar::All));
        assert_eq!(parse_similar("1, 2,1"), Ok(Similar::Parts(vec![1, 2, 1])));
        for wrong in ["", "some", "1,,2", "0,0", "-1", "4294967295,1"] {
            assert!(parse_similar(wrong).is_err(), "{wrong}");
        }
        let args = |images, similar| SynthesizeArgs {
            characters: 1,
            outfits: 1,
            images,
            size: 32,
            seed: 0,
            similar: parse_similar(similar).unwrap(),
            backgrounds: BackgroundsArg::All,
            out: OutArgs {
                out: String::new(),
                replace: false,
            },
        };
        assert!(check(&args(3, "0,1,2,0")).is_ok());
        assert_eq!(
            check(&args(16, "paper")).unwrap_err().to_string(),
            "--images is 16; --similar makes samples list 16 others, so at least 17 are needed"
        );
    }

    #[test]
    fn a_path_is_accepted_as_well_as_a_url() {
        assert_eq!(url_of("s3://bucket/data").unwrap(), "s3://bucket/data");
        assert_eq!(url_of("/data/a b").unwrap(), "file:///data/a%20b");
        let here = std::env::current_dir().unwrap();
        assert_eq!(
            url_of("figures").unwrap(),
            format!("file://{}/figures", here.display())
        );
    }
}
