//! Real processes on loopback: `reduction = "exact"` gives the same weights, moving averages and
//! optimizer state, bit for bit, with clipping and with a loss scale, for any number of ranks, and
//! also if a rank is killed in the middle.
#![allow(clippy::unwrap_used)]

use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use tests::cluster::job::{TinyJob, synthesize};
use tests::cluster::{Cluster, Options};

/// Five micro-batches, which only a world of one divides evenly.
fn job(dataset: &str, workers: u32, reduction: &str) -> String {
    let tiny = TinyJob {
        name: format!("{reduction}-{workers}"),
        dataset: dataset.to_owned(),
        workers,
        steps: 6,
        checkpoint_every: 100,
    };
    tiny.to_toml()
        .replace(
            "global_batch = 4\nmicro_batch = 2",
            "global_batch = 5\nmicro_batch = 1",
        )
        .replace(
            "[checkpoint]",
            &format!("clip = 0.1\nema = 0.9\nreduction = \"{reduction}\"\n[checkpoint]"),
        )
}

#[test]
fn one_two_three_and_four_ranks_end_with_the_same_bits() -> Result<()> {
    let cluster = Cluster::start(Options::with_workers(4))?;
    let dataset = format!("file://{}", cluster.directory().join("figures").display());
    cluster.ok(&synthesize(&dataset))?;
    let digest = |workers, reduction| -> Result<(String, f64)> {
        let id = cluster.submit(&job(&dataset, workers, reduction))?;
        let view = cluster.wait_done(&id)?;
        assert_eq!(view.restarts, 0, "{view:?}");
        let loss = view.last_step.map_or(0.0, |step| step.loss);
        Ok((
            cluster
                .ok(&["checkpoint", "digest", &id])?
                .trim()
                .to_owned(),
            loss,
        ))
    };
    let exact = (1..=4)
        .map(|workers| digest(workers, "exact"))
        .collect::<Result<Vec<_>>>()?;
    let digests: BTreeSet<&String> = exact.iter().map(|(digest, _)| digest).collect();
    ensure!(digests.len() == 1, "worlds 1 to 4: {exact:?}");
    let losses: BTreeSet<u64> = exact.iter().map(|(_, loss)| loss.to_bits()).collect();
    ensure!(losses.len() == 1, "worlds 1 to 4: {exact:?}");
    // The loss scale of fp16 depends on reduced values only.
    let half = |workers| -> Result<String> {
        let text = job(&dataset, workers, "exact")
            .replace("clip = 0.1", "clip = 0.1\nprecision = \"fp16\"");
        let id = cluster.submit(&text)?;
        cluster.wait_done(&id)?;
        cluster.ok(&["checkpoint", "digest", &id])
    };
    ensure!(half(1)? == half(3)?, "fp16 on one and on three ranks");
    // Float sums give a close but different result, so the comparison above is meaningful.
    let (fast, loss) = digest(3, "fast")?;
    ensure!(fast != exact[0].0, "float sums give the same bits");
    ensure!(
        (loss - exact[0].1).abs() < 1e-3 * loss,
        "{loss} and {}",
        exact[0].1
    );
    cluster.stop()
}

/// No checkpoint is written before the last step: the state comes from the survivors' memory.
#[test]
fn a_killed_rank_costs_no_survivor_its_process_and_the_weights_no_bit() -> Result<()> {
    let cluster = Cluster::start(Options::with_workers(3))?;
    let dataset = format!("file://{}", cluster.directory().join("figures").display());
    cluster.ok(&synthesize(&dataset))?;
    let job = job(&dataset, 3, "exact").replace("steps = 6", "steps = 40");
    let undisturbed = cluster.submit(&job)?;
    cluster.wait_done(&undisturbed)?;
    let digest = |id: &str| cluster.ok(&["checkpoint", "digest", id]);

    let id = cluster.submit(&job)?;
    cluster.wait_step(&id, 5)?;
    let before = [cluster.rank(0)?, cluster.rank(2)?];
    cluster.kill_rank(1)?;
    let view = cluster.wait(&id, "training again", |view| {
        view.generation > 1 && view.phase == "training" && view.step > 5
    })?;
    ensure!(view.restarts == 1, "{view:?}");
    ensure!(
        before == [cluster.rank(0)?, cluster.rank(2)?],
        "a survivor was restarted"
    );
    let view = cluster.wait_done(&id)?;
    ensure!(view.restarts == 1, "{view:?}");
    ensure!(digest(&id)? == digest(&undisturbed)?, "the weights differ");
    // Only the final checkpoint was written.
    let checkpoints = cluster.json(&["checkpoints", &id])?;
    ensure!(
        checkpoints.as_array().map(Vec::len) == Some(1),
        "{checkpoints}"
    );
    cluster.stop()
}
