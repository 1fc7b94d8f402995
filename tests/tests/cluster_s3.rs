//! The tiny job with everything on a real S3 server: data set, the coordinator's state, checkpoints
//! and images.

use anyhow::Result;
use tests::cluster::job::{TinyJob, synthesize};
use tests::cluster::seaweedfs::{BUCKET, SeaweedFs};
use tests::cluster::{Cluster, Options};

#[test]
fn the_whole_path_on_s3() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let s3 = SeaweedFs::start(directory.path())?;
    let mut cluster = Cluster::start(Options {
        workers: 2,
        store: Some(format!("s3://{BUCKET}/store")),
        environment: s3.environment(),
        network: None,
    })?;
    let dataset = format!("s3://{BUCKET}/figures");
    cluster.ok(&synthesize(&dataset))?;
    cluster.ok(&["dataset", "verify", &dataset])?;
    let job = TinyJob {
        name: "on-s3".to_owned(),
        dataset,
        workers: 2,
        steps: 12,
        checkpoint_every: 5,
    };
    let id = cluster.submit(&job.to_toml())?;
    cluster.wait_done(&id)?;

    // The state is on S3, too: a restarted coordinator knows the job.
    cluster.kill_coordinator()?;
    cluster.start_coordinator()?;
    assert_eq!(cluster.json(&["describe", &id])?["phase"], "done");
    let checkpoints = cluster.json(&["checkpoints", &id])?;
    assert_eq!(
        (&checkpoints[0]["step"], &checkpoints[1]["step"]),
        (&10.into(), &12.into()),
        "{checkpoints}"
    );
    cluster.ok(&["checkpoint", "verify", &id])?;
    assert_eq!(cluster.ok(&["checkpoint", "digest", &id])?.trim().len(), 64);

    let out = cluster.directory().join("images");
    let folder = out.display().to_string();
    cluster.ok(&[
        "sample", &id, "--count", "1", "--steps", "2", "--out", &folder,
    ])?;
    assert!(std::fs::read(out.join("grid.png"))?.starts_with(b"\x89PNG"));
    cluster.stop()
}
