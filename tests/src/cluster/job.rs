//! The tests' job: the smallest RetriNet at 32 pixels on a few synthetic figures. Starting its
//! processes takes longer than its training.

use super::{Cluster, Options};
use anyhow::{Context, Result, ensure};
use proto::pb::JobView;
use proto::phase::Phase;
use std::ops::RangeInclusive;

/// Starts a cluster with the tests' data set in its folder. Also returns the data set's URL.
///
/// # Errors
/// A process did not start, or the data set could not be made.
pub fn with_figures(workers: usize) -> Result<(Cluster, String)> {
    let cluster = Cluster::start(Options::with_workers(workers))?;
    let dataset = format!("file://{}", cluster.directory().join("figures").display());
    cluster.ok(&synthesize(&dataset))?;
    Ok((cluster, dataset))
}

/// The output of `coordinator checkpoint digest` for a job's newest checkpoint, or for one that
/// `JOB@STEP` names.
///
/// # Errors
/// It fails, or prints something else than a digest.
pub fn digest(cluster: &Cluster, job: &str) -> Result<String> {
    let digest = cluster
        .ok(&["checkpoint", "digest", job])?
        .trim()
        .to_owned();
    ensure!(
        digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "digest is {digest:?}"
    );
    Ok(digest)
}

/// Arguments that create the tests' data set at `url`.
#[must_use]
pub fn synthesize(url: &str) -> Vec<&str> {
    let sizes = [
        "--characters",
        "4",
        "--outfits",
        "2",
        "--images",
        "4",
        "--size",
        "32",
        "--seed",
        "1",
    ];
    [&["dataset", "synthesize"], &sizes[..], &["--out", url]].concat()
}

/// The parameters of the tests' jobs.
#[derive(Debug, Clone)]
pub struct TinyJob {
    pub name: String,
    /// URL of the data set's folder.
    pub dataset: String,
    /// The exact number of workers, with one rank each.
    pub workers: u32,
    pub steps: u64,
    pub checkpoint_every: u64,
}

impl TinyJob {
    /// Long enough for a fault at step 10, after a committed checkpoint and with steps to repeat.
    #[must_use]
    pub fn forty_steps(dataset: &str, workers: u32) -> Self {
        Self {
            name: "tiny".to_owned(),
            dataset: dataset.to_owned(),
            workers,
            steps: 40,
            checkpoint_every: 8,
        }
    }

    /// The text of job.toml.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let Self {
            name,
            dataset,
            workers,
            steps,
            checkpoint_every,
        } = self;
        format!(
            "name = \"{name}\"\n\
             [resources]\n\
             workers = {{ min = {workers}, max = {workers} }}\n\
             [data]\n\
             dataset = \"{dataset}\"\n\
             references = 2\n\
             resolution = 32\n\
             holdout = 0.25\n\
             seed = 5\n\
             [model]\n\
             architecture = \"retrinet\"\n\
             size = \"tiny\"\n\
             [train]\n\
             steps = {steps}\n\
             global_batch = 4\n\
             micro_batch = 2\n\
             learning_rate = 1e-3\n\
             digest_every = 4\n\
             [checkpoint]\n\
             every = {checkpoint_every}\n\
             keep = 2\n"
        )
    }
}

/// The folder of a small CLIP that scores.
///
/// # Errors
/// It is not trained or not exported.
pub fn clip(cluster: &Cluster, dataset: &str) -> Result<String> {
    let job = TinyJob {
        name: "clip".to_owned(),
        steps: 2,
        ..TinyJob::forty_steps(dataset, 1)
    };
    let text = job
        .to_toml()
        .replace("\"retrinet\"", "\"clip\"")
        .replace("references = 2\n", "prompt_drop = 0\n");
    let id = cluster.submit(&text)?;
    cluster.wait_done(&id)?;
    let folder = cluster.directory().join("clip").display().to_string();
    cluster.ok(&["checkpoint", "export", &id, "--out", &folder])?;
    Ok(folder)
}

/// A job for this range of workers, with five micro-batches, exact reduction, and no periodic
/// checkpoint.
#[must_use]
pub fn elastic(dataset: &str, workers: RangeInclusive<u32>, steps: u64) -> String {
    let (min, max) = workers.into_inner();
    let tiny = TinyJob {
        name: format!("elastic-{min}-{max}"),
        dataset: dataset.to_owned(),
        workers: max,
        steps,
        checkpoint_every: 1_000_000,
    };
    tiny.to_toml()
        .replace(&format!("min = {max}"), &format!("min = {min}"))
        .replace(
            "global_batch = 4\nmicro_batch = 2",
            "global_batch = 5\nmicro_batch = 1",
        )
        .replace("[checkpoint]", "reduction = \"exact\"\n[checkpoint]")
}

/// Waits until `world` ranks have done some steps together.
///
/// # Errors
/// The job ends, or sends no view for too long.
pub fn wait_training(cluster: &Cluster, id: &str, world: u32) -> Result<JobView> {
    let together = |view: &JobView| view.phase == Phase::Training && view.world == world;
    let begun = cluster.wait(id, &format!("{world} ranks"), together)?;
    cluster.wait(id, &format!("a step of {world} ranks"), |view| {
        together(view) && begun.generation <= view.generation && begun.step + 2 < view.step
    })
}

/// Pauses the job, which has `before` checkpoints by then, and compares its weights with those of
/// one undisturbed rank after the same number of steps. Returns that number.
///
/// # Errors
/// They differ, the audit is not clean, or the pause did not write exactly one checkpoint.
pub fn check_nothing_lost(
    cluster: &Cluster,
    dataset: &str,
    id: &str,
    before: usize,
) -> Result<u64> {
    cluster.ok(&["pause", id])?;
    let view = cluster.wait(id, "a pause", |view| view.phase == Phase::Paused)?;
    let newest = view.checkpoints.iter().max_by_key(|it| it.step);
    let checkpoint = newest.filter(|_| view.checkpoints.len() == before + 1);
    let checkpoint =
        checkpoint.with_context(|| format!("the pause should write one checkpoint: {view:?}"))?;
    let undisturbed = cluster.submit(&elastic(dataset, 1..=1, checkpoint.step))?;
    cluster.wait_done(&undisturbed)?;
    let digest = |id: &str| cluster.ok(&["checkpoint", "digest", id]);
    ensure!(digest(id)? == digest(&undisturbed)?, "the weights differ");
    let audit = cluster.json(&["audit", id])?;
    ensure!(audit["clean"] == true, "{audit}");
    Ok(checkpoint.step)
}
