//! The dashboard of one job: how it learns, how fast, and what fails.

use super::panel::{
    AMBER, Dashboard, GREEN, RED, bars, graph, of_job, phase_mappings, phase_number, stat, target,
    timeline,
};
use super::{panel, select};
use proto::metric::coordinator as table;
use proto::metric::{TRAINING_JOB, worker};
use serde_json::Value;

const NEVER: f64 = f64::NEG_INFINITY;

pub(super) fn dashboard() -> Value {
    Dashboard {
        uid: "retri-training",
        title: "RetriNet: training of a job",
        description: "One job: whether it learns, how fast, and what fails.",
        of_job: true,
        rows: vec![
            ("Now", now()),
            ("Learning", learning()),
            ("Speed", speed()),
            ("Faults", faults()),
        ],
    }
    .json()
}

/// Of the time of the job's devices, the part that counts.
pub(super) fn goodput(range: &str, job: &str) -> String {
    let of = |operator, value| {
        let mut matchers = vec![("bucket", operator, value)];
        if !job.is_empty() {
            matchers.push((TRAINING_JOB, "=", job));
        }
        select(&table::JOB_DEVICE_SECONDS, &matchers)
    };
    let (good, all) = (of("=~", "training|units"), of("=~", ".+"));
    format!("sum(increase({good}[{range}])) / sum(increase({all}[{range}]))")
}

fn progress() -> String {
    format!(
        "{} / ({} > 0) or {} / ignoring (state) {}",
        of_job(&table::JOB_STEP),
        of_job(&table::JOB_STEPS_TARGET),
        select(
            &table::JOB_UNITS,
            &[(TRAINING_JOB, "=", "$job"), ("state", "=", "done")]
        ),
        select(
            &table::JOB_UNITS,
            &[(TRAINING_JOB, "=", "$job"), ("state", "=", "total")]
        ),
    )
}

fn now() -> Vec<panel::Panel> {
    let term = |term| {
        let matchers = [(TRAINING_JOB, "=", "$job"), ("term", "=", term)];
        select(&table::JOB_LOSS, &matchers)
    };
    let left = format!(
        "({} - {}) / (deriv({}[15m]) > 0)",
        of_job(&table::JOB_STEPS_TARGET),
        of_job(&table::JOB_STEP),
        of_job(&table::JOB_STEP)
    );
    let age = format!("time() - {}", of_job(&table::CHECKPOINT_TIMESTAMP));
    let restarts = format!("increase({}[1h])", of_job(&table::JOB_RESTARTS));
    vec![
        stat(
            "Phase",
            "What the job is doing. `coordinator why JOB` says why, and what would help",
            "none",
            phase_number(),
            &[],
        )
        .mapped(&phase_mappings()),
        stat(
            "Progress",
            "Finished steps of all steps, or units of all units",
            "percentunit",
            progress(),
            &[(NEVER, "blue"), (1.0, GREEN)],
        )
        .decimals(1),
        stat(
            "Time left",
            "At the speed of the last 15 minutes; empty while no step is made",
            "s",
            left,
            &[],
        )
        .or_text("unknown"),
        stat(
            "Loss",
            "Total loss of the newest step; single steps are noisy because time steps are random",
            "short",
            term("total"),
            &[],
        )
        .decimals(4),
        stat(
            "Goodput",
            "Of the time of the job's devices in the last hour, the part that trained steps that \
             count; `coordinator goodput JOB` has the whole account",
            "percentunit",
            goodput("1h", "$job"),
            &[(NEVER, RED), (0.5, AMBER), (0.8, GREEN)],
        )
        .decimals(0),
        stat(
            "Restarts, 1 h",
            "Generations that ended early in the last hour. `coordinator incidents JOB` lists why",
            "short",
            restarts,
            &[(NEVER, GREEN), (1.0, AMBER), (4.0, RED)],
        )
        .decimals(0),
        stat(
            "Checkpoint age",
            "Time since the newest checkpoint was committed: what is lost if all ranks fail",
            "s",
            age,
            &[(NEVER, GREEN), (3600.0, AMBER), (14400.0, RED)],
        )
        .or_text("none"),
        stat(
            "Ranks",
            "World size of the running generation; 0 while the job waits",
            "short",
            of_job(&table::JOB_WORLD_SIZE),
            &[(NEVER, "blue"), (1.0, GREEN)],
        ),
    ]
}

fn learning() -> Vec<panel::Panel> {
    let loss = |operator| {
        let matchers = [
            (TRAINING_JOB, "=", "$job"),
            ("term", operator, "validation.*"),
        ];
        select(&table::JOB_LOSS, &matchers)
    };
    vec![
        graph(
            "Loss",
            "Total loss of each step and its terms (equation 3: target, face); look for the trend",
            "short",
            vec![target(loss("!~"), "{{term}}")],
        ),
        graph(
            "Validation loss",
            "On held-out samples at fixed noise, so that it is not noisy; empty without \
             train.validate_every",
            "short",
            vec![target(loss("=~"), "{{term}}")],
        ),
        graph(
            "Gradient norm",
            "Before clipping. A rise by a factor of ten often precedes a diverging loss",
            "short",
            vec![target(of_job(&table::JOB_GRADIENT_NORM), "norm")],
        )
        .logarithmic()
        .sized(8, 7),
        graph(
            "Learning rate",
            "Of the newest step",
            "sci",
            vec![target(of_job(&table::JOB_LEARNING_RATE), "learning rate")],
        )
        .sized(8, 7),
        graph(
            "Loss scale and skipped steps",
            "fp16 only: the scale falls when gradients overflow, and such steps are skipped",
            "short",
            vec![
                target(of_job(&table::JOB_LOSS_SCALE), "loss scale"),
                target(of_job(&table::JOB_SKIPPED_STEPS), "skipped steps"),
            ],
        )
        .explained("what-if-steps-are-skipped")
        .sized(8, 7),
    ]
}

