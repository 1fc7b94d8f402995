//! `/metrics` and `/healthz` of the daemon, by the table [`proto::metric::worker`]. The page is
//! made from what the daemon's loop last passed here after an input ([`Metrics::update`]). The
//! daemon itself never reads the metrics.

use crate::gpu::{CLOCKS, Gpus, Reading, THROTTLES};
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::{Router, extract::State, response::IntoResponse, routing::get};
use proto::message::{RankPhase, StepTotals};
use proto::metric::worker as table;
use shell::exposition::{Form, Page};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use worker_core::View;

/// Jobs whose starts and failures are counted; the oldest are dropped.
const JOBS_MAX: usize = 32;

/// The daemon's metrics. Cheap to clone; clones share their values.
#[derive(Debug, Clone)]
pub(crate) struct Metrics(Arc<Mutex<Values>>);

#[derive(Debug, Default)]
struct Values {
    capacity: u32,
    connected: bool,
    devices_used: usize,
    ranks: BTreeMap<(String, u32), RankValues>,
    /// Rank processes of the newest jobs.
    processes: VecDeque<Processes>,
    gpus: Gpus,
}

#[derive(Debug)]
struct Processes {
    job: String,
    starts: u64,
    failures: u64,
}

#[derive(Debug, Clone, Copy)]
struct RankValues {
    up: bool,
    generation: u64,
    totals: Option<StepTotals>,
}

impl Metrics {
    pub(crate) fn new(devices: u32, gpus: Gpus) -> Self {
        Self(Arc::new(Mutex::new(Values {
            capacity: devices,
            gpus,
            ..Values::default()
        })))
    }

    pub(crate) fn rank_started(&self, job: &str) {
        self.lock().processes(job).starts += 1;
    }

    pub(crate) fn rank_failed(&self, job: &str) {
        self.lock().processes(job).failures += 1;
    }

    /// Takes over the machine's view. Ranks that are no longer in the view are removed.
    pub(crate) fn update(&self, view: &View<'_>) {
        let mut values = self.lock();
        values.connected = view.connected;
        let used = view.ranks.iter().filter(|rank| rank.device.is_some());
        values.devices_used = used.count();
        values.ranks.clear();
        // Ranks are in key order, so a newer generation of the same rank overwrites an older one.
        for rank in &view.ranks {
            let up = matches!(rank.report.phase, RankPhase::Joining | RankPhase::Training)
                && rank.device.is_some();
            let key = (rank.key.job.0.clone(), rank.key.rank.0);
            let of_rank = RankValues {
                up,
                generation: rank.key.generation.0,
                totals: rank.report.totals,
            };
            values.ranks.insert(key, of_rank);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Values> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn text(&self, form: Form) -> String {
        self.lock().page().text(form)
    }
}

impl Values {
    /// The counts of this job.
    fn processes(&mut self, job: &str) -> &mut Processes {
        let known = self.processes.iter().position(|it| it.job == job);
        let counts = known.and_then(|index| self.processes.remove(index));
        self.processes.push_back(counts.unwrap_or(Processes {
            job: job.to_owned(),
            starts: 0,
            failures: 0,
        }));
        let surplus = self.processes.len().saturating_sub(JOBS_MAX);
        self.processes.drain(..surplus);
        let newest = self.processes.len() - 1;
        &mut self.processes[newest]
    }

    #[allow(clippy::cast_precision_loss)] // Prometheus has only doubles.
    fn page(&self) -> Page {
        let mut page = Page::new(table::TABLE);
        let connected = f64::from(u8::from(self.connected));
        page.set(&table::CONNECTED, &[], connected);
        page.set(&table::CAPACITY, &[], f64::from(self.capacity));
        page.set(&table::DEVICES_USED, &[], self.devices_used as f64);
        for ((job, rank), values) in &self.ranks {
            let rank = rank.to_string();
            let labels = [job.as_str(), &rank];
            page.set(&table::RANK_UP, &labels, f64::from(u8::from(values.up)));
            page.set(&table::RANK_GENERATION, &labels, values.generation as f64);
            let Some(totals) = values.totals else {
                continue;
            };
            page.set(&table::RANK_STEP, &labels, totals.step.0 as f64);
            page.set(&table::RANK_STEPS, &labels, totals.steps as f64);
            for (phase, seconds) in totals.seconds.phases() {
                let labels = [job.as_str(), &rank, phase];
                page.set(&table::RANK_PHASE_SECONDS, &labels, seconds);
            }
        }
        for it in &self.processes {
            page.set(&table::RANK_STARTS, &[&it.job], it.starts as f64);
            page.set(&table::RANK_FAILURES, &[&it.job], it.failures as f64);
        }
        for reading in self.gpus.readings() {
            write_gpu(&mut page, &reading);
        }
        page
    }
}

#[allow(clippy::cast_precision_loss)] // Prometheus has only doubles.
fn write_gpu(page: &mut Page, it: &Reading) {
    let gpu = &it.index.to_string();
    page.set(&table::GPU_INFO, &[gpu, &it.name, &it.uuid], 1.0);
    page.set(&table::GPU_SICK, &[gpu], f64::from(u8::from(it.sick)));
    page.set(&table::GPU_XIDS, &[gpu], it.xids as f64);
    let count = |value: Option<u64>| value.map(|value| value as f64);
    for (metric, value) in [
        (&table::GPU_UTILIZATION, it.utilization),
        (&table::GPU_TEMPERATURE, it.temperature),
        (&table::GPU_POWER, it.power_watts),
        (&table::GPU_XID, count(it.newest_xid)),
    ] {
        if let Some(value) = value {
            page.set(metric, &[gpu], value);
        }
    }
    let labelled = [
        (&table::GPU_MEMORY, "used", count(it.memory_used)),
        (&table::GPU_MEMORY, "total", count(it.memory_total)),
        (&table::GPU_ECC_ERRORS, "corrected", count(it.corrected)),
        (&table::GPU_ECC_ERRORS, "uncorrected", count(it.uncorrected)),
        (&table::GPU_CLOCK, CLOCKS[0], it.clocks_hz[0]),
        (&table::GPU_CLOCK, CLOCKS[1], it.clocks_hz[1]),
    ];
    for (metric, label, value) in labelled {
        if let Some(value) = value {
            page.set(metric, &[gpu, label], value);
        }
    }
    for (reason, throttled) in THROTTLES.iter().zip(it.throttles.iter().flatten()) {
        let throttled = f64::from(u8::from(*throttled));
        page.set(&table::GPU_THROTTLED, &[gpu, reason], throttled);
    }
}

/// Serves on `listen` in a separate task. Returns the bound address.
pub(crate) async fn serve(listen: SocketAddr, metrics: Metrics) -> std::io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(listen).await?;
    let address = listener.local_addr()?;
    let app = Router::new()
        .route("/metrics", get(get_metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(metrics);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::error!(%error, "metrics are no longer served");
        }
    });
    Ok(address)
}

