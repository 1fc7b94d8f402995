//! Counts what the devices of a job spend their time with ([`proto::account`]). Time passes with
//! the coordinator's wall clock, as far as that goes forward; a restart of the coordinator
//! continues where the last saved record ends. Each device that a job holds is a seat. The time of
//! a seat goes into the bucket of what its rank was last known to do. Steps are divided when the
//! rank reports what it did in them: until then their time is open.

use crate::record::{JobPhase, JobRecord, Member, Millis};
use proto::account::{Account, Bucket};
use proto::id::{Step, WorkerId};
use proto::message::{PhaseSeconds, RankPhase, StepTotals};
use std::collections::BTreeMap;

/// A device: its worker, and its number among those that the job has there.
pub(crate) type SeatKey = (WorkerId, u32);

/// What a device does, as far as the coordinator knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Nothing is known since the coordinator started.
    Unknown,
    /// It starts, loads, or waits for the next generation.
    Forming,
    Restore,
    /// It is in a step.
    Step,
    Unit,
    /// It has nothing to do. A step that it was in is lost.
    Idle,
    /// Its work is done, the step that it was in, too.
    Finished,
    /// It leaves for another job.
    Preempted,
}

/// A device that the job holds now.
#[derive(Debug, Clone)]
pub(crate) struct Holding {
    pub(crate) key: SeatKey,
    pub(crate) use_: Use,
    pub(crate) totals: Option<StepTotals>,
}

#[derive(Debug)]
struct Seat {
    use_: Use,
    /// Device-milliseconds that are not divided yet.
    open: u64,
    /// What its process had done when its time was last divided. None: not known, because the
    /// coordinator started since.
    divided: Option<StepTotals>,
}

/// The account of a job and the seats that it holds.
#[derive(Debug)]
pub(crate) struct Book {
    account: Account,
    seats: BTreeMap<SeatKey, Seat>,
    /// The job waits to run.
    waits: bool,
    /// What the buckets must add up to.
    held_ms: u64,
}

impl Book {
    /// The book of a job as it was saved. What its devices have done since is not known yet.
    pub(crate) fn restore(record: &JobRecord) -> Self {
        let members = match &record.phase {
            JobPhase::Running { members } => &members[..],
            _ => &[],
        };
        let seats = members.iter().chain(&record.standbys).flat_map(keys);
        let seat = |key| {
            let seat = Seat {
                use_: Use::Unknown,
                open: 0,
                divided: None,
            };
            (key, seat)
        };
        let mut account = record.account.clone();
        // Which of it belongs to which device is not saved.
        let open = std::mem::take(&mut account.open_ms);
        account.spend(Bucket::Training, open);
        Self {
            held_ms: account.held_ms(),
            account,
            seats: seats.map(seat).collect(),
            waits: matches!(record.phase, JobPhase::Queued { .. }),
        }
    }

    pub(crate) fn account(&self) -> &Account {
        &self.account
    }

    /// Counts the time until `wall`, and what the devices do from now on. `reached`: steps up to
    /// this one have been done before the running generation.
    pub(crate) fn settle(
        &mut self,
        wall: Millis,
        holdings: Vec<Holding>,
        reached: Step,
        waits: bool,
    ) {
        self.pass(wall);
        self.waits = waits;
        let mut left = std::mem::take(&mut self.seats);
        for holding in holdings {
            let known = left.remove(&holding.key);
            let mut seat = known.unwrap_or(Seat {
                use_: Use::Forming,
                open: 0,
                divided: Some(StepTotals::default()),
            });
            if let Some(totals) = holding.totals {
                seat.divide(totals, reached, &mut self.account);
            }
            seat.turn_to(holding.use_, &mut self.account);
            self.seats.insert(holding.key, seat);
        }
        for mut seat in left.into_values() {
            seat.turn_to(Use::Idle, &mut self.account);
        }
        self.account.open_ms = self.seats.values().map(|seat| seat.open).sum();
        assert_eq!(
            self.account.held_ms(),
            self.held_ms,
            "the buckets of an account do not add up to the device-time"
        );
    }

    fn pass(&mut self, wall: Millis) {
        let account = &mut self.account;
        let until = wall.max(account.until_ms);
        let from = match account.until_ms {
            // A record of a release that did not count.
            0 => until,
            from => from,
        };
        let passed = until - from;
        let devices = self.seats.len() as u64;
        account.use_days(devices, from, until);
        if self.waits {
            account.waited_ms += passed;
        }
        account.until_ms = until;
        self.held_ms += devices * passed;
        for seat in self.seats.values_mut() {
            match seat.use_.bucket() {
                Some(bucket) => account.spend(bucket, passed),
                None => seat.open += passed,
            }
        }
    }
}

