//! `coordinator provenance`: in which steps, generations and on which ranks a sample was seen, as
//! target and as reference. Nothing of it is stored: the ledger says which generation did which
//! step, and what a step shows to whom is a pure function.

use super::client::connect;
use super::ledger::LedgerReader;
use super::{Global, Outcome, Output, print_json, table};
use crate::words::say;
use anyhow::{Context, Result, anyhow};
use clap::Args;
use model_data::loader::Loader;
use model_data::reference::{Slot, Source, choose};
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

/// One time that the sample was shown.
struct Sight {
    step: u64,
    epoch: u64,
    done: Done,
    rank: u32,
    /// The target that it was a reference of; None: it was the target.
    of: Option<u64>,
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
    let loader = ledger.data().await?;
    let place = loader.rows().iter().position(|row| row.id == args.sample);
    let position = place.with_context(|| {
        format!(
            "there is no sample {:?} in {}, version {}",
            args.sample, ledger.spec.data.dataset, ledger.view.dataset_version
        )
    })?;
    let sights = sights(&ledger, &loader, position as u64)?;
    match global.output {
        Output::Json => {
            let trained = loader.training().binary_search(&(position as u64)).is_ok();
            print_json(&serde_json::json!({
                "job": args.job,
                "sample": args.sample,
                "position": position,
                "trained_on": trained,
                "seen": sights.iter().map(|it| it.json(&loader)).collect::<Vec<_>>(),
            }));
        }
        Output::Table => print(&sights, &loader, &args.sample),
    }
    Ok(Outcome::True)
}

fn sights(ledger: &LedgerReader, loader: &Loader, sample: u64) -> Result<Vec<Sight>> {
    let (spec, rows) = (&ledger.spec, loader.rows());
    let references = spec.model.architecture.references();
    let near = |(position, row): (usize, &model_data::sample::Metadata)| {
        row.similar_positions
            .contains(&sample)
            .then_some(position as u64)
    };
    let near: BTreeSet<u64> = rows
        .iter()
        .enumerate()
        .filter(|_| references.is_some())
        .filter_map(near)
        .collect();
    let (batch, micro_batches) = (spec.train.global_batch, spec.micro_batches());
    let mut sights = Vec::new();
    for done in ledger.replay.done() {
        for step in done.first.0..=done.last.0 {
            for (index, (epoch, position)) in (0..).zip(loader.places(step, batch, 0..batch)?) {
                if position != sample && !near.contains(&position) {
                    continue;
                }
                let Some(rank) = rank_of(index / spec.train.micro_batch, micro_batches, done.world)
                else {
                    continue;
                };
                let similar: &[u64] = &rows[position as usize].similar_positions;
                let slots =
                    references.map(|it| choose(it, spec.data.seed, epoch, position, similar.len()));
                let roles = roles(&slots.unwrap_or_default(), position, similar, sample);
                sights.extend(roles.into_iter().map(|of| Sight {
                    step,
                    epoch,
                    done: *done,
                    rank,
                    of,
                }));
            }
        }
    }
    Ok(sights)
}

/// What a sample is where `target` is to be drawn, whose similar ones lie at `similar`: the target,
/// one of its references, or both, since pairing a draws a picture from itself.
fn roles(slots: &[Slot], target: u64, similar: &[u64], sample: u64) -> Vec<Option<u64>> {
    let is_it = |source| match source {
        Source::Target => target == sample,
        Source::Similar(n) => similar[n] == sample,
    };
    let as_target = (target == sample).then_some(None);
    let as_reference = slots.iter().any(|slot| is_it(slot.source));
    as_target
        .into_iter()
        .chain(as_reference.then_some(Some(target)))
        .collect()
}

impl Sight {
    fn json(&self, loader: &Loader) -> serde_json::Value {
        serde_json::json!({
            "as": if self.of.is_none() { "target" } else { "reference" },
            "of": self.of.map(|position| loader.rows()[position as usize].id.clone()),
            "step": self.step,
            "epoch": self.epoch,
            "generation": self.done.generation.0,
            "rank": self.rank,
            "world": self.done.world,
            "superseded": self.done.superseded,
        })
    }
}

fn print(sights: &[Sight], loader: &Loader, sample: &str) {
    if sights.is_empty() {
        say!("{sample} was not seen");
        return;
    }
    let mut table = table(&["STEP", "EPOCH", "GENERATION", "RANK", "SEEN AS", "COUNTS"]);
    for sight in sights {
        let seen = sight.of.map_or_else(
            || "target".to_owned(),
            |position| format!("reference of {}", loader.rows()[position as usize].id),
        );
        table.add_row([
            sight.step.to_string(),
            sight.epoch.to_string(),
            sight.done.generation.to_string(),
            format!("{} of {}", sight.rank, sight.done.world),
            seen,
            if sight.done.superseded {
                "no: lost with its generation".into()
            } else {
                "yes".to_owned()
            },
        ]);
    }
    say!("{table}");
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proto::spec::{Pairing, References};

    #[test]
    fn a_picture_that_is_drawn_from_itself_is_seen_twice() {
        let text = crate::fixture::job_toml("file:///data");
        let text = text.replace("\"autoencoder\"", "\"retrinet\"");
        let work = proto::job::parse_training("job.toml", &text).unwrap();
        let references = *work.model.architecture.references().unwrap();
        let told = |pairing, sample| {
            let references = References {
                pairing,
                count: 2,
                ..references
            };
            roles(&choose(&references, 0, 0, 3, 1), 3, &[1], sample)
        };
        assert_eq!(told(Pairing::A, 3), [None, Some(3)]);
        assert_eq!(told(Pairing::A, 1), []);
        assert_eq!(told(Pairing::B, 3), [None]);
        assert_eq!(told(Pairing::B, 1), [Some(3)]);
    }
}
