//! `coordinator submit`: checks job.toml on the user's machine, where its files are, and sends it
//! to the coordinator unchanged.

use super::client::{self, Client, connect, request_error};
use super::evaluate::open;
use super::patience::aloud;
use super::reference::{self, Upload};
use super::{Global, Outcome, Output, describe, evaluate, print_json, twins, watch};
use crate::pin::{PinError, check_init, pin, pin_dataset};
use crate::text::{errln, outln};
use anyhow::{Context, Result, anyhow};
use clap::Args;
use proto::job::overrides::{Override, with_settings};
use proto::pb;
use proto::spec::{JobSpec, TrainWork, Work};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct SubmitArgs {
    /// The job file; deploy/jobs/demo.toml documents every field
    #[arg(value_name = "job.toml")]
    pub(super) file: PathBuf,
    /// Check everything here and on the coordinator, but store nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// With --dry-run: ask no coordinator. What cannot be reached from this machine is not checked,
    /// and said
    #[arg(long, requires = "dry_run")]
    offline: bool,
    /// Follow the job until it ends; exit code 0 only if it is done
    #[arg(long, conflicts_with = "dry_run")]
    watch: bool,
    /// Submit this job too, as a twin: both see the same samples in the same order with the same
    /// noise, so that `compare` can tell a small difference from chance
    #[arg(long, value_name = "job.toml", conflicts_with_all = ["watch", "offline"])]
    twin: Option<PathBuf>,
    /// Set a key of the job file, such as train.steps=10; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The job's name, instead of the one in the file
    #[arg(long)]
    name: Option<String>,
    /// A label, by which usage can be summed up; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// A note for people, shown with the job
    #[arg(long, default_value = "", hide_default_value = true)]
    note: String,
    /// Whose job it is: the user of this command, if it is not given
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
}

impl SubmitArgs {
    pub(crate) fn of(file: PathBuf, dry_run: bool, watch: bool) -> Self {
        Self {
            file,
            dry_run,
            offline: false,
            watch,
            twin: None,
            set: Vec::new(),
            name: None,
            labels: Vec::new(),
            note: String::new(),
            owner: None,
        }
    }
}

pub(crate) async fn submit(global: &Global, args: &SubmitArgs) -> Result<Outcome> {
    if let Some(twin) = &args.twin {
        return twins::submit(global, args, twin).await;
    }
    let mut job = Submission::read(&args.file)?;
    job.about(args)?;
    if args.offline {
        open::complete(global, None, &mut job).await?;
        return check_offline(global, &job).await;
    }
    let is_evaluation = proto::job::evaluation::open(&job.text).is_some();
    let mut connected = None;
    if is_evaluation {
        let client = connected.insert(connect(global).await?);
        open::complete(global, Some(client), &mut job).await?;
    }
    let (spec, notes) = check(&job).await?;
    let mut client = match connected {
        Some(client) => client,
        None => connect(global).await?,
    };
    let (read, references) = match &spec.work {
        Work::Train(_) | Work::Build(_) => (None, Vec::new()),
        Work::Sample(work) => (Some(&work.job), work.references.clone()),
        Work::Evaluate(work) => {
            let first = work.models.first().map(|model| &model.job);
            (first, work.plan.named_references().cloned().collect())
        }
    };
    if let Some(read) = read {
        let trained = client::describe(global, &mut client, &read.0).await?;
        if let Work::Evaluate(work) = &spec.work {
            evaluate::check(global, &mut client, work, &trained).await?;
        }
        // Image files are in the user's folder; workers read them from the store.
        for line in reference::assumptions(&references) {
            errln!("{line}");
        }
        let upload = if args.dry_run {
            Upload::No
        } else {
            Upload::Yes
        };
        job.files = reference::store_files(&references, &job.directory, &trained, upload).await?;
    }
    let reply = send(global, &mut client, job, args.dry_run).await?;
    match (global.output, args.dry_run) {
        (Output::Json, _) if !args.watch => print_json(&serde_json::json!({
            "job": (!args.dry_run).then_some(&reply.job),
            "summary": reply.summary,
        })),
        (Output::Json, _) => {}
        (Output::Table, true) => {
            // Each of its lines is one of ours: notes follow the summary.
            let mut lines = reply.summary.lines();
            let first = lines.next().unwrap_or_default();
            outln!("{} is valid: {first}", args.file.display());
            lines.for_each(|note| outln!("{note}"));
        }
        (Output::Table, false) => {
            // Standard output is the job's id alone, for scripts.
            for note in notes {
                errln!("{note}");
            }
            outln!("{}", reply.job);
            say_place(&mut client, &reply.job).await;
        }
    }
    if args.watch {
        watch::watch(global, &reply.job).await
    } else {
        Ok(Outcome::True)
    }
}

