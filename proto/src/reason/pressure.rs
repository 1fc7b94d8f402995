//! What one sender sends so much of that the coordinator refuses or holds back some of it. It ends
//! no job; it explains why the coordinator may be slow.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;

/// What there is too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Excess {
    /// Connections that are refused, or closed to make room.
    Connections,
    /// Connections that end without a request.
    Strays,
    /// Requests that are refused.
    Requests,
    /// Requests that are answered, and take most of the time to answer.
    Work,
    /// Reports of workers that newer ones replace before they are read.
    Reports,
    /// Workers that attach.
    Workers,
    /// Log lines that are dropped.
    Lines,
    /// Requests and new workers that wait, because their sender uses more than its share of the
    /// coordinator's processor time.
    Delays,
}

/// How much of it there was lately, and from where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressure {
    pub excess: Excess,
    /// The sender; of an IPv6 address its network. None: several, or more than are counted apart.
    pub address: Option<IpAddr>,
    pub count: u64,
    /// The time in which it was counted, up to now.
    pub within_ms: u64,
    /// How long the coordinator worked for it in this time, for [`Excess::Work`]; 0 for others.
    #[serde(default)]
    pub busy_ms: u64,
    /// What the sender of the last one was told, or which worker it was; "" if nothing is known.
    #[serde(default)]
    pub last: String,
}

impl Pressure {
    /// Events per second.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a rate needs no more digits")]
    pub fn per_second(&self) -> f64 {
        self.count as f64 * 1000.0 / self.within_ms.max(1) as f64
    }
}

impl fmt::Display for Pressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.per_second();
        let from = match self.address {
            Some(address) => address.to_string(),
            None => "several addresses".to_owned(),
        };
        match self.excess {
            Excess::Connections => write!(
                f,
                "the coordinator is refusing or closing {rate:.1} connections/s from {from}"
            )?,
            Excess::Strays => {
                write!(
                    f,
                    "{rate:.1} connections/s from {from} end without a request"
                )?;
            }
            Excess::Requests => {
                write!(
                    f,
                    "the coordinator is refusing {rate:.1} requests/s from {from}"
                )?;
            }
            Excess::Work => {
                let seconds = |ms: u64| ms as f64 / 1000.0;
                write!(
                    f,
                    "the coordinator is answering {rate:.1} requests/s from {from}, which took \
                     {:.1} s of the last {:.1} s",
                    seconds(self.busy_ms),
                    seconds(self.within_ms)
                )?;
            }
            Excess::Reports => {
                write!(
                    f,
                    "the coordinator is skipping {rate:.1} reports/s from {from}"
                )?;
            }
            Excess::Workers => write!(f, "{rate:.1} workers/s attach from {from}")?,
            Excess::Lines => {
                write!(
                    f,
                    "the coordinator is dropping {rate:.1} log lines/s from {from}"
                )?;
            }
            Excess::Delays => {
                write!(
                    f,
                    "the coordinator is delaying {rate:.1} requests/s from {from}, which use more \
                     than their share of its time"
                )?;
            }
        }
        if self.last.is_empty() {
            return Ok(());
        }
        write!(f, "; the last: {}", self.last)
    }
}