/// Wall time per second of wall time, by phase, of the rank that spends the most in it.
fn phase_rate() -> String {
    let series = of_job(&worker::RANK_PHASE_SECONDS);
    format!("avg by (phase) (rate({series}[$__rate_interval]))")
}

fn speed() -> Vec<panel::Panel> {
    let own = select(
        &worker::RANK_PHASE_SECONDS,
        &[
            (TRAINING_JOB, "=", "$job"),
            ("phase", "=~", "data|forward|backward|optimizer"),
        ],
    );
    let per_step = format!(
        "sum by (rank) (rate({own}[$__rate_interval])) / sum by (rank) \
         (rate({}[$__rate_interval]))",
        of_job(&worker::RANK_STEPS)
    );
    let bucket = of_job(&table::JOB_DEVICE_SECONDS);
    let mut panels = vec![
        graph(
            "Where the time of a step goes",
            "Share of wall time by phase, mean over ranks. Much data: the store is slow. Much \
             communication: a slow rank or network",
            "percentunit",
            vec![target(phase_rate(), "{{phase}}")],
        )
        .stacked()
        .between(0.0, 1.0),
        graph(
            "Samples per second",
            "Of the newest step, and over time: the second is lower while the job waits or repeats \
             lost steps",
            "short",
            vec![
                target(of_job(&table::JOB_SAMPLES_PER_SECOND), "newest step"),
                target(
                    format!("rate({}[$__rate_interval])", of_job(&table::JOB_SAMPLES)),
                    "over time",
                ),
            ],
        )
        .from_zero(),
        graph(
            "Own work per step, by rank",
            "Data, forward, backward and optimizer of each rank, without waiting for others: a \
             line above the others is the straggler",
            "s",
            vec![target(per_step, "rank {{rank}}")],
        )
        .from_zero()
        .sized(8, 7),
        graph(
            "Straggler",
            "Own work per step of the slowest rank by that of the median one; 1: all are equally \
             fast. Empty with one rank",
            "short",
            vec![target(
                of_job(&table::JOB_STRAGGLER_RATIO),
                "slowest / median",
            )],
        )
        .explained("what-if-a-rank-is-slow")
        .from_zero()
        .sized(8, 7),
        graph(
            "Where the time of devices goes",
            "Devices by bucket: what they would be if each did one thing all the time",
            "short",
            vec![target(
                format!("sum by (bucket) (rate({bucket}[$__rate_interval])) > 0"),
                "{{bucket}}",
            )],
        )
        .stacked()
        .from_zero()
        .sized(8, 7),
    ];
    panels.extend(bounds());
    panels
}

fn bounds() -> [panel::Panel; 2] {
    [
        graph(
            "Step and committed step",
            "The gap is lost if all ranks fail; checkpoint.every bounds it",
            "short",
            vec![
                target(of_job(&table::JOB_STEP), "step"),
                target(of_job(&table::CHECKPOINT_STEP), "committed"),
            ],
        )
        .explained("what-if-checkpoints-are-missing")
        .sized(12, 7),
        graph(
            "Memory of rank 0",
            "Largest so far: on the host, and of tensors on the GPU (0 on a CPU). A line that \
             never stops rising is a leak",
            "bytes",
            vec![
                target(of_job(&table::JOB_PEAK_MEMORY), "host"),
                target(of_job(&table::JOB_PEAK_DEVICE_MEMORY), "GPU"),
            ],
        )
        .from_zero()
        .sized(12, 7),
    ]
}

/// Sums by a label; a zero called none while there are no series.
pub(super) fn or_none(label: &str, series: &str) -> String {
    format!(
        "sum by ({label}) ({series}) or label_replace(vector(0) unless on () {series}, \
        \"{label}\", \
         \"none\", \"\", \"\")"
    )
}

pub(super) fn faults() -> Vec<panel::Panel> {
    vec![
        timeline(
            "Phase",
            "What the job was doing",
            vec![target(phase_number(), "phase")],
            &phase_mappings(),
        )
        .explained("what-if-a-job-makes-no-progress")
        .sized(24, 4),
        timeline(
            "World and generation",
            "A new generation forms when workers join, leave or are lost",
            vec![
                target(of_job(&table::JOB_WORLD_SIZE), "ranks"),
                target(of_job(&table::JOB_GENERATION), "generation"),
            ],
            &[],
        )
        .sized(24, 5),
        timeline(
            "Ranks",
            "Grey: the rank is starting or has failed; `coordinator logs JOB --rank N`",
            vec![target(
                format!("max by (rank) ({})", of_job(&worker::RANK_UP)),
                "rank {{rank}}",
            )],
            &[(0, "down", "gray"), (1, "up", GREEN)],
        ),
        bars(
            "Incidents by kind",
            "Since the job was submitted; `coordinator incidents JOB` has the sentences",
            "short",
            vec![target(
                or_none("kind", &of_job(&table::JOB_INCIDENTS)),
                "{{kind}}",
            )],
        )
        .explained("why-did-my-job-fail"),
        bars(
            "Device-time by bucket",
            "Since the job was submitted; the buckets add up",
            "s",
            vec![target(
                format!(
                    "sum by (bucket) ({}) > 0",
                    of_job(&table::JOB_DEVICE_SECONDS)
                ),
                "{{bucket}}",
            )],
        ),
    ]
}
