//! The short version of `make chaos FLOOD=1`: a victim trains a few steps beside each flood, on
//! real processes. It loses no step, the coordinator answers and warns, `why` names the flood (each
//! round waits for both), and each refusal says what the limit is.

use anyhow::{Result, ensure};
use tests::flood::{Kind, Length, run};

#[test]
fn a_job_trains_beside_every_flood_and_loses_no_step() -> Result<()> {
    let report = run(&Kind::ALL, Length::Steps(8))?;
    println!("{report}");
    for round in &report.rounds {
        let kind = round.kind;
        let what = kind.description();
        ensure!(0 < round.tally.sent, "{what}: nothing was sent\n{report}");
        ensure!(
            0 < round.probes,
            "{what}: the coordinator was not asked\n{report}"
        );
        if let Some(refusal) = kind.refusal() {
            let words = round.tally.words.as_deref().unwrap_or_default();
            ensure!(
                words.contains(refusal),
                "{what}: `{refusal}` is not in `{words}`\n{report}"
            );
        }
    }
    Ok(())
}
