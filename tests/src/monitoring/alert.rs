//! The alerts, each with series for which it fires and series for which it does not.

use super::{buckets, select};
use proto::metric::coordinator as table;
use proto::metric::{Metric, TRAINING_JOB, worker};

/// A series of a test case: its selector, and its values from minute 0 on, in promtool's notation.
pub(super) type Series = (String, &'static str);

#[derive(Debug, Clone)]
pub struct Alert {
    pub name: &'static str,
    pub expression: String,
    /// How long the expression must hold.
    pub hold: &'static str,
    /// page, ticket or info.
    pub severity: &'static str,
    /// One sentence; `{{ $labels.x }}` is a label's value.
    pub summary: &'static str,
    /// The heading of deploy/README.md that says what to do, as an anchor.
    pub runbook: &'static str,
    /// A case in which it fires at [`Self::at`], and the labels that it then has.
    pub fires: Vec<Series>,
    pub labels: Vec<(&'static str, &'static str)>,
    /// A case in which it does not.
    pub quiet: Vec<Series>,
    pub at: &'static str,
}

const JOB: (&str, &str) = (TRAINING_JOB, "demo-1");

/// The series of the job of the test cases.
fn demo(metric: &Metric, more: &[(&str, &str)]) -> String {
    let labels = std::iter::once(&JOB).chain(more);
    let matchers: Vec<(&str, &str, &str)> = labels.map(|(label, it)| (*label, "=", *it)).collect();
    select(metric, &matchers)
}

fn all(metric: &Metric) -> String {
    select(metric, &[])
}

/// Every alert.
#[must_use]
#[allow(clippy::too_many_lines)] // A table.
pub fn alerts() -> Vec<Alert> {
    let up = |worker| select(&table::WORKER_UP, &[("worker", "=", worker)]);
    let drained = |worker| select(&table::WORKER_DRAINED, &[("worker", "=", worker)]);
    let store = |outcome| {
        let matchers = [("operation", "=", "put"), ("outcome", "=", outcome)];
        select(&table::STORE_REQUESTS, &matchers)
    };
    let waiting = |reason| select(&table::JOBS_WAITING, &[("reason", "=", reason)]);
    let lag = |bound| select_bucket(bound);
    let sick = |instance| {
        let name = worker::GPU_SICK.name;
        format!("{name}{{gpu=\"3\",instance=\"{instance}\"}}")
    };
    let notified = |outcome| select(&table::NOTIFICATIONS, &[("outcome", "=", outcome)]);
    vec![
        Alert {
            name: "RetriCoordinatorDown",
            expression: "up{job=\"retri-coordinator\"} == 0".to_owned(),
            hold: "1m",
            severity: "page",
            summary: "The coordinator at {{ $labels.instance }} cannot be scraped",
            runbook: "what-if-the-coordinator-is-down",
            fires: vec![(
                "up{job=\"retri-coordinator\",instance=\"c:7071\"}".into(),
                "1 0x10",
            )],
            labels: vec![("job", "retri-coordinator"), ("instance", "c:7071")],
            quiet: vec![(
                "up{job=\"retri-coordinator\",instance=\"c:7071\"}".into(),
                "1 0 1x10",
            )],
            at: "5m",
        },
        Alert {
            name: "RetriWorkerDown",
            expression: format!(
                "{} == 0 unless on (worker) ({} == 1)",
                all(&table::WORKER_UP),
                all(&table::WORKER_DRAINED)
            ),
            hold: "2m",
            severity: "page",
            summary: "Worker {{ $labels.worker }} is silent and was not drained",
            runbook: "what-if-a-worker-is-down",
            fires: vec![(up("w1"), "1 0x10"), (drained("w1"), "0x11")],
            labels: vec![("worker", "w1")],
            quiet: vec![(up("w1"), "1 0x10"), (drained("w1"), "1x11")],
            at: "6m",
        },
        Alert {
            name: "RetriJobStalled",
            expression: format!(
                "changes({}[15m]) == 0 and on ({TRAINING_JOB}) ({} > 0) and on ({TRAINING_JOB}) \
                 ({} offset 15m > 0)",
                all(&table::JOB_STEP),
                all(&table::JOB_STEPS_TARGET),
                all(&table::JOB_WORLD_SIZE)
            ),
            hold: "5m",
            severity: "page",
            summary: "Job {{ $labels.training_job }} has its ranks and has made no step for 20 \
                      minutes",
            runbook: "what-if-a-job-makes-no-progress",
            fires: vec![
                (demo(&table::JOB_STEP, &[]), "0+1x10 10x40"),
                (demo(&table::JOB_STEPS_TARGET, &[]), "1000x50"),
                (demo(&table::JOB_WORLD_SIZE, &[]), "4x50"),
            ],
            labels: vec![JOB],
            quiet: vec![
                (demo(&table::JOB_STEP, &[]), "0+1x10 10x40"),
                (demo(&table::JOB_STEPS_TARGET, &[]), "1000x50"),
                // It waits for workers.
                (demo(&table::JOB_WORLD_SIZE, &[]), "4x10 0x40"),
            ],
            at: "40m",
        },
        Alert {
            name: "RetriUnitsStalled",
            expression: format!(
                "changes({}[30m]) == 0 and on ({TRAINING_JOB}) ({} > 0) and on ({TRAINING_JOB}) \
                 ({} offset 30m > 0)",
                select(&table::JOB_UNITS, &[("state", "=", "done")]),
                all(&table::JOB_WORLD_SIZE),
                all(&table::JOB_WORLD_SIZE)
            ),
            hold: "5m",
            severity: "page",
            summary: "Job {{ $labels.training_job }} has its ranks and has done no unit for 35 \
                      minutes",
            runbook: "what-if-a-job-makes-no-progress",
            fires: vec![
                (demo(&table::JOB_UNITS, &[("state", "done")]), "7x60"),
                (demo(&table::JOB_WORLD_SIZE, &[]), "4x60"),
            ],
            labels: vec![JOB, ("state", "done")],
            quiet: vec![
                (demo(&table::JOB_UNITS, &[("state", "done")]), "0+1x60"),
                (demo(&table::JOB_WORLD_SIZE, &[]), "4x60"),
            ],
            at: "50m",
        },
        Alert {
            name: "RetriJobWaitsLong",
            expression: format!(
                "{} == 1",
                select(&table::JOB_PHASE, &[("phase", "=", "queued")])
            ),
            hold: "1h",
            severity: "info",
            summary: "Job {{ $labels.training_job }} has been queued for an hour",
            runbook: "why-does-my-job-wait",
            fires: vec![(demo(&table::JOB_PHASE, &[("phase", "queued")]), "1x100")],
            labels: vec![JOB, ("phase", "queued")],
            quiet: vec![
                (demo(&table::JOB_PHASE, &[("phase", "queued")]), "1x30 _x70"),
                (
                    demo(&table::JOB_PHASE, &[("phase", "training")]),
                    "_x30 1x70",
                ),
            ],
            at: "80m",
        },
        Alert {
            name: "RetriDependencyFailed",
            expression: format!("{} > 0", waiting("dependency-failed")),
            hold: "1m",
            severity: "ticket",
            summary: "{{ $value }} jobs wait for a job that failed or was cancelled",
            runbook: "why-does-my-job-wait",
            fires: vec![(waiting("dependency-failed"), "1x10")],
            labels: vec![("reason", "dependency-failed")],
            quiet: vec![(waiting("dependencies"), "1x10")],
            at: "5m",
        },
        Alert {
            name: "RetriJobFailed",
            expression: format!(
                "{} == 1",
                select(&table::JOB_PHASE, &[("phase", "=", "failed")])
            ),
            hold: "0m",
            severity: "ticket",
            summary: "Job {{ $labels.training_job }} failed",
            runbook: "why-did-my-job-fail",
            fires: vec![(demo(&table::JOB_PHASE, &[("phase", "failed")]), "_ 1x10")],
            labels: vec![JOB, ("phase", "failed")],
            quiet: vec![(demo(&table::JOB_PHASE, &[("phase", "done")]), "1x10")],
            at: "5m",
        },
        Alert {
            name: "RetriRestartsRepeat",
            expression: format!("increase({}[30m]) > 3", all(&table::JOB_RESTARTS)),
            hold: "0m",
            severity: "ticket",
            summary: "Job {{ $labels.training_job }} has restarted more than three times in half \
            an \
                      hour",
            runbook: "why-did-my-job-fail",
            fires: vec![(demo(&table::JOB_RESTARTS, &[]), "0+1x30")],
            labels: vec![JOB],
            quiet: vec![(demo(&table::JOB_RESTARTS, &[]), "0x10 2x20")],
            at: "20m",
        },
        Alert {
            name: "RetriCheckpointOld",
            expression: format!(
                "({step} - on ({TRAINING_JOB}) {committed}) > on ({TRAINING_JOB}) 3 * {interval} \
                or \
                 ({step} > on ({TRAINING_JOB}) 3 * {interval} unless on ({TRAINING_JOB}) \
                 {committed})",
                step = all(&table::JOB_STEP),
                committed = all(&table::CHECKPOINT_STEP),
                interval = all(&table::CHECKPOINT_INTERVAL)
            ),
            hold: "5m",
            severity: "ticket",
            summary: "Job {{ $labels.training_job }} is more than three checkpoint intervals past \
                      its last checkpoint",
            runbook: "what-if-checkpoints-are-missing",
            fires: vec![
                (demo(&table::JOB_STEP, &[]), "0+10x40"),
                (demo(&table::CHECKPOINT_INTERVAL, &[]), "20x40"),
            ],
            labels: vec![JOB],
            quiet: vec![
                (demo(&table::JOB_STEP, &[]), "0+10x40"),
                (demo(&table::CHECKPOINT_STEP, &[]), "_x3 20+10x37"),
                (demo(&table::CHECKPOINT_INTERVAL, &[]), "20x40"),
            ],
            at: "20m",
        },
        Alert {
            name: "RetriLossScaleLow",
            expression: format!("{} < 1", all(&table::JOB_LOSS_SCALE)),
            hold: "5m",
            severity: "ticket",
            summary: "The loss scale of job {{ $labels.training_job }} fell to {{ $value }}: its \
                      gradients overflow",
            runbook: "what-if-steps-are-skipped",
            fires: vec![(demo(&table::JOB_LOSS_SCALE, &[]), "1024 0.5x20")],
            labels: vec![JOB],
            quiet: vec![(demo(&table::JOB_LOSS_SCALE, &[]), "1x20")],
            at: "15m",
        },
        Alert {
            name: "RetriStepsSkipped",
            expression: format!("delta({}[15m]) > 3", all(&table::JOB_SKIPPED_STEPS)),
            hold: "0m",
            severity: "ticket",
            summary: "Job {{ $labels.training_job }} skips steps because values are not finite",
            runbook: "what-if-steps-are-skipped",
            fires: vec![(demo(&table::JOB_SKIPPED_STEPS, &[]), "0+1x20")],
            labels: vec![JOB],
            quiet: vec![(demo(&table::JOB_SKIPPED_STEPS, &[]), "2x10 3x10")],
            at: "18m",
        },
        Alert {
            name: "RetriStraggler",
            expression: format!("{} > 1.5", all(&table::JOB_STRAGGLER_RATIO)),
            hold: "10m",
            severity: "info",
            summary: "One rank of job {{ $labels.training_job }} is much slower than the others",
            runbook: "what-if-a-rank-is-slow",
            fires: vec![(demo(&table::JOB_STRAGGLER_RATIO, &[]), "2x20")],
            labels: vec![JOB],
            quiet: vec![(demo(&table::JOB_STRAGGLER_RATIO, &[]), "2x5 1.1x15")],
            at: "15m",
        },
        Alert {
            name: "RetriRanksFail",
            expression: format!("increase({}[30m]) > 3", all(&worker::RANK_FAILURES)),
            hold: "0m",
            severity: "ticket",
            summary: "Ranks of job {{ $labels.training_job }} fail again and again on one worker",
            runbook: "why-did-my-job-fail",
            fires: vec![(demo(&worker::RANK_FAILURES, &[]), "0+1x30")],
            labels: vec![JOB],
            quiet: vec![(demo(&worker::RANK_FAILURES, &[]), "1x30")],
            at: "20m",
        },
        Alert {
            name: "RetriStoreErrors",
            expression: format!(
                "sum by (operation) (rate({}[5m])) > 0",
                select(&table::STORE_REQUESTS, &[("outcome", "=", "error")])
            ),
            hold: "5m",
            severity: "page",
            summary: "The object store answers {{ $labels.operation }} requests with errors",
            runbook: "what-if-the-store-cannot-be-reached-or-is-full",
            fires: vec![(store("error"), "0+1x30")],
            labels: vec![("operation", "put")],
            quiet: vec![(store("refused"), "0+1x30"), (store("error"), "7x30")],
            at: "20m",
        },
        Alert {
            name: "RetriManifestsFail",
            expression: format!("increase({}[15m]) > 3", all(&table::CHECKPOINT_FAILURES)),
            hold: "0m",
            severity: "page",
            summary: "Checkpoints cannot be committed: their manifests are not written",
            runbook: "what-if-the-store-cannot-be-reached-or-is-full",
            fires: vec![(all(&table::CHECKPOINT_FAILURES), "0+1x20")],
            labels: vec![],
            quiet: vec![(all(&table::CHECKPOINT_FAILURES), "1x20")],
            at: "18m",
        },
        Alert {
            name: "RetriGpuSick",
            expression: format!("{} == 1", all(&worker::GPU_SICK)),
            hold: "1m",
            severity: "ticket",
            summary: "GPU {{ $labels.gpu }} of {{ $labels.instance }} has errors of its hardware",
            runbook: "what-if-a-gpu-is-sick",
            fires: vec![(sick("w1:7072"), "0 1x20")],
            labels: vec![("gpu", "3"), ("instance", "w1:7072")],
            quiet: vec![(sick("w1:7072"), "0x20")],
            at: "10m",
        },
        Alert {
            name: "RetriNotificationsDropped",
            expression: format!("increase({}[30m]) > 0", notified("dropped")),
            hold: "0m",
            severity: "ticket",
            summary: "Notifications of jobs are dropped: their receiver does not take them",
            runbook: "why-was-nobody-told",
            fires: vec![(notified("dropped"), "0+1x20")],
            labels: vec![("outcome", "dropped")],
            quiet: vec![
                (notified("dropped"), "3x20"),
                (notified("retried"), "0+1x20"),
            ],
            at: "18m",
        },
        Alert {
            name: "RetriLoopSlow",
            expression: format!(
                "histogram_quantile(0.99, sum by (le) (rate({}[5m]))) > 1",
                buckets(&table::LOOP_LAG_SECONDS, &[])
            ),
            hold: "5m",
            severity: "ticket",
            summary: "Reports wait longer than a second for the coordinator",
            runbook: "why-is-something-refused-as-too-large-or-too-many",
            fires: vec![
                (lag("1.0"), "0x30"),
                (lag("2.5"), "0+9x30"),
                (lag("+Inf"), "0+9x30"),
            ],
            labels: vec![],
            quiet: vec![
                (lag("1.0"), "0+9x30"),
                (lag("2.5"), "0+9x30"),
                (lag("+Inf"), "0+9x30"),
            ],
            at: "20m",
        },
    ]
}

fn select_bucket(bound: &str) -> String {
    format!("{}_bucket{{le=\"{bound}\"}}", table::LOOP_LAG_SECONDS.name)
}
