//! An address that can move from one server to another, as a name or a virtual address does in
//! production: it hands every connection on to whoever stands behind it then. It reads nothing of
//! what it carries.

use anyhow::{Context, Result};
use std::io::copy;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Debug)]
pub struct Relay {
    url: String,
    behind: Arc<Mutex<Behind>>,
}

#[derive(Debug)]
struct Behind {
    /// host:port.
    server: String,
    /// Both ends of every connection there ever was.
    streams: Vec<TcpStream>,
}

impl Relay {
    /// Leads to the server with this URL, until told otherwise.
    ///
    /// # Errors
    /// No port is free.
    pub fn start(url: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("a port for the relay")?;
        let address = listener.local_addr()?;
        let behind = Arc::new(Mutex::new(Behind {
            server: super::host_and_port(url).to_owned(),
            streams: Vec::new(),
        }));
        let shared = Arc::clone(&behind);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // Nobody there is what the client finds too: its connection is closed.
                carry(client, &shared).ok();
            }
        });
        Ok(Self {
            url: format!("http://{address}"),
            behind,
        })
    }

    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// From now on it leads to this server; connections that stand are cut.
    pub fn lead_to(&self, url: &str) {
        let mut behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        behind.server = super::host_and_port(url).to_owned();
        for stream in behind.streams.drain(..) {
            // It may have ended long ago.
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

fn carry(client: TcpStream, behind: &Mutex<Behind>) -> Result<()> {
    let mut behind = behind.lock().unwrap_or_else(PoisonError::into_inner);
    let server = TcpStream::connect(&behind.server)?;
    let ways = [
        (client.try_clone()?, server.try_clone()?),
        (server.try_clone()?, client.try_clone()?),
    ];
    behind.streams.extend([client, server]);
    for (mut from, mut to) in ways {
        std::thread::spawn(move || {
            copy(&mut from, &mut to).ok();
            // One end is gone: so is the other.
            to.shutdown(Shutdown::Both).ok();
        });
    }
    Ok(())
}
