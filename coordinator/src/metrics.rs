//! `/metrics` and `/healthz`. Every scrape takes one snapshot from the daemon's loop and encodes
//! it, so that metrics contain only durable state and drop series that no longer exist. Called by
//! Prometheus.
//!
//! | name | labels | unit | help |
//! |---|---|---|---|
//! | `retri_job_phase` | training_job, phase | 1 | always 1; the label names the phase |
//! | `retri_job_step` | training_job | steps | newest finished step |
//! | `retri_job_steps_target` | training_job | steps | total steps of the job |
//! | `retri_job_loss` | training_job, term | | newest loss: total, each term (equation 3: target, face), validation |
//! | `retri_job_gradient_norm` | training_job | | L2 norm of the newest gradient before clipping |
//! | `retri_job_learning_rate` | training_job | | learning rate of the newest step |
//! | `retri_job_step_seconds` | training_job, phase | seconds | wall time of the newest step by phase |
//! | `retri_job_phase_seconds_total` | training_job, phase | seconds | the same, summed since the start |
//! | `retri_job_samples_total` | training_job | samples | samples trained since the coordinator started |
//! | `retri_job_samples_per_second` | training_job | samples/s | throughput of the newest step |
//! | `retri_job_generation` | training_job | | newest generation |
//! | `retri_job_world_size` | training_job | ranks | world size of the running generation; 0 while the job waits |
//! | `retri_job_restarts_total` | training_job | | generations that ended early |
//! | `retri_job_peak_memory_bytes` | training_job | bytes | largest host memory of rank 0 so far |
//! | `retri_job_peak_device_memory_bytes` | training_job | bytes | largest GPU memory of its tensors; 0 on a CPU |
//! | `retri_job_skipped_steps` | training_job | steps | steps skipped because of a non-finite value |
//! | `retri_job_loss_scale` | training_job | | loss scale of the backward pass; 1 except in fp16 |
//! | `retri_job_cut_prompts` | training_job | samples | training samples whose prompt is longer than what the model reads |
//! | `retri_job_lost_tag_samples` | training_job, tag | samples | training samples that lose the tag because of that; the most frequent tags |
//! | `retri_job_adapted_samples` | training_job, how | samples | samples that the job uses otherwise than its data set has them: held-out, left-out, enlarged, padded, repeated-references |
//! | `retri_job_units` | training_job, state | units | units by state: total, done, leased, set-aside |
//! | `retri_job_units_per_second` | training_job | units/s | units done per second over the last minute |
//! | `retri_job_evaluation_score` | training_job, score | | mean of each score over the images of the newest evaluation of the job's checkpoints; keep_best: of that expression |
//! | `retri_job_evaluation_step` | training_job | steps | step of the checkpoint that has these scores |
//! | `retri_checkpoint_committed_step` | training_job | steps | step of the newest committed checkpoint |
//! | `retri_worker_up` | worker | 1 | 1 while the worker's lease is valid |
//! | `retri_worker_devices` | worker, state | devices | devices by state: used, free |

use crate::daemon::{Handle, Snapshot, Totals};
use crate::text::now_ms;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing::get};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use proto::message::PhaseSeconds;
use proto::pb;
use proto::phase::is_over;
use proto::printable::printable;
use proto::wire::loss_terms;
use std::sync::atomic::AtomicU64;

/// Jobs that ended longer ago than this are not exported.
const ENDED_JOB_TTL_MS: u64 = 3_600_000;

/// The label of a job's id. Not `job`: Prometheus sets that to the name of the scrape
/// configuration.
const TRAINING_JOB: &str = "training_job";

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;
type Counters = Family<Labels, Counter<f64, AtomicU64>>;

pub(crate) fn router(handle: Handle) -> Router {
    Router::new()
        .route("/metrics", get(scrape))
        .route("/healthz", get(healthz))
        .with_state(handle)
}

async fn scrape(State(handle): State<Handle>) -> Response {
    let Ok(snapshot) = handle.snapshot().await else {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            "the coordinator is stopping\n",
        )
            .into_response();
    };
    let content = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    (
        [(header::CONTENT_TYPE, content)],
        render(&snapshot, now_ms()),
    )
        .into_response()
}

