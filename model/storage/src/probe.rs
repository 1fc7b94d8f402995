//! Asks a store whether it can be used: lists, writes, reads and deletes one object, as all users
//! of a store do. Nothing is retried, and a failure says what is wrong and whether waiting can
//! help. Called while a daemon waits for its store; the caller limits the time.

use crate::{Patience, StoreError, open_with};
use futures::StreamExt;
use object_store::client::{HttpError, HttpErrorKind};
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use std::error::Error;
use std::io::ErrorKind;

/// Large enough that a disk with a few free bytes has no room for it.
const OBJECT_BYTES: usize = 64 << 10;

/// Why a store cannot be used now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Trouble {
    pub kind: TroubleKind,
    /// What failed, the cause, and what would be right, in one line.
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TroubleKind {
    /// It may end by itself: no connection, no answer, a server that is busy.
    Passing,
    /// Somebody must mend it, which may just be happening: no room, a name that does not resolve.
    Lasting,
    /// The server refuses: clock, key, bucket, region, rights. It ends only if somebody mends it,
    /// but a server that is just starting may refuse, too.
    Refusal,
    /// This machine refuses: a folder that may not be written, a URL that is wrong.
    Final,
}

/// Uses the store of `url` once.
///
/// # Errors
/// It cannot be used.
pub async fn probe(url: &str) -> Result<(), Trouble> {
    let (store, prefix) =
        open_with(url, Patience::None).map_err(|error| of_opening(url, &error))?;
    let failed =
        |action: &'static str| move |error: object_store::Error| of_request(url, action, &error);
    if let Some(listed) = store.list(Some(&prefix.clone().join("state"))).next().await {
        listed.map_err(failed("list objects in"))?;
    }
    // One name per process: if the answer to a write was lost, the next attempt finds the object.
    let object = prefix.join(format!("probe-{}", std::process::id()));
    let written = store.put_opts(
        &object,
        PutPayload::from(vec![b'0'; OBJECT_BYTES]),
        PutMode::Create.into(),
    );
    match written.await {
        Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => {}
        Err(error) => return Err(of_request(url, "write to", &error)),
    }
    let read = async { store.get(&object).await?.bytes().await };
    let read = read.await;
    let deleted = store.delete(&object).await;
    read.map_err(failed("read from"))?;
    deleted.map_err(failed("delete in"))
}

fn of_opening(url: &str, error: &StoreError) -> Trouble {
    let kind = match error {
        StoreError::Create { source, .. } => local_kind(source.kind()),
        StoreError::NotAUrl { .. }
        | StoreError::Scheme { .. }
        | StoreError::NotAFolder { .. }
        | StoreError::Open { .. } => TroubleKind::Final,
    };
    let mut text = one_line(error);
    if !text.contains(url) {
        text = format!("{url}: {text}");
    }
    Trouble { kind, text }
}

/// The error of one request, which failed while it should `action` the store.
fn of_request(url: &str, action: &str, error: &object_store::Error) -> Trouble {
    let text = one_line(error);
    let (kind, cause) = if let Some(error) = find::<std::io::Error>(error)
        && url.starts_with("file:")
    {
        (local_kind(error.kind()), local_cause(&text, error))
    } else if let Some(answer) = Answer::read(&text) {
        (answer.kind(), answer.to_string())
    } else {
        remote_cause(&text, find::<HttpError>(error))
    };
    Trouble {
        kind,
        text: format!("cannot {action} {url}: {cause}"),
    }
}

fn local_kind(kind: ErrorKind) -> TroubleKind {
    match kind {
        ErrorKind::PermissionDenied
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::NotADirectory
        | ErrorKind::AlreadyExists
        | ErrorKind::InvalidFilename => TroubleKind::Final,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => TroubleKind::Lasting,
        // A file server that is away.
        _ => TroubleKind::Passing,
    }
}

fn local_cause(text: &str, error: &std::io::Error) -> String {
    let advice = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; free some room there",
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "; this user must be able to write there"
        }
        _ => "",
    };
    format!("{text}{advice}")
}

