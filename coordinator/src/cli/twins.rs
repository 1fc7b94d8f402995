//! `coordinator submit --twin`: two trainings that draw the same. Both are checked, here and by the
//! coordinator, before either is stored.

use super::client::{Client, connect};
use super::submit::{self, Submission, SubmitArgs, send};
use super::{Global, Outcome, Output, print_json};
use crate::text::{errln, outln};
use anyhow::{Context, Result, bail};
use proto::pb;
use proto::spec::TrainWork;
use proto::text::hex_sha256;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The label that twins have in common.
const LABEL: &str = "twin";

pub(super) async fn submit(global: &Global, args: &SubmitArgs, twin: &Path) -> Result<Outcome> {
    // Named in the order of the command: `submit --twin a.toml b.toml`.
    let files: [PathBuf; 2] = [twin.to_owned(), args.file.clone()];
    let mut jobs = Vec::new();
    let mut works = Vec::new();
    for file in &files {
        let mut job = Submission::read(file)?;
        job.about(args)?;
        let (spec, notes) = submit::check(&job).await?;
        for note in notes {
            errln!("{}: {note}", file.display());
        }
        let Some(work) = spec.training() else {
            bail!("{}: only jobs with [train] can be twins", file.display());
        };
        works.push(work.clone());
        jobs.push(job);
    }
    draw_the_same(&files, &works)?;
    let label = label(&jobs);
    for job in &mut jobs {
        job.about.labels.insert(LABEL.to_owned(), label.clone());
    }
    let mut client = connect(global).await?;
    for (job, file) in jobs.iter().zip(&files) {
        let checked = send(global, &mut client, job.clone(), true).await?;
        if args.dry_run {
            outln!("{} is valid: {}", file.display(), checked.summary);
        }
    }
    if args.dry_run {
        return Ok(Outcome::True);
    }
    let ids = store(global, &mut client, jobs, &files).await?;
    match global.output {
        Output::Json => print_json(&serde_json::json!({ "jobs": ids, "twin": label })),
        Output::Table => {
            for id in &ids {
                outln!("{id}");
            }
            errln!(
                "twins, label {LABEL}={label}; `coordinator compare {}`",
                ids.join(" ")
            );
        }
    }
    Ok(Outcome::True)
}

/// Stores both. The first one stays if the second cannot be stored after all, and that is said.
async fn store(
    global: &Global,
    client: &mut Client,
    jobs: Vec<Submission>,
    files: &[PathBuf; 2],
) -> Result<Vec<String>> {
    let mut ids: Vec<String> = Vec::new();
    for (job, file) in jobs.into_iter().zip(files) {
        let sent: Result<pb::SubmitReply> = send(global, client, job, false).await;
        let reply = sent.with_context(|| match ids.first() {
            None => format!("{}: nothing was submitted", file.display()),
            Some(first) => format!(
                "{}: its twin {first} was submitted already; `coordinator cancel {first}` ends it",
                file.display()
            ),
        })?;
        ids.push(reply.job);
    }
    Ok(ids)
}

fn draw_the_same(files: &[PathBuf; 2], works: &[TrainWork]) -> Result<()> {
    let [a, b] = works else {
        unreachable!("two files were read")
    };
    let mut found = proto::twin::differences(a, b);
    if a.data.dataset != b.data.dataset {
        let (a, b) = (a.data.dataset.clone(), b.data.dataset.clone());
        found.insert(0, ("data.dataset", a, b));
    }
    let lines: Vec<String> = found
        .iter()
        .map(|(field, a, b)| format!("{field} is {a} and {b}"))
        .collect();
    if lines.is_empty() {
        return Ok(());
    }
    let [first, second] = files.each_ref().map(|file| file.display());
    bail!(
        "{first} and {second} would draw different samples or noise: {}; twins have the same: \
         change one of the files, or --set it for both",
        lines.join(", ")
    )
}

/// Twins of their own each time, also when the same files are submitted again.
fn label(jobs: &[Submission]) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let mut bytes = now.unwrap_or_default().as_nanos().to_le_bytes().to_vec();
    for job in jobs {
        bytes.extend(job.text.as_bytes());
    }
    hex_sha256(&bytes).chars().take(8).collect()
}
