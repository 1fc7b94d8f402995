//! `coordinator dataset preview`: renders the samples of a training step, prepared by the same code
//! as in training, or a contact sheet of a stage of a pipeline. Needs no coordinator.

use super::dataset::url_of;
use super::{Global, Outcome, Output, build, print_json};
use crate::text::outln;
use anyhow::{Context, Result, anyhow, bail};
use figures::grid::{Cell, captioned_grid};
use image::{GrayImage, Rgb, RgbImage};
use model_data::example::Example;
use model_data::loader::{Loader, LoaderOptions};
use model_data::prompt::Prompts;
use proto::build::Stage;
use proto::spec::TrainWork;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Cache for decoded images.
const CACHE_BYTES: usize = 64 << 20;
/// Smaller images are scaled up to this side length in pixels.
const SIDE_MIN: u32 = 96;
const FACE_COLOR: Rgb<u8> = Rgb([255, 140, 40]);

#[derive(Debug, clap::Args)]
pub(crate) struct PreviewArgs {
    /// Data set to show instead of the job's; with --stage: pipeline.toml
    #[arg(value_name = "URL|FILE", required_unless_present = "job")]
    pub(super) dataset: Option<String>,
    /// job.toml with the task, pairing, references, resolution and seed to use
    #[arg(long, value_name = "FILE", required_unless_present = "stage")]
    job: Option<PathBuf>,
    /// Stage of a pipeline that is complete: its first figures, with masks and boxes if it makes
    /// them. Runs the program worker-build
    #[arg(
        long,
        value_name = "STAGE",
        conflicts_with_all = ["job", "step", "count"],
        value_parser = stage_of
    )]
    stage: Option<Stage>,
    /// Image to write. Of a job: target, mask with the face in orange, references with their
    /// concepts, and the prompt as the tokenizer truncates it
    #[arg(long, value_name = "PNG")]
    out: PathBuf,
    /// Step whose samples are shown, from 1
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    step: u64,
    /// Samples to show, at most one global batch
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    count: u32,
}

fn stage_of(word: &str) -> Result<Stage, String> {
    let found = Stage::ALL.into_iter().find(|stage| stage.name() == word);
    found.ok_or_else(|| {
        let names = Stage::ALL.map(Stage::name);
        format!("the stages are {}", names.join(", "))
    })
}

pub(crate) async fn preview(global: &Global, args: &PreviewArgs) -> Result<Outcome> {
    if let (Some(stage), Some(file)) = (args.stage, &args.dataset) {
        return build::preview(global, Path::new(file), stage, &args.out).await;
    }
    let Some(job) = &args.job else {
        bail!("name a job with --job, or a stage with --stage");
    };
    let mut spec = read(job)?;
    if let Some(url) = &args.dataset {
        spec.data.dataset = url_of(url)?;
    }
    let options = LoaderOptions::new(&spec.model.architecture, CACHE_BYTES, None);
    let loader = Loader::open(&spec.data, options).await?;
    let batch = spec.train.global_batch;
    let count = args.count.min(batch);
    let examples = loader.examples(args.step, batch, 0..count).await?;
    let text_encoder = spec.model.architecture.text_encoder();
    let prompts = Prompts::new(text_encoder.map_or(CLIP_TOKENS, |it| it.tokens));
    let rows: Vec<(Vec<Cell>, String)> = examples
        .iter()
        .map(|it| (row(it), caption(it, &prompts)))
        .collect();
    captioned_grid(&rows, spec.data.resolution.max(SIDE_MIN))
        .save(&args.out)
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    match global.output {
        Output::Json => {
            let samples: Vec<Value> = examples
                .iter()
                .map(|it| sample(it, &loader, &prompts))
                .collect();
            print_json(&json!({
                "out": args.out,
                "step": args.step,
                "samples": samples,
                "left_out": loader.left_out(),
                "notes": loader.notes(),
            }));
        }
        Output::Table => {
            outln!(
                "{}: {count} samples of step {}",
                args.out.display(),
                args.step
            );
            loader.notes().iter().for_each(|line| outln!("{line}"));
        }
    }
    Ok(Outcome::True)
}

fn read(file: &Path) -> Result<TrainWork> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
    let absolute = std::path::absolute(file)
        .with_context(|| format!("cannot make the path {name} absolute"))?;
    let spec =
        proto::job::parse(&name, &text, absolute.parent()).map_err(|errors| anyhow!(errors))?;
    let training = spec.training().cloned();
    training.ok_or_else(|| {
        anyhow!(
            "{name} is a [{}] job; only [train] jobs have training samples",
            spec.work.table()
        )
    })
}

fn row(example: &Example) -> Vec<Cell> {
    let references = example.references.iter();
    [
        Cell::new("target", example.target.clone()),
        Cell::new(
            "mask and face",
            draw_masks(&example.target_mask, &example.face_mask),
        ),
    ]
    .into_iter()
    .chain(references.map(|it| Cell::new(it.concept.word(), it.image.clone())))
    .collect()
}

/// Prompt length in tokens for an architecture without a text encoder, which ignores the prompt.
const CLIP_TOKENS: u32 = 77;

/// The masks of the loss: white on the target, black on its padding, orange on the face.
fn draw_masks(target: &GrayImage, face: &GrayImage) -> RgbImage {
    RgbImage::from_fn(target.width(), target.height(), |x, y| {
        let level = target.get_pixel(x, y).0[0];
        if face.get_pixel(x, y).0[0] > 127 {
            FACE_COLOR
        } else {
            Rgb([level; 3])
        }
    })
}

fn caption(example: &Example, prompts: &Prompts) -> String {
    let mut caption = match prompts.kept(&example.prompt) {
        prompt if prompt.is_empty() => "(no prompt)".to_owned(),
        prompt => prompt,
    };
    if example.references_dropped {
        caption.push_str(" (references dropped)");
    }
    caption
}

fn sample(example: &Example, loader: &Loader, prompts: &Prompts) -> Value {
    let id = |position: u64| {
        usize::try_from(position)
            .ok()
            .and_then(|row| loader.rows().get(row))
            .map(|it| &it.id)
    };
    let references: Vec<Value> = example
        .references
        .iter()
        .map(|it| json!({ "id": id(it.position), "concept": it.concept.word() }))
        .collect();
    json!({
        "id": id(example.position),
        "prompt": example.prompt,
        "prompt_as_read": prompts.kept(&example.prompt),
        "timestep": example.timestep,
        "references": references,
        "references_dropped": example.references_dropped,
    })
}