/// The cause of a request that got no proper answer.
fn remote_cause(text: &str, error: Option<&HttpError>) -> (TroubleKind, String) {
    if text.contains("certificate") || text.contains("InvalidMessage") {
        let advice =
            "does AWS_ENDPOINT name an https:// server with a certificate that is trusted?";
        return (TroubleKind::Refusal, format!("{text}; {advice}"));
    }
    if text.contains("URL scheme is not allowed") {
        let advice = "AWS_ALLOW_HTTP=true allows an endpoint that begins with http://";
        return (TroubleKind::Final, format!("{text}; {advice}"));
    }
    if text.contains("redirect without LOCATION") {
        let advice = "the bucket is in another region; set AWS_REGION, and AWS_ENDPOINT if used";
        return (TroubleKind::Refusal, advice.to_owned());
    }
    if is_unresolved(text) {
        let advice = "no name server knows this name; correct AWS_ENDPOINT, the URL or the network";
        return (TroubleKind::Lasting, format!("{text}; {advice}"));
    }
    let no_key = std::env::var_os("AWS_ACCESS_KEY_ID").is_none();
    let keys = if no_key && text.contains("169.254.") {
        "; AWS_ACCESS_KEY_ID is not set, so the key was asked of the cloud's metadata service"
    } else {
        ""
    };
    let what = match error.map(HttpError::kind) {
        Some(HttpErrorKind::Connect) => "no connection",
        Some(HttpErrorKind::Timeout) => "no answer in time",
        _ => "",
    };
    let cause = match what {
        "" => format!("{text}{keys}"),
        what => format!("{what}: {text}{keys}"),
    };
    (TroubleKind::Passing, cause)
}

/// Whether a connection failed because the name of its host does not resolve. The library has no
/// kind for it. "Temporary failure" counts, too: it is what a wrong name gets where no name server
/// can be asked.
fn is_unresolved(text: &str) -> bool {
    text.contains("dns error") || text.contains("failed to lookup address")
}

/// An error that an S3 server sent.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    /// For instance `NoSuchBucket`; "" if the server sent none.
    code: String,
    message: String,
}

impl Answer {
    /// From the text of an error, because its type is private.
    fn read(text: &str) -> Option<Self> {
        let (_, rest) = text
            .split_once("status code: ")
            .or_else(|| text.split_once("Server returned error response: "))?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        let element = |name: &str| {
            let (_, rest) = text.split_once(&format!("<{name}>"))?;
            Some(rest.split_once("</")?.0.trim().to_owned())
        };
        Some(Self {
            status: digits.parse().unwrap_or(0),
            code: element("Code").unwrap_or_default(),
            message: element("Message").unwrap_or_default(),
        })
    }

    fn kind(&self) -> TroubleKind {
        let busy = [
            "SlowDown",
            "InternalError",
            "ServiceUnavailable",
            "RequestTimeout",
        ];
        if busy.contains(&self.code.as_str()) {
            return TroubleKind::Passing;
        }
        match (self.status, self.code.as_str()) {
            // Conditional writes, for instance, which this server does not have.
            (_, "NotImplemented") | (501, _) => TroubleKind::Refusal,
            // Insufficient storage.
            (507, _) => TroubleKind::Lasting,
            (429 | 500.., _) => TroubleKind::Passing,
            _ => TroubleKind::Refusal,
        }
    }

    fn advice(&self) -> &'static str {
        match self.code.as_str() {
            "RequestTimeTooSkewed" | "RequestExpired" => {
                "the clock of this machine or of the server is wrong"
            }
            "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "ExpiredToken" => {
                "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or AWS_SESSION_TOKEN is wrong or expired"
            }
            "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => {
                "the key needs the right to list, read, write and delete there"
            }
            "NoSuchBucket" => "the bucket must exist: create it, or correct the URL",
            "PermanentRedirect"
            | "TemporaryRedirect"
            | "AuthorizationHeaderMalformed"
            | "IllegalLocationConstraintException" => {
                "the bucket is in another region; set AWS_REGION, and AWS_ENDPOINT if used"
            }
            "NotImplemented" => "the server must support conditional writes (If-None-Match)",
            _ => match self.status {
                301 | 307 => "the bucket is in another region; set AWS_REGION",
                401 | 403 => "the key needs the right to list, read, write and delete there",
                404 => "the bucket must exist: create it, or correct the URL or AWS_ENDPOINT",
                507 => "the server has no room; free some there",
                _ => "",
            },
        }
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            status,
            code,
            message,
        } = self;
        write!(f, "the server answered {status}")?;
        if !code.is_empty() {
            write!(f, " {code}")?;
        }
        if !message.is_empty() {
            write!(f, " ({})", message.trim_end_matches('.'))?;
        }
        match self.advice() {
            "" => Ok(()),
            advice => write!(f, "; {advice}"),
        }
    }
}