async fn healthz(State(handle): State<Handle>) -> Response {
    match handle.snapshot().await {
        Ok(_) => "ok\n".into_response(),
        Err(stopping) => (StatusCode::SERVICE_UNAVAILABLE, format!("{stopping}\n")).into_response(),
    }
}

#[derive(Default)]
struct Families {
    phase: Gauges,
    step: Gauges,
    steps_target: Gauges,
    loss: Gauges,
    gradient_norm: Gauges,
    learning_rate: Gauges,
    step_seconds: Gauges,
    phase_seconds: Counters,
    samples: Counters,
    samples_per_second: Gauges,
    generation: Gauges,
    world_size: Gauges,
    restarts: Counters,
    peak_memory: Gauges,
    peak_device_memory: Gauges,
    skipped_steps: Gauges,
    loss_scale: Gauges,
    cut_prompts: Gauges,
    lost_tags: Gauges,
    adapted: Gauges,
    units: Gauges,
    units_per_second: Gauges,
    committed_step: Gauges,
    evaluation_score: Gauges,
    evaluation_step: Gauges,
    worker_up: Gauges,
    worker_devices: Gauges,
}

impl Families {
    fn register(&self, registry: &mut Registry) {
        self.register_gauges(registry);
        self.register_counters(registry);
    }

    fn register_gauges(&self, registry: &mut Registry) {
        let gauges = [
            (
                "retri_job_phase",
                "Always 1; the label names the phase",
                &self.phase,
            ),
            ("retri_job_step", "Newest finished step", &self.step),
            (
                "retri_job_steps_target",
                "Total steps of the job",
                &self.steps_target,
            ),
            (
                "retri_job_loss",
                "Loss of the newest step by term; term validation: of the newest validation",
                &self.loss,
            ),
            (
                "retri_job_gradient_norm",
                "L2 norm of the newest gradient before clipping",
                &self.gradient_norm,
            ),
            (
                "retri_job_learning_rate",
                "Learning rate of the newest step",
                &self.learning_rate,
            ),
            (
                "retri_job_step_seconds",
                "Wall seconds of the newest step by phase",
                &self.step_seconds,
            ),
            (
                "retri_job_samples_per_second",
                "Samples per second of the newest step",
                &self.samples_per_second,
            ),
            (
                "retri_job_generation",
                "Newest generation",
                &self.generation,
            ),
            (
                "retri_job_world_size",
                "World size of the running generation; 0 while the job waits",
                &self.world_size,
            ),
            (
                "retri_job_peak_memory_bytes",
                "Largest resident memory of rank 0 on its host so far",
                &self.peak_memory,
            ),
            (
                "retri_job_peak_device_memory_bytes",
                "Largest memory of rank 0's tensors on its GPU so far; 0 on a CPU",
                &self.peak_device_memory,
            ),
            (
                "retri_job_skipped_steps",
                "Steps whose update was skipped because of a non-finite value",
                &self.skipped_steps,
            ),
            (
                "retri_job_loss_scale",
                "Factor that scales the loss before the backward pass; 1 except in fp16",
                &self.loss_scale,
            ),
            (
                "retri_job_evaluation_score",
                "Mean of each score over the images of the newest evaluation of the job's checkpoints",
                &self.evaluation_score,
            ),
            (
                "retri_job_evaluation_step",
                "Step of the checkpoint that has these scores",
                &self.evaluation_step,
            ),
            (
                "retri_checkpoint_committed_step",
                "Step of the newest committed checkpoint",
                &self.committed_step,
            ),
        ];
        for (name, help, family) in gauges {
            registry.register(name, help, family.clone());
        }
        self.register_data_gauges(registry);
        self.register_worker_gauges(registry);
    }

    fn register_data_gauges(&self, registry: &mut Registry) {
        let gauges = [
            (
                "retri_job_cut_prompts",
                "Training samples whose prompt is longer than what the model reads",
                &self.cut_prompts,
            ),
            (
                "retri_job_lost_tag_samples",
                "Training samples that lose the tag, because their prompt is too long",
                &self.lost_tags,
            ),
            (
                "retri_job_adapted_samples",
                "Samples that the job uses otherwise than its data set has them",
                &self.adapted,
            ),
            ("retri_job_units", "Units of the job by state", &self.units),
            (
                "retri_job_units_per_second",
                "Units done per second over the last minute",
                &self.units_per_second,
            ),
        ];
        for (name, help, family) in gauges {
            registry.register(name, help, family.clone());
        }
    }

