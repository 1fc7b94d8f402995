//! `coordinator sample`: creates a `[sample]` job for a trained job, submits it, waits for it and
//! downloads the images.

use super::client::{self, connect};
use super::reference::{self, Upload};
use super::submit::{self, Submission};
use super::{Global, Outcome, Output, Target, print_json, watch};
use crate::text::{errln, outln};
use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum};
use figures::grid::{Cell, beside};
use futures::TryStreamExt;
use image::RgbImage;
use object_store::{ObjectStore, ObjectStoreExt};
use proto::id::Step;
use proto::knobs::Knobs;
use proto::pb;
use proto::phase::Phase;
use proto::sample::{Concept, SampleMethod, SamplePrompt, SampleWork, Weights};
use proto::spec::{JobSpec, Pairing, Resources, Task, Work};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Written last by the rank: describes every image and its score.
const SUMMARY_FILE: &str = "images.json";
/// Written by the rank.
const GRID_FILE: &str = "grid.png";
/// The most rows of that grid, and the side of its images in pixels.
const GRID_ROWS: u32 = 24;
const GRID_SIDE: u32 = 96;
/// Default number of samples to generate.
const SUBJECTS: u32 = 16;

#[derive(Debug, Args)]
pub(crate) struct SampleArgs {
    /// The job's newest checkpoint, or that of a step
    #[arg(value_name = "JOB[@STEP]")]
    target: Target,
    /// Output folder; created if it is missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Samples to generate (default 16); of held-out characters if the job has any. With
    /// --references there is one subject
    #[arg(long)]
    count: Option<u32>,
    /// File with one prompt per line; every subject is generated with each of them instead of its
    /// own prompt
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// What images are guided away from: the unconditional text of classifier-free guidance. Needs
    /// a
    /// --guidance other than 1
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    negative_prompt: String,
    /// References: ids of samples of the data set, cropped to their concept, or image files. Each
    /// may have a concept prefix, for instance `face:12,clothes:7,figure:me.png`. A file with the
    /// box of its face (centre x, centre y, width, height, as fractions of the image) or with a
    /// mask of its figure (white on it) is prepared as a sample is, for instance
    /// `face:me.png@0.5,0.3,0.2,0.15` or `clothes:me.png@0.5,0.3,0.2,0.15+mask.png`. Other files
    /// are used whole
    #[arg(long, value_name = "[CONCEPT:]ID|FILE[@X,Y,W,H][+MASK]")]
    references: Vec<reference::ReferenceArgs>,
    /// The swap test: every sample gets the references of a sample of another character. Prompt and
    /// noise stay, so an image that follows its references changes its looks and nothing else
    #[arg(long, conflicts_with = "references")]
    swap_references: bool,
    /// How references are chosen and cropped [default: as in the trained job]
    #[arg(long, value_enum)]
    task: Option<TaskName>,
    /// Where the references of a sample come from: the sample itself (a) or other images of the
    /// same character and outfit (b) [default: as in the trained job]
    #[arg(long, value_enum)]
    pairing: Option<PairingName>,
    /// Also write attention maps of these concepts over the references, by input block and time
    /// step, for instance `face,clothes` (the paper's figure 6). The time steps go from that of the
    /// first sampling step down to 0, and all maps of a sheet have one scale
    #[arg(
        long,
        value_name = "WORDS",
        value_delimiter = ',',
        value_parser = reference::parse_concept
    )]
    attention: Vec<Concept>,
    /// Sampler
    #[arg(long, value_enum, default_value = "ddim")]
    method: Method,
    /// Sampling steps per image
    #[arg(long, default_value_t = 50)]
    steps: u32,
    /// Classifier-free guidance scale [default: 7.5; for a model that predicts v, as small ones
    /// do, 2, or 1.5 beside guidance by references]
    #[arg(long)]
    guidance: Option<f64>,
    /// Guidance scale of the references; above 1 strengthens them [default: 1; 3 for a RetriNet
    /// that predicts v and was trained with data.reference_drop]
    #[arg(long)]
    reference_guidance: Option<f64>,
    /// One image per seed; equal seeds give equal images. The first seed also selects the samples
    #[arg(
        long,
        visible_alias = "seed",
        value_name = "SEEDS",
        value_delimiter = ',',
        default_value = "0"
    )]
    seeds: Vec<u64>,
    /// Content of the prompt: all tags of the target, only its pose on a white background (identity
    /// must then come from the references), or nothing
    #[arg(long, value_enum, default_value = "full")]
    prompt: Prompt,
    /// A setting that only the trained job's architecture has, as in `[sample.knobs]`, for
    /// instance `image_scale=0.5`; may be repeated
    #[arg(long = "knob", value_name = "NAME=VALUE")]
    knobs: Vec<String>,
    /// Use the job's initial weights, as a baseline
    #[arg(long)]
    base: bool,
    /// Folders that earlier calls of this command wrote, of as many samples with the same seed:
    /// their images stand beside this call's in grid.png, under the names of the folders
    #[arg(
        long,
        value_name = "DIR",
        value_delimiter = ',',
        conflicts_with = "prompts"
    )]
    beside: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    Ddim,
    Pndm,
    /// DPM-Solver++(2M): good images in 20 to 25 steps
    DpmSolver,
    /// DDPM: each step adds noise; Kandinsky's decoder, with 100 steps
    Ddpm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TaskName {
    Reconstruction,
    Composition,
    Multitask,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Prompt {
    Full,
    Pose,
    Empty,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PairingName {
    A,
    B,
}

impl SampleArgs {
    /// Builds the `[sample]` table from the arguments.
    fn work(&self) -> Result<SampleWork> {
        let subjects = if self.references.is_empty() {
            SUBJECTS
        } else {
            1
        };
        Ok(SampleWork {
            count: self.count.unwrap_or(subjects),
            method: match self.method {
                Method::Ddim => SampleMethod::Ddim,
                Method::Pndm => SampleMethod::Pndm,
                Method::DpmSolver => SampleMethod::DpmSolver,
                Method::Ddpm => SampleMethod::Ddpm,
            },
            steps: self.steps,
            seeds: self.seeds.clone(),
            prompt: match self.prompt {
                Prompt::Full => SamplePrompt::Full,
                Prompt::Pose => SamplePrompt::Pose,
                Prompt::Empty => SamplePrompt::Empty,
            },
            prompts: self
                .prompts
                .as_deref()
                .map(read_prompts)
                .transpose()?
                .unwrap_or_default(),
            task: self.task.map(|task| match task {
                TaskName::Reconstruction => Task::Reconstruction,
                TaskName::Composition => Task::Composition,
                TaskName::Multitask => Task::Multitask,
            }),
            pairing: self.pairing.map(|pairing| match pairing {
                PairingName::A => Pairing::A,
                PairingName::B => Pairing::B,
            }),
            attention: self.attention.clone(),
            negative_prompt: self.negative_prompt.clone(),
            knobs: Knobs::parse(&self.knobs).map_err(|why| anyhow!("--knob: {why}"))?,
            swap_references: self.swap_references,
            references: reference::resolve(&reference::flatten(&self.references))?,
            weights: match self.target.step {
                _ if self.base => Weights::Base,
                Some(step) => Weights::Step(Step(step)),
                None => Weights::Newest,
            },
            ..SampleWork::of(self.target.job.clone())
        })
    }
}

/// The prompts of a file, one per line; an empty line is an empty prompt.
pub(super) fn read_prompts(file: &Path) -> Result<Vec<String>> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let lines: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    if lines.is_empty() {
        return Err(anyhow!(
            "{} contains no prompt; write one per line",
            file.display()
        ));
    }
    Ok(lines)
}

pub(crate) async fn sample(global: &Global, args: &SampleArgs) -> Result<Outcome> {
    let mut work = args.work()?;
    if args.base && args.target.step.is_some() {
        return Err(anyhow!("--base uses no checkpoint; leave out @STEP"));
    }
    if args.beside.len() * args.seeds.len() > args.beside.len() {
        return Err(anyhow!(
            "--beside shows one image of each sample, but there are {} seeds; name one",
            args.seeds.len()
        ));
    }
    for folder in &args.beside {
        beside_image(folder, 0)?;
    }
    prepare_folder(&args.out)?;
    let mut client = connect(global).await?;
    let trained = client::describe(global, &mut client, &args.target.job.0).await?;
    if args.target.step.is_some() {
        // Fails early, and lists the existing checkpoints, if that step has none.
        let _ = args.target.select(&trained)?;
    }
    for line in reference::assumptions(&work.references) {
        errln!("{line}");
    }
    let trained_spec = spec_of(&trained)?;
    if let Work::Train(it) = &trained_spec.work {
        let (prompt, references) = it.model.architecture.guidance();
        work.guidance = args.guidance.unwrap_or(prompt);
        work.reference_guidance = args.reference_guidance.unwrap_or(references);
    }
    let files =
        reference::store_files(&work.references, Path::new(""), &trained, Upload::Yes).await?;
    let spec = JobSpec {
        name: name_for(&trained.job),
        resources: resources_like(trained_spec.resources),
        after: Vec::new(),
        work: Work::Sample(Box::new(work)),
    };
    let job = Submission {
        file_name: "coordinator sample".to_owned(),
        text: proto::job::to_toml(&spec),
        directory: PathBuf::new(),
        files,
        about: submit::About::of_user(),
    };
    let reply = submit::send(global, &mut client, job, false).await?;
    // What the user should know, such as prompts that are cut.
    for note in reply.summary.lines().skip(1) {
        errln!("{note}");
    }
    let view = watch::follow(global, &reply.job).await?;
    if view.phase != Phase::Done {
        return Err(anyhow!(
            "{} ended {}: {}",
            view.job,
            view.phase,
            view.reason_sentence()
        ));
    }
    let (files, summary) = download(&view, &args.out).await?;
    if !args.beside.is_empty() {
        put_beside(args)?;
    }
    match global.output {
        Output::Json => print_json(&serde_json::json!({
            "job": view.job,
            "out": args.out,
            "files": files,
            "summary": summary,
        })),
        Output::Table => outln!("{}", summary_line(&view.job, &args.out, files, &summary)),
    }
    Ok(Outcome::True)
}

/// `<job>-sample`, truncated to the longest job name.
fn name_for(job: &str) -> String {
    const SUFFIX: &str = "-sample";
    const NAME_MAX: usize = 40;
    format!("{}{SUFFIX}", &job[..job.len().min(NAME_MAX - SUFFIX.len())])
}

/// The trained job as its job.toml describes it.
fn spec_of(trained: &pb::JobView) -> Result<JobSpec> {
    let file = format!("job.toml of {}", trained.job);
    Ok(proto::job::parse(&file, &trained.job_toml, None)?)
}

/// All free workers, with the device, team and priority of the trained job.
fn resources_like(trained: Resources) -> Resources {
    Resources {
        workers_min: 1,
        workers_max: 4096,
        devices_per_worker: 1,
        ..trained
    }
}

/// Makes the folder of the images, so that a job does not run for a folder that cannot be written.
/// Images of another job must not mix with the new ones, which have the same names.
fn prepare_folder(out: &Path) -> Result<()> {
    std::fs::create_dir_all(out)
        .with_context(|| format!("cannot create the folder {}", out.display()))?;
    if out.join(SUMMARY_FILE).exists() {
        return Err(anyhow!(
            "--out {} has the images of another job already ({SUMMARY_FILE}); choose another \
             folder",
            out.display()
        ));
    }
    Ok(())
}

/// Copies `jobs/<job>/images/*` into `out`; returns the number of files and the summary in
/// images.json.
async fn download(view: &pb::JobView, out: &Path) -> Result<(usize, Value)> {
    let (store, prefix) = storage::open(&view.store_url)?;
    let folder = ["jobs", &view.job, "images"]
        .into_iter()
        .fold(prefix, |path, part| path.join(part));
    let listed: Vec<_> = store.list(Some(&folder)).try_collect().await?;
    let mut summary = None;
    for object in &listed {
        let Some(name) = object.location.filename() else {
            continue;
        };
        let bytes = store.get(&object.location).await?.bytes().await?;
        if name == SUMMARY_FILE {
            let value: Value = serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is not valid JSON", object.location))?;
            summary = value.get("summary").cloned();
        }
        let file = out.join(name);
        std::fs::write(&file, &bytes)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    let summary = summary
        .ok_or_else(|| anyhow!("the store has no {folder}/{SUMMARY_FILE} with a summary"))?;
    Ok((listed.len(), summary))
}

/// Adds the images of the folders of `--beside` to the grid that was downloaded.
fn put_beside(args: &SampleArgs) -> Result<()> {
    let path = args.out.join(GRID_FILE);
    let read = image::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let count = args.count.unwrap_or(SUBJECTS).min(GRID_ROWS);
    let mut rows = Vec::new();
    for row in 0..count {
        let cells = args.beside.iter().map(|folder| {
            let name = folder.file_name().unwrap_or(folder.as_os_str());
            let image = beside_image(folder, row)?;
            Ok(Cell::new(name.to_string_lossy(), image))
        });
        rows.push(cells.collect::<Result<Vec<Cell>>>()?);
    }
    let grid = beside(&read.into_rgb8(), &rows, GRID_SIDE).ok_or_else(|| {
        anyhow!(
            "{} has not one row in a line, {count} in all: --beside needs a job with references",
            path.display()
        )
    })?;
    grid.save(&path)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The image of a sample in a folder of `--beside`.
fn beside_image(folder: &Path, row: u32) -> Result<RgbImage> {
    let file = folder.join(format!("{row:03}.png"));
    let read = image::open(&file).with_context(|| {
        format!(
            "--beside: cannot read {}; name a folder that `coordinator sample` wrote with as many \
            samples",
            file.display()
        )
    })?;
    Ok(read.into_rgb8())
}

/// Includes how many images are nearest to their own identity, if the rank scored them.
fn summary_line(job: &str, out: &Path, files: usize, summary: &Value) -> String {
    let number = |key: &str| summary.get(key).and_then(Value::as_u64);
    if let (Some(correct), Some(count), Some(of), Some(old)) = (
        number("correct"),
        number("count"),
        number("of"),
        number("old"),
    ) {
        return format!(
            "{job}: {files} files in {}; {correct} of {count} are nearest to the character and \
            outfit of their swapped references among {of}, {old} to those of their target",
            out.display()
        );
    }
    let score = match (number("correct"), number("count"), number("of")) {
        // Images from explicit references have no identity to score against.
        (_, Some(0), _) => String::new(),
        (Some(correct), Some(count), Some(of)) => {
            format!(
                "; {correct} of {count} are nearest to their own character and outfit among {of}"
            )
        }
        _ => String::new(),
    };
    format!("{job}: {files} files in {}{score}", out.display())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn images_of_another_job_are_not_mixed_with_new_ones() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a/b");
        prepare_folder(&out).unwrap();
        prepare_folder(&out).unwrap();
        std::fs::write(out.join(SUMMARY_FILE), "{}").unwrap();
        let error = prepare_folder(&out).unwrap_err().to_string();
        assert!(error.contains("choose another folder"), "{error}");
        std::fs::write(dir.path().join("file"), "").unwrap();
        let error = prepare_folder(&dir.path().join("file/x")).unwrap_err();
        assert!(error.to_string().contains("file/x"), "{error}");
    }

    #[test]
    fn the_score_is_shown_if_there_is_one() {
        let summary = serde_json::json!({ "correct": 11, "count": 16, "of": 8 });
        let line = summary_line("demo-1-sample-2", Path::new("out"), 18, &summary);
        assert_eq!(
            line,
            "demo-1-sample-2: 18 files in out; 11 of 16 are nearest to their own character and \
            outfit among 8"
        );
        let swapped = serde_json::json!({ "correct": 11, "count": 16, "of": 8, "old": 2 });
        assert_eq!(
            summary_line("a-1", Path::new("out"), 18, &swapped),
            "a-1: 18 files in out; 11 of 16 are nearest to the character and outfit of their \
            swapped references among 8, 2 to those of their target"
        );
        let unscored = serde_json::json!({ "correct": 0, "count": 0, "of": 0 });
        assert_eq!(
            summary_line("a-1", Path::new("out"), 3, &unscored),
            "a-1: 3 files in out"
        );
        assert_eq!(
            summary_line("a-1", Path::new("out"), 3, &Value::Null),
            "a-1: 3 files in out"
        );
    }
}
