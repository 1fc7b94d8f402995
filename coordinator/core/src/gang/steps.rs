//! Writes steps, commits and weight digests to a job's ledger.

use super::job::{Gang, State};
use super::ledger::Origin;
use super::running::Running;
use crate::explain::rank_on;
use crate::record::{Member, Record};
use proto::id::{Rank, Step};
use proto::ledger::Line;
use proto::message::{DIGESTS_MAX, StepReport, WeightDigest};
use proto::reason::{Ending, WeightDisagreement};
use std::collections::{BTreeMap, BTreeSet};

impl Gang {
    fn resumed(&self) -> Step {
        self.newest.resume.map_or(Step(0), |resume| resume.step)
    }

    /// True if steps were reported that no checkpoint contains.
    pub(crate) fn is_beyond_checkpoint(&self) -> bool {
        self.committed() < self.ledger.tip().step
    }

    /// Rank 0 of the newest generation reported a step. This implies all steps since the last known
    /// one.
    pub(crate) fn ledger_step(&mut self, report: &StepReport) {
        let loss = Some(report.loss).filter(|loss| loss.is_finite());
        let world = self.running().map_or(0, Running::world);
        self.ledger_through(world, report.step, Some(loss));
    }

    /// A checkpoint of the newest generation was committed. This implies all steps up to it.
    pub(crate) fn ledger_commit(&mut self, world: usize, step: Step) {
        self.ledger_through(u32::try_from(world).unwrap_or(u32::MAX), step, None);
    }

    /// `loss` is that of the last step, if it was reported.
    fn ledger_through(&mut self, world: u32, last: Step, loss: Option<Option<f64>>) {
        let (generation, samples) = (self.head.generation, self.plan.global_batch);
        let origin = Origin {
            generation,
            world,
            resumed: self.resumed(),
        };
        self.ledger.begin(origin, last);
        let batch = u64::from(samples);
        let through = if loss.is_some() {
            Step(last.0.saturating_sub(1))
        } else {
            last
        };
        let known = self.ledger.tip().step;
        if known < through {
            let (first, samples) = (known.0 * batch, (through.0 - known.0) * batch);
            self.ledger.write(Line::Unheard {
                generation,
                through,
                first,
                samples,
            });
        }
        if let Some(loss) = loss.filter(|_| known < last) {
            let (step, first) = (last, (last.0 - 1) * batch);
            self.ledger.write(Line::Step {
                generation,
                step,
                first,
                samples,
                loss,
            });
        }
    }

    /// Applies a rank's weight digests. Once all ranks have reported a step, the digests must be
    /// equal; otherwise the job ends.
    pub(crate) fn ledger_digests(
        &mut self,
        rank: Rank,
        digests: &[WeightDigest],
    ) -> Option<Ending> {
        let generation = self.head.generation;
        let world = self.running().map_or(0, |running| running.ranks.len());
        let steps_max = self.steps_max();
        let members = match &self.state {
            State::Running(running) => &running.members[..],
            State::Queued(_) | State::Ended(_) => &[],
        };
        let ledger = &mut self.ledger;
        if ledger.digests_of != generation {
            ledger.digests.clear();
            (ledger.digests_of, ledger.agreed) = (generation, Step(0));
        }
        let is_new =
            |digest: &&WeightDigest| ledger.agreed < digest.step && digest.step <= steps_max;
        let fresh: Vec<&WeightDigest> = digests.iter().filter(is_new).collect();
        for digest in fresh {
            let of_step = ledger.digests.entry(digest.step).or_default();
            of_step.entry(rank).or_insert_with(|| digest.sha256.clone());
        }
        while DIGESTS_MAX < ledger.digests.len() {
            ledger.digests.pop_first();
        }
        let (tip_generation, tip_step) = (ledger.tip().generation, ledger.tip().step);
        let complete = |of_step: &BTreeMap<Rank, String>| of_step.len() == world;
        while let Some(first) = ledger
            .digests
            .first_entry()
            .filter(|first| complete(first.get()))
        {
            let step = *first.key();
            let values: BTreeSet<&String> = first.get().values().collect();
            let Some(sha256) = values
                .first()
                .filter(|_| values.len() == 1)
                .map(|sha256| (*sha256).clone())
            else {
                let by_rank = first.remove();
                let weights = disagreement(&by_rank, members);
                return Some(Ending::WeightsDisagree { step, weights });
            };
            // Rank 0 reports the step together with its digest, or soon after.
            if tip_generation != generation || tip_step < step {
                break;
            }
            first.remove();
            ledger.agreed = step;
            ledger.write(Line::Digest {
                generation,
                step,
                sha256,
            });
        }
        None
    }

    pub(crate) fn has_ledger_pending(&self) -> bool {
        self.ledger.is_pending()
    }

    /// Takes the ledger entries to save. The job's record is updated to match.
    pub(crate) fn take_ledger(&mut self) -> Option<Record> {
        let job = self.head.id.clone();
        self.has_ledger_pending().then(|| Record::Ledger {
            job,
            entries: self.ledger.take(),
        })
    }

    /// The newest step of the running generation whose entry is saved. Its rank need not report it
    /// again.
    pub(super) fn saved_step(&self) -> Step {
        let resumed = self.resumed();
        let tip = self.ledger.saved();
        if tip.generation == self.head.generation {
            tip.step.max(resumed)
        } else {
            resumed
        }
    }
}

fn disagreement(by_rank: &BTreeMap<Rank, String>, members: &[Member]) -> WeightDisagreement {
    let mut by_value: BTreeMap<&String, Vec<Rank>> = BTreeMap::new();
    for (rank, sha256) in by_rank {
        by_value.entry(sha256).or_default().push(*rank);
    }
    let unique = by_value
        .iter()
        .filter(|(_, ranks)| ranks.len() == 1)
        .collect::<Vec<_>>();
    if let [(value, ranks)] = unique[..]
        && by_value.len() == 2
        && let Some((others_sha256, others)) = by_value.iter().find(|(other, _)| *other != value)
    {
        return WeightDisagreement::One {
            rank: rank_on(ranks[0], members),
            sha256: (*value).clone(),
            others: u32::try_from(others.len()).unwrap_or(u32::MAX),
            others_sha256: (*others_sha256).clone(),
        };
    }
    let each = by_rank
        .iter()
        .map(|(rank, sha256)| (rank_on(*rank, members), sha256.clone()));
    WeightDisagreement::Many {
        ranks: each.collect(),
    }
}
