//! Asks other workers whether they are there, and answers when they ask: over TCP, at the address
//! on which their ranks meet, so that what does not get through here does not get through between
//! ranks. It decides nothing: every outcome is an event for the machine. Started by
//! [`crate::daemon`].

use anyhow::Context;
use proto::id::WorkerId;
use proto::message::Peer;
use proto::pb;
use proto::pb::peers_client::PeersClient;
use proto::pb::peers_server::{Peers as Answers, PeersServer};
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

/// Times that a peer is asked in each `detect_within`.
const TIMES: u32 = 3;

/// Those that are asked, each by a task.
#[derive(Debug)]
pub(crate) struct Peers {
    events: mpsc::Sender<Input>,
    detect_within: Duration,
    asked: BTreeMap<Peer, AbortHandle>,
}

impl Peers {
    /// Answers others on this port of `host` (0: a free one), and asks nobody yet. Returns where it
    /// answers, too.
    pub(crate) async fn start(
        own: WorkerId,
        host: &str,
        port: u16,
        events: mpsc::Sender<Input>,
    ) -> anyhow::Result<(Self, String)> {
        let listener = TcpListener::bind((host, port)).await.with_context(|| {
            format!(
                "cannot listen on {host}:{port}: `address` must be an address of this machine, \
                `peer_port` a free port or 0"
            )
        })?;
        let address = format!("{host}:{}", listener.local_addr()?.port());
        let answers = PeersServer::with_interceptor(Here(own), version::check);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        tokio::spawn(
            Server::builder()
                .add_service(answers)
                .serve_with_incoming(incoming),
        );
        let peers = Self {
            events,
            detect_within: Duration::ZERO,
            asked: BTreeMap::new(),
        };
        Ok((peers, address))
    }

    /// From now on these are asked and no others.
    pub(crate) fn ask(&mut self, peers: Vec<Peer>, detect_within: Duration) {
        if self.detect_within != detect_within {
            self.detect_within = detect_within;
            std::mem::take(&mut self.asked)
                .values()
                .for_each(AbortHandle::abort);
        }
        self.asked.retain(|peer, task| {
            let stays = peers.contains(peer);
            if !stays {
                task.abort();
            }
            stays
        });
        for peer in peers {
            let events = self.events.clone();
            self.asked.entry(peer).or_insert_with_key(|peer| {
                tokio::spawn(keep_asking(peer.clone(), detect_within, events)).abort_handle()
            });
        }
    }
}

struct Here(WorkerId);

#[tonic::async_trait]
impl Answers for Here {
    async fn ping(&self, _: Request<pb::PingRequest>) -> Result<Response<pb::PingReply>, Status> {
        let worker = Some((&self.0).into());
        Ok(Response::new(pb::PingReply { worker }))
    }
}

type Client = PeersClient<InterceptedService<Channel, Stamp>>;

/// Ends with the daemon, or when the peer is to be asked no more.
async fn keep_asking(peer: Peer, detect_within: Duration, events: mpsc::Sender<Input>) {
    let mut ticks = tokio::time::interval(detect_within / TIMES);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut client = None;
    loop {
        ticks.tick().await;
        let answer = tokio::time::timeout(detect_within, ask(&mut client, &peer)).await;
        let answer = answer.unwrap_or_else(|_| {
            Err(format!(
                "no answer within {} s",
                detect_within.as_secs_f64()
            ))
        });
        let peer = peer.worker.clone();
        let event = match answer {
            Ok(()) => Input::PeerAnswered { peer },
            Err(error) => {
                // A connection that was cut may be long in finding out that it works again; a new
                // one is not.
                client = None;
                Input::PeerFailed { peer, error }
            }
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

async fn ask(client: &mut Option<Client>, peer: &Peer) -> Result<(), String> {
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
            "{worker} answers there: is `address` of {} its own?",
            peer.worker.name
        )),
        Some(Err(_)) | None => Err("who answers there does not say its name".to_owned()),
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
    async fn peers_are_told_apart_by_what_they_answer() {
        let (sender, mut events) = mpsc::channel(16);
        let (mut first, _) = Peers::start(id("w1"), "127.0.0.1", 0, sender.clone())
            .await
            .unwrap();
        let (_second, there) = Peers::start(id("w2"), "127.0.0.1", 0, sender)
            .await
            .unwrap();
        let mut asked = async |name: &str, address: &str| {
            let peer = Peer {
                worker: id(name),
                address: address.to_owned(),
            };
            first.ask(vec![peer], Duration::from_secs(30));
            events.recv().await.unwrap()
        };
        assert_eq!(
            asked("w2", &there).await,
            Input::PeerAnswered { peer: id("w2") }
        );
        let error = format!("{} answers there: is `address` of w3 its own?", id("w2"));
        let peer = id("w3");
        assert_eq!(asked("w3", &there).await, Input::PeerFailed { peer, error });
        // A port that was free a moment ago.
        let nobody = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        match asked("w4", &nobody.to_string()).await {
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
