//! A job's ledger as the machine writes it: every step that rank 0 reported or that a commit proves, every state that
//! all ranks agreed on. What is new waits a moment so that quick steps share one save; a step is acknowledged to its
//! rank only when its entry is saved, so that none is lost with the coordinator.

use crate::event::{Member, Record};
use crate::explain::Ending;
use crate::job::Job;
use crate::report::runs;
use proto::id::{Generation, Rank, Step};
use proto::ledger::{Entry, Line, Tip};
use proto::message::{DIGESTS_MAX, StepReport, WeightDigest};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug)]
pub(crate) struct Ledger {
    /// With what is not saved yet.
    tip: Tip,
    pending: Vec<Entry>,
    /// What the ranks of that generation came to, where not all have spoken.
    digests: BTreeMap<Step, BTreeMap<Rank, String>>,
    digests_of: Generation,
    /// The newest step on whose digest all agreed.
    agreed: Step,
}

impl Ledger {
    pub(crate) fn new(tip: Tip) -> Self {
        Self {
            tip,
            pending: Vec::new(),
            digests: BTreeMap::new(),
            digests_of: Generation(0),
            agreed: Step(0),
        }
    }

    fn write(&mut self, line: Line) {
        let entry = self.tip.append(line);
        self.pending.push(entry);
    }

    /// A generation spoke for the first time: that it did step `step`. It began where it resumed, or further on when
    /// its ranks still had what an older one did.
    fn begin(&mut self, (generation, world): (Generation, u32), resumed: Step, step: Step) {
        if self.tip.generation != generation {
            let before = Step(step.0.saturating_sub(1));
            let from = resumed.max(before.min(self.tip.step));
            self.write(Line::Generation {
                generation,
                world,
                from,
            });
        }
    }
}

impl Job {
    /// True when steps were told that no checkpoint has.
    pub(crate) fn is_beyond_checkpoint(&self) -> bool {
        self.committed() < self.ledger.tip.step
    }

    /// Rank 0 of the newest generation reported a step. Those before it, since the last that is known, were done too.
    pub(crate) fn ledger_step(&mut self, report: &StepReport) {
        let loss = Some(report.loss).filter(|loss| loss.is_finite());
        let world = self.members().iter().map(|member| member.ranks).sum();
        self.ledger_through(world, report.step, Some(loss));
    }

    /// A checkpoint of the newest generation is committed: all steps up to it were done.
    pub(crate) fn ledger_commit(&mut self, world: usize, step: Step) {
        self.ledger_through(u32::try_from(world).unwrap_or(u32::MAX), step, None);
    }

    /// `loss` is that of the last step, where it was heard.
    fn ledger_through(&mut self, world: u32, last: Step, loss: Option<Option<f64>>) {
        let generation = self.record.generation;
        let samples = self
            .record
            .spec
            .training()
            .map_or(0, |work| work.train.global_batch);
        let resumed = self.live.resume.map_or(Step(0), |resume| resume.step);
        self.ledger.begin((generation, world), resumed, last);
        let batch = u64::from(samples);
        let through = if loss.is_some() {
            Step(last.0.saturating_sub(1))
        } else {
            last
        };
        let known = self.ledger.tip.step;
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
    pub(crate) fn ledger_digests(&mut self, rank: Rank, digests: &[WeightDigest]) -> Option<Ending> {
        let (world, generation) = (self.live.ranks.len(), self.record.generation);
        let steps_max = self.steps_max();
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
                let what = disagreement(step, &said, self.members());
                return Some(Ending::WeightsDisagree { what });
            };
            // Rank 0's word on the step comes with its digest, or before long.
            if ledger.tip.generation != generation || ledger.tip.step < step {
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
        !self.ledger.pending.is_empty()
    }

    /// Takes what is to be saved; the job's record then says so.
    pub(crate) fn take_ledger(&mut self) -> Option<Record> {
        if !self.has_ledger_pending() {
            return None;
        }
        self.record.ledger.clone_from(&self.ledger.tip);
        let (job, entries) = (self.record.id.clone(), std::mem::take(&mut self.ledger.pending));
        Some(Record::Ledger { job, entries })
    }

    /// The newest step of the running generation whose entry is saved: its rank need not tell it again.
    pub(crate) fn ledgered(&self) -> Step {
        let resumed = self.live.resume.map_or(Step(0), |resume| resume.step);
        let tip = &self.record.ledger;
        if tip.generation == self.record.generation {
            tip.step.max(resumed)
        } else {
            resumed
        }
    }
}

fn disagreement(step: Step, said: &BTreeMap<Rank, String>, members: &[Member]) -> String {
    let place = |rank: Rank| {
        let member = members.iter().find(|member| runs(member, rank));
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
            "{} is alone: its weights after step {step} are {}, those of the other {} ranks {others}",
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
