//! Where the time of a job's devices went. A device that a job holds spends every millisecond of
//! that time in one bucket, so the buckets, and what is not yet divided, add up to the devices
//! times the time that they were held. Counted by `coordinator/core/src/account`.
//!
//! | bucket | the device |
//! |---|---|
//! | training | computes or validates steps that count |
//! | units | works on a unit |
//! | recompute | repeats steps that were done before, or was in a step that a fault dropped |
//! | forming | starts its process, loads, or waits for the next generation to form |
//! | restore | meets the other ranks and gets the newest state |
//! | checkpoint | writes its part of a checkpoint while no step runs |
//! | data-wait | waits for samples |
//! | straggler-wait | is done with its backward pass and waits for the gradients of the others, their transfer included |
//! | idle | is ready and has nothing to do: a standby, a rank that has finished, a rank without a unit |
//! | preempted | finishes its step, saves and leaves because another job takes it |

use crate::pb;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Milliseconds of a UTC day.
pub const DAY_MS: u64 = 86_400_000;
/// Days that an account lists; older ones are summed in the oldest of them.
pub const DAYS_MAX: usize = 400;

/// What a device spends its time with; see the table above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bucket {
    Training,
    Units,
    Recompute,
    Forming,
    Restore,
    Checkpoint,
    DataWait,
    StragglerWait,
    Idle,
    Preempted,
}

impl Bucket {
    pub const ALL: [Self; 10] = [
        Self::Training,
        Self::Units,
        Self::Recompute,
        Self::Forming,
        Self::Restore,
        Self::Checkpoint,
        Self::DataWait,
        Self::StragglerWait,
        Self::Idle,
        Self::Preempted,
    ];

    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Training => "training",
            Self::Units => "units",
            Self::Recompute => "recompute",
            Self::Forming => "forming",
            Self::Restore => "restore",
            Self::Checkpoint => "checkpoint",
            Self::DataWait => "data-wait",
            Self::StragglerWait => "straggler-wait",
            Self::Idle => "idle",
            Self::Preempted => "preempted",
        }
    }

    /// Whether the time brought the job forward.
    #[must_use]
    pub fn is_good(self) -> bool {
        matches!(self, Self::Training | Self::Units)
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// Device-time of one UTC day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DayUse {
    /// Days since 1970.
    pub day: u32,
    pub device_ms: u64,
}

/// The account of one job, in device-milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Account {
    pub spent: BTreeMap<Bucket, u64>,
    /// Of steps in progress: they are divided when they are done.
    pub open_ms: u64,
    /// Of each day, oldest first, at most [`DAYS_MAX`].
    pub days: Vec<DayUse>,
    /// Wall-clock milliseconds in which the job waited to run. It held no devices meanwhile, or
    /// only those of survivors.
    pub waited_ms: u64,
    /// Until when all this is counted: milliseconds since 1970 of the coordinator's clock. 0: not
    /// counted yet.
    pub until_ms: u64,
}

impl Account {
    #[must_use]
    pub fn of(&self, bucket: Bucket) -> u64 {
        self.spent.get(&bucket).copied().unwrap_or(0)
    }

    /// All device-milliseconds that the job has held.
    #[must_use]
    pub fn held_ms(&self) -> u64 {
        self.open_ms + self.spent.values().sum::<u64>()
    }

    /// The part of the device-time that brought the job forward, of that which is divided. None: no
    /// time is.
    #[must_use]
    pub fn goodput(&self) -> Option<f64> {
        let all: u64 = self.spent.values().sum();
        let good = Bucket::ALL.into_iter().filter(|bucket| bucket.is_good());
        let good: u64 = good.map(|bucket| self.of(bucket)).sum();
        #[allow(clippy::cast_precision_loss)]
        (0 < all).then(|| good as f64 / all as f64)
    }

    pub fn spend(&mut self, bucket: Bucket, ms: u64) {
        if 0 < ms {
            *self.spent.entry(bucket).or_insert(0) += ms;
        }
    }

