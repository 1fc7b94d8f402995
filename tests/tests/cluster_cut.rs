//! Real processes on hosts of their own, and a cable between two of them is cut while all are
//! heard: the job leaves one of the two out, goes on at once, takes it in again when the cable is
//! mended, and not a bit is lost.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use std::sync::Arc;
use tests::cluster::job::{elastic, nothing_was_lost, synthesize, trains};
use tests::cluster::network::{Network, alone};
use tests::cluster::{Cluster, Options};

#[test]
fn two_hosts_that_do_not_reach_each_other_do_not_stop_a_job() -> Result<()> {
    alone(
        "two_hosts_that_do_not_reach_each_other_do_not_stop_a_job",
        cut,
    )
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
    trains(&cluster, &id, 3)?;
    let ranks = || {
        (0..3)
            .map(|worker| cluster.rank(worker))
            .collect::<Result<Vec<u32>>>()
    };
    let before = ranks()?;

    network.cut(1, 2)?;
    network.cut(2, 1)?;
    let view = trains(&cluster, &id, 2)?;
    let what = &view.incidents.last().context("an incident")?.what;
    ensure!(
        what.starts_with("w1 and w2 do not reach each other (w"),
        "{what}"
    );
    let why = cluster.json(&["why", &id])?;
    let sentence = why["why"].as_str().context("a sentence")?;
    ensure!(
        sentence.contains(" is left out: w1 and w2 do not reach each other"),
        "{why}"
    );
    network.mend(1, 2)?;
    network.mend(2, 1)?;
    trains(&cluster, &id, 3)?;

    // A cable that carries nothing one way is none.
    network.cut(3, 1)?;
    let view = trains(&cluster, &id, 2)?;
    let what = &view.incidents.last().context("an incident")?.what;
    ensure!(
        what.starts_with("w1 and w3 do not reach each other (w"),
        "{what}"
    );
    network.mend(3, 1)?;
    let view = trains(&cluster, &id, 3)?;

    ensure!(view.checkpoints.is_empty(), "{view:?}");
    ensure!(ranks()? == before, "a process was started again");
    nothing_was_lost(&cluster, &dataset, &id, 0)?;
    cluster.stop()
}
