//! `coordinator serve`: opens the store, restores the state machine, listens, and reports readiness
//! on stdout and to systemd. It owns the order of startup and shutdown, nothing else. Called by
//! `main`, and by tests with port 0.

use crate::admission::EndedQuotas;
use crate::budget::Budgets;
use crate::calls::Turns;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::commit::CheckpointStore;
use crate::config::Config;
use crate::connections::{
    Gate, MetricsListener, RESERVED_FILES, STREAMS_PER_CONNECTION, UNATTACHED, raise_file_limit,
};
use crate::daemon::Daemon;
use crate::jobs::Jobs;
use crate::journal::Journal;
use crate::metrics;
use crate::notify::notifier;
use crate::opening;
use crate::pressure::Pressures;
use crate::probes::Probes;
use crate::retention;
use crate::rpc::ControlService;
use crate::session::FleetService;
use crate::store::{StateError, StateStore};
use crate::text::now_ms;
use crate::web;
use coordinator_core::event::Durable;
use coordinator_core::{Coordinator, Deadlines};
use proto::id::JobId;
use proto::limits::{REPLY_BYTES, REPORT_BYTES, REQUEST_BYTES};
use proto::pb;
use proto::pb::control_server::ControlServer;
use proto::pb::fleet_server::FleetServer;
use proto::version;
use sd_notify::NotifyState;
use shell::signals::{StopRequest, StopSignal, StopSignals};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;

/// Bytes of the headers of a request.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// A stop that takes longer than this is abandoned: the store does not answer. Nothing is lost,
/// because nothing is confirmed to anyone before it is saved.
const STOP_WITHIN: Duration = Duration::from_secs(8);
/// systemd is asked for this much more time with every line that says what the start waits for.
const START_EXTENSION: Duration = Duration::from_secs(90);
/// Ended jobs that stay in memory.
const ENDED_JOBS_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error(
        "cannot listen on {address} (`{field}`): {source}{}",
        listen_advice(source)
    )]
    Listen {
        field: &'static str,
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Store(#[from] CheckpointError),
    #[error("the {what} server ended: {reason}")]
    Server { what: &'static str, reason: String },
    #[error("the coordinator's loop panicked: {0}")]
    Loop(#[from] JoinError),
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
    #[error(
        "stopped without closing the store {store}, which did not complete within {} s: {cause}; \
        whatever was confirmed to anyone is saved", STOP_WITHIN.as_secs()
    )]
    StopSlow { store: String, cause: String },
    #[error("a second {0} while stopping: left without closing the store")]
    StopNow(StopSignal),
}

fn listen_advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => "; is another coordinator running there?",
        std::io::ErrorKind::AddrNotAvailable => "; it must be an address of this machine",
        std::io::ErrorKind::PermissionDenied => "; ports below 1024 need rights, use a higher one",
        _ => "",
    }
}

/// A running coordinator.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) rpc: SocketAddr,
    pub(crate) metrics: SocketAddr,
    pub(crate) web: SocketAddr,
    daemon: JoinHandle<Result<(), StateError>>,
    servers: JoinSet<ServeError>,
    stop: watch::Sender<bool>,
    store: StateStore,
    /// To use up an address's time.
    #[cfg(test)]
    pub(crate) budgets: Budgets,
}

/// Serves until SIGTERM, SIGINT or SIGHUP, which it obeys at any moment.
pub(crate) async fn serve(config: Config) -> Result<(), ServeError> {
    let mut signals = StopSignals::catch().map_err(ServeError::Signals)?;
    let store = config.store.clone();
    // A task of its own: a call that blocks, for instance on a file server, does not keep this one
    // from the signals.
    let starting = tokio::spawn(start(config));
    let mut running = tokio::select! {
        started = starting => started??,
        StopRequest { signal, .. } = signals.next() => {
            notify(&[NotifyState::Stopping]);
            tracing::info!(%signal, "coordinator is stopping before it was ready");
            return Ok(());
        }
    };
    let (rpc, metrics, web) = (running.rpc, running.metrics, running.web);
    shell::log::announce(format_args!(
        "coordinator ready rpc=http://{rpc} metrics=http://{metrics} web=http://{web} store={store}"
    ));
    notify(&[NotifyState::Ready, NotifyState::Status("ready")]);
    tracing::info!(%rpc, %metrics, %web, %store, "coordinator ready");
    let signal = tokio::select! {
        error = running.failed() => return Err(error),
        StopRequest { signal, .. } = signals.next() => signal,
    };
    notify(&[NotifyState::Stopping]);
    tracing::info!(%signal, "coordinator is stopping");
    let again = async {
        loop {
            let request = signals.next().await;
            if request.again {
                return request.signal;
            }
        }
    };
    tokio::select! {
        stopped = tokio::time::timeout(STOP_WITHIN, running.stop()) => match stopped {
            Ok(stopped) => stopped,
            Err(_) => {
                let cause = opening::cause(&store).await;
                Err(ServeError::StopSlow { store, cause })
            }
        },
        signal = again => Err(ServeError::StopNow(signal)),
    }
}

