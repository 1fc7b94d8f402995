//! The tests' job: RetriNet of the smallest size on 32 pixels and a handful of synthetic figures,
//! small enough that its processes cost more than its training.

use super::{Cluster, Options};
use anyhow::{Context, Result, ensure};
use proto::pb::JobView;
use proto::phase::Phase;
use std::ops::RangeInclusive;

/// A cluster with the tests' data set in its folder; the data set's URL.
///
/// # Errors
/// A process did not start, or no figures could be drawn.
pub fn with_figures(workers: usize) -> Result<(Cluster, String)> {
    let cluster = Cluster::start(Options::with_workers(workers))?;
    let dataset = format!("file://{}", cluster.directory().join("figures").display());
    cluster.ok(&synthesize(&dataset))?;
    Ok((cluster, dataset))
}

/// What `coordinator checkpoint digest` says of a job's newest checkpoint, or of one that
/// `JOB@STEP` names.
///
/// # Errors
/// It fails, or says something else than a digest.
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

/// Arguments that make the tests' data set at `url`.
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

/// What differs between the tests' jobs.
#[derive(Debug, Clone)]
pub struct TinyJob {
    pub name: String,
    /// URL of the data set's folder.
    pub dataset: String,
    /// Exactly so many workers, one rank each.
    pub workers: u32,
    pub steps: u64,
    pub checkpoint_every: u64,
}

impl TinyJob {
    /// Long enough that a fault at step 10 lands in its middle, with a commit before and steps to
    /// repeat.
    #[must_use]
    pub fn of_forty_steps(dataset: &str, workers: u32) -> Self {
        Self {
            name: "tiny".to_owned(),
            dataset: dataset.to_owned(),
            workers,
            steps: 40,
            checkpoint_every: 8,
        }
    }

    /// job.toml's text.
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

/// A job for so many workers of five micro-batches, in exact sums, and without a checkpoint but
/// that with which it leaves.
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

/// Waits until that many ranks have done some steps together.
///
/// # Errors
/// The job ends, or nothing new is said for too long.
pub fn trains(cluster: &Cluster, id: &str, world: u32) -> Result<JobView> {
    let together = |view: &JobView| view.phase == Phase::Training && view.world == world;
    let begun = cluster.wait(id, &format!("{world} ranks"), together)?;
    cluster.wait(id, &format!("a step of {world} ranks"), |view| {
        together(view) && begun.generation <= view.generation && begun.step + 2 < view.step
    })
}

/// Pauses the job, which has written `before` checkpoints until then, and compares what it has with
/// what one undisturbed rank has after as many steps. Returns how many these are.
///
/// # Errors
/// They differ, the audit finds something, or it was not one checkpoint that the pause brought.
pub fn nothing_was_lost(cluster: &Cluster, dataset: &str, id: &str, before: usize) -> Result<u64> {
    cluster.ok(&["pause", id])?;
    let view = cluster.wait(id, "a pause", |view| view.phase == Phase::Paused)?;
    let newest = view.checkpoints.iter().max_by_key(|it| it.step);
    let checkpoint = newest.filter(|_| view.checkpoints.len() == before + 1);
    let checkpoint =
        checkpoint.with_context(|| format!("one checkpoint was to be written: {view:?}"))?;
    let undisturbed = cluster.submit(&elastic(dataset, 1..=1, checkpoint.step))?;
    cluster.wait_done(&undisturbed)?;
    let digest = |id: &str| cluster.ok(&["checkpoint", "digest", id]);
    ensure!(digest(id)? == digest(&undisturbed)?, "bits were lost");
    let audit = cluster.json(&["audit", id])?;
    ensure!(audit["clean"] == true, "{audit}");
    Ok(checkpoint.step)
}
