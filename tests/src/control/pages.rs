//! The coordinator's pages under the load: how long each takes, how large its own files are, and
//! what many open pages cost the reports of workers.

use super::workers::rack;
use anyhow::{Context, Result, bail, ensure};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// Far longer than a page may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// People who look, of one address each.
const PEOPLE: u32 = 7_000;

/// The address of somebody who looks, apart from those of workers.
pub(super) fn person(number: u32) -> Ipv4Addr {
    rack(PEOPLE + number)
}

/// A GET of `url`, from an address of this machine.
async fn request(url: &str, from: Ipv4Addr) -> Result<TcpStream> {
    let rest = url.strip_prefix("http://").context("no http URL")?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from.into(), 0))?;
    let to: SocketAddr = host.parse()?;
    let mut stream = socket.connect(to).await.context("connecting to a page")?;
    let head = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    Ok(stream)
}

/// The body of a page, and how long it took.
pub(super) async fn get(url: &str, from: Ipv4Addr) -> Result<(Duration, String)> {
    let begun = Instant::now();
    let mut stream = request(url, from).await?;
    let mut answer = Vec::new();
    timeout(ANSWER_WITHIN, stream.read_to_end(&mut answer))
        .await
        .with_context(|| format!("{url} has no answer"))??;
    let took = begun.elapsed();
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.contains(" 200 "), "{url} answered {status}: {body}");
    Ok((took, body.to_owned()))
}

/// How long a page took, sorted, each time for another person from the given one on, and how many
/// bytes it has.
pub(super) async fn times(url: &str, count: u32, first: u32) -> Result<(Vec<Duration>, usize)> {
    let mut times = Vec::new();
    let mut bytes = 0;
    for number in first..first + count {
        let (took, body) = get(url, person(number)).await?;
        times.push(took);
        bytes = body.len();
    }
    times.sort();
    Ok((times, bytes))
}

/// The sizes of the files that a page names, together.
pub(super) async fn assets(web: &str) -> Result<usize> {
    let (_, page) = get(&format!("{web}/"), person(0)).await?;
    let named = page.split('"').filter(|it| it.starts_with("/assets/"));
    let named: std::collections::BTreeSet<&str> = named.collect();
    ensure!(!named.is_empty(), "the page names no files");
    let mut bytes = 0;
    for file in named {
        let (_, body) = get(&format!("{web}{file}"), person(0)).await?;
        bytes += body.len();
    }
    Ok(bytes)
}

/// Pages that stay open and read what they are sent. They are closed when this is dropped.
pub(super) struct Open(JoinSet<()>);

impl Open {
    /// `count` people look at the page of this path.
    pub(super) async fn of(web: &str, path: &str, count: u32) -> Result<Self> {
        let mut readers = JoinSet::new();
        for number in 0..count {
            let url = format!("{web}/live?page={path}");
            let mut stream = request(&url, person(number)).await?;
            let mut buffer = vec![0; 4096];
            let read = timeout(ANSWER_WITHIN, stream.read(&mut buffer)).await??;
            let head = String::from_utf8_lossy(&buffer[..read]);
            if !head.starts_with("HTTP/1.1 200") {
                bail!("{url} answered {head}");
            }
            readers.spawn(async move {
                while stream.read(&mut buffer).await.is_ok_and(|read| 0 < read) {}
            });
        }
        Ok(Self(readers))
    }

    /// How many are still open.
    pub(super) fn count(&mut self) -> usize {
        while self.0.try_join_next().is_some() {}
        self.0.len()
    }
}