/// Listens on the configured addresses; port 0 takes a free one.
pub(crate) async fn start(config: Config) -> Result<Running, ServeError> {
    // Listen before opening the store: a second coordinator on this machine must fail here instead
    // of fencing the first.
    let rpc_listener = listen("listen", config.listen).await?;
    let metrics_listener = listen("metrics_listen", config.metrics_listen).await?;
    let web_listener = listen("web_listen", config.web_listen).await?;
    let files = file_limit(config.max_workers);
    let deadlines = Deadlines::new(config.detect_within_ms);
    let restore = restore(&config.store, deadlines);
    let Restored {
        store,
        durable,
        last_steps,
        half_deleted,
    } = opening::when_usable(&config.store, &say_waiting, restore).await?;
    let archive = CheckpointStore::open(&config.store)?;
    tracing::info!(jobs = durable.jobs.len(), "state restored");
    let machine = Coordinator::restore(of_machine(&config), durable, now_ms());
    let journal = Journal::start(store.clone());
    let (mut daemon, handle) = Daemon::new(
        machine,
        store.clone(),
        config.store.clone(),
        journal.clone(),
        archive.clone(),
        last_steps,
        config.max_workers,
    );
    daemon.prepare(half_deleted, config.drain_sick);
    let dispatcher = notifier(&config.notify).map(|(notifier, dispatcher)| {
        daemon.tell(notifier);
        dispatcher.run(handle.clone())
    });
    let (stop, stopped) = watch::channel(false);
    let jobs = Jobs::new(
        handle.clone(),
        journal,
        store.clone(),
        archive,
        config.store.clone(),
    );
    let rpc_address = rpc_listener.1;
    let metrics = metrics_listener.1;
    let web_address = web_listener.1;
    let pressures = Pressures::default();
    let budgets = Budgets::new(pressures.clone());
    let mut servers = JoinSet::new();
    if let Some(dispatcher) = dispatcher {
        servers.spawn(dispatcher);
    }
    servers.spawn(rpc(
        rpc_listener.0,
        Gate::rpc(files, &budgets, &pressures),
        jobs.clone(),
        config.ended,
        Duration::from_millis(config.detect_within_ms),
        (budgets.clone(), pressures.clone()),
    ));
    let gate = Gate::metrics(&budgets, &pressures);
    let metrics_listener = MetricsListener(metrics_listener.0, gate);
    servers.spawn(async move {
        server_ended(
            "metrics",
            axum::serve(metrics_listener, metrics::router(handle)).await,
        )
    });
    let gate = Gate::pages(&budgets, &pressures);
    let pages = pages(web_listener, jobs.clone(), budgets.clone(), gate);
    servers.spawn(pages);
    servers.spawn(retention::run(jobs, config.retention));
    let daemon = tokio::spawn(daemon.run(stopped));
    Ok(Running {
        rpc: rpc_address,
        metrics,
        web: web_address,
        daemon,
        servers,
        stop,
        store,
        #[cfg(test)]
        budgets,
    })
}

/// The settings of the state machine.
fn of_machine(config: &Config) -> coordinator_core::Config {
    coordinator_core::Config {
        store_url: config.store.clone(),
        detect_within_ms: config.detect_within_ms,
        quotas: config.quotas.clone(),
        waiting: config.waiting.clone(),
        ended_jobs_max: ENDED_JOBS_MAX,
    }
}

/// What the store has.
struct Restored {
    store: StateStore,
    durable: Durable,
    last_steps: BTreeMap<JobId, pb::StepReport>,
    half_deleted: Vec<JobId>,
}

