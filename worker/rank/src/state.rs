//! The state with which a generation begins: the ranks tell each other what they hold in memory,
//! and those that lack the newest get it from one that has it, over the group. Which it is
//! [`rank_core::state`] says. Afterwards all ranks hold the same bits, or the one that is alone is
//! named. Called by [`crate::train`].

use crate::collective::{CollectiveError, Group};
use crate::exact::fill;
use anyhow::{Context, ensure};
use model::trainer::Trainer;
use model::weights::NamedTensors;
use proto::checkpoint::CheckpointRef;
use proto::id::{Generation, Rank, Step};
use rank_core::state::{StateLabel, StateSource, Statement, agree};
use tch::{Device, Kind, Tensor};

/// What one rank says of itself when all have met.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Said {
    pub(crate) held: Option<StateLabel>,
    fingerprint: i64,
}

/// Hears what every rank holds, in rank order. Refuses ranks whose base weights differ.
pub(crate) fn exchange(
    group: &Group,
    trainer: &Trainer,
    held: Option<StateLabel>,
) -> anyhow::Result<Vec<Said>> {
    let own = [
        i64::from(held.is_some()),
        number(held.map_or(0, |held| held.generation.0)),
        number(held.map_or(0, |held| held.step.0)),
        fingerprint(trainer),
        base(trainer),
    ];
    let rows = tell(group, &own, "telling who has which state")?;
    let bases = (0..).zip(&rows).map(|(rank, row)| statement(rank, row[4]));
    agree(bases, "the base weights that model.init names")?;
    let said = rows.iter().map(|row| Said {
        held: holder(row),
        fingerprint: row[3],
    });
    Ok(said.collect())
}

/// Takes over the state of `source` with the others; reads a checkpoint with `read` if it must.
/// `said`: from [`exchange`]. `holds`: this rank has it in memory. `took`: told as soon as it has
/// something new there, while the others may still wait for theirs.
pub(crate) fn synchronize(
    group: &Group,
    trainer: &mut Trainer,
    said: &[Said],
    (source, holds): (StateSource, bool),
    read: impl FnOnce(&Trainer, CheckpointRef) -> anyhow::Result<NamedTensors>,
    took: impl FnOnce(StateLabel),
) -> anyhow::Result<()> {
    match source {
        StateSource::Memory { root, label, all } => {
            let holders = (0..).zip(said).filter(|(_, said)| said.held == Some(label));
            let holders = holders.map(|(rank, said)| statement(rank, said.fingerprint));
            agree(holders, &format!("the state after step {}", label.step))?;
            if !all {
                hand_over(group, trainer, root, label.step, holds)?;
                took(label);
            }
        }
        StateSource::Checkpoint(checkpoint) => {
            let tensors = read(trainer, checkpoint).context("cannot resume")?;
            trainer
                .load_state(&tensors, checkpoint.step.0)
                .context("cannot resume")?;
            took(checkpoint.into());
        }
        // A process that trained holds no base weights any more, but then it holds something newer.
        StateSource::Base => ensure!(
            trainer.step() == 0,
            "state of step {} is lost",
            trainer.step()
        ),
    }
    let rows = tell(
        group,
        &[fingerprint(trainer)],
        "comparing the state of all ranks",
    )?;
    let all = (0..).zip(&rows).map(|(rank, row)| statement(rank, row[0]));
    agree(all, &format!("the state of step {}", source.step()))?;
    Ok(())
}

fn statement(rank: u32, value: i64) -> Statement {
    let rank = Rank(rank);
    Statement { rank, value }
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn holder(row: &[i64]) -> Option<StateLabel> {
    (row[0] == 1).then(|| StateLabel {
        generation: Generation(row[1].cast_unsigned()),
        step: Step(row[2].cast_unsigned()),
    })
}

/// Every rank's numbers, in rank order.
fn tell(group: &Group, own: &[i64], what: &str) -> Result<Vec<Vec<i64>>, CollectiveError> {
    let world = group.membership().world as usize;
    let mut all = vec![0; world * own.len()];
    let rank = group.membership().rank as usize;
    all[rank * own.len()..][..own.len()].copy_from_slice(own);
    let all = Tensor::from_slice(&all).to_device(group.membership().device);
    group.all_reduce(&all, what)?;
    let all = Vec::<i64>::try_from(&all.to_device(Device::Cpu)).expect("whole numbers, flat");
    Ok(all.chunks(own.len()).map(<[i64]>::to_vec).collect())
}

/// The beginning of the digest of the base weights, as a number; 0 where nothing of them is left.
fn base(trainer: &Trainer) -> i64 {
    let digest = trainer.init_digest().filter(|_| trainer.rests_on_base());
    let digest = digest.unwrap_or_default();
    let beginning = digest.get(..15).unwrap_or_default();
    i64::from_str_radix(beginning, 16).unwrap_or(0)
}

/// A number that changes with any one bit of the state; computed where the state lies.
fn fingerprint(trainer: &Trainer) -> i64 {
    tch::no_grad(|| {
        let fold = |sum: i64, (_, tensor): (String, Tensor)| {
            let flat = tensor.detach().flatten(0, -1).contiguous();
            let words = match flat.kind().elt_size_in_bytes() {
                4 => flat.view_dtype(Kind::Int),
                _ => flat.view_dtype(Kind::Uint8),
            };
            let own = words.sum(Kind::Int64).int64_value(&[]);
            sum.wrapping_mul(0x0100_0000_01b3).wrapping_add(own)
        };
        trainer
            .state()
            .into_iter()
            .fold(trainer.step().cast_signed(), fold)
    })
}

/// Bytes that are sent together, at least where there are so many.
const BUCKET_BYTES: usize = 1 << 25;

/// Everybody gets the state of `root`; `holds`: this rank has it already and only listens.
fn hand_over(
    group: &Group,
    trainer: &mut Trainer,
    root: Rank,
    step: Step,
    holds: bool,
) -> anyhow::Result<()> {
    let state = trainer.state();
    let mut received = NamedTensors::new();
    tch::no_grad(|| -> Result<(), CollectiveError> {
        for bucket in fill(&state, BUCKET_BYTES, |(_, tensor)| size(tensor)) {
            let bytes: Vec<Tensor> = bucket.iter().map(|(_, tensor)| as_bytes(tensor)).collect();
            let bytes = Tensor::cat(&bytes, 0);
            group.broadcast(&bytes, root.0, "handing over the state")?;
            if holds {
                continue;
            }
            let mut start = 0;
            for (name, like) in bucket {
                let length = size(like) as i64;
                // A copy, so that it begins where numbers of its kind may.
                let own = bytes.narrow(0, start, length).copy();
                let own = own.view_dtype(like.kind()).view(like.size().as_slice());
                received.insert(name.clone(), own);
                start += length;
            }
        }
        Ok(())
    })?;
    if !holds {
        trainer
            .load_state(&received, step.0)
            .with_context(|| format!("the state that rank {root} sent"))?;
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
