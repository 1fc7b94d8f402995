//! Delivers notifications to one receiver, in order, each a bounded number of times. What cannot be
//! delivered is counted, logged and dropped.

use super::settings::NotifySettings;
use crate::log_limit::LogLimit;
use crate::measures::{Outcome, notified};
use proto::printable::printable;
use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::mpsc;
use url::Url;

/// Times that a notification is tried at most.
const ATTEMPTS: u32 = 5;
/// The wait after the first failed attempt; each later one is four times as long: 85 s in all.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Time of one attempt.
const WITHIN: Duration = Duration::from_secs(10);

/// Where notifications go.
#[derive(Debug)]
pub(crate) enum Receiver {
    Url { http: reqwest::Client, url: Url },
    Command(Vec<String>),
}

/// Why an attempt failed.
#[derive(Debug)]
struct Fault {
    text: String,
    /// The same again would fail again.
    permanent: bool,
}

impl Receiver {
    /// All receivers that the settings name.
    pub(crate) fn all(settings: &NotifySettings) -> Vec<Self> {
        let mut all = Vec::new();
        if let Some(url) = &settings.url {
            storage::install_tls();
            let client = reqwest::Client::builder()
                .timeout(WITHIN)
                .redirect(Policy::none())
                .build();
            match client {
                Ok(http) => all.push(Self::Url {
                    http,
                    url: url.clone(),
                }),
                Err(error) => tracing::error!(%error, "notifications cannot be posted"),
            }
        }
        if !settings.command.is_empty() {
            all.push(Self::Command(settings.command.clone()));
        }
        all
    }

    /// Without what may be secret: the path and the arguments.
    fn name(&self) -> String {
        match self {
            Self::Url { url, .. } => url.host_str().unwrap_or_default().to_owned(),
            Self::Command(command) => command.first().cloned().unwrap_or_default(),
        }
    }

    async fn send(&self, body: &str) -> Result<(), Fault> {
        match self {
            Self::Url { http, url } => post(http, url, body).await,
            Self::Command(command) => run(command, body).await,
        }
    }

    /// Delivers until all senders are dropped.
    pub(crate) async fn serve(self, mut bodies: mpsc::Receiver<String>) {
        self.serve_with(&mut bodies, FIRST_WAIT).await;
    }

    async fn serve_with(&self, bodies: &mut mpsc::Receiver<String>, first_wait: Duration) {
        let failures = LogLimit::at_most(1);
        while let Some(body) = bodies.recv().await {
            let Err(fault) = self.deliver(&body, first_wait).await else {
                notified(Outcome::Sent);
                continue;
            };
            notified(Outcome::Dropped);
            if let Some(dropped) = failures.admit() {
                let (receiver, error) = (self.name(), printable(&fault.text));
                tracing::warn!(receiver, dropped, %error, "notifications are not delivered");
            }
        }
    }

    async fn deliver(&self, body: &str, first_wait: Duration) -> Result<(), Fault> {
        let mut wait = first_wait;
        for attempt in 1.. {
            match self.send(body).await {
                Ok(()) => return Ok(()),
                Err(fault) if fault.permanent || attempt == ATTEMPTS => return Err(fault),
                Err(_) => notified(Outcome::Retried),
            }
            tokio::time::sleep(wait).await;
            wait *= 4;
        }
        Ok(())
    }
}

/// The answer's body is not read.
async fn post(http: &reqwest::Client, url: &Url, body: &str) -> Result<(), Fault> {
    let request = http
        .post(url.clone())
        .header(CONTENT_TYPE, "application/json");
    let response = request.body(body.to_owned()).send().await;
    let response = response.map_err(|error| Fault {
        // It would name the URL.
        text: error.without_url().to_string(),
        permanent: false,
    })?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    // 408 Request Timeout and 429 Too Many Requests ask for another attempt.
    let again = status.is_server_error() || matches!(status.as_u16(), 408 | 429);
    Err(Fault {
        text: format!("it answered {status}"),
        permanent: !again,
    })
}