/// Where a job that must wait stands in the queue. The job is submitted: an error is no failure.
async fn say_place(client: &mut Client, job: &str) {
    let request = pb::JobRequest {
        job: job.to_owned(),
    };
    if let Ok(view) = client.describe_job(request).await
        && let Some(queue) = &view.get_ref().queue
    {
        errln!("queued: {}", describe::queue_text(queue));
    }
}

/// A job to submit, as the user wrote it.
#[derive(Debug, Clone)]
pub(crate) struct Submission {
    /// For error messages.
    pub(crate) file_name: String,
    pub(crate) text: String,
    /// The base of its relative paths.
    pub(crate) directory: PathBuf,
    /// SHA-256 by name of the files that it refers to; they are in the store.
    pub(crate) files: HashMap<String, String>,
    pub(crate) about: About,
}

/// The user of this command, as the environment says.
fn user() -> String {
    std::env::var("USER").unwrap_or_default()
}

impl About {
    /// A job of the user of this command.
    pub(crate) fn of_user() -> Self {
        Self {
            owner: user(),
            ..Self::default()
        }
    }
}

/// What the user says about a job beside its file.
#[derive(Debug, Clone, Default)]
pub(crate) struct About {
    pub(crate) owner: String,
    pub(crate) labels: HashMap<String, String>,
    pub(crate) note: String,
}

impl Submission {
    pub(super) fn read(file: &Path) -> Result<Self> {
        let file_name = file.display().to_string();
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {file_name}"))?;
        let absolute = std::path::absolute(file)
            .with_context(|| format!("cannot make the path {file_name} absolute"))?;
        Ok(Self {
            directory: absolute.parent().map(Path::to_owned).unwrap_or_default(),
            file_name,
            text,
            files: HashMap::new(),
            about: About::default(),
        })
    }

    /// Takes over what the command line sets.
    pub(super) fn about(&mut self, args: &SubmitArgs) -> Result<()> {
        let name = args.name.iter().map(|name| Override {
            key: "name".to_owned(),
            value: format!("{name:?}"),
        });
        let set = args.set.iter().map(|text| text.parse::<Override>());
        let set = set.chain(name.map(Ok)).collect::<Result<Vec<_>, _>>();
        let set = set.map_err(|why| anyhow!("--set: {why}"))?;
        if !set.is_empty() {
            // Lines of the file are no longer those of the text.
            self.text = with_settings(&self.text, &set)
                .map_err(|why| anyhow!("{}: {why}", self.file_name))?;
            self.file_name = format!("{} with --set", self.file_name);
        }
        for label in &args.labels {
            let Some((key, value)) = label.split_once('=') else {
                return Err(anyhow!("--label: `{label}` is not of the form key=value"));
            };
            self.about
                .labels
                .insert(key.trim().to_owned(), value.trim().to_owned());
        }
        self.about.note.clone_from(&args.note);
        self.about.owner = args.owner.clone().unwrap_or_else(user);
        Ok(())
    }
}

