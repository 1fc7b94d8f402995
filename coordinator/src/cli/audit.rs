//! `coordinator audit`: replays a job's ledger against its data set. It proves that every step up
//! to the last was done once and every sample was consumed once per epoch, or lists the violations.

use super::client::connect;
use super::ledger::LedgerReader;
use super::{Global, Outcome, Output, print_json};
use crate::checkpoint::Checkpoint;
use crate::text::outln;
use anyhow::Result;
use model_data::loader::Loader;
use proto::checkpoint::CheckpointRef;
use proto::id::{JobId, Step};
use proto::ledger::Done;
use std::collections::BTreeMap;

/// Further findings are not listed.
const FINDINGS_MAX: usize = 50;

/// The result of an audit.
#[derive(Debug, Default)]
struct Audit {
    findings: Vec<String>,
    /// Last step of the gapless run of counted steps from step 1.
    steps: u64,
    superseded: u64,
    samples: u64,
    epochs: u64,
    /// Samples consumed of the unfinished epoch.
    partial_epoch: u64,
    /// Checkpoints whose digest equals the one in the ledger.
    checkpoints: u64,
}

pub(crate) async fn audit(global: &Global, job: &str) -> Result<Outcome> {
    let mut client = connect(global).await?;
    let ledger = LedgerReader::open(global, &mut client, job).await?;
    let mut audit = Audit::default();
    audit.findings.extend(ledger.fault.clone());
    audit.count_steps(
        ledger.replay.done(),
        ledger.view.checkpoints.last().map_or(0, |it| it.step),
    );
    audit.count_samples(
        &ledger.open_dataset().await?,
        ledger.spec.train.global_batch,
    )?;
    audit.compare_checkpoints(&ledger).await;
    match global.output {
        Output::Json => print_json(&audit.json(&ledger)),
        Output::Table => audit.print(&ledger),
    }
    Ok(if audit.findings.is_empty() {
        Outcome::True
    } else {
        Outcome::False
    })
}

impl Audit {
    fn add_finding(&mut self, finding: String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }

    /// Checks that every step up to the last counts exactly once.
    fn count_steps(&mut self, done: &[Done], committed: u64) {
        let length = |done: &Done| done.last.0 + 1 - done.first.0;
        self.superseded = done.iter().filter(|done| done.superseded).map(length).sum();
        let mut counted: Vec<&Done> = done.iter().filter(|done| !done.superseded).collect();
        counted.sort_by_key(|done| done.first);
        for done in counted {
            let next = self.steps + 1;
            if done.first.0 != next {
                self.add_finding(format!(
                    "step {next} was expected next, but the ledger continues with steps {} to {}",
                    done.first, done.last
                ));
                return;
            }
            self.steps = done.last.0;
        }
        if self.steps < committed {
            self.add_finding(format!(
                "step {committed} is committed, but the ledger ends at step {}",
                self.steps
            ));
        }
    }

    /// Checks that every epoch consumes every sample exactly once.
    fn count_samples(&mut self, loader: &Loader, global_batch: u32) -> Result<()> {
        let all = loader.training().len() as u64;
        let mut seen = Seen::new(loader);
        for step in 1..=self.steps {
            for (epoch, position) in loader.places(step, global_batch, 0..global_batch)? {
                if epoch != self.epochs {
                    if self.partial_epoch != all {
                        self.add_finding(format!(
                            "epoch {} ends after {} of its {all} samples",
                            self.epochs, self.partial_epoch
                        ));
                    }
                    (self.epochs, self.partial_epoch) = (epoch, 0);
                    seen = Seen::new(loader);
                }
                if !seen.insert(position) {
                    self.add_finding(format!(
                        "step {step} consumes the sample at position {position} again in epoch \
                        {epoch}"
                    ));
                }
                self.partial_epoch += 1;
                self.samples += 1;
            }
        }
        if self.partial_epoch == all {
            (self.epochs, self.partial_epoch) = (self.epochs + 1, 0);
        }
        Ok(())
    }

    /// Compares the digests of checkpoints with those that the ledger has for the same steps.
    async fn compare_checkpoints(&mut self, ledger: &LedgerReader) {
        let digests: BTreeMap<Step, &String> = ledger
            .replay
            .digests()
            .iter()
            .map(|(step, it)| (*step, it))
            .collect();
        let job = JobId(ledger.view.job.clone());
        for checkpoint in ledger
            .view
            .checkpoints
            .iter()
            .map(|it| CheckpointRef::from(*it))
        {
            let Some(expected) = digests.get(&checkpoint.step) else {
                continue;
            };
            let found = match Checkpoint::at(&ledger.view.store_url, &job, checkpoint) {
                Ok(checkpoint) => checkpoint.digest().await,
                Err(error) => Err(error),
            };
            let step = checkpoint.step;
            match found {
                Ok(found) if found == **expected => self.checkpoints += 1,
                Ok(found) => self.add_finding(format!(
                    "the checkpoint of step {step} has digest {found}; its ranks agreed on \
                    {expected}"
                )),
                Err(error) => self.add_finding(format!(
                    "the checkpoint of step {step} cannot be read: {error}"
                )),
            }
        }
    }

    fn json(&self, ledger: &LedgerReader) -> serde_json::Value {
        serde_json::json!({
            "job": ledger.view.job,
            "clean": self.findings.is_empty(),
            "findings": self.findings,
            "entries": ledger.replay.tip().entries,
            "hash": ledger.replay.tip().hash,
            "steps": self.steps,
            "superseded_steps": self.superseded,
            "unheard_losses": ledger.replay.unheard(),
            "samples": self.samples,
            "whole_epochs": self.epochs,
            "samples_of_next_epoch": self.partial_epoch,
            "digests": ledger.replay.digests().len(),
            "checkpoints_compared": self.checkpoints,
        })
    }

    fn print(&self, ledger: &LedgerReader) {
        let line = |name: &str, value: &str| outln!("{name:<10} {value}");
        let tip = ledger.replay.tip();
        line(
            "ledger",
            &format!("{} entries, the last with hash {}", tip.entries, tip.hash),
        );
        line(
            "steps",
            &format!(
                "1 to {} count; {} more were done and superseded by a later generation",
                self.steps, self.superseded
            ),
        );
        line(
            "samples",
            &format!(
                "{}: {} whole epochs and {} of the next",
                self.samples, self.epochs, self.partial_epoch
            ),
        );
        line(
            "digests",
            &format!(
                "all ranks agreed on {} digests; {} checkpoints match them",
                ledger.replay.digests().len(),
                self.checkpoints
            ),
        );
        for finding in &self.findings {
            line("FAULT", finding);
        }
        if self.findings.is_empty() {
            line(
                "clean",
                "every step counts once, and every sample was consumed once per epoch up to the \
                last step",
            );
        }
    }
}

/// One bit for each sample of a data set.
struct Seen(Vec<u64>);

impl Seen {
    fn new(loader: &Loader) -> Self {
        Self(vec![0; loader.rows().len().div_ceil(64)])
    }

    /// True if the sample was not yet in the set.
    fn insert(&mut self, position: u64) -> bool {
        let (word, bit) = ((position / 64) as usize, 1 << (position % 64));
        let was_set = self.0[word] & bit != 0;
        self.0[word] |= bit;
        !was_set
    }
}
