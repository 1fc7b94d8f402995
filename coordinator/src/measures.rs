//! What the coordinator measures of itself, for `/metrics`: requests, the loop, the object store,
//! checkpoints, recoveries. Counted since the process began, by statics, because they are written
//! from everywhere and read by one page. Every label is of a fixed list, so nothing here grows.

use coordinator_core::event::Event;
use proto::metric::coordinator as table;
use proto::metric::coordinator::{RECOVERY_SECONDS, REQUEST_SECONDS};
use shell::exposition::{Histogram, Page};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tonic::Code;

pub(crate) static LOOP_LAG: Histogram = Histogram::new(REQUEST_SECONDS);
pub(crate) static LOOP_INPUT: Histogram = Histogram::new(REQUEST_SECONDS);
pub(crate) static RECOVERY: Histogram = Histogram::new(RECOVERY_SECONDS);
pub(crate) static COMMIT: Histogram = Histogram::new(REQUEST_SECONDS);
pub(crate) static COMMIT_FAILURES: AtomicU64 = AtomicU64::new(0);

/// The gRPC methods of `train.proto`; the last one stands for every other name.
const METHODS: [&str; 20] = [
    "Attach",
    "Submit",
    "Cancel",
    "Retry",
    "Delete",
    "Pause",
    "Scale",
    "Drain",
    "ListLedger",
    "Why",
    "ListJobs",
    "DescribeJob",
    "WatchJob",
    "ListSteps",
    "Logs",
    "ListWorkers",
    "Usage",
    "Events",
    "Probe",
    "other",
];
/// The status codes of gRPC, by number.
const CODES: [&str; 17] = [
    "ok",
    "cancelled",
    "unknown",
    "invalid-argument",
    "deadline-exceeded",
    "not-found",
    "already-exists",
    "permission-denied",
    "resource-exhausted",
    "failed-precondition",
    "aborted",
    "out-of-range",
    "unimplemented",
    "internal",
    "unavailable",
    "data-loss",
    "unauthenticated",
];

static RPC_COUNTS: [[AtomicU64; CODES.len()]; METHODS.len()] =
    [const { [const { AtomicU64::new(0) }; CODES.len()] }; METHODS.len()];
static RPC_TIMES: [Histogram; METHODS.len()] =
    [const { Histogram::new(REQUEST_SECONDS) }; METHODS.len()];

/// A request was answered. `path`: `/retri.v1.Control/Submit`.
pub(crate) fn answered(path: &str, code: Code, took: Duration) {
    let name = path.rsplit('/').next().unwrap_or(path);
    let known = METHODS.iter().position(|method| *method == name);
    let method = known.unwrap_or(METHODS.len() - 1);
    let code = usize::try_from(i32::from(code)).unwrap_or(0);
    if let Some(count) = RPC_COUNTS[method].get(code) {
        count.fetch_add(1, Ordering::Relaxed);
    }
    RPC_TIMES[method].observe(took);
}

/// What a request to the object store does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Get,
    Put,
    Multipart,
    Delete,
    List,
    Copy,
}

const OPERATIONS: [&str; 6] = ["get", "put", "multipart", "delete", "list", "copy"];
const OUTCOMES: [&str; 3] = ["ok", "refused", "error"];

static STORE_COUNTS: [[AtomicU64; OUTCOMES.len()]; OPERATIONS.len()] =
    [const { [const { AtomicU64::new(0) }; OUTCOMES.len()] }; OPERATIONS.len()];
static STORE_TIMES: [Histogram; OPERATIONS.len()] =
    [const { Histogram::new(REQUEST_SECONDS) }; OPERATIONS.len()];

/// A request to the object store was answered.
pub(crate) fn stored(operation: Operation, error: Option<&object_store::Error>, took: Duration) {
    use object_store::Error;
    let outcome = match error {
        None => 0,
        Some(
            Error::NotFound { .. }
            | Error::AlreadyExists { .. }
            | Error::Precondition { .. }
            | Error::NotModified { .. }
            // SlateDB asks local folders for attributes, and does without them.
            | Error::NotImplemented { .. }
            | Error::NotSupported { .. },
        ) => 1,
        Some(_) => 2,
    };
    let operation = operation as usize;
    STORE_COUNTS[operation][outcome].fetch_add(1, Ordering::Relaxed);
    STORE_TIMES[operation].observe(took);
}

