//! The validation after a step: the loss on held-out samples at fixed noise levels. The ranks share
//! the batches, and each batch has the same composition at every world size. Every batch's sum has
//! a slot of its own in the all-reduce, and the slots are added in order, so that the result has
//! the same bits at every world size. Weights, gradients and random streams are not touched. Called
//! by [`crate::train`].

use crate::collective::Group;
use crate::deadline::Deadlines;
use crate::link::superseded;
use crate::outage::retry_through_outage;
use crate::process::{Permanent, Rank};
use anyhow::Context;
use model::trainer::Trainer;
use model::validation::at_level;
use model_data::example::Example;
use model_data::loader::Loader;
use proto::id::{Generation, Step};
use proto::message::{LossTerm, Stage};
use proto::sharding;
use proto::spec::TrainWork;
use std::collections::BTreeMap;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// The epoch whose crops and references the samples have. Training never sees a held-out sample, so
/// it can be any.
const EPOCH: u64 = 0;

/// The parts of the process and of the generation that a validation uses.
pub(crate) struct ValidationContext<'a> {
    pub(crate) rank: &'a Rank<'a>,
    pub(crate) spec: &'a TrainWork,
    pub(crate) generation: Generation,
    pub(crate) deadlines: Deadlines,
    pub(crate) trainer: &'a mut Trainer,
    pub(crate) group: &'a Group,
    pub(crate) loader: &'a Loader,
    /// From [`samples`].
    pub(crate) samples: &'a [u64],
}

/// The positions of a job's validation samples, spread evenly over all that are held out. Empty if
/// the job has no validation.
///
/// # Errors
/// The job has a validation, but no sample is held out.
pub(crate) fn samples(spec: &TrainWork, held_out: &[u64]) -> Result<Vec<u64>, Permanent> {
    if spec.train.validate_every == 0 {
        return Ok(Vec::new());
    }
    if held_out.is_empty() {
        return Err(Permanent(format!(
            "train.validate_every is {}, but no sample of {} is held out: data.holdout is {}; \
            raise it",
            spec.train.validate_every, spec.data.dataset, spec.data.holdout
        )));
    }
    Ok(spread(held_out, spec.train.validate_samples as usize))
}

/// `count` values of a list at equal distances; all if there are fewer.
fn spread(list: &[u64], count: usize) -> Vec<u64> {
    let count = count.min(list.len());
    (0..count)
        .map(|index| list[index * list.len() / count])
        .collect()
}

impl ValidationContext<'_> {
    /// The means over all samples and noise levels, by name. Empty, with a warning, if they are not
    /// finite.
    pub(crate) fn validate(&mut self, step: Step) -> anyhow::Result<Vec<LossTerm>> {
        let timesteps = self.trainer.validation_timesteps();
        let items = self.samples.len() * timesteps.len().max(1);
        let size = self.spec.train.micro_batch as usize;
        let batches = u32::try_from(items.div_ceil(size)).context("too many validation samples")?;
        let (rank, world) = {
            let membership = self.group.membership();
            (membership.rank, membership.world)
        };
        let names = self.trainer.validation_terms();
        let mut slots = vec![0.0; batches as usize * names.len()];
        let mut known = BTreeMap::new();
        for (index, batch) in sharding::micro_batches(batches, rank, world).enumerate() {
            if self.rank.link.is_superseded(self.generation) {
                return Err(superseded(self.generation).into());
            }
            let start = batch as usize * size;
            let range = start..items.min(start + size);
            self.rank.link.progress().begin(step.0, Stage::Samples);
            let examples = self.batch(range, &timesteps, &mut known)?;
            let number = u32::try_from(index + 1).unwrap_or(u32::MAX);
            let stage = Stage::Validation(number);
            self.rank.link.progress().begin(step.0, stage);
            let sums = self.trainer.validate(&examples)?;
            slots[batch as usize * names.len()..][..names.len()].copy_from_slice(&sums);
        }
        self.rank.link.progress().begin(step.0, Stage::Reduction);
        let slots = self.all_gather(&slots, step)?;
        let mut sums = vec![0.0; names.len()];
        for slot in slots.chunks_exact(names.len()) {
            sums.iter_mut().zip(slot).for_each(|(sum, it)| *sum += it);
        }
        if !sums.iter().all(|sum| sum.is_finite()) {
            tracing::warn!(%step, "the validation loss is not finite and not reported");
            return Ok(Vec::new());
        }
        let terms = names.into_iter().zip(sums).map(|(name, sum)| LossTerm {
            name,
            value: sum / items as f64,
        });
        Ok(terms.collect())
    }

    /// The examples of a range of items. Item i is sample i / levels at level i % levels. `known`:
    /// the samples of the last batch, of which the next one may continue the last.
    fn batch(
        &self,
        items: Range<usize>,
        timesteps: &[u32],
        known: &mut BTreeMap<usize, Example>,
    ) -> anyhow::Result<Vec<Example>> {
        let levels = timesteps.len().max(1);
        let needed = items.start / levels..=(items.end - 1) / levels;
        known.retain(|sample, _| needed.contains(sample));
        let missing: Vec<usize> = needed.filter(|it| !known.contains_key(it)).collect();
        if !missing.is_empty() {
            let places: Vec<(u64, u64)> = missing
                .iter()
                .map(|sample| (EPOCH, self.samples[*sample]))
                .collect();
            let read = retry_through_outage(self.deadlines, "reading validation samples", || {
                self.loader.examples_at(places.clone())
            });
            let link = self.rank.link;
            let read = link.unless_superseded(self.generation, read)??;
            known.extend(missing.into_iter().zip(read));
        }
        let example = |item: usize| {
            let (example, level) = (&known[&(item / levels)], item % levels);
            match timesteps.get(level) {
                Some(timestep) => at_level(example, level, *timestep),
                None => example.clone(),
            }
        };
        Ok(items.map(example).collect())
    }

    /// Combines the slots of all ranks, of which each is zero on all ranks but one.
    fn all_gather(&self, slots: &[f64], step: Step) -> anyhow::Result<Vec<f64>> {
        let slots = Tensor::from_slice(slots).to_device(self.group.membership().device);
        let what = format!("all-reduce of the validation after step {step}");
        self.group.all_reduce(&slots, &what)?;
        Ok(Vec::<f64>::try_from(
            &slots.to_device(Device::Cpu).to_kind(Kind::Double),
        )?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_spread_over_all_that_are_held_out() {
        assert_eq!(spread(&[3, 4, 7, 9, 11, 20], 3), [3, 7, 11]);
        assert_eq!(spread(&[3, 4], 64), [3, 4]);
        assert_eq!(spread(&[3, 4, 5, 6, 7], 4), [3, 4, 5, 6]);
    }
}
