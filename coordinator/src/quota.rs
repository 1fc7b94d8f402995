//! The setting `quotas`: what a team may have at most. Called by [`crate::config`].

use crate::admission::EndedQuotas;
use coordinator_core::WaitingQuotas;
use std::collections::BTreeMap;

/// Waiting jobs of a team without a quota, and of all teams together. Each costs the coordinator
/// time at every change of the cluster.
const WAITING: (u32, u32) = (500, 2_000);
/// Ended jobs, likewise. They are in the store and cost nothing but its space.
const ENDED: (u32, u32) = (10_000, 100_000);
/// The name for all teams that are not listed.
const OTHERS: &str = "*";
/// Instead of a number of devices.
const ANY: &str = "any";

/// What a value must be.
pub(crate) const EXPECTED: &str = "each must be a team and its devices, such as \"vision=16\" or \
    \"vision=16 waiting=50 ended=1000\"; \"any\" is no limit of devices, and \"*=any waiting=50\" \
    is for teams that are not listed";

/// One value of the setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Quota {
    team: String,
    devices: Option<u32>,
    waiting: Option<u32>,
    ended: Option<u32>,
}

impl Quota {
    /// Parses `vision=16 waiting=50 ended=1000`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (team, rest) = text.split_once('=')?;
        let mut words = rest.split_whitespace();
        let devices = match words.next()? {
            ANY => None,
            number => Some(number.parse().ok()?),
        };
        let team = team.trim().to_owned();
        if team.is_empty() || team == OTHERS && devices.is_some() {
            return None;
        }
        let mut quota = Self {
            team,
            devices,
            waiting: None,
            ended: None,
        };
        for word in words {
            let (name, number) = word.split_once('=')?;
            let field = match name {
                "waiting" => &mut quota.waiting,
                "ended" => &mut quota.ended,
                _ => return None,
            };
            if field.replace(number.parse().ok()?).is_some() {
                return None;
            }
        }
        Some(quota)
    }
}

/// Devices by team.
pub(crate) fn devices(quotas: &[Quota]) -> BTreeMap<String, u32> {
    of_teams(quotas, |quota| quota.devices).0
}

pub(crate) fn waiting(quotas: &[Quota]) -> WaitingQuotas {
    let (teams, other) = of_teams(quotas, |quota| quota.waiting);
    WaitingQuotas {
        teams,
        other: other.unwrap_or(WAITING.0),
        all: WAITING.1,
    }
}

pub(crate) fn ended(quotas: &[Quota]) -> EndedQuotas {
    let (teams, other) = of_teams(quotas, |quota| quota.ended);
    EndedQuotas {
        teams,
        other: other.unwrap_or(ENDED.0),
        all: ENDED.1,
    }
}

/// A number of every listed team that has it, and that of the others.
fn of_teams(
    quotas: &[Quota],
    number: impl Fn(&Quota) -> Option<u32>,
) -> (BTreeMap<String, u32>, Option<u32>) {
    let numbers = quotas.iter();
    let numbers = numbers.filter_map(|quota| Some((quota.team.clone(), number(quota)?)));
    let mut teams: BTreeMap<String, u32> = numbers.collect();
    let other = teams.remove(OTHERS);
    (teams, other)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_quota_has_devices_and_perhaps_numbers_of_jobs() {
        let parse = |text| Quota::parse(text).unwrap();
        let quotas = [
            parse("vision = 16"),
            parse("language=8 ended=3 waiting=4"),
            parse("art=any waiting=0"),
            parse("*=any waiting=9"),
        ];
        let expected = BTreeMap::from([("vision".to_owned(), 16), ("language".to_owned(), 8)]);
        assert_eq!(devices(&quotas), expected);
        let waiting = waiting(&quotas);
        assert_eq!((waiting.teams["language"], waiting.teams["art"]), (4, 0));
        assert_eq!(
            (waiting.teams.len(), waiting.other, waiting.all),
            (2, 9, 2_000)
        );
        let ended = ended(&quotas);
        assert_eq!((ended.teams["language"], ended.other), (3, 10_000));
        for wrong in [
            "vision",
            "=3",
            "vision=",
            "vision=many",
            "vision=3 waiting",
            "vision=3 waiting=x",
            "vision=3 running=2",
            "vision=3 ended=2 ended=3",
            "*=16",
        ] {
            assert_eq!(Quota::parse(wrong), None, "{wrong}");
        }
    }
}
