//! What every request passes: pages are read-only, come only from names of this machine if they are
//! served to it alone, are paid for by whoever asks, and carry headers that keep a browser from
//! running anything but our own files.

use super::problem::Problem;
use crate::budget::{Budgets, paid};
use crate::connections::{MetricsListener, Peer};
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::IncomingStream;
use std::net::IpAddr;
use std::sync::Arc;

/// Who asks.
#[derive(Debug, Clone)]
pub(super) struct Visitor(pub(super) Arc<Peer>);

impl Connected<IncomingStream<'_, MetricsListener>> for Visitor {
    fn connect_info(stream: IncomingStream<'_, MetricsListener>) -> Self {
        Self(stream.io().peer())
    }
}

#[derive(Debug)]
pub(super) struct Guard {
    pub(super) budgets: Budgets,
    /// The pages are served on a loopback address.
    pub(super) is_local: bool,
}

/// Nothing but our own files: no script or style in a page, no frame, no form to elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "same-origin"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
];

pub(super) async fn check(
    State(guard): State<Arc<Guard>>,
    ConnectInfo(Visitor(peer)): ConnectInfo<Visitor>,
    request: Request,
    next: Next,
) -> Response {
    let _in_progress = peer.begin();
    let mut response = match refusal(&guard, &request) {
        Some(problem) => super::answer(Err(problem)),
        None => {
            let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
            debug_assert!(is_read, "others are refused");
            match guard.budgets.wait(peer.address, "pages").await {
                Ok(()) => {
                    let payer = guard.budgets.payer(peer.address);
                    paid(Some(payer), next.run(request)).await
                }
                Err(status) => {
                    let code = StatusCode::TOO_MANY_REQUESTS;
                    super::answer(Err(Problem::new(
                        code,
                        "Too many requests",
                        status.message(),
                    )))
                }
            }
        }
    };
    if response.status() == StatusCode::METHOD_NOT_ALLOWED {
        let allow = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(header::ALLOW, allow);
    }
    for (name, value) in HEADERS {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

fn refusal(guard: &Guard, request: &Request) -> Option<Problem> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let text = format!(
            "these pages only show; {} is not possible. Commands change things: `coordinator help`",
            request.method()
        );
        let code = StatusCode::METHOD_NOT_ALLOWED;
        return Some(Problem::new(code, "Read-only", &text));
    }
    let host = host(request.headers());
    if guard.is_local && !is_of_this_machine(host) {
        // Another web page may have made its own name mean this machine, to read these.
        let text = format!(
            "the host is {host:?}; the coordinator serves its pages to this machine alone \
             (`web_listen`), so it must be localhost or a loopback address"
        );
        let code = StatusCode::MISDIRECTED_REQUEST;
        return Some(Problem::new(code, "Wrong host", &text));
    }
    None
}

fn host(headers: &HeaderMap) -> &str {
    let host = headers.get(header::HOST);
    host.and_then(|it| it.to_str().ok()).unwrap_or("")
}

/// Whether a name such as `localhost:7080` or `127.0.0.1` means this machine for everybody.
fn is_of_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.chars().all(|it| it.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|it| it.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_nobody_else_can_give_to_this_machine_are_accepted() {
        for host in [
            "localhost",
            "localhost:7080",
            "127.0.0.1:1",
            "[::1]:7080",
            "127.8.0.1",
        ] {
            assert!(is_of_this_machine(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "10.0.0.1:7080",
            ":7080",
        ] {
            assert!(!is_of_this_machine(host), "{host}");
        }
    }
}
