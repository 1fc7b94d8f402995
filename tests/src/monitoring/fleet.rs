//! The dashboard of the whole cluster: what is up, what waits, and whether the coordinator keeps
//! up.

use super::panel::{AMBER, Dashboard, GREEN, Panel, RED, bars, graph, stat, target, timeline};
use super::training::{goodput, or_none};
use super::{buckets, select};
use proto::metric::{Metric, coordinator as table, worker};
use serde_json::Value;

const NEVER: f64 = f64::NEG_INFINITY;

pub(super) fn dashboard() -> Value {
    Dashboard {
        uid: "retri-fleet",
        title: "RetriNet: fleet",
        description: "All workers and jobs, and the coordinator itself.",
        of_job: false,
        rows: vec![
            ("Now", now()),
            ("Workers and jobs", fleet()),
            ("GPUs", gpus()),
            ("Coordinator", [coordinator(), outward()].concat()),
        ],
    }
    .json()
}

fn now() -> Vec<Panel> {
    let panels = states().into_iter().chain(faults());
    panels.map(|panel| panel.sized(4, 4)).collect()
}

fn all(metric: &Metric) -> String {
    select(metric, &[])
}

fn states() -> [Panel; 7] {
    let jobs = |phase| format!("sum({})", select(&table::JOBS, &[("phase", "=~", phase)]));
    let devices = |state| {
        format!(
            "sum({})",
            select(&table::WORKER_DEVICES, &[("state", "=", state)])
        )
    };
    let down = format!(
        "count(({} == 0) unless on (worker) ({} == 1)) or vector(0)",
        all(&table::WORKER_UP),
        all(&table::WORKER_DRAINED)
    );
    [
        stat(
            "Coordinator",
            "Whether Prometheus reaches its /metrics",
            "none",
            "max(up{job=\"retri-coordinator\"}) or vector(0)",
            &[(NEVER, RED), (1.0, GREEN)],
        )
        .mapped(&[(0, "down", RED), (1, "up", GREEN)]),
        stat(
            "Workers up",
            "Workers whose lease is valid",
            "short",
            format!("sum({}) or vector(0)", all(&table::WORKER_UP)),
            &[(NEVER, RED), (1.0, GREEN)],
        ),
        stat(
            "Workers down",
            "Not drained and silent; they are forgotten an hour after they left if they never held \
             anything",
            "short",
            down,
            &[(NEVER, GREEN), (1.0, RED)],
        ),
        stat(
            "Devices free",
            "Of workers that are up",
            "short",
            devices("free"),
            &[],
        )
        .or_text("0"),
        stat(
            "Jobs that run",
            "Forming, training, working on units, stopping",
            "short",
            jobs("running|forming|training|working|finishing|stopping"),
            &[],
        ),
        stat(
            "Jobs that wait",
            "Queued; the bars below say why",
            "short",
            jobs("queued"),
            &[(NEVER, GREEN), (1.0, AMBER)],
        ),
        stat(
            "Jobs that failed",
            "In memory: of the newest that ended",
            "short",
            jobs("failed"),
            &[(NEVER, GREEN), (1.0, RED)],
        ),
    ]
}

fn faults() -> [Panel; 5] {
    let errors = select(&table::STORE_REQUESTS, &[("outcome", "=", "error")]);
    let oldest = format!(
        "max(time() - {} and on (training_job) {} > 0)",
        all(&table::CHECKPOINT_TIMESTAMP),
        all(&table::JOB_WORLD_SIZE)
    );
    [
        stat(
            "Oldest checkpoint",
            "Of the jobs that run: what is lost if all ranks fail",
            "s",
            oldest,
            &[(NEVER, GREEN), (3600.0, AMBER), (14400.0, RED)],
        )
        .or_text("none"),
        stat(
            "Store errors, 1 h",
            "Requests in the last hour of the coordinator that the object store answered with an \
            error",
            "short",
            format!("sum(increase({errors}[1h]))"),
            &[(NEVER, GREEN), (1.0, RED)],
        )
        .decimals(0),
        stat(
            "Restarts, 1 h",
            "Generations of all jobs that ended early in the last hour",
            "short",
            format!(
                "sum(increase({}[1h])) or vector(0)",
                all(&table::JOB_RESTARTS)
            ),
            &[(NEVER, GREEN), (1.0, AMBER), (10.0, RED)],
        )
        .decimals(0),
        stat(
            "Goodput",
            "Of the time of all devices of jobs in the last hour, the part that counts",
            "percentunit",
            goodput("1h", ""),
            &[(NEVER, RED), (0.5, AMBER), (0.8, GREEN)],
        )
        .decimals(0),
        stat(
            "Loop, slowest",
            "99th percentile of how long a report waits for the coordinator, over five minutes",
            "s",
            format!(
                "histogram_quantile(0.99, sum by (le) (rate({}[5m])))",
                buckets(&table::LOOP_LAG_SECONDS, &[])
            ),
            &[(NEVER, GREEN), (0.5, AMBER), (1.0, RED)],
        ),
    ]
}