/// The first error of this type among the causes.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// The error and its causes in one line.
fn one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn a_store_that_can_be_used_is_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}/new/store", dir.path().display());
        probe(&url).await.unwrap();
        probe(&url).await.unwrap();
        let left = std::fs::read_dir(dir.path().join("new/store")).unwrap();
        assert_eq!(left.count(), 0);
    }

    #[tokio::test]
    async fn local_causes_are_named_and_final() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let url = format!("file://{}/store", file.display());
        let trouble = probe(&url).await.unwrap_err();
        assert_eq!(trouble.kind, TroubleKind::Final, "{trouble}");
        assert!(trouble.text.contains("Not a directory"), "{trouble}");
        let trouble = probe("ftp://x/y").await.unwrap_err();
        assert_eq!(trouble.kind, TroubleKind::Final, "{trouble}");

        let folder = dir.path().join("locked");
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o555)).unwrap();
        // Root may write everywhere, so only other users see a refusal.
        let writable = std::fs::write(folder.join("x"), "x").is_ok();
        if !writable {
            let url = format!("file://{}", folder.display());
            let trouble = probe(&url).await.unwrap_err();
            assert_eq!(trouble.kind, TroubleKind::Final, "{trouble}");
            assert!(trouble.text.contains("must be able to write"), "{trouble}");
        }
    }

    #[test]
    fn no_room_may_be_made_and_a_readonly_folder_stays_so() {
        for (kind, expected) in [
            (ErrorKind::StorageFull, TroubleKind::Lasting),
            (ErrorKind::QuotaExceeded, TroubleKind::Lasting),
            (ErrorKind::TimedOut, TroubleKind::Passing),
            (ErrorKind::StaleNetworkFileHandle, TroubleKind::Passing),
            (ErrorKind::PermissionDenied, TroubleKind::Final),
            (ErrorKind::ReadOnlyFilesystem, TroubleKind::Final),
        ] {
            assert_eq!(local_kind(kind), expected, "{kind}");
        }
        let full = std::io::Error::from(ErrorKind::StorageFull);
        assert!(local_cause("x", &full).contains("free some room"));
    }

    #[test]
    fn the_answers_of_servers_become_causes_with_advice() {
        let answer = |status: &str, code: &str| {
            let body =
                format!("<?xml version=\"1.0\"?> <Error><Code>{code}</Code><Message>m.</Message>");
            let text = format!("Server returned non-2xx status code: {status}: {body}</Error>");
            Answer::read(&text).unwrap()
        };
        for (status, code, kind, part) in [
            (
                "403 Forbidden",
                "RequestTimeTooSkewed",
                TroubleKind::Refusal,
                "clock",
            ),
            (
                "403 Forbidden",
                "InvalidAccessKeyId",
                TroubleKind::Refusal,
                "AWS_ACCESS_KEY_ID",
            ),
            (
                "403 Forbidden",
                "AccessDenied",
                TroubleKind::Refusal,
                "right to list",
            ),
            (
                "404 Not Found",
                "NoSuchBucket",
                TroubleKind::Refusal,
                "must exist",
            ),
            (
                "301 Moved",
                "PermanentRedirect",
                TroubleKind::Refusal,
                "AWS_REGION",
            ),
            (
                "400 Bad Request",
                "AuthorizationHeaderMalformed",
                TroubleKind::Refusal,
                "AWS_REGION",
            ),
            (
                "501 Not Implemented",
                "NotImplemented",
                TroubleKind::Refusal,
                "conditional",
            ),
            (
                "503 Slow Down",
                "SlowDown",
                TroubleKind::Passing,
                "503 SlowDown",
            ),
            ("500 Internal", "InternalError", TroubleKind::Passing, "500"),
            (
                "507 Insufficient Storage",
                "",
                TroubleKind::Lasting,
                "no room",
            ),
            ("418 Teapot", "Odd", TroubleKind::Refusal, "418 Odd (m)"),
        ] {
            let answer = answer(status, code);
            assert_eq!(answer.kind(), kind, "{answer}");
            assert!(answer.to_string().contains(part), "{answer}");
        }
        assert_eq!(Answer::read("error sending request"), None);
    }

    #[test]
    fn no_connection_passes_and_a_wrong_endpoint_does_not() {
        let (kind, text) = remote_cause("http://169.254.169.254/: timed out", None);
        assert_eq!(kind, TroubleKind::Passing);
        assert!(text.contains("169.254"), "{text}");
        for cause in [
            "Name or service not known",
            "Temporary failure in name resolution",
        ] {
            let text = format!("dns error: failed to lookup address information: {cause}");
            let (kind, text) = remote_cause(&text, None);
            assert_eq!(kind, TroubleKind::Lasting);
            assert!(text.contains("correct AWS_ENDPOINT"), "{text}");
        }
        let (kind, text) = remote_cause("builder error: URL scheme is not allowed", None);
        assert_eq!(kind, TroubleKind::Final);
        assert!(text.contains("AWS_ALLOW_HTTP"), "{text}");
        let (kind, _) = remote_cause("invalid peer certificate: UnknownIssuer", None);
        assert_eq!(kind, TroubleKind::Refusal);
    }
}
