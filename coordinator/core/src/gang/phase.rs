//! All phase changes of a gang: a generation forms and ends, and the job ends when it is complete
//! or has failed permanently.

use super::blame::{Blame, RankOf};
use super::job::{Gang, Queued, State};
use super::newest::Newest;
use super::running::Running;
use super::standbys::Standbys;
use crate::deadline::Deadlines;
use crate::event::Event;
use crate::explain::blocked_ranks;
use crate::head::Ended;
use crate::outbox::Outbox;
use crate::record::{Member, Millis, RESTARTS_WITHOUT_PROGRESS_MAX};
use proto::id::{Rank, WorkerId};
use proto::message::RankPhase;
use proto::reason::{Cause, Consequence, Ending, Fault, GenerationEnd, LastGood, Waiting};

impl Gang {
    /// Forms the next generation on these workers.
    pub(crate) fn form(&mut self, workers: Vec<WorkerId>, outbox: &mut Outbox) {
        let ranks = self.head.devices_per_worker();
        let member = |(worker, first): (WorkerId, u32)| Member {
            worker,
            first_rank: Rank(first * ranks),
            ranks,
        };
        let members: Vec<Member> = workers.into_iter().zip(0..).map(member).collect();
        let inherits = !self.standbys.members().is_empty() || !self.members().is_empty();
        let former_standbys: Vec<WorkerId> = self.standby_workers().cloned().collect();
        outbox.send_to_all(self.standbys.members());
        let world = ranks * u32::try_from(members.len()).unwrap_or(u32::MAX);
        self.begin(world);
        outbox.emit(Event::GenerationFormed {
            job: self.head.id.clone(),
            generation: self.head.generation,
            world,
        });
        let mut running = Running::new(members, inherits, outbox.now);
        running.former_standbys = former_standbys;
        self.state = State::Running(running);
        self.save(outbox);
        self.send_to_members(outbox);
    }

    /// Starts the next generation number, without reports and without standbys.
    pub(super) fn begin(&mut self, world: u32) {
        self.head.generation = self.head.generation.next();
        self.newest = Newest::new(self.checkpoints.last().copied());
        self.standbys = Standbys::new(world);
    }

    /// Why it is queued, if it is.
    pub(crate) fn reason(&self) -> Option<&Waiting> {
        match &self.state {
            State::Queued(queued) => Some(&queued.reason),
            State::Running(_) | State::Ended(_) => None,
        }
    }

    pub(crate) fn wait(&mut self, reason: Waiting, outbox: &mut Outbox) {
        let State::Queued(queued) = &mut self.state else {
            return;
        };
        if queued.reason != reason {
            queued.reason = reason;
            self.save(outbox);
            self.emit_queued(outbox);
        }
    }

    pub(crate) fn emit_queued(&self, outbox: &mut Outbox) {
        if let State::Queued(queued) = &self.state {
            outbox.emit(Event::JobQueued {
                job: self.head.id.clone(),
                reason: queued.reason.clone(),
            });
        }
    }

    /// Queues the job. `survivors` keep their state as standbys, in addition to the newcomers that
    /// prepared for the next generation.
    pub(super) fn queue(
        &mut self,
        reason: Waiting,
        grace_until: Millis,
        survivors: Vec<Member>,
        outbox: &mut Outbox,
    ) {
        let world = self.members().iter().map(|member| member.ranks).sum();
        let queued = State::Queued(Queued {
            reason,
            grace_until,
            ended_world: Some(world),
        });
        if let State::Running(running) = std::mem::replace(&mut self.state, queued) {
            self.standbys.adopt(survivors, running.ranks);
        }
        self.save(outbox);
    }

    /// Ends the running generation after a fault and queues the job again. [`Self::reconcile`]
    /// decides whether the job fails.
    pub(crate) fn end_generation(
        &mut self,
        ending: &Ending,
        deadlines: Deadlines,
        outbox: &mut Outbox,
    ) {
        self.send_to_members(outbox);
        if !self.is_running() {
            return;
        }
        let members = self.members().to_vec();
        let generation = self.head.generation;
        let fault = if let Some(worker) = self.late_root_cause(ending).cloned() {
            self.reattribute(&worker, None, ending, outbox);
            Fault::Generation {
                ending: ending.clone(),
                blocked: blocked_ranks(ending, &members),
                consequence: Consequence::Resumes {
                    from: self.committed(),
                },
            }
        } else {
            self.record_failure(ending, &members, outbox)
        };
        let survives = |member: &Member| ending.lost_worker() != Some(&member.worker);
        let survivors = members.into_iter().filter(survives).collect();
        let grace_until = deadlines.start_grace(outbox.now);
        self.queue(Waiting::Fault { fault }, grace_until, survivors, outbox);
        let reason = GenerationEnd::Ending(ending.clone());
        outbox.emit(Event::GenerationEnded {
            job: self.head.id.clone(),
            generation,
            reason,
        });
    }

