//! A TCP relay: an address that can switch from one server to another, like a DNS name or virtual
//! IP in production. It forwards every connection to the current server.

use anyhow::{Context, Result};
use std::io::copy;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Debug)]
pub struct Relay {
    url: String,
    upstream: Arc<Mutex<Upstream>>,
}

#[derive(Debug)]
struct Upstream {
    /// host:port.
    server: String,
    /// Both ends of every connection.
    streams: Vec<TcpStream>,
}

impl Relay {
    /// Forwards to the server with this URL until `switch_to`.
    ///
    /// # Errors
    /// No port is free.
    pub fn start(url: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("a port for the relay")?;
        let address = listener.local_addr()?;
        let upstream = Arc::new(Mutex::new(Upstream {
            server: super::host_and_port(url).to_owned(),
            streams: Vec::new(),
        }));
        let shared = Arc::clone(&upstream);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // If the server is unreachable, the client's connection is closed.
                forward(client, &shared).ok();
            }
        });
        Ok(Self {
            url: format!("http://{address}"),
            upstream,
        })
    }

    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// From now on it forwards to this server; existing connections are closed.
    pub fn switch_to(&self, url: &str) {
        let mut upstream = self.upstream.lock().unwrap_or_else(PoisonError::into_inner);
        upstream.server = super::host_and_port(url).to_owned();
        for stream in upstream.streams.drain(..) {
            // The connection may be closed already.
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

fn forward(client: TcpStream, upstream: &Mutex<Upstream>) -> Result<()> {
    let mut upstream = upstream.lock().unwrap_or_else(PoisonError::into_inner);
    let server = TcpStream::connect(&upstream.server)?;
    let directions = [
        (client.try_clone()?, server.try_clone()?),
        (server.try_clone()?, client.try_clone()?),
    ];
    upstream.streams.extend([client, server]);
    for (mut from, mut to) in directions {
        std::thread::spawn(move || {
            copy(&mut from, &mut to).ok();
            // One end is closed: close the other.
            to.shutdown(Shutdown::Both).ok();
        });
    }
    Ok(())
}