    /// Adds the time of `devices` devices between two moments to the days that it falls on.
    pub fn use_days(&mut self, devices: u64, from_ms: u64, to_ms: u64) {
        let mut from = from_ms;
        while devices != 0 && from < to_ms {
            let day = from / DAY_MS;
            let end = to_ms.min((day + 1).saturating_mul(DAY_MS));
            self.use_day(
                u32::try_from(day).unwrap_or(u32::MAX),
                devices * (end - from),
            );
            from = end;
        }
    }

    fn use_day(&mut self, day: u32, device_ms: u64) {
        match self.days.last_mut() {
            Some(last) if day <= last.day => last.device_ms += device_ms,
            _ => self.days.push(DayUse { day, device_ms }),
        }
        if DAYS_MAX < self.days.len() {
            let oldest = self.days.remove(0);
            self.days[0].device_ms += oldest.device_ms;
        }
    }

    /// Device-milliseconds of these UTC days.
    #[must_use]
    pub fn within(&self, days: std::ops::RangeInclusive<u32>) -> u64 {
        let of_days = self.days.iter().filter(|it| days.contains(&it.day));
        of_days.map(|it| it.device_ms).sum()
    }
}

impl From<&Account> for pb::Account {
    fn from(account: &Account) -> Self {
        let spent = account.spent.iter();
        Self {
            spent_ms: spent
                .map(|(bucket, ms)| (bucket.word().to_owned(), *ms))
                .collect(),
            open_ms: account.open_ms,
            days: account
                .days
                .iter()
                .map(|it| pb::DayUse {
                    day: it.day,
                    device_ms: it.device_ms,
                })
                .collect(),
            waited_ms: account.waited_ms,
            until_ms: account.until_ms,
        }
    }
}

impl From<&pb::Account> for Account {
    /// A bucket that this release does not know counts as idle, so that the sum stays true.
    fn from(account: &pb::Account) -> Self {
        let mut read = Self {
            open_ms: account.open_ms,
            days: account
                .days
                .iter()
                .map(|it| DayUse {
                    day: it.day,
                    device_ms: it.device_ms,
                })
                .collect(),
            waited_ms: account.waited_ms,
            until_ms: account.until_ms,
            ..Self::default()
        };
        for (word, ms) in &account.spent_ms {
            let known = Bucket::ALL.into_iter().find(|bucket| bucket.word() == word);
            read.spend(known.unwrap_or(Bucket::Idle), *ms);
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_cut_at_midnight_and_add_up() {
        let mut account = Account::default();
        account.use_days(3, DAY_MS - 10, 2 * DAY_MS + 5);
        let days: Vec<(u32, u64)> = account
            .days
            .iter()
            .map(|it| (it.day, it.device_ms))
            .collect();
        assert_eq!(days, [(0, 30), (1, 3 * DAY_MS), (2, 15)]);
        assert_eq!(account.within(1..=2), 3 * DAY_MS + 15);
    }

    #[test]
    fn old_days_are_summed_and_never_lost() {
        let mut account = Account::default();
        let last = u64::try_from(DAYS_MAX).map_or(0, |days| days + 9);
        account.use_days(1, 0, last * DAY_MS);
        assert_eq!(account.days.len(), DAYS_MAX);
        assert_eq!(account.within(0..=u32::MAX), last * DAY_MS);
    }

    #[test]
    fn a_bucket_of_a_later_release_counts_as_idle() {
        let mut account = Account::default();
        account.spend(Bucket::Training, 3);
        account.open_ms = 4;
        let mut wire = pb::Account::from(&account);
        assert_eq!(Account::from(&wire), account);
        wire.spent_ms.insert("levitating".into(), 5);
        let read = Account::from(&wire);
        assert_eq!((read.of(Bucket::Idle), read.held_ms()), (5, 12));
        assert_eq!(read.goodput(), Some(3.0 / 8.0));
    }
}
