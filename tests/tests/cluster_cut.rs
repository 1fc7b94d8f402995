//! Real processes on separate hosts. The link between two of them is cut while both still reach the
//! coordinator: the job leaves one of them out, continues at once, takes it in again when the link
//! is restored, and ends with the weights of an undisturbed run.
#![allow(clippy::unwrap_used)]

use anyhow::{Result, bail, ensure};
use proto::pb::JobView;
use proto::reason::{Ending, Fault};
use serde_json::json;
use std::sync::Arc;
use tests::cluster::job::{check_nothing_lost, elastic, synthesize, wait_training};
use tests::cluster::network::{Network, in_namespace};
use tests::cluster::reason::fault;
use tests::cluster::{Cluster, Options};

#[test]
fn two_hosts_that_do_not_reach_each_other_do_not_stop_a_job() -> Result<()> {
    in_namespace(
        "two_hosts_that_do_not_reach_each_other_do_not_stop_a_job",
        cut,
    )
}

/// The last generation ended because `a` and `b` cannot reach each other.
fn check_parted(view: &JobView, a: &str, b: &str) -> Result<()> {
    let Some(Fault::Generation {
        ending: Ending::Partitioned { pairs },
        ..
    }) = view.incidents.last().and_then(fault)
    else {
        bail!("no partition: {view:?}")
    };
    let parted = pairs.iter().map(|it| (&*it.workers.0, &*it.workers.1));
    ensure!(parted.eq([(a, b)]), "{pairs:?}");
    Ok(())
}

fn cut() -> Result<()> {
    let network = Arc::new(Network::of_workers(3)?);
    let cluster = Cluster::start(Options {
        network: Some(Arc::clone(&network)),
        ..Options::with_workers(3)
    })?;
    let dataset = format!("file://{}", cluster.directory().join("figures").display());
    cluster.ok(&synthesize(&dataset))?;
    let id = cluster.submit(&elastic(&dataset, 1..=3, 1_000_000))?;
    wait_training(&cluster, &id, 3)?;
    let ranks = || {
        (0..3)
            .map(|worker| cluster.rank(worker))
            .collect::<Result<Vec<u32>>>()
    };
    let before = ranks()?;

    network.cut(1, 2)?;
    network.cut(2, 1)?;
    let view = wait_training(&cluster, &id, 2)?;
    check_parted(&view, "w1", "w2")?;
    let workers = cluster.json(&["workers"])?;
    for (index, other) in [(0_usize, "w2"), (1, "w1")] {
        ensure!(workers[index]["apart"] == json!([other]), "{workers}");
    }
    network.restore(1, 2)?;
    network.restore(2, 1)?;
    wait_training(&cluster, &id, 3)?;

    // A link that is cut in one direction counts as cut.
    network.cut(3, 1)?;
    let view = wait_training(&cluster, &id, 2)?;
    check_parted(&view, "w1", "w3")?;
    network.restore(3, 1)?;
    let view = wait_training(&cluster, &id, 3)?;

    ensure!(view.checkpoints.is_empty(), "{view:?}");
    ensure!(ranks()? == before, "a process was restarted");
    check_nothing_lost(&cluster, &dataset, &id, 0)?;
    cluster.stop()
}
