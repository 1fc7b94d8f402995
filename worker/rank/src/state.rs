//! Synchronizes the initial state of a generation. The ranks exchange labels of the states that
//! they hold in memory; [`rank_core::state`] selects the newest one; a rank that holds it
//! broadcasts it to the others. Finally the ranks compare fingerprints, and a rank that differs is
//! named. Called by [`crate::train`].

use crate::collective::{CollectiveError, Group};
use crate::exact::split_into_runs;
use anyhow::{Context, ensure};
use model::trainer::Trainer;
use model::weights::NamedTensors;
use proto::checkpoint::CheckpointRef;
use proto::id::{Generation, Rank, Step};
use rank_core::state::{StateLabel, StateSource, Statement, agree};
use tch::{Device, Kind, Tensor};

/// The state of one rank after the rendezvous.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StateReport {
    pub(crate) held: Option<StateLabel>,
    fingerprint: i64,
}

/// Gathers the state of every rank, in rank order. Fails if the ranks differ in their base weights.
pub(crate) fn gather_states(
    group: &Group,
    trainer: &Trainer,
    held: Option<StateLabel>,
) -> anyhow::Result<Vec<StateReport>> {
    let own = [
        i64::from(held.is_some()),
        saturating(held.map_or(0, |held| held.generation.0)),
        saturating(held.map_or(0, |held| held.step.0)),
        fingerprint(trainer),
        base_fingerprint(trainer),
    ];
    let rows = all_gather(group, &own, "exchanging the state labels")?;
    let bases = (0..).zip(&rows).map(|(rank, row)| statement(rank, row[4]));
    agree(bases, "the base weights that model.init names")?;
    let reports = rows.iter().map(|row| StateReport {
        held: label(row),
        fingerprint: row[3],
    });
    Ok(reports.collect())
}

/// Brings all ranks to the state of `source`. `reports`: from [`gather_states`]. `holds`: this rank
/// has the state in memory. `read`: reads a checkpoint. `on_loaded`: called as soon as this rank
/// has loaded a new state, while others may still be waiting for theirs.
pub(crate) fn synchronize(
    group: &Group,
    trainer: &mut Trainer,
    reports: &[StateReport],
    (source, holds): (StateSource, bool),
    read: impl FnOnce(&Trainer, CheckpointRef) -> anyhow::Result<NamedTensors>,
    on_loaded: impl FnOnce(StateLabel),
) -> anyhow::Result<()> {
    match source {
        StateSource::Memory { root, label, all } => {
            let holders = (0..)
                .zip(reports)
                .filter(|(_, report)| report.held == Some(label));
            let holders = holders.map(|(rank, report)| statement(rank, report.fingerprint));
            agree(holders, &format!("the state after step {}", label.step))?;
            if !all {
                broadcast_state(group, trainer, root, label.step, holds)?;
                on_loaded(label);
            }
        }
        StateSource::Checkpoint(checkpoint) => {
            let tensors = read(trainer, checkpoint).context("cannot resume")?;
            trainer
                .load_state(&tensors, checkpoint.step.0)
                .context("cannot resume")?;
            on_loaded(checkpoint.into());
        }
        // A process that has trained no longer has the base weights, but a newer state.
        StateSource::Base => ensure!(
            trainer.step() == 0,
            "the newest state is the base weights, but this rank is at step {}",
            trainer.step()
        ),
    }
    let rows = all_gather(
        group,
        &[fingerprint(trainer)],
        "comparing the states of all ranks",
    )?;
    let all = (0..).zip(&rows).map(|(rank, row)| statement(rank, row[0]));
    agree(all, &format!("the state of step {}", source.step()))?;
    Ok(())
}

fn statement(rank: u32, value: i64) -> Statement {
    let rank = Rank(rank);
    Statement { rank, value }
}

fn saturating(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn label(row: &[i64]) -> Option<StateLabel> {
    (row[0] == 1).then(|| StateLabel {
        generation: Generation(row[1].cast_unsigned()),
        step: Step(row[2].cast_unsigned()),
    })
}

/// Gathers every rank's values, in rank order, by an all-reduce of zero-padded rows.
fn all_gather(group: &Group, own: &[i64], what: &str) -> Result<Vec<Vec<i64>>, CollectiveError> {
    let world = group.membership().world as usize;
    let mut all = vec![0; world * own.len()];
    let rank = group.membership().rank as usize;
    all[rank * own.len()..][..own.len()].copy_from_slice(own);
    let all = Tensor::from_slice(&all).to_device(group.membership().device);
    group.all_reduce(&all, what)?;
    let all = Vec::<i64>::try_from(&all.to_device(Device::Cpu)).expect("a flat tensor of integers");
    Ok(all.chunks(own.len()).map(<[i64]>::to_vec).collect())
}

/// The first 60 bits of the digest of the base weights; 0 if no base weights are in use.
fn base_fingerprint(trainer: &Trainer) -> i64 {
    let digest = trainer.init_digest().filter(|_| trainer.rests_on_base());
    let digest = digest.unwrap_or_default();
    let prefix = digest.get(..15).unwrap_or_default();
    i64::from_str_radix(prefix, 16).unwrap_or(0)
}

/// A checksum that changes with any single bit of the state. Computed on the state's device.
fn fingerprint(trainer: &Trainer) -> i64 {
    tch::no_grad(|| {
        let fold = |sum: i64, (_, tensor): (String, Tensor)| {
            let flat = tensor.detach().flatten(0, -1).contiguous();
            let words = match flat.kind().elt_size_in_bytes() {
                4 => flat.view_dtype(Kind::Int),
                _ => flat.view_dtype(Kind::Uint8),
            };
            let tensor_sum = words.sum(Kind::Int64).int64_value(&[]);
            sum.wrapping_mul(0x0100_0000_01b3).wrapping_add(tensor_sum)
        };
        trainer
            .state()
            .into_iter()
            .fold(trainer.step().cast_signed(), fold)
    })
}

/// Minimum bytes of one broadcast; the last one may be smaller.
const BUCKET_BYTES: usize = 1 << 25;

/// Broadcasts the state of `root`. `holds`: this rank has the state already and discards the bytes.
fn broadcast_state(
    group: &Group,
    trainer: &mut Trainer,
    root: Rank,
    step: Step,
    holds: bool,
) -> anyhow::Result<()> {
    let state = trainer.state();
    let mut received = NamedTensors::new();
    tch::no_grad(|| -> Result<(), CollectiveError> {
        for bucket in split_into_runs(&state, BUCKET_BYTES, |(_, tensor)| size(tensor)) {
            let bytes: Vec<Tensor> = bucket.iter().map(|(_, tensor)| as_bytes(tensor)).collect();
            let bytes = Tensor::cat(&bytes, 0);
            group.broadcast(&bytes, root.0, "broadcasting the state")?;
            if holds {
                continue;
            }
            let mut start = 0;
            for (name, like) in bucket {
                let length = size(like) as i64;
                // Copied for alignment: a view of another dtype needs an aligned offset.
                let tensor = bytes.narrow(0, start, length).copy();
                let tensor = tensor.view_dtype(like.kind()).view(like.size().as_slice());
                received.insert(name.clone(), tensor);
                start += length;
            }
        }
        Ok(())
    })?;
    if !holds {
        trainer
            .load_state(&received, step.0)
            .with_context(|| format!("the state broadcast by rank {root}"))?;
    }
    Ok(())
}

fn size(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}

fn as_bytes(tensor: &Tensor) -> Tensor {
    tensor
        .detach()
        .flatten(0, -1)
        .contiguous()
        .view_dtype(Kind::Uint8)
}
