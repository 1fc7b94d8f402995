//! `coordinator sample`: writes a job with a `[sample]` table for a trained job, submits it, waits
//! for it and fetches the images.

use super::client::{self, connect};
use super::reference::{self, Keep};
use super::submit::{self, Written};
use super::{Global, Outcome, Output, Target, print_json, watch};
use crate::words::say;
use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum};
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt};
use proto::id::Step;
use proto::pb;
use proto::phase::Phase;
use proto::sample::{Concept, SampleMethod, SamplePrompt, SampleWork, Weights};
use proto::spec::{JobSpec, Pairing, Resources, Task, Work};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Written last by the rank, with what each picture is and how near it came.
const SUMMARY_FILE: &str = "pictures.json";
/// Samples drawn unless said otherwise.
const SUBJECTS: u32 = 16;

#[derive(Debug, Args)]
pub(crate) struct SampleArgs {
    /// A job's newest checkpoint, or the one of a step
    #[arg(value_name = "JOB[@STEP]")]
    target: Target,
    /// Folder for the pictures; made if it is missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Samples to draw, of characters that training did not see where the job holds some out; with
    /// --references there is one subject
    #[arg(long)]
    count: Option<u32>,
    /// Draw every subject with each prompt of this file, one on a line, in place of the sample's
    /// own
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// What to draw from: ids of the data set's samples, of which the concept is cut out, or
    /// picture files, which are shown whole; each may begin with its concept, for instance
    /// `face:12,clothes:7,figure:me.png`
    #[arg(long, value_name = "[CONCEPT:]ID|FILE", value_delimiter = ',')]
    references: Vec<reference::Asked>,
    /// How references are chosen and cut; as the job says unless said otherwise
    #[arg(long, value_enum)]
    task: Option<TaskName>,
    /// Where the references of a sample come from: the sample itself (a) or other pictures of the
    /// character and outfit (b); as the job says unless said otherwise
    #[arg(long, value_enum)]
    pairing: Option<PairingName>,
    /// Also draw where the retrieval encoder finds these words in the references, by input block
    /// and time step, for instance `face,clothes` (the paper's figure 6)
    #[arg(long, value_name = "WORDS", value_delimiter = ',', value_parser = reference::concept)]
    attention: Vec<Concept>,
    /// How noise becomes a picture
    #[arg(long, value_enum, default_value = "ddim")]
    method: Method,
    /// Steps of each picture
    #[arg(long, default_value_t = 50)]
    steps: u32,
    /// Classifier-free guidance scale
    #[arg(long, default_value_t = 7.5)]
    guidance: f64,
    /// Scale of guidance by the references: above 1 they count for more than in training
    #[arg(long, default_value_t = 1.0)]
    reference_guidance: f64,
    /// A picture with each; the same seed gives the same picture. The first one also chooses the
    /// samples
    #[arg(
        long,
        visible_alias = "seed",
        value_name = "SEEDS",
        value_delimiter = ',',
        default_value = "0"
    )]
    seeds: Vec<u64>,
    /// What the prompt says of the target: all its tags, only its pose on a white ground (who it is
    /// must then come from the references), or nothing
    #[arg(long, value_enum, default_value = "full")]
    prompt: Prompt,
    /// Draw with the weights that the job began from, to compare with
    #[arg(long)]
    base: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    Ddim,
    Pndm,
    /// DPM-Solver++(2M): good pictures in 20 to 25 steps
    DpmSolver,
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
    /// Everything but what must be looked up.
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
            },
            steps: self.steps,
            guidance: self.guidance,
            reference_guidance: self.reference_guidance,
            seeds: self.seeds.clone(),
            prompt: match self.prompt {
                Prompt::Full => SamplePrompt::Full,
                Prompt::Pose => SamplePrompt::Pose,
                Prompt::Empty => SamplePrompt::Empty,
            },
            prompts: self
                .prompts
                .as_deref()
                .map(prompts)
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
            references: reference::named(&self.references),
            weights: match self.target.step {
                _ if self.base => Weights::Base,
                Some(step) => Weights::Step(Step(step)),
                None => Weights::Newest,
            },
            ..SampleWork::of(self.target.job.clone())
        })
    }
}

/// The lines of a file; the empty prompt is an empty line.
fn prompts(file: &Path) -> Result<Vec<String>> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let lines: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    if lines.is_empty() {
        return Err(anyhow!(
            "{} holds no prompt; write one on each line",
            file.display()
        ));
    }
    Ok(lines)
}