/// Sends a job unchanged. The coordinator parses it and derives its canonical text.
pub(crate) async fn send(
    global: &Global,
    client: &mut Client,
    job: Submission,
    dry_run: bool,
) -> Result<pb::SubmitReply> {
    let request = pb::SubmitRequest {
        file_name: job.file_name,
        job_toml: job.text,
        dry_run,
        directory: Some(job.directory.display().to_string()),
        files: job.files,
        owner: job.about.owner,
        labels: job.about.labels,
        note: job.about.note,
    };
    let reply = client.submit(request).await;
    Ok(reply
        .map_err(|status| request_error(global, &status))?
        .into_inner())
}

/// Checks the job on the user's machine, where its files are. Its training data must exist. Returns
/// what the user should know of them, too.
pub(super) async fn check(job: &Submission) -> Result<(JobSpec, Vec<String>)> {
    let spec = proto::job::parse(&job.file_name, &job.text, Some(&job.directory))?;
    let notes = match &spec.work {
        Work::Train(work) => match aloud(&inputs(work), pin(work)).await {
            Ok(pinned) => {
                evaluate::check_during(work, &pinned.version).await?;
                pinned.notes()
            }
            Err(error) => return Err(input_error(job, &error)),
        },
        Work::Sample(_) | Work::Evaluate(_) | Work::Build(_) => Vec::new(),
    };
    Ok((spec, notes))
}

/// What a job reads.
fn inputs(work: &TrainWork) -> String {
    let init = work.model.init.iter();
    let init: String = init.map(|url| format!(" and {url}")).collect();
    format!("{}{init}", work.data.dataset)
}

fn input_error(job: &Submission, error: &PinError) -> anyhow::Error {
    anyhow!(proto::job::error_at(
        &job.file_name,
        &job.text,
        error.field(),
        error.to_string()
    ))
}

/// Checks the job without a coordinator, with the messages of [`check`]. Inputs that cannot be
/// reached from here are listed.
async fn check_offline(global: &Global, job: &Submission) -> Result<Outcome> {
    let spec = proto::job::parse(&job.file_name, &job.text, Some(&job.directory))?;
    let (mut checked, mut unchecked) = (Vec::new(), Vec::new());
    let mut notes = Vec::new();
    match &spec.work {
        Work::Train(work) => {
            let dataset = aloud(&work.data.dataset, pin_dataset(work)).await;
            let dataset = dataset.map(|pinned| {
                checked.push(format!(
                    "data.dataset {} (version {})",
                    work.data.dataset,
                    &pinned.version[..12]
                ));
                notes.extend(pinned.notes());
            });
            let init = aloud(&inputs(work), check_init(work)).await;
            let init = init.map(|of_init| {
                let init = work.model.init.iter();
                checked.extend(init.map(|url| format!("model.init {url}")));
                notes.extend(of_init);
            });
            for error in [dataset.err(), init.err()].into_iter().flatten() {
                if !error.is_unreachable() {
                    return Err(input_error(job, &error));
                }
                unchecked.push(format!("{}: {error}", error.field()));
            }
        }
        Work::Sample(work) => unchecked.push(format!(
            "sample.job: only a coordinator knows {}, and with it the data set and references",
            work.job
        )),
        Work::Build(work) => unchecked.push(format!(
            "build.key: only a worker reads the plan of {} in {}",
            work.key.stage, work.out
        )),
        Work::Evaluate(work) => unchecked.push(format!(
            "evaluate.models: only a coordinator knows {}, and with them the data set, characters \
             and references",
            work.models
                .iter()
                .map(|model| model.job.0.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        )),
    }
    let earlier = spec.after.iter();
    unchecked.extend(earlier.map(|it| format!("after: only a coordinator knows {it}")));
    match global.output {
        Output::Json => print_json(&serde_json::json!({
            "job": null,
            "checked": checked,
            "not_checked": unchecked,
            "notes": notes,
        })),
        Output::Table => {
            outln!("{} is valid", job.file_name);
            for input in checked {
                outln!("checked: {input}");
            }
            for input in unchecked {
                outln!("NOT checked: {input}");
            }
            for note in notes {
                outln!("note: {note}");
            }
        }
    }
    Ok(Outcome::True)
}