async fn get_metrics(State(metrics): State<Metrics>, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get_all(ACCEPT).iter();
    let accept: Vec<&str> = accept.filter_map(|value| value.to_str().ok()).collect();
    let form = Form::of(&accept.join(","));
    ([(CONTENT_TYPE, form.content_type())], metrics.text(form))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::id::Step;
    use proto::message::PhaseSeconds;

    #[test]
    fn every_rank_has_its_own_phases_and_ended_jobs_do_not_add_up() {
        let metrics = Metrics::new(2, Gpus::default());
        for job in 0..10_000 {
            metrics.rank_started(&format!("old-{job}"));
        }
        metrics.rank_started("demo-1");
        metrics.rank_failed("demo-1");
        let totals = StepTotals {
            step: Step(9),
            steps: 11,
            seconds: PhaseSeconds {
                backward: 2.5,
                ..PhaseSeconds::default()
            },
        };
        let rank = RankValues {
            up: true,
            generation: 3,
            totals: Some(totals),
        };
        metrics.lock().ranks.insert(("demo-1".to_owned(), 1), rank);
        let text = metrics.text(Form::Classic);
        for line in [
            "retri_worker_capacity 2.0",
            "retri_worker_rank_step{training_job=\"demo-1\",rank=\"1\"} 9.0",
            "retri_worker_rank_steps_total{training_job=\"demo-1\",rank=\"1\"} 11.0",
            "retri_worker_rank_phase_seconds_total\
             {training_job=\"demo-1\",rank=\"1\",phase=\"backward\"} 2.5",
            "retri_worker_rank_failures_total{training_job=\"demo-1\"} 1.0",
        ] {
            assert!(
                text.lines().any(|it| it == line),
                "{line} is not in\n{text}"
            );
        }
        let starts = text
            .lines()
            .filter(|line| line.starts_with("retri_worker_rank_starts_total"));
        assert_eq!(starts.count(), JOBS_MAX);
    }
}
