//! Who has the state when a generation begins: the ranks tell each other what they hold in memory, and those that lack
//! the newest get it from one that has it, over the group. Only when nobody holds any, or a checkpoint is newer, is one
//! read. Afterwards all ranks hold the same bits, or the one that is alone is named. Called by [`crate::train`].

use crate::collective::{CollectiveError, Group};
use crate::exact::fill;
use anyhow::{Context, bail, ensure};
use model::trainer::Trainer;
use model::weights::NamedTensors;
use proto::checkpoint::CheckpointRef;
use proto::id::{Generation, Step};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// State in memory, or in a checkpoint: whole steps only. A later generation's is the newer one, whatever its step: it
/// began from the newest that it found, and only one generation trains at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Held {
    /// The generation that last trained with it.
    pub(crate) generation: Generation,
    pub(crate) step: Step,
}

/// Where a generation's state comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// This rank's memory; `all`: everybody has it.
    Memory {
        rank: u32,
        held: Held,
        all: bool,
    },
    Checkpoint(CheckpointRef),
    /// Base weights, step 0.
    Beginning,
}

impl Source {
    pub(crate) fn step(self) -> Step {
        match self {
            Self::Memory { held, .. } => held.step,
            Self::Checkpoint(place) => place.step,
            Self::Beginning => Step(0),
        }
    }
}

/// The newest state there is. `holders`: what each rank holds.
fn choose(holders: &[Option<Held>], resume: Option<CheckpointRef>) -> Source {
    let saved = resume.map(|place| Held {
        generation: place.generation,
        step: place.step,
    });
    let newest = holders.iter().flatten().max().copied();
    match (newest, resume) {
        (Some(held), _) if saved <= Some(held) => {
            let has = |holder: &Option<Held>| *holder == Some(held);
            let rank = holders.iter().position(has).unwrap_or(0);
            Source::Memory {
                rank: u32::try_from(rank).unwrap_or(u32::MAX),
                held,
                all: holders.iter().all(has),
            }
        }
        (_, Some(place)) => Source::Checkpoint(place),
        (_, None) => Source::Beginning,
    }
}

/// Refuses numbers of which one differs; names the ranks that are fewer. `ranks`: those that say something.
fn same_everywhere(ranks: &[(u32, i64)], what: &str) -> anyhow::Result<()> {
    let mut by_number: BTreeMap<i64, Vec<u32>> = BTreeMap::new();
    for (rank, number) in ranks {
        by_number.entry(*number).or_default().push(*rank);
    }
    if by_number.len() < 2 {
        return Ok(());
    }
    let most = by_number.values().map(Vec::len).max().unwrap_or(0);
    let fewer: Vec<String> = by_number
        .values()
        .filter(|ranks| ranks.len() < most)
        .flatten()
        .map(|rank| format!("rank {rank}"))
        .collect();
    if fewer.is_empty() {
        bail!("the ranks differ in {what}, and there are as many on each side: {by_number:?}");
    }
    bail!("{} differs from the others in {what}", fewer.join(" and "))
}

/// Agrees with the others and takes over what they chose; reads a checkpoint with `read` if it must. What was read is
/// `held` at once: whoever is not waited for long enough need not read it again.
pub(crate) fn settle(
    group: &Group,
    trainer: &mut Trainer,
    held: &mut Option<Held>,
    resume: Option<CheckpointRef>,
    read: impl FnOnce(&Trainer, CheckpointRef) -> anyhow::Result<NamedTensors>,
) -> anyhow::Result<Source> {
    let said = [
        i64::from(held.is_some()),
        number(held.map_or(0, |held| held.generation.0)),
        number(held.map_or(0, |held| held.step.0)),
        fingerprint(trainer),
        base(trainer),
    ];
    let rows = tell(group, &said, "telling who has which state")?;
    let bases: Vec<(u32, i64)> = (0..).zip(&rows).map(|(rank, row)| (rank, row[4])).collect();
    same_everywhere(&bases, "the base weights that model.init names")?;
    let holders: Vec<Option<Held>> = rows.iter().map(|row| holder(row)).collect();
    let source = choose(&holders, resume);
    match source {
        Source::Memory { rank, held, all } => {
            let with = rows.iter().zip(&holders).zip(0..);
            let with = with.filter(|((_, holder), _)| **holder == Some(held));
            let with: Vec<(u32, i64)> = with.map(|((row, _), rank)| (rank, row[3])).collect();
            same_everywhere(&with, &format!("the state after step {}", held.step))?;
            if !all {
                hand_over(
                    group,
                    trainer,
                    (rank, held.step),
                    holders[place(group)] == Some(held),
                )?;
            }
        }
        Source::Checkpoint(place) => {
            let tensors = read(trainer, place).context("cannot resume")?;
            trainer
                .load_state(&tensors, place.step.0)
                .context("cannot resume")?;
            *held = Some(Held {
                generation: place.generation,
                step: place.step,
            });
        }
        // A process that trained holds no base weights any more, but then it holds something newer.
        Source::Beginning => ensure!(trainer.step() == 0, "state of step {} is lost", trainer.step()),
    }
    let rows = tell(group, &[fingerprint(trainer)], "comparing the state of all ranks")?;
    let all: Vec<(u32, i64)> = (0..).zip(&rows).map(|(rank, row)| (rank, row[0])).collect();
    same_everywhere(&all, &format!("the state of step {}", source.step()))?;
    Ok(source)
}

