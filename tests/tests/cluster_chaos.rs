//! The short version of `make chaos`: every kind of fault once, in a fixed order, on real processes
//! and a real S3 server.

use anyhow::{Result, ensure};
use std::time::Duration;
use tests::chaos::{Faults, Kind, Options, run};

#[test]
fn every_kind_of_fault_once_and_no_bit_is_lost() -> Result<()> {
    let kinds = vec![
        Kind::KillRank,
        Kind::Add,
        Kind::PauseStore,
        Kind::KillCoordinator,
        Kind::KillDaemon,
        Kind::PauseRank,
        Kind::Drain,
        Kind::KillStore,
        Kind::PauseDaemon,
        Kind::Remove,
        Kind::PauseCoordinator,
        Kind::StopRank,
    ];
    let summary = run(&Options {
        seed: 1,
        faults: Faults::Listed(kinds.clone()),
        steps: 120,
        longest: Duration::from_millis(500),
    })?;
    println!("{summary}");
    for kind in kinds {
        ensure!(
            summary.count(kind) == 1,
            "{} found no target\n{summary}",
            kind.description()
        );
    }
    Ok(())
}
