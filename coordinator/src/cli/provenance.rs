//! `coordinator provenance`: lists the steps, generations and ranks in which a sample was seen, as
//! target or as reference. None of it is stored: the ledger records which generation did which
//! step, and the samples of each rank are a pure function of the step and the world size.

use super::client::connect;
use super::ledger::LedgerReader;
use super::{Global, Outcome, Output, print_json, table};
use crate::text::outln;
use anyhow::{Context, Result, anyhow};
use clap::Args;
use model_data::loader::Loader;
use model_data::reference::{Slot, Source, are_dropped, choose};
use proto::ledger::Done;
use proto::sharding::rank_of;
use std::collections::BTreeSet;

#[derive(Debug, Args)]
pub(crate) struct ProvenanceArgs {
    job: String,
    /// The sample's id in the data set
    #[arg(long, value_name = "ID")]
    sample: String,
}

/// One use of the sample in training.
struct Occurrence {
    step: u64,
    epoch: u64,
    done: Done,
    rank: u32,
    /// Position of the target that it was a reference of. None if it was the target itself.
    reference_of: Option<u64>,
}

pub(crate) async fn provenance(global: &Global, args: &ProvenanceArgs) -> Result<Outcome> {
    let mut client = connect(global).await?;
    let ledger = LedgerReader::open(global, &mut client, &args.job).await?;
    if let Some(fault) = &ledger.fault {
        return Err(anyhow!(
            "the ledger of {} proves nothing: {fault}",
            args.job
        ));
    }
    let loader = ledger.open_dataset().await?;
    let found = loader.rows().iter().position(|row| row.id == args.sample);
    let position = found.with_context(|| {
        format!(
            "there is no sample {:?} in {}, version {}",
            args.sample, ledger.spec.data.dataset, ledger.view.dataset_version
        )
    })?;
    let occurrences = occurrences(&ledger, &loader, position as u64)?;
    match global.output {
        Output::Json => {
            let trained = loader.training().binary_search(&(position as u64)).is_ok();
            print_json(&serde_json::json!({
                "job": args.job,
                "sample": args.sample,
                "position": position,
                "trained_on": trained,
                "seen": occurrences.iter().map(|it| it.json(&loader)).collect::<Vec<_>>(),
            }));
        }
        Output::Table => print(&occurrences, &loader, &args.sample),
    }
    Ok(Outcome::True)
}

fn occurrences(ledger: &LedgerReader, loader: &Loader, sample: u64) -> Result<Vec<Occurrence>> {
    let (spec, rows) = (&ledger.spec, loader.rows());
    let references = spec.model.architecture.references();
    let lists_sample = |(position, row): (usize, &model_data::sample::Metadata)| {
        row.similar_positions
            .contains(&sample)
            .then_some(position as u64)
    };
    let listing: BTreeSet<u64> = rows
        .iter()
        .enumerate()
        .filter(|_| references.is_some())
        .filter_map(lists_sample)
        .collect();
    let (batch, micro_batches) = (spec.train.global_batch, spec.micro_batches());
    let mut occurrences = Vec::new();
    for done in ledger.replay.done() {
        for step in done.first.0..=done.last.0 {
            for (index, (epoch, position)) in (0..).zip(loader.places(step, batch, 0..batch)?) {
                if position != sample && !listing.contains(&position) {
                    continue;
                }
                let Some(rank) = rank_of(index / spec.train.micro_batch, micro_batches, done.world)
                else {
                    continue;
                };
                let similar: &[u64] = &rows[position as usize].similar_positions;
                let slots =
                    references.map(|it| choose(it, spec.data.seed, epoch, position, similar.len()));
                // Training does not show references that it drops.
                let dropped =
                    references.is_some_and(|it| are_dropped(it, spec.data.seed, epoch, position));
                let slots = slots.filter(|_| !dropped).unwrap_or_default();
                let roles = roles(&slots, position, similar, sample);
                occurrences.extend(roles.into_iter().map(|reference_of| Occurrence {
                    step,
                    epoch,
                    done: *done,
                    rank,
                    reference_of,
                }));
            }
        }
    }
    Ok(occurrences)
}

/// The roles of `sample` when `target` is trained on, whose similar samples are at the positions
/// `similar`: the target (None), one of its references (Some), or both, since pairing a uses the
/// target as its own reference.
fn roles(slots: &[Slot], target: u64, similar: &[u64], sample: u64) -> Vec<Option<u64>> {
    let is_sample = |source| match source {
        Source::Target => target == sample,
        Source::Similar(n) => similar[n] == sample,
    };
    let as_target = (target == sample).then_some(None);
    let as_reference = slots.iter().any(|slot| is_sample(slot.source));
    as_target
        .into_iter()
        .chain(as_reference.then_some(Some(target)))
        .collect()
}

impl Occurrence {
    fn json(&self, loader: &Loader) -> serde_json::Value {
        serde_json::json!({
            "as": if self.reference_of.is_none() { "target" } else { "reference" },
            "of": self.reference_of.map(|position| loader.rows()[position as usize].id.clone()),
            "step": self.step,
            "epoch": self.epoch,
            "generation": self.done.generation.0,
            "rank": self.rank,
            "world": self.done.world,
            "superseded": self.done.superseded,
        })
    }
}

fn print(occurrences: &[Occurrence], loader: &Loader, sample: &str) {
    if occurrences.is_empty() {
        outln!("{sample} was not seen");
        return;
    }
    let mut table = table(&["STEP", "EPOCH", "GENERATION", "RANK", "SEEN AS", "COUNTS"]);
    for occurrence in occurrences {
        let role = occurrence.reference_of.map_or_else(
            || "target".to_owned(),
            |position| format!("reference of {}", loader.rows()[position as usize].id),
        );
        table.add_row([
            occurrence.step.to_string(),
            occurrence.epoch.to_string(),
            occurrence.done.generation.to_string(),
            format!("{} of {}", occurrence.rank, occurrence.done.world),
            role,
            if occurrence.done.superseded {
                "no: superseded".into()
            } else {
                "yes".to_owned()
            },
        ]);
    }
    table.print();
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proto::spec::{Pairing, References};

    #[test]
    fn with_pairing_a_the_target_is_also_its_own_reference() {
        let text = crate::fixture::job_toml("file:///data");
        let text = text.replace("\"autoencoder\"", "\"retrinet\"");
        let work = proto::job::parse_training("job.toml", &text).unwrap();
        let references = *work.model.architecture.references().unwrap();
        let roles_of = |pairing, sample| {
            let references = References {
                pairing,
                count: 2,
                ..references
            };
            roles(&choose(&references, 0, 0, 3, 1), 3, &[1], sample)
        };
        assert_eq!(roles_of(Pairing::A, 3), [None, Some(3)]);
        assert_eq!(roles_of(Pairing::A, 1), []);
        assert_eq!(roles_of(Pairing::B, 3), [None]);
        assert_eq!(roles_of(Pairing::B, 1), [Some(3)]);
    }
}