    fn register_worker_gauges(&self, registry: &mut Registry) {
        let gauges = [
            (
                "retri_worker_up",
                "1 while the worker's lease is valid",
                &self.worker_up,
            ),
            (
                "retri_worker_devices",
                "Devices of the worker by state",
                &self.worker_devices,
            ),
        ];
        for (name, help, family) in gauges {
            registry.register(name, help, family.clone());
        }
    }

    fn register_counters(&self, registry: &mut Registry) {
        // The encoder appends `_total` to the names of counters.
        let counters = [
            (
                "retri_job_phase_seconds",
                "Wall seconds of all steps by phase since the coordinator started",
                &self.phase_seconds,
            ),
            (
                "retri_job_samples",
                "Samples trained since the coordinator started",
                &self.samples,
            ),
            (
                "retri_job_restarts",
                "Generations that ended early",
                &self.restarts,
            ),
        ];
        for (name, help, family) in counters {
            registry.register(name, help, family.clone());
        }
    }

    #[allow(clippy::cast_precision_loss)] // Prometheus has only doubles.
    fn job(&self, job: &pb::JobView, totals: Option<&Totals>) {
        let name = || vec![(TRAINING_JOB, job.job.clone())];
        let with = |key, value: &str| vec![(TRAINING_JOB, job.job.clone()), (key, label(value))];
        self.phase
            .get_or_create(&with("phase", &job.phase))
            .set(1.0);
        self.step.get_or_create(&name()).set(job.step as f64);
        self.steps_target
            .get_or_create(&name())
            .set(job.steps as f64);
        self.generation
            .get_or_create(&name())
            .set(job.generation as f64);
        self.world_size
            .get_or_create(&name())
            .set(f64::from(job.world));
        self.restarts
            .get_or_create(&name())
            .inc_by(f64::from(job.restarts));
        if let Some(newest) = job.checkpoints.last() {
            self.committed_step
                .get_or_create(&name())
                .set(newest.step as f64);
        }
        let mut scored = job.evaluations.iter().rev();
        if let Some(newest) = scored.find(|it| it.state == "scored") {
            let step = self.evaluation_step.get_or_create(&name());
            step.set(newest.step as f64);
            let means = newest.means.iter().map(|it| (it.name.as_str(), it.value));
            for (score, value) in means.chain(newest.score.map(|it| ("keep_best", it))) {
                let labels = with("score", score);
                self.evaluation_score.get_or_create(&labels).set(value);
            }
        }
        if let Some(cut) = job.cut_prompts {
            self.cut_prompts.get_or_create(&name()).set(cut as f64);
        }
        for lost in &job.lost_tags {
            self.lost_tags
                .get_or_create(&with("tag", &lost.tag))
                .set(lost.samples as f64);
        }
        if let Some(it) = &job.adapted {
            for (how, count) in [
                ("held-out", it.held_out),
                ("left-out", it.left_out),
                ("enlarged", it.enlarged),
                ("padded", it.padded),
                ("repeated-references", it.repeated),
            ] {
                self.adapted
                    .get_or_create(&with("how", how))
                    .set(count as f64);
            }
        }
        if let Some(totals) = totals {
            self.samples
                .get_or_create(&name())
                .inc_by(totals.samples as f64);
            for term in &totals.validation {
                self.loss
                    .get_or_create(&with("term", &term.name))
                    .set(term.value);
            }
            for (phase, seconds) in phases(&totals.seconds) {
                self.phase_seconds
                    .get_or_create(&with("phase", phase))
                    .inc_by(seconds);
            }
        }
        if let Some(units) = &job.units {
            let states = [
                ("total", units.total),
                ("done", units.done),
                ("leased", units.leased),
                ("set-aside", units.set_aside),
            ];
            for (state, count) in states {
                self.units
                    .get_or_create(&with("state", state))
                    .set(count as f64);
            }
            self.units_per_second
                .get_or_create(&name())
                .set(units.per_second);
        }
        if let Some(step) = &job.last_step {
            self.last_step(job, step);
        }
    }

