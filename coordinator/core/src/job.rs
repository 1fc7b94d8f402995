//! One job's life: queued, running in one generation after another, over. What is durable is its record; all
//! changes of phase are made here. It knows nothing of other jobs.

use crate::commit::Writing;
use crate::deadline::Deadlines;
use crate::event::{FRUITLESS_MAX, Fact, INCIDENTS_MAX, Incident, JobPhase, JobRecord, Member, Millis};
use crate::explain::{Ending, waiting};
use crate::ledger::Ledger;
use crate::live::Live;
use crate::outbox::Outbox;
use crate::report::runs;
use proto::checkpoint::CheckpointRef;
use proto::id::{Generation, JobId, Rank, Step, WorkerId};
use proto::message::{Assignment, GangOrder, RankPhase, Run, UnitOrder, UnitRange};
use proto::spec::Work;
use std::collections::BTreeMap;

#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) record: JobRecord,
    /// The number at the end of the id: submit order.
    pub(crate) number: u64,
    pub(crate) live: Live,
    pub(crate) ledger: Ledger,
    /// The manifest that is on its way. No new generation is formed before its fate is known.
    pub(crate) writing: Option<Writing>,
    /// While it is queued: until then it would rather have all workers it can use.
    pub(crate) settle_until: Millis,
    /// The world of the generation that ended, as long as its survivors were not told to leave it.
    pub(crate) kept_world: Option<u32>,
    /// Workers whose reserve failed, and until when no other is tried there.
    pub(crate) resting: BTreeMap<WorkerId, Millis>,
    /// Who was in reserve when the newest generation was formed, until it is settled who is so beside it.
    pub(crate) formerly_reserved: Vec<WorkerId>,
    blame: Option<Blame>,
}

/// How the last generation ended, as long as somebody may still tell it better: the victims of a broken
/// connection are often heard before the culprit.
#[derive(Debug)]
struct Blame {
    generation: Generation,
    members: Vec<Member>,
    /// What the incident says after the cause.
    follows: String,
}

impl JobPhase {
    /// Done, failed or cancelled: it never changes again.
    #[must_use]
    pub fn is_over(&self) -> bool {
        match self {
            Self::Queued { .. } | Self::Running { .. } => false,
            Self::Done { .. } | Self::Failed { .. } | Self::Cancelled { .. } => true,
        }
    }

    /// One word for tables.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Queued { .. } => "queued",
            Self::Running { .. } => "running",
            Self::Done { .. } => "done",
            Self::Failed { .. } => "failed",
            Self::Cancelled { .. } => "cancelled",
        }
    }
}

impl Job {
    /// A job as its record says, at the moment it was submitted or the coordinator restarted.
    pub(crate) fn new(record: JobRecord, deadlines: Deadlines, now: Millis) -> Self {
        let members: &[Member] = match &record.phase {
            JobPhase::Running { members } => members,
            JobPhase::Queued { .. }
            | JobPhase::Done { .. }
            | JobPhase::Failed { .. }
            | JobPhase::Cancelled { .. } => &[],
        };
        // Checkpoints of the running generation came after it resumed.
        let resume = record
            .checkpoints
            .iter()
            .rev()
            .find(|c| c.generation < record.generation)
            .copied();
        let mut live = Live::new(members, resume, now);
        // Its ranks may hold anything.
        live.inherits = true;
        live.add_reserves(&record.reserves, now);
        let kept = members.is_empty() && !record.reserves.is_empty();
        // What its ledger holds of the running generation need not be heard again.
        if record.ledger.generation == record.generation {
            live.acknowledged = live.acknowledged.max(record.ledger.step);
        }
        let number = record
            .id
            .0
            .rsplit('-')
            .next()
            .and_then(|digits| digits.parse().ok())
            .unwrap_or(0);
        Self {
            ledger: Ledger::new(record.ledger.clone()),
            record,
            number,
            live,
            writing: None,
            settle_until: deadlines.settle(now),
            // The record does not say whether they were; to tell them once more does no harm.
            kept_world: kept.then_some(0),
            resting: BTreeMap::new(),
            formerly_reserved: Vec::new(),
            blame: None,
        }
    }

    pub(crate) fn members(&self) -> &[Member] {
        match &self.record.phase {
            JobPhase::Running { members } => members,
            JobPhase::Queued { .. }
            | JobPhase::Done { .. }
            | JobPhase::Failed { .. }
            | JobPhase::Cancelled { .. } => &[],
        }
    }

    pub(crate) fn committed(&self) -> Step {
        self.record
            .checkpoints
            .last()
            .map_or(Step(0), |checkpoint| checkpoint.step)
    }

