//! A minimal HTTP client for our own endpoints and Prometheus: one GET per connection, in HTTP/1.0,
//! so that the body ends with the connection.

use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::TcpStream;
use std::time::Duration;

const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// The body of `http://host:port/path`.
///
/// # Errors
/// No connection, a timeout, or a status other than 200; the message contains the body.
pub fn get(url: &str) -> Result<String> {
    let rest = url
        .strip_prefix("http://")
        .with_context(|| format!("{url} does not begin with http://"))?;
    let (host, path) = rest
        .split_once('/')
        .with_context(|| format!("{url} has no path"))?;
    let mut stream = TcpStream::connect(host).with_context(|| format!("connecting to {host}"))?;
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    write!(
        stream,
        "GET /{path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .with_context(|| format!("reading {url}"))?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("{url} answered {answer:?}"))?;
    let status = head.split_whitespace().nth(1);
    ensure!(
        status == Some("200"),
        "{url} answered {}: {body}",
        head.lines().next().unwrap_or_default()
    );
    Ok(body.to_owned())
}

/// Percent-encodes `text` as the value of a query parameter.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            escaped.push(char::from(byte));
        } else {
            write!(escaped, "%{byte:02X}").expect("writing to a String cannot fail");
        }
    }
    escaped
}
