//! Which workers a job of units asks for, and how they come and go: one by one.

use super::job::{Running, State, Units};
use super::part::{Leaving, Part};
use crate::deadline::Deadlines;
use crate::event::Event;
use crate::outbox::Outbox;
use crate::partitions::Partitions;
use crate::placement::Demand;
use crate::record::Member;
use proto::id::{Rank, WorkerId};

impl Units {
    /// What it asks of placement, if it wants to run: one worker, and as many as there is work for.
    pub(crate) fn demand(&self) -> Option<Demand> {
        let head = &self.head;
        if self.is_over() || head.paused || head.held_up.is_some() || head.is_lost() {
            return None;
        }
        let stays = |part: &&Part| part.leaving.is_none();
        let holds = || self.parts().iter().filter(stays);
        let working = holds().filter(|part| 0 < part.leased());
        let working: Vec<WorkerId> = working.map(|part| part.worker().clone()).collect();
        let useful = self
            .remaining()
            .div_ceil(u64::from(head.devices_per_worker().max(1)));
        let useful = useful.max(working.len() as u64).max(1);
        let resources = &head.spec.resources;
        Some(Demand {
            job: head.id.clone(),
            number: head.number,
            priority: resources.priority,
            team: resources.team.clone(),
            workers_min: 1,
            workers_max: u32::try_from(useful)
                .unwrap_or(u32::MAX)
                .min(head.most())
                .max(1),
            devices_per_worker: resources.devices_per_worker,
            device: resources.device,
            in_grace_period: false,
            holds: holds().map(|part| part.worker().clone()).collect(),
            warm: working,
            avoid: self.backing_off.keys().cloned().collect(),
            // Its workers need not reach each other.
            partitions: Partitions::default(),
        })
    }

    /// A worker comes, with a generation of its own.
    pub(crate) fn join(&mut self, worker: WorkerId, outbox: &mut Outbox) {
        let member = Member {
            worker,
            first_rank: Rank(0),
            ranks: self.head.devices_per_worker(),
        };
        let generation = self.head.generation.next();
        self.head.generation = generation;
        outbox.emit(Event::GenerationFormed {
            job: self.head.id.clone(),
            generation,
            world: member.ranks,
        });
        outbox.send_to_all(std::slice::from_ref(&member));
        let part = Part::new(member, generation, outbox);
        match &mut self.state {
            State::Running(running) => running.parts.push(part),
            State::Queued { .. } | State::Ended(_) => {
                self.state = State::Running(Running {
                    parts: vec![part],
                    has_news: true,
                });
            }
        }
        self.save(outbox);
    }

    /// Workers that it holds, and that are not among `given`, finish the units that they are at,
    /// and leave.
    pub(crate) fn leave_all_but(
        &mut self,
        given: &[WorkerId],
        why: impl Fn(&WorkerId) -> String,
        deadlines: Deadlines,
        outbox: &mut Outbox,
    ) {
        let (job, until) = (self.head.id.clone(), deadlines.graceful_stop(outbox.now));
        for part in self.parts_mut() {
            if part.leaving.is_some() || given.contains(part.worker()) {
                continue;
            }
            let why = why(part.worker());
            outbox.emit(Event::Stopping {
                job: job.clone(),
                generation: part.generation,
                reason: why.clone(),
            });
            outbox.tell.insert(part.member.worker.name.clone());
            part.leaving = Some(Leaving { why, until });
        }
    }

    /// Lets those go that are to leave and have finished, hold nothing, or took too long. True when
    /// one went.
    pub(crate) fn let_go(&mut self, outbox: &mut Outbox) -> bool {
        let now = outbox.now;
        let mut gone = Vec::new();
        for part in self.parts() {
            let Some(leaving) = &part.leaving else {
                continue;
            };
            let worker = part.worker();
            if part.joined_in == outbox.event {
                // Who joins and leaves in one event could do so again and again: jobs of units that
                // ask for one worker would hand it to each other without end.
                continue;
            }
            if part.leased() == 0 || part.works_on_nothing() {
                gone.push((worker.clone(), leaving.why.clone(), false));
            } else if leaving.until <= now {
                let what = format!(
                    "{}; {} had not finished its units in time",
                    leaving.why, worker.name
                );
                gone.push((worker.clone(), what, true));
            }
        }
        let any = !gone.is_empty();
        for (worker, why, late) in gone {
            if late {
                self.head.record_incident(why.clone(), outbox);
            }
            self.drop_part(&worker, why, outbox);
        }
        any
    }

    /// This worker works on it no more; what it held is leased again.
    pub(super) fn drop_part(&mut self, worker: &WorkerId, reason: String, outbox: &mut Outbox) {
        let State::Running(running) = &mut self.state else {
            return;
        };
        let Some(index) = running
            .parts
            .iter()
            .position(|part| part.worker() == worker)
        else {
            return;
        };
        let part = running.parts.remove(index);
        let is_last = running.parts.is_empty();
        let (job, generation) = (self.head.id.clone(), part.generation);
        let event = reason.clone();
        outbox.emit(match part.leaving {
            Some(_) => Event::Stopped {
                job,
                generation,
                reason: event,
            },
            None => Event::GenerationEnded {
                job,
                generation,
                reason: event,
            },
        });
        outbox.tell.insert(worker.name.clone());
        for rank in part.ranks.into_values() {
            self.release(rank.lease, rank.done);
        }
        if is_last {
            self.state = State::Queued { reason };
        }
        self.save(outbox);
    }
}