/// The notification is the command's standard input. Its output is discarded, because the
/// coordinator's log is no place for it.
async fn run(command: &[String], body: &str) -> Result<(), Fault> {
    let (program, arguments) = command.split_first().ok_or_else(|| Fault {
        text: "the command is empty".to_owned(),
        permanent: true,
    })?;
    let fault = |text: String| Fault {
        text,
        permanent: false,
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| fault(format!("it cannot be started: {error}")))?;
    let mut stdin = child.stdin.take();
    let work = async {
        if let Some(stdin) = &mut stdin {
            // A command may exit without reading; its exit status says whether that is an error.
            stdin.write_all(format!("{body}\n").as_bytes()).await.ok();
        }
        drop(stdin);
        child.wait().await
    };
    match tokio::time::timeout(WITHIN, work).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(fault(format!("it ended with {status}"))),
        Ok(Err(error)) => Err(fault(error.to_string())),
        Err(_) => Err(fault(format!("it took longer than {} s", WITHIN.as_secs()))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::post;
    use std::sync::{Arc, Mutex};

    const SOON: Duration = Duration::from_millis(1);

    /// A server that answers with these codes, one after the other, and keeps what it was sent.
    async fn server(codes: Vec<u16>) -> (Receiver, Arc<Mutex<Vec<String>>>) {
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let (seen, codes) = (bodies.clone(), Mutex::new(codes.into_iter()));
        let codes = Arc::new(codes);
        let answer = move |body: String| {
            seen.lock().unwrap().push(body);
            let code = codes.lock().unwrap().next().unwrap_or(200);
            async move { StatusCode::from_u16(code).unwrap() }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/secret", post(answer));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let url = Url::parse(&format!("http://{address}/secret")).unwrap();
        let http = reqwest::Client::builder()
            .redirect(Policy::none())
            .build()
            .unwrap();
        (Receiver::Url { http, url }, bodies)
    }

    #[tokio::test]
    async fn a_receiver_that_recovers_gets_the_notification_and_a_broken_one_costs_five_tries() {
        storage::install_tls();
        let (receiver, bodies) = server(vec![503, 429, 200]).await;
        receiver.deliver("{}", SOON).await.unwrap();
        assert_eq!(*bodies.lock().unwrap(), ["{}", "{}", "{}"]);

        let (receiver, bodies) = server(vec![500; 9]).await;
        let fault = receiver.deliver("{}", SOON).await.unwrap_err();
        assert_eq!(fault.text, "it answered 500 Internal Server Error");
        assert_eq!(bodies.lock().unwrap().len(), ATTEMPTS as usize);

        for (code, name) in [(404, "404 Not Found"), (302, "302 Found")] {
            let (receiver, bodies) = server(vec![code]).await;
            let fault = receiver.deliver("{}", SOON).await.unwrap_err();
            assert_eq!(fault.text, format!("it answered {name}"));
            assert_eq!(bodies.lock().unwrap().len(), 1, "the same would come again");
        }
    }

    #[tokio::test]
    async fn a_command_reads_the_notification_and_its_failure_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("seen");
        let command = |script: &str| {
            let path = file.display().to_string();
            Receiver::Command(["sh", "-c", script, "sh", &path].map(String::from).to_vec())
        };
        let body = "{\"text\":\"$(touch x); `y`\"}";
        command("cat >> \"$1\"").deliver(body, SOON).await.unwrap();
        let seen = std::fs::read_to_string(&file).unwrap();
        assert_eq!(seen, format!("{body}\n"), "no shell of ours reads it");
        // Fails until it has been called three times.
        let third = "echo x >> \"$1\"; [ $(wc -l < \"$1\") = 4 ]";
        command(third).deliver(body, SOON).await.unwrap();
        let fault = command("exit 3").deliver(body, SOON).await.unwrap_err();
        assert_eq!(fault.text, "it ended with exit status: 3");
        let missing = Receiver::Command(vec!["/nowhere/tell".into()]);
        let fault = missing.deliver(body, SOON).await.unwrap_err();
        assert!(
            fault.text.starts_with("it cannot be started: "),
            "{}",
            fault.text
        );
        assert_eq!(missing.name(), "/nowhere/tell");
    }

    #[tokio::test]
    async fn what_comes_after_a_notification_that_is_dropped_is_delivered() {
        storage::install_tls();
        let (receiver, seen) = server(vec![400, 200]).await;
        let (sender, mut bodies) = mpsc::channel(2);
        for body in ["1", "2"] {
            sender.send(body.to_owned()).await.unwrap();
        }
        drop(sender);
        receiver.serve_with(&mut bodies, SOON).await;
        assert_eq!(*seen.lock().unwrap(), ["1", "2"]);
        assert!(!receiver.name().contains("secret"));
    }
}