    fn last_step(&self, job: &pb::JobView, step: &pb::StepReport) {
        let name = || vec![(TRAINING_JOB, job.job.clone())];
        let with = |key, value: &str| vec![(TRAINING_JOB, job.job.clone()), (key, label(value))];
        self.loss
            .get_or_create(&with("term", "total"))
            .set(step.loss);
        for term in loss_terms(step) {
            self.loss
                .get_or_create(&with("term", &term.name))
                .set(term.value);
        }
        self.gradient_norm
            .get_or_create(&name())
            .set(step.gradient_norm);
        self.learning_rate
            .get_or_create(&name())
            .set(step.learning_rate);
        self.peak_memory
            .get_or_create(&name())
            .set(step.peak_memory_bytes as f64);
        self.peak_device_memory
            .get_or_create(&name())
            .set(step.peak_device_memory_bytes as f64);
        self.skipped_steps
            .get_or_create(&name())
            .set(step.skipped_steps as f64);
        self.loss_scale.get_or_create(&name()).set(step.loss_scale);
        let seconds = phase_seconds(step.seconds.as_ref());
        for (phase, value) in phases(&seconds) {
            self.step_seconds
                .get_or_create(&with("phase", phase))
                .set(value);
        }
        if 0.0 < seconds.total() {
            let rate = f64::from(step.samples) / seconds.total();
            self.samples_per_second.get_or_create(&name()).set(rate);
        }
    }

    fn worker(&self, worker: &pb::WorkerView) {
        let name = worker
            .worker
            .as_ref()
            .map_or_else(String::new, |it| label(&it.name));
        let up = vec![("worker", name.clone())];
        let devices = |state: &str| vec![("worker", name.clone()), ("state", state.to_owned())];
        // All boot numbers of a worker share one series, which is up if any of them is.
        let previous = self.worker_up.get_or_create(&up).get();
        self.worker_up
            .get_or_create(&up)
            .set(previous.max(f64::from(u8::from(worker.up))));
        if worker.up {
            self.worker_devices
                .get_or_create(&devices("used"))
                .set(f64::from(worker.devices_used));
            let free = worker.devices.saturating_sub(worker.devices_used);
            self.worker_devices
                .get_or_create(&devices("free"))
                .set(f64::from(free));
        }
    }
}

/// A label's value. Reports name workers and terms, and whoever reads `/metrics` may print them.
fn label(value: &str) -> String {
    printable(value).into_owned()
}

fn render(snapshot: &Snapshot, now: u64) -> String {
    let families = Families::default();
    let mut registry = Registry::default();
    families.register(&mut registry);
    let is_exported = |job: &&pb::JobView| {
        !is_over(&job.phase) || now < job.ended_ms.saturating_add(ENDED_JOB_TTL_MS)
    };
    for job in snapshot.jobs.iter().filter(is_exported) {
        families.job(job, snapshot.totals.get(&job.job));
    }
    for worker in &snapshot.workers {
        families.worker(worker);
    }
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)
        .expect("writing to a string cannot fail");
    text
}

fn phase_seconds(seconds: Option<&pb::PhaseSeconds>) -> PhaseSeconds {
    seconds.map_or_else(PhaseSeconds::default, |it| PhaseSeconds {
        data: it.data,
        forward: it.forward,
        backward: it.backward,
        communication: it.communication,
        optimizer: it.optimizer,
        checkpoint: it.checkpoint,
        validation: it.validation,
    })
}