fn fleet() -> Vec<Panel> {
    let up = format!(
        "max by (worker) ({}) + 2 * max by (worker) ({})",
        select(&table::WORKER_UP, &[]),
        select(&table::WORKER_DRAINED, &[])
    );
    vec![
        timeline(
            "Workers",
            "Each worker over time",
            vec![target(up, "{{worker}}")],
            &[
                (0, "down", RED),
                (1, "up", GREEN),
                (2, "drained, down", "gray"),
                (3, "drained", "blue"),
            ],
        )
        .opens_workers()
        .explained("what-if-a-worker-is-down"),
        graph(
            "Devices",
            "Of workers that are up",
            "short",
            vec![target(
                format!("sum by (state) ({})", select(&table::WORKER_DEVICES, &[])),
                "{{state}}",
            )],
        )
        .stacked()
        .from_zero()
        .sized(8, 7),
        bars(
            "Why jobs wait",
            "Queued jobs by reason; `coordinator why JOB` has the sentence and the remedy",
            "short",
            vec![target(
                or_none("reason", &select(&table::JOBS_WAITING, &[])),
                "{{reason}}",
            )],
        )
        .explained("why-does-my-job-wait")
        .sized(8, 7),
        graph(
            "Where the time of devices goes",
            "Devices of all jobs by bucket",
            "short",
            vec![target(
                format!(
                    "sum by (bucket) (rate({}[$__rate_interval])) > 0",
                    select(&table::JOB_DEVICE_SECONDS, &[])
                ),
                "{{bucket}}",
            )],
        )
        .stacked()
        .from_zero()
        .sized(8, 7),
        graph(
            "Steps of each job",
            "A flat line is a job that stands still",
            "short",
            vec![target(select(&table::JOB_STEP, &[]), "{{training_job}}")],
        )
        .opens_jobs()
        .explained("what-if-a-job-makes-no-progress"),
        graph(
            "Events",
            "Per minute, by kind; `coordinator events` has the sentences",
            "short",
            vec![target(
                format!(
                    "sum by (kind) (60 * rate({}[$__rate_interval]))",
                    select(&table::EVENTS, &[("kind", "!=", "stepped")])
                ),
                "{{kind}}",
            )],
        )
        .from_zero(),
    ]
}

/// The 99th percentile of a histogram, by a label if one is given.
fn slowest(metric: &Metric, label: &str) -> String {
    let by = if label.is_empty() {
        "le".to_owned()
    } else {
        format!("le, {label}")
    };
    format!(
        "histogram_quantile(0.99, sum by ({by}) (rate({}[$__rate_interval])))",
        buckets(metric, &[])
    )
}

