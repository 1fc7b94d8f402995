//! The daemon's loop: one task owns the machine, converts external events to inputs and performs
//! the effects in order. All decisions are made by `worker-core`.

use crate::child::{Children, RankSettings, epoch_ms, rank_program};
use crate::config::Config;
use crate::link::Link;
use crate::logs::Logs;
use crate::metrics::{self, Metrics};
use crate::peers::Peers;
use crate::run_dir::RunDir;
use anyhow::Context;
use proto::id::WorkerId;
use sd_notify::NotifyState;
use std::io::Write;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use worker_core::event::{Effect, Event, Input, RankKey};
use worker_core::{Config as MachineConfig, Worker};

/// Capacity of the input queue; senders wait while it is full.
const INPUTS_MAX: usize = 1024;

/// Runs until SIGTERM or SIGINT, then stops every rank and returns.
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    let boot = epoch_ms();
    let program = rank_program()?;
    anyhow::ensure!(
        program.is_file(),
        "{} is missing; it is built with this program and must be in the same folder",
        program.display()
    );
    let run_dir = RunDir::prepare(config.run_dir.as_deref())?;
    std::fs::create_dir_all(&config.cache_dir)
        .with_context(|| format!("cannot create `cache_dir` {}", config.cache_dir.display()))?;
    let id = WorkerId {
        name: config.name.clone(),
        boot,
    };
    let metrics = Metrics::new(config.devices);
    let listen = config.metrics_listen;
    let address = metrics::serve(listen, metrics.clone())
        .await
        .with_context(|| {
            format!(
                "cannot serve metrics on {listen} (`metrics_listen`); is another daemon running?"
            )
        })?;
    let (sender, inputs) = mpsc::channel(INPUTS_MAX);
    let logs = Logs::default();
    let link = Link::start(&config.coordinator, sender.clone(), logs.clone())
        .with_context(|| format!("`coordinator` {} is not usable", config.coordinator))?;
    let peers = Peers::start(
        id.clone(),
        &config.address,
        config.peer_port,
        sender.clone(),
    );
    let (peers, peer_address) = peers.await?;
    // Installed before the daemon announces itself, because a signal may follow immediately.
    let signals = Signals {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
    };
    announce(&id, &address.to_string())?;
    let settings = RankSettings {
        program,
        run_dir: run_dir.path().to_owned(),
        cache_dir: config.cache_dir.clone(),
        address: config.address.clone(),
    };
    let machine = MachineConfig {
        worker: id,
        device: config.device,
        devices: config.devices,
        peer_address: Some(peer_address),
    };
    let daemon = Daemon {
        worker: Worker::new(machine, 0),
        start: Instant::now(),
        children: Children::new(settings, sender, logs),
        link,
        peers,
        metrics,
    };
    let outcome = daemon.serve(inputs, signals).await;
    // Only now: ranks that end are told so through a socket in it.
    drop(run_dir);
    outcome
}

/// Prints the first line on standard output, for scripts, and notifies systemd of readiness.
fn announce(id: &WorkerId, metrics: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "worker ready name={} boot={} metrics=http://{metrics}",
        id.name, id.boot
    )?;
    out.flush()?;
    notify_systemd(&[
        NotifyState::Ready,
        NotifyState::Status("waiting for the coordinator"),
    ]);
    Ok(())
}

/// Errors are ignored, because there may be no systemd.
fn notify_systemd(states: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(states);
}

/// The signals that request a shutdown.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

struct Daemon {
    worker: Worker,
    start: Instant,
    children: Children,
    link: Link,
    peers: Peers,
    metrics: Metrics,
}

impl Daemon {
    async fn serve(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        mut signals: Signals,
    ) -> anyhow::Result<()> {
        let mut status = String::new();
        loop {
            let input = tokio::select! {
                input = inputs.recv() => input.context("all senders of inputs are closed")?,
                () = sleep_until(self.deadline()) => Input::Deadline,
                _ = signals.terminate.recv() => Input::Shutdown,
                _ = signals.interrupt.recv() => Input::Shutdown,
            };
            if self.handle(input) {
                tracing::info!("all ranks have exited; shutting down");
                notify_systemd(&[NotifyState::Stopping]);
                return Ok(());
            }
            self.metrics.update(&self.worker.view());
            let new_status = self.status();
            if new_status != status {
                notify_systemd(&[NotifyState::Status(&new_status)]);
                status = new_status;
            }
        }
    }

    /// Handles one input. Returns whether the daemon is done.
    fn handle(&mut self, input: Input) -> bool {
        if let Input::RankExited { key, .. } = &input {
            self.children.forget(key);
        }
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let effects = self.worker.handle(now, input);
        let mut done = false;
        for effect in effects {
            done |= self.perform(effect);
        }
        done
    }

    fn perform(&mut self, effect: Effect) -> bool {
        match effect {
            Effect::Spawn {
                key,
                device,
                assignment,
            } => self.children.spawn(key, device, assignment),
            Effect::Update {
                key,
                rank,
                device,
                assignment,
            } => self.children.update(&key, rank, device, assignment),
            Effect::Stop { key } => self.children.stop(&key),
            Effect::Kill { key } => self.children.kill(&key),
            Effect::Ask {
                peers,
                detect_within_ms,
            } => self
                .peers
                .set(peers, Duration::from_millis(detect_within_ms)),
            Effect::Report(report) => self.link.report(report),
            Effect::Emit(event) => self.log(&event),
            Effect::Exit => return true,
        }
        false
    }

    fn log(&self, event: &Event) {
        match event {
            Event::RankStarted { key } => {
                let RankKey {
                    job,
                    generation,
                    rank,
                } = key;
                self.metrics.rank_started(&job.0);
                tracing::info!(%job, %generation, %rank, "rank started");
            }
            Event::RankMoved { from, to } => {
                let RankKey {
                    job,
                    generation,
                    rank,
                } = to;
                let before = format!("rank {} of generation {}", from.rank, from.generation);
                tracing::info!(
                    %job, %generation, %rank, before, "rank continues in the next generation"
                );
            }
            Event::RankSilent { key, silent_ms } => {
                let RankKey {
                    job,
                    generation,
                    rank,
                } = key;
                tracing::warn!(
                    %job, %generation, %rank, silent_ms, "rank missed its deadline; killing it"
                );
            }
            Event::RankGone {
                key,
                success,
                outcome,
            } => {
                let RankKey {
                    job,
                    generation,
                    rank,
                } = key;
                if !success {
                    self.metrics.rank_failed(&job.0);
                }
                tracing::info!(%job, %generation, %rank, outcome, "rank exited");
            }
            Event::Ignored { worker, what } => {
                tracing::warn!(%worker, what, "message ignored");
            }
        }
    }

    fn deadline(&self) -> Option<tokio::time::Instant> {
        let at = self.worker.next_deadline()?;
        Some((self.start + Duration::from_millis(at)).into())
    }

    /// The status text for `systemctl status`.
    fn status(&self) -> String {
        let view = self.worker.view();
        let link = if view.connected {
            "attached"
        } else {
            "no coordinator"
        };
        let ranks = view
            .ranks
            .iter()
            .filter(|rank| rank.device.is_some())
            .count();
        format!("{link}, {ranks} ranks running")
    }
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
