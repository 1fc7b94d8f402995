//! `/metrics` and `/healthz` of the daemon. One table of names, units and help texts, updated from
//! the machine's view after every input by [`crate::daemon`]. The daemon itself never reads the
//! metrics.

use axum::http::header::CONTENT_TYPE;
use axum::{Router, extract::State, response::IntoResponse, routing::get};
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};
use prometheus_client::registry::Registry;
use proto::message::RankPhase;
use std::net::SocketAddr;
use std::sync::Arc;
use worker_core::View;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RankLabels {
    /// Not `job`: Prometheus sets that to the name of the scrape configuration.
    training_job: String,
    rank: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct JobLabels {
    training_job: String,
}

/// The daemon's metrics. Cheap to clone; clones share their values.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    connected: Gauge,
    devices: Gauge,
    devices_used: Gauge,
    rank_up: Family<RankLabels, Gauge>,
    rank_generation: Family<RankLabels, Gauge>,
    rank_step: Family<RankLabels, Gauge>,
    rank_starts: Family<JobLabels, Counter>,
    rank_failures: Family<JobLabels, Counter>,
    registry: Arc<Registry>,
}

impl Metrics {
    pub(crate) fn new(devices: u32) -> Self {
        let mut registry = Registry::default();
        let mut metrics = Self {
            connected: Gauge::default(),
            devices: Gauge::default(),
            devices_used: Gauge::default(),
            rank_up: Family::default(),
            rank_generation: Family::default(),
            rank_step: Family::default(),
            rank_starts: Family::default(),
            rank_failures: Family::default(),
            registry: Arc::default(),
        };
        let m = &metrics;
        registry.register(
            "retri_worker_connected",
            "1 while the stream to the coordinator is open",
            m.connected.clone(),
        );
        registry.register(
            "retri_worker_capacity",
            "Number of ranks that this worker can run at once",
            m.devices.clone(),
        );
        registry.register(
            "retri_worker_devices_used",
            "Devices that hold a rank process",
            m.devices_used.clone(),
        );
        registry.register(
            "retri_worker_rank_up",
            "1 while the rank is joining or training, else 0",
            m.rank_up.clone(),
        );
        registry.register(
            "retri_worker_rank_generation",
            "The rank's generation",
            m.rank_generation.clone(),
        );
        registry.register(
            "retri_worker_rank_step",
            "Last step that rank 0 has reported",
            m.rank_step.clone(),
        );
        registry.register(
            "retri_worker_rank_starts",
            "Rank processes started",
            m.rank_starts.clone(),
        );
        registry.register(
            "retri_worker_rank_failures",
            "Rank processes that exited with a failure",
            m.rank_failures.clone(),
        );
        metrics.devices.set(devices.into());
        metrics.registry = Arc::new(registry);
        metrics
    }

    pub(crate) fn rank_started(&self, job: &str) {
        self.rank_starts
            .get_or_create(&JobLabels {
                training_job: job.to_owned(),
            })
            .inc();
    }

    pub(crate) fn rank_failed(&self, job: &str) {
        self.rank_failures
            .get_or_create(&JobLabels {
                training_job: job.to_owned(),
            })
            .inc();
    }

    /// Updates all gauges from the machine's view. Ranks that are no longer in the view are
    /// removed.
    pub(crate) fn update(&self, view: &View<'_>) {
        self.connected.set(view.connected.into());
        let used = view
            .ranks
            .iter()
            .filter(|rank| rank.device.is_some())
            .count();
        self.devices_used
            .set(i64::try_from(used).unwrap_or(i64::MAX));
        self.rank_up.clear();
        self.rank_generation.clear();
        self.rank_step.clear();
        // Ranks are in key order, so a newer generation of the same rank overwrites an older one.
        for rank in &view.ranks {
            let labels = RankLabels {
                training_job: rank.key.job.0.clone(),
                rank: rank.key.rank.0,
            };
            let up = matches!(rank.report.phase, RankPhase::Joining | RankPhase::Training)
                && rank.device.is_some();
            self.rank_up.get_or_create(&labels).set(up.into());
            let generation = i64::try_from(rank.key.generation.0).unwrap_or(i64::MAX);
            self.rank_generation.get_or_create(&labels).set(generation);
            if let Some(last) = rank.report.steps.last() {
                self.rank_step
                    .get_or_create(&labels)
                    .set(i64::try_from(last.step.0).unwrap_or(i64::MAX));
            }
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
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

async fn get_metrics(State(metrics): State<Metrics>) -> impl IntoResponse {
    (
        [(
            CONTENT_TYPE,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        metrics.text(),
    )
}