    /// The worker whose rank broke the previous generation, if that is reported only while the next
    /// one forms: its process had already ended when it became a member. This counts as one fault,
    /// not two.
    fn late_root_cause<'a>(&self, ending: &'a Ending) -> Option<&'a WorkerId> {
        let Ending::RankFailed { worker, .. } = ending else {
            return None;
        };
        let (blame, running) = (self.blame.as_ref()?, self.running()?);
        let mut phases = running.ranks.values().map(|rank| &rank.phase);
        let begun = phases.any(|phase| {
            matches!(
                phase,
                Some(RankPhase::Training | RankPhase::Broken { .. } | RankPhase::Finished)
            )
        });
        let was_there = blame.members.iter().any(|member| member.worker == *worker);
        (was_there && !begun && !ending.is_secondary() && !ending.is_permanent()).then_some(worker)
    }

    /// Records that a generation failed.
    fn record_failure(
        &mut self,
        ending: &Ending,
        members: &[Member],
        outbox: &mut Outbox,
    ) -> Fault {
        self.head.restarts += 1;
        self.head.permanent_failure |= ending.is_permanent();
        if self.reached < self.newest.acknowledged {
            self.reached = self.newest.acknowledged;
            self.head.restarts_without_progress = 0;
        } else if !ending.is_external() {
            self.head.restarts_without_progress += 1;
        }
        let consequence = if self.head.permanent_failure {
            Consequence::Permanent
        } else if self.head.restarts_without_progress < RESTARTS_WITHOUT_PROGRESS_MAX {
            Consequence::Resumes {
                from: self.committed(),
            }
        } else {
            Consequence::NoProgress {
                generations: RESTARTS_WITHOUT_PROGRESS_MAX,
            }
        };
        let generation = self.head.generation;
        let fault = Fault::Generation {
            ending: ending.clone(),
            blocked: blocked_ranks(ending, members),
            consequence: consequence.clone(),
        };
        self.head.record_incident(fault.clone(), outbox);
        self.blame = ending.is_secondary().then_some(Blame {
            generation,
            members: members.to_vec(),
            consequence,
        });
        fault
    }

    /// Replaces a secondary error with the root cause of the last generation's end, which was
    /// reported later. `rank` is the failed rank; None means the whole worker.
    pub(crate) fn reattribute(
        &mut self,
        worker: &WorkerId,
        rank: Option<RankOf>,
        ending: &Ending,
        outbox: &mut Outbox,
    ) {
        let Some(blame) = self.blame.as_ref().filter(|_| !ending.is_secondary()) else {
            return;
        };
        let concerns = |member: &Member| {
            let of_rank =
                rank.is_none_or(|of| of.generation == blame.generation && member.runs(of.rank));
            member.worker == *worker && of_rank
        };
        if !blame.members.iter().any(concerns) {
            return;
        }
        let fault = Fault::Generation {
            ending: ending.clone(),
            blocked: blocked_ranks(ending, &blame.members),
            consequence: blame.consequence.clone(),
        };
        match &mut self.state {
            // If a generation has formed since, it will report the failure again.
            State::Queued(_) => self.head.permanent_failure |= ending.is_permanent(),
            State::Ended(Ended::Failed { cause, .. }) => {
                let checkpoint = match cause {
                    Cause::Fault { checkpoint, .. } => *checkpoint,
                    _ => None,
                };
                *cause = Cause::Fault {
                    fault: fault.clone(),
                    checkpoint,
                };
            }
            State::Running(_) | State::Ended(Ended::Done { .. } | Ended::Cancelled { .. }) => {}
        }
        let mut incidents = self.head.incidents.iter_mut();
        if let Some(incident) = incidents.rfind(|it| it.generation == blame.generation) {
            incident.what = fault;
        }
        self.blame = None;
        self.save(outbox);
    }

    /// Ends the job if it is complete or has failed permanently. Returns true if it ended now.
    pub(crate) fn reconcile(&mut self, outbox: &mut Outbox) -> bool {
        // The last commit completes the work; a running generation may still finish gracefully.
        let complete = self.committed() == self.steps_max();
        let answered = self.writing.is_none();
        match &self.state {
            State::Running(running) if complete && running.all_finished() => self.done(outbox),
            State::Queued(_) if complete && answered => self.done(outbox),
            State::Queued(_) if self.head.must_fail() && answered => self.fail(outbox),
            State::Queued(_) if self.is_time_up() && answered => self.fail(outbox),
            State::Queued(_) | State::Running(_) | State::Ended(_) => return false,
        }
        true
    }

    fn done(&mut self, outbox: &mut Outbox) {
        let ended_ms = outbox.wall;
        self.end(Ended::Done { ended_ms }, outbox);
        outbox.emit(Event::JobDone {
            job: self.head.id.clone(),
            step: self.committed(),
        });
    }

    fn fail(&mut self, outbox: &mut Outbox) {
        let last = self.head.incidents.last();
        let last_good = || LastGood {
            step: self.checkpoints.last().map(|good| good.step),
        };
        let fault = last.map(|incident| incident.what.clone());
        let cause = match (self.time_limit_cause(), fault) {
            (Some(cause), _) if !self.head.must_fail() => cause,
            (_, Some(fault)) => Cause::Fault {
                fault,
                checkpoint: self.head.permanent_failure.then(last_good),
            },
            (_, None) => Cause::NoProgress {
                generations: RESTARTS_WITHOUT_PROGRESS_MAX,
            },
        };
        let ended = Ended::Failed {
            cause: cause.clone(),
            ended_ms: outbox.wall,
        };
        self.end(ended, outbox);
        outbox.emit(Event::JobFailed {
            job: self.head.id.clone(),
            cause,
        });
    }

    pub(crate) fn cancel(&mut self, outbox: &mut Outbox) {
        let ended_ms = outbox.wall;
        self.end(Ended::Cancelled { ended_ms }, outbox);
        outbox.emit(Event::JobCancelled {
            job: self.head.id.clone(),
        });
    }

    fn end(&mut self, ended: Ended, outbox: &mut Outbox) {
        self.send_to_members(outbox);
        outbox.send_to_all(self.standbys.members());
        self.standbys.clear();
        self.state = State::Ended(ended);
        self.save(outbox);
    }
}
