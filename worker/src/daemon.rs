//! The daemon's loop: one task owns the machine, converts external events to inputs and performs
//! the effects in order. All decisions are made by `worker-core`.

use crate::child::{Children, RankSettings, epoch_ms, rank_program};
use crate::config::Config;
use crate::gpu::Gpus;
use crate::link::{Link, Luggage, Told};
use crate::metrics::{self, Metrics};
use crate::peers::Peers;
use crate::probe::Prober;
use crate::run_dir::RunDir;
use crate::start;
use anyhow::Context;
use proto::id::WorkerId;
use proto::message::Successor;
use proto::spec::DeviceKind;
use sd_notify::NotifyState;
use shell::signals::{StopRequest, StopSignals};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use worker_core::event::{Effect, Event, Input, RankKey};
use worker_core::{Config as MachineConfig, Worker};

/// Capacity of the input queue; senders wait while it is full.
const INPUTS_MAX: usize = 1024;

/// Another daemon of the same name, which started later, has taken this one's place.
#[derive(Debug, thiserror::Error)]
#[error(
    "another daemon named {name} (boot {}{}) started after this one (boot {boot}) and took its \
    place; this one leaves, and its ranks with it. Two nodes must not have one name: set `name`, \
    which is the host name by default",
    by.worker.boot, by.address.as_ref().map_or_else(String::new, |it| format!(", at {it}"))
)]
pub(crate) struct Displaced {
    name: String,
    boot: u64,
    by: Successor,
}

/// Runs until SIGTERM, SIGINT or SIGHUP, then stops every rank and returns. Obeys these signals
/// also while it starts.
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    let mut signals = StopSignals::catch().context("cannot catch signals")?;
    let (sender, inputs) = mpsc::channel(INPUTS_MAX);
    let started = tokio::select! {
        started = start(config, sender) => started?,
        StopRequest { signal, .. } = signals.next() => {
            notify_systemd(&[NotifyState::Stopping]);
            tracing::info!(%signal, "worker is stopping before it was ready");
            return Ok(());
        }
    };
    started.serve(inputs, signals).await
}

/// Prepares everything, then announces the daemon.
async fn start(config: Config, sender: mpsc::Sender<Input>) -> anyhow::Result<Daemon> {
    let boot = epoch_ms();
    let program = rank_program()?;
    anyhow::ensure!(
        program.is_file(),
        "{} is missing; it is built with this program and must be in the same folder",
        program.display()
    );
    let run_dir = start::folders(config.run_dir.as_deref(), &config.cache_dir).await?;
    let id = WorkerId {
        name: config.name.clone(),
        boot,
    };
    let gpus = if config.device == DeviceKind::Cuda || config.nvml.is_some() {
        Gpus::start(config.nvml.as_deref())
    } else {
        Gpus::default()
    };
    let metrics = Metrics::new(config.devices, gpus.clone());
    let listen = config.metrics_listen;
    let address = metrics::serve(listen, metrics.clone())
        .await
        .with_context(|| {
            format!(
                "cannot serve metrics on {listen} (`metrics_listen`); is another daemon running?"
            )
        })?;
    let luggage = Luggage {
        gpus,
        ..Luggage::default()
    };
    let link = Link::start(&config.coordinator, sender.clone(), luggage.clone())
        .with_context(|| format!("`coordinator` {} is not usable", config.coordinator))?;
    let peers = Peers::start(
        id.clone(),
        &config.address,
        config.peer_port,
        sender.clone(),
    );
    let (peers, peer_address) = peers.await?;
    announce(&id, &address.to_string());
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
    Ok(Daemon {
        worker: Worker::new(machine, 0),
        start: Instant::now(),
        children: Children::new(settings, sender, luggage.logs),
        prober: Prober::new(luggage.answers),
        link,
        peers,
        metrics,
        displaced: None,
        _run_dir: run_dir,
    })
}

/// Prints the line on standard output that scripts wait for, and notifies systemd of readiness.
fn announce(id: &WorkerId, metrics: &str) {
    shell::log::announce(format_args!(
        "worker ready name={} boot={} metrics=http://{metrics}",
        id.name, id.boot
    ));
    notify_systemd(&[
        NotifyState::Ready,
        NotifyState::Status("waiting for the coordinator"),
    ]);
}

/// Errors are ignored, because there may be no systemd.
fn notify_systemd(states: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(states);
}

struct Daemon {
    worker: Worker,
    start: Instant,
    children: Children,
    prober: Prober,
    link: Link,
    peers: Peers,
    metrics: Metrics,
    /// Who took this daemon's place.
    displaced: Option<Displaced>,
    /// Removed last: ranks that end are told so through a socket in it.
    _run_dir: RunDir,
}

impl Daemon {
    async fn serve(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        mut signals: StopSignals,
    ) -> anyhow::Result<()> {
        let mut status = String::new();
        loop {
            let input = tokio::select! {
                input = inputs.recv() => input.context("all senders of inputs are closed")?,
                () = sleep_until(self.deadline()) => Input::Deadline,
                told = self.link.told() => match told {
                    Told::Unusable(unusable) => return Err(unusable.into()),
                    Told::Asked(probe) => {
                        self.prober.ask(&probe, self.children.askable());
                        continue;
                    }
                },
                request = signals.next() => {
                    log_stop(request);
                    Input::Shutdown
                }
            };
            if self.handle(input) {
                notify_systemd(&[NotifyState::Stopping]);
                if let Some(displaced) = self.displaced {
                    return Err(displaced.into());
                }
                tracing::info!("all ranks have exited; shutting down");
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
            Effect::Emit(Event::Displaced { worker, by }) => {
                self.displaced = Some(Displaced {
                    name: worker.name,
                    boot: worker.boot,
                    by,
                });
            }
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
            // It becomes the error with which the daemon ends.
            Event::Displaced { .. } => {}
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

fn log_stop(StopRequest { signal, again }: StopRequest) {
    if again {
        tracing::warn!(%signal, "asked to stop again; stopping all ranks at once");
    } else {
        tracing::info!(%signal, "stopping; jobs finish their step and hand over");
    }
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
