//! Pings other workers and answers their pings, over TCP at the address that their ranks use, so
//! that an unreachable daemon means unreachable ranks. Makes no decisions: every result is an input
//! for the machine. Started by [`crate::daemon`].

use anyhow::Context;
use proto::id::WorkerId;
use proto::message::Peer;
use proto::pb;
use proto::pb::peers_client::PeersClient;
use proto::pb::peers_server::{Peers as PeersService, PeersServer};
use proto::text::chain;
use proto::version::{self, Stamp};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};
use worker_core::event::Input;

/// Number of pings of a peer per `detect_within`.
const PINGS_PER_DETECT_WITHIN: u32 = 3;

/// The peers that are pinged, each by its own task.
#[derive(Debug)]
pub(crate) struct Peers {
    inputs: mpsc::Sender<Input>,
    detect_within: Duration,
    tasks: BTreeMap<Peer, AbortHandle>,
}

impl Peers {
    /// Starts to answer pings on this port of `host` (0: a free port). Pings no peers yet. Also
    /// returns the address at which it answers.
    pub(crate) async fn start(
        own: WorkerId,
        host: &str,
        port: u16,
        inputs: mpsc::Sender<Input>,
    ) -> anyhow::Result<(Self, String)> {
        let listener = TcpListener::bind((host, port)).await.with_context(|| {
            format!(
                "cannot listen on {host}:{port}: `address` must be an address of this machine, \
                `peer_port` a free port or 0"
            )
        })?;
        let address = format!("{host}:{}", listener.local_addr()?.port());
        let service = PeersServer::with_interceptor(PingService(own), version::check);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        tokio::spawn(
            Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        let peers = Self {
            inputs,
            detect_within: Duration::ZERO,
            tasks: BTreeMap::new(),
        };
        Ok((peers, address))
    }

    /// Sets the peers that are pinged from now on.
    pub(crate) fn set(&mut self, peers: Vec<Peer>, detect_within: Duration) {
        if self.detect_within != detect_within {
            self.detect_within = detect_within;
            std::mem::take(&mut self.tasks)
                .values()
                .for_each(AbortHandle::abort);
        }
        self.tasks.retain(|peer, task| {
            let retained = peers.contains(peer);
            if !retained {
                task.abort();
            }
            retained
        });
        for peer in peers {
            let inputs = self.inputs.clone();
            self.tasks.entry(peer).or_insert_with_key(|peer| {
                tokio::spawn(ping_repeatedly(peer.clone(), detect_within, inputs)).abort_handle()
            });
        }
    }
}

struct PingService(WorkerId);

#[tonic::async_trait]
impl PeersService for PingService {
    async fn ping(&self, _: Request<pb::PingRequest>) -> Result<Response<pb::PingReply>, Status> {
        let worker = Some((&self.0).into());
        Ok(Response::new(pb::PingReply { worker }))
    }
}

type Client = PeersClient<InterceptedService<Channel, Stamp>>;

/// Pings a peer until the daemon ends or the task is aborted.
async fn ping_repeatedly(peer: Peer, detect_within: Duration, inputs: mpsc::Sender<Input>) {
    let mut ticks = tokio::time::interval(detect_within / PINGS_PER_DETECT_WITHIN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut client = None;
    loop {
        ticks.tick().await;
        let result = tokio::time::timeout(detect_within, ping(&mut client, &peer)).await;
        let result = result.unwrap_or_else(|_| {
            Err(format!(
                "no answer within {} s",
                detect_within.as_secs_f64()
            ))
        });
        let peer = peer.worker.clone();
        let input = match result {
            Ok(()) => Input::PeerAnswered { peer },
            Err(error) => {
                // An interrupted connection may take long to recover; a new one does not.
                client = None;
                Input::PeerFailed { peer, error }
            }
        };
        if inputs.send(input).await.is_err() {
            return;
        }
    }
}

async fn ping(client: &mut Option<Client>, peer: &Peer) -> Result<(), String> {
    if client.is_none() {
        let endpoint = Endpoint::from_shared(format!("http://{}", peer.address))
            .map_err(|error| chain(&error))?;
        let channel = endpoint.connect().await.map_err(|error| chain(&error))?;
        let stamp: Stamp = version::stamp;
        *client = Some(PeersClient::with_interceptor(channel, stamp));
    }
    let Some(client) = client else { return Ok(()) };
    let reply = client
        .ping(pb::PingRequest {})
        .await
        .map_err(|status| status.message().to_owned())?;
    let worker = reply.into_inner().worker.map(WorkerId::try_from);
    match worker {
        Some(Ok(worker)) if worker == peer.worker => Ok(()),
        Some(Ok(worker)) => Err(format!(
            "{worker} answered instead; check the setting `address` of {}",
            peer.worker.name
        )),
        Some(Err(_)) | None => Err("the answer contains no worker id".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn id(name: &str) -> WorkerId {
        WorkerId {
            name: name.into(),
            boot: 5,
        }
    }

    #[tokio::test]
    async fn peers_are_identified_by_their_answers() {
        let (sender, mut inputs) = mpsc::channel(16);
        let (mut first, _) = Peers::start(id("w1"), "127.0.0.1", 0, sender.clone())
            .await
            .unwrap();
        let (_second, second_address) = Peers::start(id("w2"), "127.0.0.1", 0, sender)
            .await
            .unwrap();
        let mut ping = async |name: &str, address: &str| {
            let peer = Peer {
                worker: id(name),
                address: address.to_owned(),
            };
            first.set(vec![peer], Duration::from_secs(30));
            inputs.recv().await.unwrap()
        };
        assert_eq!(
            ping("w2", &second_address).await,
            Input::PeerAnswered { peer: id("w2") }
        );
        let error = format!(
            "{} answered instead; check the setting `address` of w3",
            id("w2")
        );
        let peer = id("w3");
        assert_eq!(
            ping("w3", &second_address).await,
            Input::PeerFailed { peer, error }
        );
        // A port that was free a moment ago.
        let unused = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        match ping("w4", &unused.to_string()).await {
            Input::PeerFailed { peer, error } => {
                assert_eq!(peer, id("w4"));
                assert!(error.contains("refused"), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn an_address_that_is_not_of_this_machine_is_named() {
        let (sender, _events) = mpsc::channel(1);
        let error = Peers::start(id("w1"), "203.0.113.1", 0, sender)
            .await
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("`address` must be an address of this machine"),
            "{error}"
        );
    }
}