    /// The last step that its ranks can report; pictures are drawn without steps.
    pub(crate) fn steps_max(&self) -> Step {
        self.record
            .spec
            .training()
            .map_or(Step(0), |work| Step(work.train.steps))
    }

    pub(crate) fn tell_members(&self, outbox: &mut Outbox) {
        outbox
            .tell
            .extend(self.members().iter().map(|member| member.worker.name.clone()));
    }

    /// Forms the next generation on these workers.
    pub(crate) fn form(&mut self, workers: Vec<WorkerId>, outbox: &mut Outbox) {
        let ranks = self.record.spec.resources.devices_per_worker;
        let place = |(worker, first): (WorkerId, u32)| Member {
            worker,
            first_rank: Rank(first * ranks),
            ranks,
        };
        let members: Vec<Member> = workers.into_iter().zip(0..).map(place).collect();
        let inherits = !self.record.reserves.is_empty() || !self.members().is_empty();
        self.begin_live(&members, outbox.now);
        self.live.inherits = inherits;
        outbox
            .tell
            .extend(self.reserved().map(|worker| worker.name.clone()));
        self.formerly_reserved = self.reserved().cloned().collect();
        self.record.reserves.clear();
        self.record.generation = self.record.generation.next();
        outbox.note(Fact::GenerationFormed {
            job: self.record.id.clone(),
            generation: self.record.generation,
            world: ranks * u32::try_from(members.len()).unwrap_or(u32::MAX),
        });
        self.record.phase = JobPhase::Running { members };
        outbox.save.insert(self.record.id.clone());
        self.tell_members(outbox);
    }

    /// Nothing is known yet of the next generation, and nobody is left of the one before.
    pub(crate) fn begin_live(&mut self, members: &[Member], now: Millis) {
        self.live = Live::new(members, self.record.checkpoints.last().copied(), now);
        self.kept_world = None;
    }

    pub(crate) fn wait(&mut self, reason: String, outbox: &mut Outbox) {
        let phase = JobPhase::Queued { reason };
        if self.record.phase != phase {
            self.record.phase = phase;
            outbox.save.insert(self.record.id.clone());
            self.note_queued(outbox);
        }
    }

    pub(crate) fn note_queued(&self, outbox: &mut Outbox) {
        if let JobPhase::Queued { reason } = &self.record.phase {
            outbox.note(Fact::JobQueued {
                job: self.record.id.clone(),
                reason: reason.clone(),
            });
        }
    }

    /// Ends the running generation, which did not do its work. The job is queued again; [`Self::settle`]
    /// decides whether that was once too often.
    pub(crate) fn end_generation(&mut self, ending: &Ending, deadlines: Deadlines, outbox: &mut Outbox) {
        self.tell_members(outbox);
        let JobPhase::Running { members } = &self.record.phase else {
            return;
        };
        let members = members.clone();
        let generation = self.record.generation;
        let what = if let Some(worker) = self.blamed_late(ending).cloned() {
            self.amend(&worker, None, ending, outbox);
            ending.to_string()
        } else {
            self.count(ending, &members, outbox)
        };
        let survives = |member: &&Member| ending.lost_worker() != Some(&member.worker);
        self.keep(members.iter().filter(survives).cloned().collect());
        self.record.phase = JobPhase::Queued { reason: what };
        self.settle_until = deadlines.settle(outbox.now);
        self.live.clear();
        outbox.save.insert(self.record.id.clone());
        let reason = ending.to_string();
        outbox.note(Fact::GenerationEnded {
            job: self.record.id.clone(),
            generation,
            reason,
        });
    }

