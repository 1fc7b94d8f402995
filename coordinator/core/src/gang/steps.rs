//! What goes into a job's ledger, and what the ranks' digests say.

use super::job::{Gang, State};
use super::ledger::Origin;
use super::running::Running;
use crate::explain::Ending;
use crate::record::{Member, Record};
use proto::id::{Rank, Step};
use proto::ledger::Line;
use proto::message::{DIGESTS_MAX, StepReport, WeightDigest};
use std::collections::{BTreeMap, BTreeSet};

impl Gang {
    fn resumed(&self) -> Step {
        self.newest.resume.map_or(Step(0), |resume| resume.step)
    }

    /// True when steps were told that no checkpoint has.
    pub(crate) fn is_beyond_checkpoint(&self) -> bool {
        self.committed() < self.ledger.tip().step
    }

    /// Rank 0 of the newest generation reported a step. Those before it, since the last that is
    /// known, were done too.
    pub(crate) fn ledger_step(&mut self, report: &StepReport) {
        let loss = Some(report.loss).filter(|loss| loss.is_finite());
        let world = self.running().map_or(0, Running::world);
        self.ledger_through(world, report.step, Some(loss));
    }

    /// A checkpoint of the newest generation is committed: all steps up to it were done.
    pub(crate) fn ledger_commit(&mut self, world: usize, step: Step) {
        self.ledger_through(u32::try_from(world).unwrap_or(u32::MAX), step, None);
    }

    /// `loss` is that of the last step, where it was heard.
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

    /// What a rank came to. When all have spoken of a step they agree, or the job is at its end.
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
        let news = |digest: &&WeightDigest| ledger.agreed < digest.step && digest.step <= steps_max;
        let fresh: Vec<&WeightDigest> = digests.iter().filter(news).collect();
        for digest in fresh {
            let of_step = ledger.digests.entry(digest.step).or_default();
            of_step.entry(rank).or_insert_with(|| digest.sha256.clone());
        }
        while DIGESTS_MAX < ledger.digests.len() {
            ledger.digests.pop_first();
        }
        let (told_generation, told_step) = (ledger.tip().generation, ledger.tip().step);
        let said_by_all = |of_step: &BTreeMap<Rank, String>| of_step.len() == world;
        while let Some(first) = ledger
            .digests
            .first_entry()
            .filter(|first| said_by_all(first.get()))
        {
            let step = *first.key();
            let values: BTreeSet<&String> = first.get().values().collect();
            let Some(sha256) = values
                .first()
                .filter(|_| values.len() == 1)
                .map(|sha256| (*sha256).clone())
            else {
                let said = first.remove();
                let what = disagreement(step, &said, members);
                return Some(Ending::WeightsDisagree { what });
            };
            // Rank 0's word on the step comes with its digest, or before long.
            if told_generation != generation || told_step < step {
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

    /// Takes what is to be saved; the job's record then says so.
    pub(crate) fn take_ledger(&mut self) -> Option<Record> {
        let job = self.head.id.clone();
        self.has_ledger_pending().then(|| Record::Ledger {
            job,
            entries: self.ledger.take(),
        })
    }

    /// The newest step of the running generation whose entry is saved: its rank need not tell it
    /// again.
    pub(super) fn ledgered(&self) -> Step {
        let resumed = self.resumed();
        let tip = self.ledger.saved();
        if tip.generation == self.head.generation {
            tip.step.max(resumed)
        } else {
            resumed
        }
    }
}

fn disagreement(step: Step, said: &BTreeMap<Rank, String>, members: &[Member]) -> String {
    let place = |rank: Rank| {
        let member = members.iter().find(|member| member.runs(rank));
        member.map_or_else(
            || format!("rank {rank}"),
            |member| format!("rank {rank} on {}", member.worker.name),
        )
    };
    let short = |sha256: &str| sha256.get(..12).unwrap_or(sha256).to_owned();
    let mut by_value: BTreeMap<&String, Vec<Rank>> = BTreeMap::new();
    for (rank, sha256) in said {
        by_value.entry(sha256).or_default().push(*rank);
    }
    let alone = by_value
        .iter()
        .filter(|(_, ranks)| ranks.len() == 1)
        .collect::<Vec<_>>();
    if let [(value, ranks)] = alone[..]
        && by_value.len() == 2
    {
        let others = by_value
            .keys()
            .find(|other| *other != value)
            .map_or_else(String::new, |other| short(other));
        return format!(
            "{} is alone: its weights after step {step} are {}, those of the other {} ranks \
            {others}",
            place(ranks[0]),
            short(value),
            said.len() - 1
        );
    }
    let each: Vec<String> = said
        .iter()
        .map(|(rank, sha256)| format!("{} {}", place(*rank), short(sha256)))
        .collect();
    format!(
        "the ranks' weights after step {step} differ, and nobody can tell whose are right: {}",
        each.join(", ")
    )
}