pub(crate) async fn sample(global: &Global, args: &SampleArgs) -> Result<Outcome> {
    let work = args.work()?;
    if args.base && args.target.step.is_some() {
        return Err(anyhow!(
            "--base draws without a checkpoint; leave out the @STEP"
        ));
    }
    let mut client = connect(global).await?;
    let trained = client::describe(global, &mut client, &args.target.job.0).await?;
    if args.target.step.is_some() {
        // Says what there is, where that step is not.
        let _ = args.target.of(&trained)?;
    }
    let files =
        reference::store_files(&work.references, Path::new(""), &trained, Keep::Stored).await?;
    let spec = JobSpec {
        name: name_for(&trained.job),
        resources: resources_like(&trained)?,
        after: Vec::new(),
        work: Work::Sample(Box::new(work)),
    };
    let job = Written {
        file_name: "coordinator sample".to_owned(),
        text: proto::job::to_toml(&spec),
        directory: PathBuf::new(),
        files,
    };
    let reply = submit::send(global, &mut client, job, false).await?;
    let view = watch::follow(global, &reply.job).await?;
    if view.phase != Phase::Done {
        return Err(anyhow!(
            "{} ended {}: {}",
            view.job,
            view.phase,
            view.reason
        ));
    }
    let (files, summary) = fetch(&view, &args.out).await?;
    match global.output {
        Output::Json => print_json(&serde_json::json!({
            "job": view.job,
            "out": args.out,
            "files": files,
            "summary": summary,
        })),
        Output::Table => say!("{}", summary_line(&view.job, &args.out, files, &summary)),
    }
    Ok(Outcome::True)
}

/// `<job>-sample`, cut where that is too long for a job's name.
fn name_for(job: &str) -> String {
    const SUFFIX: &str = "-sample";
    const NAME_MAX: usize = 40;
    format!("{}{SUFFIX}", &job[..job.len().min(NAME_MAX - SUFFIX.len())])
}

/// As many workers as are free, of the kind, team and priority of the trained job.
fn resources_like(trained: &pb::JobView) -> Result<Resources> {
    let file = format!("job.toml of {}", trained.job);
    let resources = proto::job::parse(&file, &trained.job_toml, None)?.resources;
    Ok(Resources {
        workers_min: 1,
        workers_max: 4096,
        devices_per_worker: 1,
        ..resources
    })
}

/// Copies `jobs/<job>/images/*` into `out`; how many files, and the summary of pictures.json.
async fn fetch(view: &pb::JobView, out: &Path) -> Result<(usize, Value)> {
    let (store, prefix) = storage::open(&view.store_url)?;
    let folder = ["jobs", &view.job, "pictures"]
        .into_iter()
        .fold(prefix, |path, part| path.join(part));
    std::fs::create_dir_all(out)
        .with_context(|| format!("cannot make the folder {}", out.display()))?;
    let listed: Vec<_> = store.list(Some(&folder)).try_collect().await?;
    let mut summary = None;
    for object in &listed {
        let Some(name) = object.location.filename() else {
            continue;
        };
        let bytes = store.get(&object.location).await?.bytes().await?;
        if name == SUMMARY_FILE {
            let value: Value = serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is no JSON", object.location))?;
            summary = value.get("summary").cloned();
        }
        let file = out.join(name);
        std::fs::write(&file, &bytes)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    let summary = summary.ok_or_else(|| {
        anyhow!("there is no {folder}/{SUMMARY_FILE} with a summary in the store")
    })?;
    Ok((listed.len(), summary))
}

/// Names how many pictures are nearest to their own identity, when the rank could tell.
fn summary_line(job: &str, out: &Path, files: usize, summary: &Value) -> String {
    let number = |key: &str| summary.get(key).and_then(Value::as_u64);
    let score = match (number("correct"), number("count"), number("of")) {
        // Named references are of nobody in particular.
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
    use super::*;

    #[test]
    fn the_score_is_told_when_there_is_one() {
        let summary = serde_json::json!({ "correct": 11, "count": 16, "of": 8 });
        let line = summary_line("demo-1-sample-2", Path::new("out"), 18, &summary);
        assert_eq!(
            line,
            "demo-1-sample-2: 18 files in out; 11 of 16 are nearest to their own character and \
            outfit among 8"
        );
        let nobody = serde_json::json!({ "correct": 0, "count": 0, "of": 0 });
        assert_eq!(
            summary_line("a-1", Path::new("out"), 3, &nobody),
            "a-1: 3 files in out"
        );
        assert_eq!(
            summary_line("a-1", Path::new("out"), 3, &Value::Null),
            "a-1: 3 files in out"
        );
    }
}