/// The phases of a step by name, in execution order.
pub(crate) fn phases(seconds: &PhaseSeconds) -> [(&'static str, f64); 7] {
    [
        ("data", seconds.data),
        ("forward", seconds.forward),
        ("backward", seconds.backward),
        ("communication", seconds.communication),
        ("optimizer", seconds.optimizer),
        ("checkpoint", seconds.checkpoint),
        ("validation", seconds.validation),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proto::message::LossTerm;

    fn snapshot() -> Snapshot {
        let step = pb::StepReport {
            step: 7,
            loss: 0.5,
            samples: 8,
            seconds: Some(pb::PhaseSeconds {
                forward: 1.5,
                backward: 0.5,
                ..Default::default()
            }),
            ..Default::default()
        };
        let job = pb::JobView {
            job: "demo-1".into(),
            phase: "training".into(),
            step: 7,
            restarts: 2,
            cut_prompts: Some(31),
            lost_tags: vec![pb::LostTag {
                tag: "white dress".into(),
                samples: 12,
            }],
            adapted: Some(pb::Adapted {
                enlarged: 5,
                ..Default::default()
            }),
            last_step: Some(step),
            evaluations: vec![pb::Evaluation {
                step: 4,
                state: "scored".into(),
                means: vec![pb::Score {
                    name: "clip_i".into(),
                    value: 0.75,
                }],
                score: Some(0.5),
                ..Default::default()
            }],
            checkpoints: vec![pb::CheckpointRef {
                step: 4,
                generation: 1,
            }],
            ..Default::default()
        };
        let old = pb::JobView {
            job: "old-1".into(),
            phase: "done".into(),
            ended_ms: 1,
            ..Default::default()
        };
        let worker = |boot, up| pb::WorkerView {
            worker: Some(pb::WorkerId {
                name: "w1".into(),
                boot,
            }),
            devices: 2,
            devices_used: 1,
            up,
            ..Default::default()
        };
        let totals = Totals {
            samples: 56,
            validation: vec![LossTerm {
                name: "validation_face".into(),
                value: 0.25,
            }],
            ..Totals::default()
        };
        Snapshot {
            jobs: vec![job, old],
            workers: vec![worker(2, true), worker(1, false)],
            totals: [("demo-1".to_owned(), totals)].into(),
        }
    }

    #[test]
    fn a_scrape_has_the_figures_of_the_snapshot() {
        let text = render(&snapshot(), 2 * ENDED_JOB_TTL_MS);
        for line in [
            "retri_job_step{training_job=\"demo-1\"} 7.0",
            "retri_job_loss{training_job=\"demo-1\",term=\"total\"} 0.5",
            "retri_job_loss{training_job=\"demo-1\",term=\"validation_face\"} 0.25",
            "retri_job_step_seconds{training_job=\"demo-1\",phase=\"forward\"} 1.5",
            "retri_job_samples_per_second{training_job=\"demo-1\"} 4.0",
            "retri_job_samples_total{training_job=\"demo-1\"} 56.0",
            "retri_job_restarts_total{training_job=\"demo-1\"} 2.0",
            "retri_checkpoint_committed_step{training_job=\"demo-1\"} 4.0",
            "retri_job_evaluation_step{training_job=\"demo-1\"} 4.0",
            "retri_job_evaluation_score{training_job=\"demo-1\",score=\"clip_i\"} 0.75",
            "retri_job_evaluation_score{training_job=\"demo-1\",score=\"keep_best\"} 0.5",
            "retri_job_cut_prompts{training_job=\"demo-1\"} 31.0",
            "retri_job_lost_tag_samples{training_job=\"demo-1\",tag=\"white dress\"} 12.0",
            "retri_job_adapted_samples{training_job=\"demo-1\",how=\"enlarged\"} 5.0",
            "retri_worker_up{worker=\"w1\"} 1.0",
            "retri_worker_devices{worker=\"w1\",state=\"free\"} 1.0",
        ] {
            assert!(
                text.lines().any(|it| it == line),
                "{line} is not in\n{text}"
            );
        }
        assert!(
            !text.contains("old-1"),
            "a job that ended long ago is not exported"
        );
    }

    #[test]
    fn a_name_forges_no_series_and_moves_no_cursor() {
        let mut snapshot = snapshot();
        let name = "\u{1b}[2Jw1\r\n\"} 1\nretri_forged{a=\"\u{202e}";
        for worker in &mut snapshot.workers {
            worker.worker.as_mut().unwrap().name = name.to_owned();
        }
        let text = render(&snapshot, 2);
        assert!(
            !text
                .replace('\n', "")
                .contains(proto::printable::is_deceptive),
            "{text:?}"
        );
        assert!(
            !text.lines().any(|it| it.starts_with("retri_forged")),
            "{text}"
        );
        let shown =
            r#"retri_worker_up{worker="\\u{1b}[2Jw1\\r\\n\"} 1\\nretri_forged{a=\"\\u{202e}"} 1.0"#;
        assert!(
            text.lines().any(|it| it == shown),
            "{shown} is not in\n{text}"
        );
    }

    #[test]
    fn every_metric_stands_in_the_table_above() {
        let table = include_str!("metrics.rs");
        for line in render(&snapshot(), 2)
            .lines()
            .filter(|it| it.starts_with("retri_"))
        {
            let name = line.split('{').next().unwrap_or(line);
            assert!(
                table.contains(&format!("//! | `{name}`")),
                "{name} has no line in the table"
            );
        }
    }
}