fn place(group: &Group) -> usize {
    group.membership().rank as usize
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn holder(row: &[i64]) -> Option<Held> {
    (row[0] == 1).then(|| Held {
        generation: Generation(row[1].cast_unsigned()),
        step: Step(row[2].cast_unsigned()),
    })
}

/// Every rank's numbers, in rank order.
fn tell(group: &Group, own: &[i64], what: &str) -> Result<Vec<Vec<i64>>, CollectiveError> {
    let world = group.membership().world as usize;
    let mut all = vec![0; world * own.len()];
    all[place(group) * own.len()..][..own.len()].copy_from_slice(own);
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
const PARCEL_BYTES: usize = 1 << 25;

/// Everybody gets the state of `root`; `has`: this rank holds it already and only listens.
fn hand_over(
    group: &Group,
    trainer: &mut Trainer,
    (root, step): (u32, Step),
    has: bool,
) -> anyhow::Result<()> {
    let state = trainer.state();
    let mut received = NamedTensors::new();
    tch::no_grad(|| -> Result<(), CollectiveError> {
        for parcel in fill(&state, PARCEL_BYTES, |(_, tensor)| size(tensor)) {
            let bytes: Vec<Tensor> = parcel.iter().map(|(_, tensor)| as_bytes(tensor)).collect();
            let bytes = Tensor::cat(&bytes, 0);
            group.broadcast(&bytes, root, "handing over the state")?;
            if has {
                continue;
            }
            let mut start = 0;
            for (name, like) in parcel {
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
    if !has {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn held(generation: u64, step: u64) -> Held {
        Held {
            generation: Generation(generation),
            step: Step(step),
        }
    }

    fn saved(generation: u64, step: u64) -> Option<CheckpointRef> {
        Some(CheckpointRef {
            step: Step(step),
            generation: Generation(generation),
        })
    }

    #[test]
    fn the_newest_state_wins_and_memory_is_preferred_to_a_checkpoint_of_the_same_step() {
        let memory = |rank, generation, step, all| Source::Memory {
            rank,
            held: held(generation, step),
            all,
        };
        let (a, b, c) = (Some(held(1, 7)), Some(held(1, 8)), Some(held(2, 7)));
        assert_eq!(choose(&[None, a, b], saved(1, 4)), memory(2, 1, 8, false));
        assert_eq!(choose(&[b, b], saved(1, 8)), memory(0, 1, 8, true));
        // Generation 2 went on from step 7; what generation 1 did in step 8 is no longer true.
        assert_eq!(choose(&[b, c], None), memory(1, 2, 7, false));
        // An old survivor comes back after the others committed more and were lost.
        assert_eq!(
            choose(&[b, None], saved(3, 12)),
            Source::Checkpoint(saved(3, 12).unwrap())
        );
        assert_eq!(
            choose(&[None, None], saved(1, 4)),
            Source::Checkpoint(saved(1, 4).unwrap())
        );
        assert_eq!(choose(&[None], None), Source::Beginning);
    }

    #[test]
    fn the_rank_that_is_alone_with_its_answer_is_named() {
        let check = |numbers: &[i64]| {
            let ranks: Vec<(u32, i64)> = (0..).zip(numbers.iter().copied()).collect();
            same_everywhere(&ranks, "the state").map_err(|error| error.to_string())
        };
        assert_eq!(check(&[5, 5, 5]), Ok(()));
        assert_eq!(check(&[]), Ok(()));
        let alone = "rank 1 differs from the others in the state".to_owned();
        assert_eq!(check(&[5, 6, 5]), Err(alone));
        assert!(check(&[5, 6]).unwrap_err().contains("as many on each side"));
    }
}
