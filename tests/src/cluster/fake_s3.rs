//! An S3 server that cannot be used: it answers every request with one error, or not at all.

use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

/// How the server fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Clocks differ too much.
    Skew,
    /// It does not know the key.
    Key,
    /// It knows the key, which may do nothing.
    Rights,
    /// The secret key is wrong.
    Signature,
    NoBucket,
    /// The bucket is elsewhere; `PermanentRedirect` without a location.
    Region,
    /// The request was signed for another region.
    SignedRegion,
    /// It is overloaded.
    Busy,
    /// Its disk is full.
    Full,
    /// It accepts connections and never answers.
    Mute,
}

impl Failure {
    /// Those that do not end by themselves, with a part of what the user must be told.
    pub const REFUSALS: [(Self, &str); 8] = [
        (Self::Full, "507"),
        (Self::Skew, "RequestTimeTooSkewed"),
        (Self::Key, "InvalidAccessKeyId"),
        (Self::Rights, "AccessDenied"),
        (Self::Signature, "SignatureDoesNotMatch"),
        (Self::NoBucket, "NoSuchBucket"),
        (Self::Region, "AWS_REGION"),
        (Self::SignedRegion, "AWS_REGION"),
    ];

    /// Those that may end by themselves.
    pub const PASSING: [(Self, &str); 2] = [(Self::Busy, "SlowDown"), (Self::Mute, "no answer")];

    /// Status, code and message. None: no answer.
    fn answer(self) -> Option<(&'static str, &'static str, &'static str)> {
        Some(match self {
            Self::Skew => (
                "403 Forbidden",
                "RequestTimeTooSkewed",
                "The difference between the request time and the current time is too large.",
            ),
            Self::Key => (
                "403 Forbidden",
                "InvalidAccessKeyId",
                "The access key id you provided does not exist in our records.",
            ),
            Self::Rights => ("403 Forbidden", "AccessDenied", "Access Denied."),
            Self::Signature => (
                "403 Forbidden",
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match.",
            ),
            Self::NoBucket => (
                "404 Not Found",
                "NoSuchBucket",
                "The specified bucket does not exist",
            ),
            Self::Region => (
                "301 Moved Permanently",
                "PermanentRedirect",
                "The bucket must be addressed using the specified endpoint.",
            ),
            Self::SignedRegion => (
                "400 Bad Request",
                "AuthorizationHeaderMalformed",
                "The region 'us-east-1' is wrong; expecting 'eu-central-1'",
            ),
            Self::Busy => (
                "503 Slow Down",
                "SlowDown",
                "Please reduce your request rate.",
            ),
            Self::Full => ("507 Insufficient Storage", "", ""),
            Self::Mute => return None,
        })
    }
}

/// The server; its threads end with the test.
#[derive(Debug)]
pub struct FakeS3 {
    address: SocketAddr,
}

impl FakeS3 {
    /// # Errors
    /// No port is free.
    pub fn start(failure: Failure) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("a port for the fake S3")?;
        let address = listener.local_addr()?;
        std::thread::spawn(move || {
            // Connections that are never answered stay open.
            let mut unanswered = Vec::new();
            for client in listener.incoming().map_while(Result::ok) {
                match failure.answer() {
                    Some(answer) => drop(std::thread::spawn(move || serve(client, answer))),
                    None => unanswered.push(client),
                }
            }
        });
        Ok(Self { address })
    }

    /// `host:port`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The environment variables that clients of this server need.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let endpoint = format!("http://{}", self.address);
        [
            ("AWS_ENDPOINT", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "fake-key"),
            ("AWS_SECRET_ACCESS_KEY", "fake-secret"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }
}

/// Answers one request; clients open another connection for the next. Errors are the client's: it
/// may leave at any time.
fn serve(client: TcpStream, answer: (&str, &str, &str)) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut method = String::new();
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if method.is_empty() {
            line.split(' ')
                .next()
                .unwrap_or_default()
                .clone_into(&mut method);
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    std::io::copy(&mut reader.take(length), &mut std::io::sink())?;
    let (status, code, message) = answer;
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code>\
         <Message>{message}</Message></Error>"
    );
    let mut client = client;
    write!(
        client,
        "HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{}",
        body.len(),
        if method == "HEAD" { "" } else { &body }
    )
}
