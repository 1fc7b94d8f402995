//! Looks up what a plan leaves to the user's machine: its file of prompts, its folders of
//! characters, and the jobs that it names without their numbers. Called before a plan is parsed.

use crate::cli::Global;
use crate::cli::client::{Client, request_error};
use crate::cli::sample::read_prompts;
use crate::cli::submit::Submission;
use anyhow::{Context, Result, anyhow};
use proto::job::evaluation::{Found, fill, open};
use proto::pb;
use proto::phase::is_over;
use storage::regular;

const CHARACTERS_FILE: &str = "characters.toml";
const CHARACTERS_BYTES_MAX: u64 = 1 << 20;

/// Puts what the plan's text leaves open into the text. Does nothing for another kind of job.
/// Without a client, names of jobs stay.
pub(crate) async fn complete(
    global: &Global,
    client: Option<&mut Client>,
    job: &mut Submission,
) -> Result<()> {
    let Some(left) = open(&job.text) else {
        return Ok(());
    };
    let mut found = Found::default();
    if let Some(file) = &left.prompt_file {
        found.prompts = Some(read_prompts(&job.directory.join(file))?);
    }
    for folder in left.folders {
        let file = job.directory.join(&folder).join(CHARACTERS_FILE);
        let bytes = regular::read(&file, CHARACTERS_BYTES_MAX)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let text =
            String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", file.display()))?;
        found.folders.insert(folder, text);
    }
    if let Some(client) = client {
        for name in left.jobs {
            let view = newest(global, client, &name).await?;
            if !is_over(&view.phase) && !found.after.contains(&view.job) {
                found.after.push(view.job.clone());
            }
            if view.job != name {
                found.jobs.insert(name, view.job);
            }
        }
    }
    let text = fill(&job.text, &found);
    job.text = text.map_err(|why| anyhow!("{}: {why}", job.file_name))?;
    Ok(())
}

/// The job with this id, or else the newest of this name.
async fn newest(global: &Global, client: &mut Client, name: &str) -> Result<pb::JobView> {
    let request = pb::ListJobsRequest {
        name: name.to_owned(),
        limit: 1,
        ..Default::default()
    };
    let reply = client
        .list_jobs(request)
        .await
        .map_err(|status| request_error(global, &status))?;
    let job = reply.into_inner().jobs.pop();
    job.ok_or_else(|| {
        anyhow!("evaluate.models: there is no job {name}, and none of this name; submit it first")
    })
}