/// Empty where no worker has NVML.
fn gpus() -> Vec<Panel> {
    const LEGEND: &str = "{{instance}} {{gpu}}";
    let plain = |title, description, unit, metric: &Metric| {
        graph(
            title,
            description,
            unit,
            vec![target(select(metric, &[]), LEGEND)],
        )
        .from_zero()
        .sized(8, 7)
    };
    let used = format!(
        "{} / on (instance, gpu) {}",
        select(&worker::GPU_MEMORY, &[("state", "=", "used")]),
        select(&worker::GPU_MEMORY, &[("state", "=", "total")])
    );
    let increase = |metric: &Metric, matchers: &[(&str, &str, &str)]| {
        let series = select(metric, matchers);
        format!("sum by (instance, gpu) (increase({series}[$__rate_interval]))")
    };
    vec![
        plain(
            "Utilization",
            "Part of the time in which a kernel ran. Low while a job trains: it waits for samples \
            or for other ranks",
            "percentunit",
            &worker::GPU_UTILIZATION,
        ),
        graph(
            "Memory",
            "Used part of each GPU's memory, by all processes",
            "percentunit",
            vec![target(used, LEGEND)],
        )
        .from_zero()
        .sized(8, 7),
        plain(
            "Temperature",
            "Above some 85 degrees most GPUs slow down",
            "celsius",
            &worker::GPU_TEMPERATURE,
        ),
        plain("Power", "Drawn by each GPU", "watt", &worker::GPU_POWER),
        graph(
            "Clock",
            "Of the multiprocessors. It falls where the next panel shows a reason",
            "hertz",
            vec![target(
                select(&worker::GPU_CLOCK, &[("clock", "=", "sm")]),
                LEGEND,
            )],
        )
        .from_zero()
        .sized(8, 7),
        graph(
            "Slowed down",
            "GPUs that run slower than they could, by reason",
            "short",
            vec![target(
                format!("sum by (reason) ({})", select(&worker::GPU_THROTTLED, &[])),
                "{{reason}}",
            )],
        )
        .from_zero()
        .sized(8, 7),
        graph(
            "Errors",
            "Memory errors that ECC could not correct, and errors (Xid) that the driver reports",
            "short",
            vec![
                target(
                    increase(&worker::GPU_ECC_ERRORS, &[("kind", "=", "uncorrected")]),
                    "{{instance}} {{gpu}} ECC",
                ),
                target(increase(&worker::GPU_XIDS, &[]), "{{instance}} {{gpu}} Xid"),
            ],
        )
        .from_zero()
        .sized(8, 7),
        graph(
            "Sick",
            "1: the GPU has errors of its hardware, and its worker is drained",
            "short",
            vec![target(select(&worker::GPU_SICK, &[]), LEGEND)],
        )
        .explained("what-if-a-gpu-is-sick")
        .from_zero()
        .sized(8, 7),
    ]
}

fn coordinator() -> Vec<Panel> {
    let rate = |metric: &Metric, labels: &str| {
        let series = select(metric, &[]);
        format!("sum by ({labels}) (rate({series}[$__rate_interval]))")
    };
    vec![
        graph(
            "Requests",
            "gRPC requests per second by method and code",
            "reqps",
            vec![target(
                rate(&table::RPC_REQUESTS, "method, code"),
                "{{method}} {{code}}",
            )],
        )
        .from_zero()
        .sized(8, 7),
        graph(
            "Slowest requests",
            "99th percentile until the answer begins, by method",
            "s",
            vec![target(
                slowest(&table::RPC_REQUEST_SECONDS, "method"),
                "{{method}}",
            )],
        )
        .from_zero()
        .sized(8, 7),
        graph(
            "The loop",
            "99th percentile: how long an input waits for the loop, and how long the loop takes \
            for \
             one. Above a second reports pile up",
            "s",
            vec![
                target(slowest(&table::LOOP_LAG_SECONDS, ""), "waits"),
                target(slowest(&table::LOOP_INPUT_SECONDS, ""), "takes"),
            ],
        )
        .from_zero()
        .sized(8, 7),
        graph(
            "Store requests",
            "Per second, by operation and outcome",
            "reqps",
            vec![target(
                // Outcomes that do not happen are no lines.
                format!("{} > 0", rate(&table::STORE_REQUESTS, "operation, outcome")),
                "{{operation}} {{outcome}}",
            )],
        )
        .from_zero()
        .sized(8, 7),
        graph(
            "Slowest store requests",
            "99th percentile until the answer begins, by operation",
            "s",
            vec![target(
                slowest(&table::STORE_REQUEST_SECONDS, "operation"),
                "{{operation}}",
            )],
        )
        .explained("what-if-the-store-cannot-be-reached-or-is-full")
        .from_zero()
        .sized(8, 7),
    ]
}

/// What the coordinator writes and tells.
fn outward() -> Vec<Panel> {
    vec![
        graph(
            "Checkpoints",
            "Commits per minute, and manifests that could not be written at once",
            "short",
            vec![
                target(
                    format!(
                        "60 * rate({}_count[$__rate_interval])",
                        table::CHECKPOINT_COMMIT_SECONDS.name
                    ),
                    "committed",
                ),
                target(
                    format!(
                        "60 * rate({}[$__rate_interval])",
                        select(&table::CHECKPOINT_FAILURES, &[])
                    ),
                    "failed",
                ),
            ],
        )
        .from_zero()
        .sized(8, 7),
        graph(
            "Notifications",
            "Per minute, by outcome. Dropped: the receiver of [notify] is dead or too slow",
            "short",
            vec![target(
                format!(
                    "60 * sum by (outcome) (rate({}[$__rate_interval]))",
                    select(&table::NOTIFICATIONS, &[])
                ),
                "{{outcome}}",
            )],
        )
        .explained("why-was-nobody-told")
        .from_zero()
        .sized(8, 7),
    ]
}
