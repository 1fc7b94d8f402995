//! Device-time of all jobs by team, owner, name, job or label, in whole UTC days. Pure; the rpc
//! service passes it the accounts of all jobs, also of archived ones.

use proto::account::{Account, DAY_MS};
use proto::pb;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// What the rows are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum By {
    Team,
    Owner,
    Job,
    Name,
    Label(String),
}

impl By {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "team" => Ok(Self::Team),
            // What people call it.
            "owner" | "user" => Ok(Self::Owner),
            "job" => Ok(Self::Job),
            "name" => Ok(Self::Name),
            _ => match text.strip_prefix("label:") {
                Some(key) if !key.is_empty() => Ok(Self::Label(key.to_owned())),
                _ => Err(format!(
                    "field `by` is {text:?}; it must be team, user, job, name or label:KEY"
                )),
            },
        }
    }

    fn key<'a>(&self, job: &'a Used) -> &'a str {
        match self {
            Self::Team => &job.team,
            Self::Owner => &job.owner,
            Self::Job => &job.job,
            Self::Name => &job.name,
            Self::Label(key) => job.labels.get(key).map_or("", String::as_str),
        }
    }
}

/// A job and what it used.
#[derive(Debug, Clone, Default)]
pub(crate) struct Used {
    pub(crate) job: String,
    pub(crate) name: String,
    pub(crate) team: String,
    pub(crate) owner: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) account: Account,
}

/// Sums by key, which a caller may feed page by page.
#[derive(Debug)]
pub(crate) struct Usage {
    by: By,
    days: RangeInclusive<u32>,
    rows: BTreeMap<String, (u64, u64)>,
}

impl Usage {
    /// The days that these moments are in.
    pub(crate) fn new(by: By, since_ms: u64, until_ms: u64) -> Self {
        let day = |ms: u64| u32::try_from(ms / DAY_MS).unwrap_or(u32::MAX);
        Self {
            by,
            days: day(since_ms)..=day(until_ms),
            rows: BTreeMap::new(),
        }
    }

    pub(crate) fn add(&mut self, job: &Used) {
        let device_ms = job.account.within(self.days.clone());
        if device_ms != 0 {
            let (jobs, sum) = self.rows.entry(self.by.key(job).to_owned()).or_default();
            *jobs += 1;
            *sum += device_ms;
        }
    }

    pub(crate) fn reply(self) -> pb::UsageReply {
        let rows = self.rows.into_iter();
        let mut rows: Vec<pb::UsageRow> = rows
            .map(|(key, (jobs, device_ms))| pb::UsageRow {
                key,
                jobs,
                device_ms,
            })
            .collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.device_ms));
        pb::UsageReply {
            rows,
            from_ms: u64::from(*self.days.start()) * DAY_MS,
            to_ms: (u64::from(*self.days.end()) + 1) * DAY_MS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(job: &str, team: &str, days: &[(u32, u64)]) -> Used {
        let mut account = Account::default();
        for (day, ms) in days {
            let from = u64::from(*day) * DAY_MS;
            account.use_days(1, from, from + ms);
        }
        Used {
            job: job.into(),
            team: team.into(),
            labels: [("paper".to_owned(), "table3".to_owned())].into(),
            account,
            ..Used::default()
        }
    }

    #[test]
    fn device_time_is_summed_by_key_within_whole_days() {
        let jobs = [
            used("a-1", "figures", &[(9, 100), (10, 40), (11, 1)]),
            used("b-2", "figures", &[(10, 3)]),
            used("c-3", "", &[(10, 50), (12, 9)]),
            used("d-4", "other", &[(8, 9)]),
        ];
        let rows = |by: &str| {
            let mut usage = Usage::new(
                By::parse(by).unwrap_or(By::Job),
                10 * DAY_MS + 5,
                11 * DAY_MS,
            );
            for job in &jobs {
                usage.add(job);
            }
            let reply = usage.reply();
            assert_eq!((reply.from_ms, reply.to_ms), (10 * DAY_MS, 12 * DAY_MS));
            let rows = reply.rows.into_iter();
            rows.map(|row| (row.key, row.jobs, row.device_ms))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            rows("team"),
            [(String::new(), 1, 50), ("figures".into(), 2, 44)]
        );
        assert_eq!(rows("label:paper"), [("table3".to_owned(), 3, 94)]);
        assert_eq!(rows("job")[0], ("c-3".to_owned(), 1, 50));
    }

    #[test]
    fn another_key_is_refused_with_those_that_there_are() {
        for wrong in ["", "users", "label:"] {
            let error = By::parse(wrong).err().unwrap_or_default();
            assert!(
                error.ends_with("team, user, job, name or label:KEY"),
                "{error}"
            );
        }
    }
}