/// The seats of a member.
pub(crate) fn keys(member: &Member) -> impl Iterator<Item = SeatKey> + use<> {
    let worker = member.worker.clone();
    (0..member.ranks).map(move |device| (worker.clone(), device))
}

impl Use {
    /// What a rank of a gang does in this phase. `standby`: it is no member of the generation.
    pub(crate) fn of_gang(phase: Option<&RankPhase>, standby: bool) -> Self {
        match phase {
            None | Some(RankPhase::Starting) => Self::Forming,
            Some(_) if standby => Self::Idle,
            Some(RankPhase::Ready | RankPhase::Broken { .. } | RankPhase::Failed { .. }) => {
                Self::Forming
            }
            Some(RankPhase::Joining) => Self::Restore,
            Some(RankPhase::Training) => Self::Step,
            Some(RankPhase::Finished) => Self::Finished,
        }
    }

    /// What a rank does that works on units.
    pub(crate) fn of_units(phase: Option<&RankPhase>, in_unit: bool) -> Self {
        match phase {
            None
            | Some(RankPhase::Starting | RankPhase::Broken { .. } | RankPhase::Failed { .. }) => {
                Self::Forming
            }
            Some(RankPhase::Finished) => Self::Finished,
            Some(RankPhase::Ready | RankPhase::Joining | RankPhase::Training) => {
                if in_unit {
                    Self::Unit
                } else {
                    Self::Idle
                }
            }
        }
    }

    /// None: the time is divided later.
    fn bucket(self) -> Option<Bucket> {
        Some(match self {
            Self::Unknown | Self::Step => return None,
            Self::Forming => Bucket::Forming,
            Self::Restore => Bucket::Restore,
            Self::Unit => Bucket::Units,
            Self::Idle | Self::Finished => Bucket::Idle,
            Self::Preempted => Bucket::Preempted,
        })
    }
}

impl Seat {
    /// Divides the open time by what the process reports that it has done.
    fn divide(&mut self, new: StepTotals, reached: Step, account: &mut Account) {
        let old = match self.divided.replace(new) {
            // Another process has begun on this device.
            Some(old) if new.steps < old.steps => StepTotals::default(),
            Some(old) => old,
            None => return self.close(Bucket::Training, account),
        };
        if new.steps == old.steps {
            return;
        }
        let waits = [
            (Bucket::DataWait, passed(&new, &old, |it| it.data)),
            (
                Bucket::StragglerWait,
                passed(&new, &old, |it| it.communication),
            ),
            (Bucket::Checkpoint, passed(&new, &old, |it| it.checkpoint)),
        ];
        for (bucket, ms) in waits {
            let ms = ms.min(self.open);
            self.open -= ms;
            account.spend(bucket, ms);
        }
        // Of steps that were partly done before, the time is divided by their number.
        let first = match (new.step, old.step) {
            (new, old) if old < new => old.0,
            (new, _) => new.0.saturating_sub(1),
        };
        let steps = new.step.0 - first;
        let again = reached.0.min(new.step.0).saturating_sub(first);
        let share = u128::from(self.open) * u128::from(again) / u128::from(steps.max(1));
        let share = u64::try_from(share).unwrap_or(self.open);
        self.open -= share;
        account.spend(Bucket::Recompute, share);
        self.close(Bucket::Training, account);
    }

    fn turn_to(&mut self, next: Use, account: &mut Account) {
        match (self.use_, next) {
            // Formed before the coordinator started; its rank is not reported yet.
            (Use::Unknown, Use::Forming) if self.divided.is_none() => return,
            (_, Use::Step) => {}
            (Use::Unknown, next) => self.close(next.bucket().unwrap_or(Bucket::Idle), account),
            (_, Use::Finished | Use::Preempted) => self.close(Bucket::Training, account),
            _ => self.close(Bucket::Recompute, account),
        }
        self.use_ = next;
    }

    fn close(&mut self, bucket: Bucket, account: &mut Account) {
        account.spend(bucket, std::mem::take(&mut self.open));
    }
}

