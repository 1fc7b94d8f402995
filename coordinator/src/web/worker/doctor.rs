//! What `worker doctor` found when it last ran on a node, which it leaves in the store.

use crate::checkpoint::commit::CheckpointStore;
use crate::web::show::Moment;
use proto::findings::Findings;
use proto::limits::{TEXT_BYTES, cut};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Checks that are shown.
const CHECKS: usize = 64;
/// Findings are read again after this time, and so many are kept.
const READ_FOR: Duration = Duration::from_secs(15);
const WORKERS: usize = 256;

#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    pub(super) at: Moment,
    /// Name, whether it is right, and what was found.
    pub(super) checks: Vec<(String, bool, String)>,
    pub(super) wrong: usize,
    /// Why there is nothing.
    pub(super) error: String,
}

type Kept = HashMap<String, (Instant, Found)>;

/// Cheap to clone; all clones share what was read.
#[derive(Debug, Clone, Default)]
pub(in crate::web) struct Doctors(Arc<Mutex<Kept>>);

impl Doctors {
    pub(super) async fn findings(&self, store: &CheckpointStore, worker: &str) -> Found {
        let known = {
            let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let known = kept.get(worker).filter(|(at, _)| at.elapsed() < READ_FOR);
            known.map(|(_, found)| found.clone())
        };
        if let Some(known) = known {
            return known;
        }
        let found = match store.findings(worker).await {
            Ok(Some(findings)) => shown(findings),
            Ok(None) => Found::default(),
            Err(error) => Found {
                error,
                ..Found::default()
            },
        };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if WORKERS <= kept.len() {
            kept.retain(|_, (at, _)| at.elapsed() < READ_FOR);
        }
        if kept.len() < WORKERS {
            kept.insert(worker.to_owned(), (Instant::now(), found.clone()));
        }
        found
    }
}

/// What is wrong comes first.
fn shown(findings: Findings) -> Found {
    let mut checks = findings.checks;
    checks.truncate(CHECKS);
    checks.sort_by_key(|it| it.ok);
    Found {
        at: Moment::of(findings.at_ms),
        wrong: checks.iter().filter(|it| !it.ok).count(),
        checks: checks
            .into_iter()
            .map(|it| (cut(&it.name, TEXT_BYTES), it.ok, cut(&it.found, TEXT_BYTES)))
            .collect(),
        error: String::new(),
    }
}