    /// The worker whose rank broke the generation before, when that is heard only while the next one forms: its process
    /// was given a place in it and had ended already. That is one fault and not two.
    fn blamed_late<'a>(&self, ending: &'a Ending) -> Option<&'a WorkerId> {
        let Ending::RankFailed { worker, .. } = ending else {
            return None;
        };
        let blame = self.blame.as_ref()?;
        let mut phases = self.live.ranks.values().map(|rank| &rank.phase);
        let begun = phases.any(|phase| {
            matches!(
                phase,
                Some(RankPhase::Training | RankPhase::Broken { .. } | RankPhase::Finished)
            )
        });
        let was_there = blame.members.iter().any(|member| member.worker == *worker);
        (was_there && !begun && !ending.is_hearsay() && !ending.is_permanent()).then_some(worker)
    }

    /// Writes down that a generation did not do its work; what happened, and what follows.
    fn count(&mut self, ending: &Ending, members: &[Member], outbox: &mut Outbox) -> String {
        self.record.restarts += 1;
        self.record.hopeless |= ending.is_permanent();
        if self.record.reached < self.live.acknowledged {
            self.record.reached = self.live.acknowledged;
            self.record.fruitless = 0;
        } else if !ending.is_outside() {
            self.record.fruitless += 1;
        }
        let follows = if self.record.hopeless {
            "another generation would end in the same way".to_owned()
        } else if self.record.fruitless < FRUITLESS_MAX {
            format!(
                "the job goes on from what survivors hold, or step {}",
                self.committed()
            )
        } else {
            format!("that is generation {FRUITLESS_MAX} in a row that got no further")
        };
        let generation = self.record.generation;
        let what = format!("{ending}{}; {follows}", waiting(ending, members));
        self.note_incident(what.clone(), outbox);
        self.blame = ending.is_hearsay().then_some(Blame {
            generation,
            members: members.to_vec(),
            follows,
        });
        what
    }

    /// Writes down what the running generation ends of.
    pub(crate) fn note_incident(&mut self, what: String, outbox: &Outbox) {
        let surplus = (self.record.incidents.len() + 1).saturating_sub(INCIDENTS_MAX);
        self.record.incidents.drain(..surplus);
        self.record.incidents.push(Incident {
            at_ms: outbox.wall,
            generation: self.record.generation,
            what,
        });
    }

    /// The culprit of the generation that ended last is found after a victim was heard: its own words (or its
    /// silence) replace the victim's. `rank` says of which rank the news is; None: of the whole worker.
    pub(crate) fn amend(
        &mut self,
        worker: &WorkerId,
        rank: Option<(Generation, Rank)>,
        ending: &Ending,
        outbox: &mut Outbox,
    ) {
        let Some(blame) = self.blame.as_ref().filter(|_| !ending.is_hearsay()) else {
            return;
        };
        let concerns = |member: &Member| {
            let of_rank =
                rank.is_none_or(|(generation, rank)| generation == blame.generation && runs(member, rank));
            member.worker == *worker && of_rank
        };
        if !blame.members.iter().any(concerns) {
            return;
        }
        let what = format!("{ending}{}; {}", waiting(ending, &blame.members), blame.follows);
        // A generation that was formed since will say it again.
        let queued = matches!(self.record.phase, JobPhase::Queued { .. });
        self.record.hopeless |= queued && ending.is_permanent();
        if let JobPhase::Failed { reason, .. } = &mut self.record.phase {
            reason.clone_from(&what);
        }
        if let Some(incident) = self
            .record
            .incidents
            .iter_mut()
            .rfind(|i| i.generation == blame.generation)
        {
            incident.what = what;
        }
        self.blame = None;
        outbox.save.insert(self.record.id.clone());
    }

    /// Ends the job when there is nothing more to do or to hope for. True when it is over now and was not
    /// before.
    pub(crate) fn settle(&mut self, outbox: &mut Outbox) -> bool {
        let complete = match self.record.spec.work {
            // The last commit is the work; ranks get the chance to leave in order.
            Work::Train(_) => self.committed() == self.steps_max(),
            Work::Sample(_) => self.live.all_finished(),
        };
        match &self.record.phase {
            JobPhase::Running { .. } if complete && self.live.all_finished() => self.done(outbox),
            JobPhase::Queued { .. } if complete && self.writing.is_none() => self.done(outbox),
            JobPhase::Queued { .. } if self.is_lost() && self.writing.is_none() => self.fail(outbox),
            JobPhase::Queued { .. }
            | JobPhase::Running { .. }
            | JobPhase::Done { .. }
            | JobPhase::Failed { .. }
            | JobPhase::Cancelled { .. } => return false,
        }
        true
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.record.hopeless || FRUITLESS_MAX <= self.record.fruitless
    }

    fn done(&mut self, outbox: &mut Outbox) {
        self.over(
            JobPhase::Done {
                ended_ms: outbox.wall,
            },
            outbox,
        );
        outbox.note(Fact::JobDone {
            job: self.record.id.clone(),
            step: self.committed(),
        });
    }

    fn fail(&mut self, outbox: &mut Outbox) {
        let last = self.record.incidents.last().map(|incident| incident.what.clone());
        let mut reason =
            last.unwrap_or_else(|| format!("{FRUITLESS_MAX} generations in a row got no further"));
        if self.record.hopeless {
            reason += &match self.record.checkpoints.last() {
                Some(good) => format!("; the last good checkpoint is that of step {}", good.step),
                None => "; there is no checkpoint yet".to_owned(),
            };
        }
        self.over(
            JobPhase::Failed {
                reason: reason.clone(),
                ended_ms: outbox.wall,
            },
            outbox,
        );
        outbox.note(Fact::JobFailed {
            job: self.record.id.clone(),
            reason,
        });
    }

    pub(crate) fn cancel(&mut self, outbox: &mut Outbox) {
        self.over(
            JobPhase::Cancelled {
                ended_ms: outbox.wall,
            },
            outbox,
        );
        outbox.note(Fact::JobCancelled {
            job: self.record.id.clone(),
        });
    }

    fn over(&mut self, phase: JobPhase, outbox: &mut Outbox) {
        self.tell_members(outbox);
        outbox
            .tell
            .extend(self.reserved().map(|worker| worker.name.clone()));
        self.record.reserves.clear();
        self.live.reserves.clear();
        self.record.phase = phase;
        self.live.clear();
        outbox.save.insert(self.record.id.clone());
    }

    /// What this worker should do for the job.
    pub(crate) fn assignment(
        &self,
        worker: &WorkerId,
        store_url: &str,
        detect_within_ms: u64,
    ) -> Option<Assignment> {
        let of_worker = |member: &&Member| member.worker == *worker;
        let place = self.members().iter().find(of_worker);
        let member = place.or_else(|| self.record.reserves.iter().find(of_worker))?;
        let world: u32 = self.members().iter().map(|member| member.ranks).sum();
        let (store_address, halt) = match place {
            Some(_) => (self.live.meeting_place().cloned(), self.live.halt.as_ref()),
            None => (None, None),
        };
        Some(Assignment {
            job: self.record.id.clone(),
            generation: self.record.generation,
            job_toml: self.record.job_toml.clone(),
            dataset_version: self.record.dataset_version.clone(),
            store_url: store_url.to_owned(),
            detect_within_ms,
            first_rank: member.first_rank,
            ranks: member.ranks,
            halt: halt.map(|halt| halt.how),
            run: match self.record.spec.work.units() {
                None => Run::Gang(GangOrder {
                    world: self.kept_world.unwrap_or(world),
                    store_address,
                    resume: self.live.resume,
                    acknowledged_step: self.ledgered(),
                    committed_step: self.committed(),
                }),
                Some(plan) => Run::Units(UnitOrder {
                    source: self.record.source.clone(),
                    leases: BTreeMap::from([(
                        Rank(0),
                        vec![UnitRange {
                            first: 0,
                            end: plan.count,
                        }],
                    )]),
                }),
            },
        })
    }

    /// What its running generation ends of at `now`, if of anything.
    pub(crate) fn overdue(&self, deadlines: Deadlines, now: Millis) -> Option<Ending> {
        if let Some((rank, heard)) = self.live.longest_silent()
            && deadlines.roll_call(heard) <= now
        {
            let member = self.members().iter().find(|member| runs(member, rank))?;
            return Some(Ending::RankMissing {
                rank,
                worker: member.worker.clone(),
            });
        }
        let due = self
            .live
            .finished_at
            .is_some_and(|since| deadlines.last_shards(since) <= now);
        let step = self.steps_max();
        // A halting generation is over before the last step, and has a deadline of its own.
        if !due || self.writing.is_some() || self.committed() == step || self.live.halt.is_some() {
            return None;
        }
        let shards = self.live.shards.get(&step);
        let has_shard = |rank: &Rank| shards.is_some_and(|shards| shards.contains_key(rank));
        let without = self
            .live
            .ranks
            .keys()
            .filter(|rank| !has_shard(rank))
            .copied()
            .collect();
        Some(Ending::LastCheckpointMissing { step, without })
    }

    pub(crate) fn next_deadline(&self, deadlines: Deadlines, now: Millis) -> Option<Millis> {
        let silent = self
            .live
            .longest_silent()
            .map(|(_, heard)| deadlines.roll_call(heard));
        let finished = self.live.finished_at.map(|since| deadlines.last_shards(since));
        let finished = finished.filter(|_| self.writing.is_none() && self.live.halt.is_none());
        let retry = self.writing.as_ref().map(|writing| writing.retry_at);
        let settle = self.settles_until(now);
        let halt = self.halts_at();
        let reserve = self.next_reserve_deadline(deadlines);
        [silent, finished, retry, settle, halt, reserve]
            .into_iter()
            .flatten()
            .min()
    }

    /// The checkpoint of another job that it reads, while it may still read it.
    pub(crate) fn pin(&self) -> Option<(&JobId, CheckpointRef)> {
        let sample = self.record.spec.work.sampling()?;
        let source = self.record.source.as_ref()?;
        let checkpoint = source.checkpoint.filter(|_| !self.record.phase.is_over())?;
        Some((&sample.job, checkpoint))
    }
}
