//! The dashboard for the time around an incident: what failed first, and what it cost.

use super::panel::{AMBER, Dashboard, GREEN, Panel, RED, graph, of_job, stat, target, timeline};
use super::{buckets, select, training};
use proto::metric::TRAINING_JOB;
use proto::metric::coordinator as table;
use serde_json::Value;

const NEVER: f64 = f64::NEG_INFINITY;

pub(super) fn dashboard() -> Value {
    let mut faults = training::faults();
    faults.insert(
        3,
        timeline(
            "Workers",
            "All workers of the cluster over the same time",
            vec![target(
                format!("max by (worker) ({})", select(&table::WORKER_UP, &[])),
                "{{worker}}",
            )],
            &[(0, "down", RED), (1, "up", GREEN)],
        ),
    );
    Dashboard {
        uid: "retri-incident",
        title: "RetriNet: incident",
        description: "One job around an incident: what failed first, who waited, what it cost.",
        of_job: true,
        rows: vec![
            ("Cost", cost()),
            ("What happened", faults),
            ("Around it", around()),
        ],
    }
    .json()
}

fn cost() -> Vec<Panel> {
    let lost = |bucket| {
        let matchers = [(TRAINING_JOB, "=", "$job"), ("bucket", "=~", bucket)];
        let series = select(&table::JOB_DEVICE_SECONDS, &matchers);
        format!("sum(increase({series}[$__range]))")
    };
    let quantile = |q| {
        let series = buckets(&table::JOB_RECOVERY_SECONDS, &[]);
        format!("histogram_quantile({q}, sum by (le) (increase({series}[$__range])))")
    };
    vec![
        stat(
            "Restarts",
            "Generations that ended early, in the time shown",
            "short",
            format!("increase({}[$__range])", of_job(&table::JOB_RESTARTS)),
            &[(NEVER, GREEN), (1.0, AMBER), (4.0, RED)],
        )
        .decimals(0)
        .sized(4, 4),
        stat(
            "Device-time recomputed",
            "Steps in flight that were dropped, and steps that were done again",
            "s",
            lost("recompute"),
            &[],
        )
        .sized(4, 4),
        stat(
            "Device-time forming",
            "Starting, loading, meeting, getting the newest state",
            "s",
            lost("forming|restore"),
            &[],
        )
        .sized(4, 4),
        stat(
            "Device-time waiting",
            "For samples, for other ranks, idle",
            "s",
            lost("data-wait|straggler-wait|idle"),
            &[],
        )
        .sized(4, 4),
        stat(
            "Usual recovery",
            "Half of the recoveries of all jobs took no longer, from the fault to the next step",
            "s",
            quantile("0.5"),
            &[],
        )
        .or_text("none")
        .sized(4, 4),
        stat(
            "Long recovery",
            "One of ten recoveries took longer",
            "s",
            quantile("0.9"),
            &[],
        )
        .or_text("none")
        .sized(4, 4),
    ]
}

fn around() -> Vec<Panel> {
    let errors = select(&table::STORE_REQUESTS, &[("outcome", "=", "error")]);
    vec![
        graph(
            "Step and committed step",
            "Where the line falls back, steps were lost",
            "short",
            vec![
                target(of_job(&table::JOB_STEP), "step"),
                target(of_job(&table::CHECKPOINT_STEP), "committed"),
            ],
        )
        .sized(8, 7),
        graph(
            "Store errors",
            "Per second, by operation",
            "reqps",
            vec![target(
                format!("sum by (operation) (rate({errors}[$__rate_interval]))"),
                "{{operation}}",
            )],
        )
        .from_zero()
        .sized(8, 7),
        graph(
            "Events",
            "Per minute, by kind; `coordinator events JOB` has the sentences",
            "short",
            vec![target(
                format!(
                    "sum by (kind) (60 * rate({}[$__rate_interval]))",
                    select(&table::EVENTS, &[("kind", "!=", "stepped")])
                ),
                "{{kind}}",
            )],
        )
        .from_zero()
        .sized(8, 7),
    ]
}