async fn restore(url: &str, deadlines: Deadlines) -> Result<Restored, StateError> {
    let save_within = Duration::from_millis(deadlines.save_ms());
    let store = StateStore::open(url, save_within).await?;
    let durable = store.load().await?;
    Ok(Restored {
        last_steps: store.last_steps(durable.jobs.keys()).await?,
        half_deleted: store.half_deleted().await?,
        durable,
        store,
    })
}

impl Running {
    /// Waits until the loop or a server ends unexpectedly.
    async fn failed(&mut self) -> ServeError {
        tokio::select! {
            ended = &mut self.daemon => match ended {
                Ok(Err(error)) => error.into(),
                Ok(Ok(())) => ServeError::Server {
                    what: "daemon",
                    reason: "all its handles were dropped".into(),
                },
                Err(error) => error.into(),
            },
            Some(ended) = self.servers.join_next() => match ended {
                Ok(error) => error,
                Err(error) => error.into(),
            },
        }
    }

    /// Stops the servers, lets the loop finish its current input, and closes the store.
    pub(crate) async fn stop(mut self) -> Result<(), ServeError> {
        self.servers.shutdown().await;
        // Fails if the loop has already ended.
        self.stop.send(true).ok();
        self.daemon.await??;
        self.store.close().await?;
        Ok(())
    }
}

/// Serves gRPC until that fails.
async fn rpc(
    listener: TcpListener,
    gate: Gate,
    jobs: Jobs,
    ended: EndedQuotas,
    keepalive: Duration,
    (budgets, pressures): (Budgets, Pressures),
) -> ServeError {
    let probes = Probes::default();
    let fleet = FleetService::new(
        jobs.handle.clone(),
        keepalive,
        &budgets,
        &pressures,
        &probes,
    );
    let fleet = FleetServer::new(fleet).max_decoding_message_size(REPORT_BYTES);
    let control = ControlService::new(jobs, ended, &pressures, &probes);
    let control = ControlServer::new(control)
        .max_decoding_message_size(REQUEST_BYTES)
        .max_encoding_message_size(REPLY_BYTES);
    let control = InterceptedService::new(control, version::check);
    let fleet = InterceptedService::new(fleet, version::check);
    let served = Server::builder()
        .http2_keepalive_interval(Some(keepalive))
        .http2_keepalive_timeout(Some(keepalive))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .add_service(Turns::of(control, &budgets, &pressures))
        .add_service(Turns::counted(fleet, &budgets, &pressures))
        .serve_with_incoming(gate.incoming(listener));
    server_ended("rpc", served.await)
}

/// Serves the pages for people until that fails.
async fn pages(
    (listener, address): (TcpListener, SocketAddr),
    jobs: Jobs,
    budgets: Budgets,
    gate: Gate,
) -> ServeError {
    let is_local = address.ip().is_loopback();
    let served = web::serve(MetricsListener(listener, gate), jobs, budgets, is_local);
    server_ended("web", served.await)
}

/// The limit of open files, raised as far as possible.
fn file_limit(max_workers: u32) -> u64 {
    let files = raise_file_limit();
    let needed = u64::from(max_workers) + UNATTACHED as u64 + RESERVED_FILES;
    if files < needed {
        tracing::warn!(
            files,
            needed,
            max_workers,
            "the limit of open files is too low for `max_workers`; connections beyond it are \
             refused; set LimitNOFILE in the unit"
        );
    }
    files
}

async fn listen(
    field: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), ServeError> {
    let failed = |source| ServeError::Listen {
        field,
        address,
        source,
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

fn server_ended<E: std::error::Error>(what: &'static str, result: Result<(), E>) -> ServeError {
    let reason = result.map_or_else(|error| error.to_string(), |()| "without an error".into());
    ServeError::Server { what, reason }
}

/// Says what the start waits for: in the log, and to systemd, which shows it and waits longer.
fn say_waiting(text: &str) {
    tracing::warn!("{text}");
    let extension = u32::try_from(START_EXTENSION.as_micros()).unwrap_or(u32::MAX);
    notify(&[
        NotifyState::Status(text),
        NotifyState::ExtendTimeoutUsec(extension),
    ]);
}

/// Notifies systemd, if it started this process.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}
