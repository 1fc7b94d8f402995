//! `/metrics` and `/healthz`. Every scrape takes one snapshot from the daemon's loop and writes it
//! by the table [`proto::metric::coordinator`], so that metrics drop series that no longer exist.
//! What the process measures of itself is in [`crate::measures`]. Called by Prometheus.

use crate::budget::blocking;
use crate::daemon::{Handle, Snapshot, Totals};
use crate::measures;
use crate::text::now_ms;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing::get};
use proto::account::{Account, Bucket};
use proto::message::PhaseSeconds;
use proto::metric::coordinator as table;
use proto::pb;
use proto::phase::{Phase, is_over};
use proto::wire::loss_terms;
use shell::exposition::{Form, Page};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Jobs that ended longer ago than this are not exported.
const ENDED_JOB_TTL_MS: u64 = 3_600_000;

static STARTED_MS: LazyLock<u64> = LazyLock::new(now_ms);

pub(crate) fn router(handle: Handle) -> Router {
    LazyLock::force(&STARTED_MS);
    Router::new()
        .route("/metrics", get(scrape))
        .route("/healthz", get(healthz))
        .with_state(handle)
}

async fn scrape(State(handle): State<Handle>, headers: HeaderMap) -> Response {
    let Ok(snapshot) = handle.snapshot().await else {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            "the coordinator is stopping\n",
        )
            .into_response();
    };
    let accept = headers.get_all(header::ACCEPT).iter();
    let accept: Vec<&str> = accept.filter_map(|value| value.to_str().ok()).collect();
    let form = Form::of(&accept.join(","));
    // A large page takes a while, and the runtime's threads have others to serve.
    let page = blocking(move || render(&snapshot, now_ms(), form)).await;
    match page {
        Ok(page) => ([(header::CONTENT_TYPE, form.content_type())], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn healthz(State(handle): State<Handle>) -> Response {
    match handle.alive().await {
        Ok(()) => "ok\n".into_response(),
        Err(stopping) => (StatusCode::SERVICE_UNAVAILABLE, format!("{stopping}\n")).into_response(),
    }
}

fn render(snapshot: &Snapshot, now: u64, form: Form) -> String {
    let mut page = Page::new(table::TABLE);
    let is_exported = |job: &&pb::JobView| {
        !is_over(&job.phase) || now < job.ended_ms.saturating_add(ENDED_JOB_TTL_MS)
    };
    for job in snapshot.jobs.iter().filter(is_exported) {
        write_job(&mut page, job, now);
        if let Some(totals) = snapshot.totals.get(&job.job) {
            write_totals(&mut page, &job.job, totals);
        }
    }
    write_counts(&mut page, snapshot);
    for worker in &snapshot.workers {
        write_worker(&mut page, worker);
    }
    measures::write(&mut page);
    page.set(&table::START, &[], seconds(*STARTED_MS));
    let build = [env!("CARGO_PKG_VERSION"), env!("RETRI_COMMIT")];
    page.set(&table::BUILD_INFO, &build, 1.0);
    page.text(form)
}

/// How many jobs there are, by phase and by why they wait.
fn write_counts(page: &mut Page, snapshot: &Snapshot) {
    let mut phases: BTreeMap<&str, u64> = Phase::ALL.iter().map(|it| (it.word(), 0)).collect();
    for job in &snapshot.jobs {
        *phases.entry(&job.phase).or_insert(0) += 1;
    }
    for (phase, count) in phases {
        page.set(&table::JOBS, &[phase], float(count));
    }
    for (reason, count) in &snapshot.waiting {
        page.set(&table::JOBS_WAITING, &[reason], float(*count));
    }
    for (job, straggler) in &snapshot.stragglers {
        page.set(&table::JOB_STRAGGLER_RATIO, &[job], *straggler);
    }
}

fn write_job(page: &mut Page, job: &pb::JobView, now: u64) {
    let id = job.job.as_str();
    let about = [id, &job.name, &job.team, &job.owner, &job.work];
    page.set(&table::JOB_INFO, &about, 1.0);
    page.set(&table::JOB_PHASE, &[id, &job.phase], 1.0);
    for (metric, value) in [
        (&table::JOB_STEP, float(job.step)),
        (&table::JOB_STEPS_TARGET, float(job.steps)),
        (&table::JOB_GENERATION, float(job.generation)),
        (&table::JOB_WORLD_SIZE, f64::from(job.world)),
        (&table::JOB_RESTARTS, f64::from(job.restarts)),
    ] {
        page.set(metric, &[id], value);
    }
    for (kind, count) in &job.faults {
        page.set(&table::JOB_INCIDENTS, &[id, kind], float(*count));
    }
    let mut scored = job.evaluations.iter().rev();
    if let Some(newest) = scored.find(|it| it.state == "scored") {
        page.set(&table::JOB_EVALUATION_STEP, &[id], float(newest.step));
        let means = newest.means.iter().map(|it| (it.name.as_str(), it.value));
        for (score, value) in means.chain(newest.score.map(|it| ("keep_best", it))) {
            page.set(&table::JOB_EVALUATION_SCORE, &[id, score], value);
        }
    }
    write_account(page, job, now);
    write_checkpoint(page, job);
    write_data(page, job);
    if let Some(units) = &job.units {
        let states = [
            ("total", units.total),
            ("done", units.done),
            ("leased", units.leased),
            ("failed", units.failed.len() as u64),
            ("set-aside", units.set_aside),
        ];
        for (state, count) in states {
            page.set(&table::JOB_UNITS, &[id, state], float(count));
        }
        page.set(&table::JOB_UNITS_PER_SECOND, &[id], units.per_second);
    }
    if let Some(step) = &job.last_step {
        write_step(page, id, step);
    }
}

fn write_account(page: &mut Page, job: &pb::JobView, now: u64) {
    let Some(account) = &job.account else {
        return;
    };
    let id = job.job.as_str();
    let account = Account::from(account);
    for bucket in Bucket::ALL {
        let spent = seconds(account.of(bucket));
        page.set(&table::JOB_DEVICE_SECONDS, &[id, bucket.word()], spent);
    }
    // The machine counts when something happens to the job; while it waits, nothing does.
    let is_waiting = [Phase::Queued, Phase::Paused]
        .map(Phase::word)
        .contains(&job.phase.as_str());
    let since = if is_waiting && account.until_ms != 0 {
        now.saturating_sub(account.until_ms)
    } else {
        0
    };
    let waited = seconds(account.waited_ms.saturating_add(since));
    page.set(&table::JOB_WAITED_SECONDS, &[id], waited);
}

fn write_checkpoint(page: &mut Page, job: &pb::JobView) {
    let id = job.job.as_str();
    if let Some(newest) = job.checkpoints.last() {
        page.set(&table::CHECKPOINT_STEP, &[id], float(newest.step));
    }
    if job.committed_ms != 0 {
        page.set(
            &table::CHECKPOINT_TIMESTAMP,
            &[id],
            seconds(job.committed_ms),
        );
    }
    if job.checkpoint_every != 0 {
        page.set(
            &table::CHECKPOINT_INTERVAL,
            &[id],
            float(job.checkpoint_every),
        );
    }
}

fn write_data(page: &mut Page, job: &pb::JobView) {
    let id = job.job.as_str();
    if let Some(cut) = job.cut_prompts {
        page.set(&table::JOB_CUT_PROMPTS, &[id], float(cut));
    }
    for lost in &job.lost_tags {
        page.set(
            &table::JOB_LOST_TAG_SAMPLES,
            &[id, &lost.tag],
            float(lost.samples),
        );
    }
    let Some(it) = &job.adapted else {
        return;
    };
    for (how, count) in [
        ("held-out", it.held_out),
        ("left-out", it.left_out),
        ("enlarged", it.enlarged),
        ("padded", it.padded),
        ("repeated-references", it.repeated),
    ] {
        page.set(&table::JOB_ADAPTED_SAMPLES, &[id, how], float(count));
    }
}

fn write_totals(page: &mut Page, id: &str, totals: &Totals) {
    page.set(&table::JOB_SAMPLES, &[id], float(totals.samples));
    for term in &totals.validation {
        page.set(&table::JOB_LOSS, &[id, &term.name], term.value);
    }
    for (phase, seconds) in totals.seconds.phases() {
        page.set(&table::JOB_PHASE_SECONDS, &[id, phase], seconds);
    }
    if let Some(bytes) = totals.checkpoint_bytes {
        page.set(&table::CHECKPOINT_BYTES, &[id], float(bytes));
    }
}

fn write_step(page: &mut Page, id: &str, step: &pb::StepReport) {
    page.set(&table::JOB_LOSS, &[id, "total"], step.loss);
    for term in loss_terms(step) {
        page.set(&table::JOB_LOSS, &[id, &term.name], term.value);
    }
    for (metric, value) in [
        (&table::JOB_GRADIENT_NORM, step.gradient_norm),
        (&table::JOB_LEARNING_RATE, step.learning_rate),
        (&table::JOB_PEAK_MEMORY, float(step.peak_memory_bytes)),
        (
            &table::JOB_PEAK_DEVICE_MEMORY,
            float(step.peak_device_memory_bytes),
        ),
        (&table::JOB_SKIPPED_STEPS, float(step.skipped_steps)),
        (&table::JOB_LOSS_SCALE, step.loss_scale),
    ] {
        page.set(metric, &[id], value);
    }
    let seconds = step.seconds.map_or_else(PhaseSeconds::default, Into::into);
    for (phase, value) in seconds.phases() {
        page.set(&table::JOB_STEP_SECONDS, &[id, phase], value);
    }
    if 0.0 < seconds.total() {
        let rate = f64::from(step.samples) / seconds.total();
        page.set(&table::JOB_SAMPLES_PER_SECOND, &[id], rate);
    }
}

fn write_worker(page: &mut Page, worker: &pb::WorkerView) {
    let name = worker.worker.as_ref().map_or("", |it| it.name.as_str());
    // All boot numbers of a worker share one series, which is up if any of them is.
    page.raise(&table::WORKER_UP, &[name], f64::from(u8::from(worker.up)));
    let drained = f64::from(u8::from(worker.drained));
    page.set(&table::WORKER_DRAINED, &[name], drained);
    if worker.up {
        let used = f64::from(worker.devices_used);
        page.set(&table::WORKER_DEVICES, &[name, "used"], used);
        let free = worker.devices.saturating_sub(worker.devices_used);
        page.set(&table::WORKER_DEVICES, &[name, "free"], f64::from(free));
    }
}

#[allow(clippy::cast_precision_loss)] // Prometheus has only doubles.
fn float(count: u64) -> f64 {
    count as f64
}

fn seconds(ms: u64) -> f64 {
    float(ms) / 1000.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proto::message::LossTerm;

    fn step() -> pb::StepReport {
        pb::StepReport {
            step: 7,
            loss: 0.5,
            samples: 8,
            seconds: Some(pb::PhaseSeconds {
                forward: 1.5,
                backward: 0.5,
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn snapshot() -> Snapshot {
        let job = pb::JobView {
            job: "demo-1".into(),
            phase: "training".into(),
            step: 7,
            restarts: 2,
            faults: [("worker-lost".to_owned(), 2)].into(),
            cut_prompts: Some(31),
            lost_tags: vec![pb::LostTag {
                tag: "white dress".into(),
                samples: 12,
            }],
            adapted: Some(pb::Adapted {
                enlarged: 5,
                ..Default::default()
            }),
            last_step: Some(step()),
            checkpoints: vec![pb::CheckpointRef {
                step: 4,
                generation: 1,
            }],
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
            committed_ms: 4_500,
            checkpoint_every: 4,
            account: Some(pb::Account {
                spent_ms: [("training".to_owned(), 2_500)].into(),
                waited_ms: 1_000,
                until_ms: 3,
                ..Default::default()
            }),
            ..Default::default()
        };
        let waiting = pb::JobView {
            job: "late-2".into(),
            phase: "queued".into(),
            account: Some(pb::Account {
                waited_ms: 1_000,
                until_ms: 2 * ENDED_JOB_TTL_MS - 500,
                ..Default::default()
            }),
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
            jobs: vec![job, waiting, old],
            workers: vec![worker(2, true), worker(1, false)],
            totals: [("demo-1".to_owned(), totals)].into(),
            waiting: [("shortage", 1)].into(),
            stragglers: [("demo-1".to_owned(), 1.5)].into(),
        }
    }

    fn text(snapshot: &Snapshot) -> String {
        render(snapshot, 2 * ENDED_JOB_TTL_MS, Form::OpenMetrics)
    }

    #[test]
    fn a_scrape_has_the_figures_of_the_snapshot() {
        let text = text(&snapshot());
        for line in [
            "retri_job_step{training_job=\"demo-1\"} 7.0",
            "retri_job_loss{training_job=\"demo-1\",term=\"total\"} 0.5",
            "retri_job_loss{training_job=\"demo-1\",term=\"validation_face\"} 0.25",
            "retri_job_step_seconds{training_job=\"demo-1\",phase=\"forward\"} 1.5",
            "retri_job_samples_per_second{training_job=\"demo-1\"} 4.0",
            "retri_job_samples_total{training_job=\"demo-1\"} 56.0",
            "retri_job_restarts_total{training_job=\"demo-1\"} 2.0",
            "retri_job_incidents_total{training_job=\"demo-1\",kind=\"worker-lost\"} 2.0",
            "retri_job_device_seconds_total{training_job=\"demo-1\",bucket=\"training\"} 2.5",
            "retri_job_device_seconds_total{training_job=\"demo-1\",bucket=\"idle\"} 0.0",
            "retri_job_waited_seconds_total{training_job=\"demo-1\"} 1.0",
            "retri_job_waited_seconds_total{training_job=\"late-2\"} 1.5",
            "retri_job_straggler_ratio{training_job=\"demo-1\"} 1.5",
            "retri_jobs{phase=\"training\"} 1.0",
            "retri_jobs{phase=\"failed\"} 0.0",
            "retri_jobs_waiting{reason=\"shortage\"} 1.0",
            "retri_checkpoint_committed_step{training_job=\"demo-1\"} 4.0",
            "retri_checkpoint_committed_timestamp_seconds{training_job=\"demo-1\"} 4.5",
            "retri_checkpoint_interval_steps{training_job=\"demo-1\"} 4.0",
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
        let text = text(&snapshot);
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
    fn ended_jobs_add_no_series() {
        let mut many = snapshot();
        // What the process measures of itself has series of other tests.
        let count = |snapshot: &Snapshot| {
            let text = text(snapshot);
            text.lines()
                .filter(|it| it.contains("training_job="))
                .count()
        };
        let before = count(&many);
        let old = many.jobs[2].clone();
        for number in 0..10_000 {
            many.jobs.push(pb::JobView {
                job: format!("old-{number}"),
                ..old.clone()
            });
        }
        assert_eq!(count(&many), before);
        assert!(!text(&many).contains("old-"));
    }
}