static EVENTS: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());

/// An event of this kind happened.
pub(crate) fn happened(event: &Event) {
    let mut events = EVENTS.lock().unwrap_or_else(PoisonError::into_inner);
    *events.entry(crate::events::kind(event)).or_insert(0) += 1;
}

/// What became of a notification, or of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Sent,
    Retried,
    Dropped,
}

const DELIVERIES: [&str; 3] = ["sent", "retried", "dropped"];

static NOTIFICATIONS: [AtomicU64; DELIVERIES.len()] =
    [const { AtomicU64::new(0) }; DELIVERIES.len()];

pub(crate) fn notified(outcome: Outcome) {
    NOTIFICATIONS[outcome as usize].fetch_add(1, Ordering::Relaxed);
}

/// Writes all of it.
pub(crate) fn write(page: &mut Page) {
    for (method, (counts, times)) in METHODS.iter().zip(RPC_COUNTS.iter().zip(&RPC_TIMES)) {
        let mut any = false;
        for (code, count) in CODES.iter().zip(counts) {
            let count = count.load(Ordering::Relaxed);
            if count != 0 {
                any = true;
                page.set(&table::RPC_REQUESTS, &[method, code], float(count));
            }
        }
        if any {
            page.histogram(&table::RPC_REQUEST_SECONDS, &[method], times);
        }
    }
    for (operation, (counts, times)) in OPERATIONS.iter().zip(STORE_COUNTS.iter().zip(&STORE_TIMES))
    {
        for (outcome, count) in OUTCOMES.iter().zip(counts) {
            let count = float(count.load(Ordering::Relaxed));
            page.set(&table::STORE_REQUESTS, &[operation, outcome], count);
        }
        page.histogram(&table::STORE_REQUEST_SECONDS, &[operation], times);
    }
    page.histogram(&table::LOOP_LAG_SECONDS, &[], &LOOP_LAG);
    page.histogram(&table::LOOP_INPUT_SECONDS, &[], &LOOP_INPUT);
    page.histogram(&table::JOB_RECOVERY_SECONDS, &[], &RECOVERY);
    page.histogram(&table::CHECKPOINT_COMMIT_SECONDS, &[], &COMMIT);
    let failures = float(COMMIT_FAILURES.load(Ordering::Relaxed));
    page.set(&table::CHECKPOINT_FAILURES, &[], failures);
    for (outcome, count) in DELIVERIES.iter().zip(&NOTIFICATIONS) {
        let count = float(count.load(Ordering::Relaxed));
        page.set(&table::NOTIFICATIONS, &[outcome], count);
    }
    let events = EVENTS.lock().unwrap_or_else(PoisonError::into_inner);
    for (kind, count) in &*events {
        page.set(&table::EVENTS, &[kind], float(*count));
    }
}

#[allow(clippy::cast_precision_loss)] // Prometheus has only doubles.
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_method_of_the_protocol_has_a_label() {
        let proto = include_str!("../../proto/train.proto");
        let in_proto: BTreeSet<&str> = proto
            .lines()
            .filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next())
            // Between daemons of workers.
            .filter(|method| *method != "Ping")
            .collect();
        let known: BTreeSet<&str> = METHODS[..METHODS.len() - 1].iter().copied().collect();
        assert_eq!(known, in_proto);
    }

    #[test]
    fn a_name_that_a_stranger_invents_adds_no_series() {
        for method in ["Levitate", "", "\u{1b}[2J"] {
            answered(
                &format!("/retri.v1.Control/{method}"),
                Code::Unimplemented,
                Duration::ZERO,
            );
        }
        let mut page = Page::new(table::TABLE);
        write(&mut page);
        let text = page.text(shell::exposition::Form::Classic);
        let series = |line: &&str| line.starts_with("retri_rpc_requests_total");
        let all: BTreeSet<&str> = METHODS.into_iter().collect();
        for line in text.lines().filter(series) {
            let method = line.split('"').nth(1).unwrap_or_default();
            assert!(all.contains(method), "{line}");
        }
        assert!(
            text.contains("retri_rpc_requests_total{method=\"other\",code=\"unimplemented\"}"),
            "{text}"
        );
    }
}