/// Milliseconds of a phase between two reports. What is not a number is nothing.
fn passed(new: &StepTotals, old: &StepTotals, phase: impl Fn(&PhaseSeconds) -> f64) -> u64 {
    let seconds = phase(&new.seconds) - phase(&old.seconds);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let ms = (seconds.clamp(0.0, 1e9) * 1000.0) as u64;
    ms
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::account::DAY_MS;

    fn key(worker: &str) -> SeatKey {
        let worker = WorkerId {
            name: worker.to_owned(),
            boot: 1,
        };
        (worker, 0)
    }

    fn holding(worker: &str, use_: Use, totals: Option<StepTotals>) -> Holding {
        Holding {
            key: key(worker),
            use_,
            totals,
        }
    }

    fn totals(step: u64, steps: u64, data: f64, communication: f64) -> Option<StepTotals> {
        Some(StepTotals {
            step: Step(step),
            steps,
            seconds: PhaseSeconds {
                data,
                communication,
                ..PhaseSeconds::default()
            },
        })
    }

    fn book() -> Book {
        Book {
            account: Account {
                until_ms: DAY_MS,
                ..Account::default()
            },
            seats: BTreeMap::new(),
            waits: true,
            held_ms: 0,
        }
    }

    fn spent(book: &Book) -> Vec<(Bucket, u64)> {
        book.account
            .spent
            .iter()
            .map(|(it, ms)| (*it, *ms))
            .collect()
    }

    #[test]
    fn a_step_is_divided_when_it_is_reported_and_one_that_is_dropped_is_lost() {
        let mut book = book();
        let at = |ms| DAY_MS + ms;
        book.settle(
            at(100),
            vec![holding("a", Use::Forming, None)],
            Step(0),
            false,
        );
        assert_eq!(book.account.waited_ms, 100);
        book.settle(at(400), vec![holding("a", Use::Step, None)], Step(0), false);
        let step = totals(1, 1, 0.2, 0.3);
        book.settle(
            at(1_400),
            vec![holding("a", Use::Step, step)],
            Step(0),
            false,
        );
        assert_eq!(
            spent(&book),
            [
                (Bucket::Training, 500),
                (Bucket::Forming, 300),
                (Bucket::DataWait, 200),
                (Bucket::StragglerWait, 300)
            ]
        );
        // The next step breaks after 250 ms, and the process forms again.
        book.settle(
            at(1_650),
            vec![holding("a", Use::Forming, step)],
            Step(1),
            false,
        );
        assert_eq!(book.account.of(Bucket::Recompute), 250);
        book.settle(
            at(1_650),
            vec![holding("a", Use::Step, step)],
            Step(1),
            false,
        );
        // Steps 2 and 3: another rank had reported the first of them before the fault.
        let again = totals(3, 3, 0.2, 0.3);
        book.settle(
            at(2_650),
            vec![holding("a", Use::Step, again)],
            Step(2),
            false,
        );
        assert_eq!(book.account.of(Bucket::Training), 1_000);
        book.settle(at(3_000), vec![], Step(2), false);
        assert_eq!(book.account.of(Bucket::Recompute), 1_100);
        assert_eq!((book.account.held_ms(), book.account.open_ms), (2_900, 0));
    }

    #[test]
    fn what_a_restart_of_the_coordinator_did_not_see_is_what_its_ranks_then_do() {
        let mut book = book();
        book.seats.insert(
            key("a"),
            Seat {
                use_: Use::Unknown,
                open: 0,
                divided: None,
            },
        );
        let at = |ms| DAY_MS + ms;
        book.settle(
            at(500),
            vec![holding("a", Use::Forming, None)],
            Step(9),
            false,
        );
        assert_eq!((spent(&book), book.account.open_ms), (vec![], 500));
        let late = totals(12, 12, 40.0, 50.0);
        book.settle(at(700), vec![holding("a", Use::Step, late)], Step(9), false);
        assert_eq!(spent(&book), [(Bucket::Training, 700)]);
        let next = totals(13, 13, 40.1, 50.0);
        book.settle(
            at(1_700),
            vec![holding("a", Use::Step, next)],
            Step(9),
            false,
        );
        assert_eq!(
            spent(&book),
            [(Bucket::Training, 1_600), (Bucket::DataWait, 100)]
        );
    }

    #[test]
    fn a_clock_set_back_stands_still_and_no_report_breaks_the_sum() {
        let mut book = book();
        let strange = Some(StepTotals {
            step: Step(u64::MAX),
            steps: u64::MAX,
            seconds: PhaseSeconds {
                data: f64::NAN,
                communication: f64::INFINITY,
                checkpoint: -1.0,
                ..PhaseSeconds::default()
            },
        });
        let at = |ms| DAY_MS + ms;
        let mut now = 0;
        for use_ in [
            Use::Step,
            Use::Preempted,
            Use::Step,
            Use::Idle,
            Use::Unit,
            Use::Finished,
        ] {
            for told in [
                None,
                strange,
                totals(0, 0, 1.0, 1.0),
                totals(5, 1, 1e300, 0.0),
            ] {
                book.settle(at(now), vec![holding("a", use_, told)], Step(3), true);
                now += 10;
            }
        }
        let held = book.account.held_ms();
        book.settle(at(0), vec![holding("a", Use::Step, None)], Step(3), true);
        assert_eq!(book.account.held_ms(), held);
    }
}
