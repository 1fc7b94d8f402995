//! Waits for the store at start, and says for what. The database retries every error for ever and
//! in silence, so the store is asked separately: before the database is opened, and as long as that
//! takes. A refusal that lasts ends the wait with its cause; anything else may pass, so the wait
//! goes on. Called by `serve` and by `state restore`.

use crate::store::StateError;
use std::future::Future;
use std::time::{Duration, Instant};
use storage::probe::{Trouble, TroubleKind, probe};

/// An attempt without an answer for this long is said.
const SAY_AFTER: Duration = Duration::from_secs(3);
/// An attempt that takes longer than this has failed.
const ANSWER_WITHIN: Duration = Duration::from_secs(12);
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// A server that refuses for this long will not stop; one that is just starting may.
const REFUSED_MAX: Duration = Duration::from_secs(8);
/// The same cause is said again after this time.
const REPEAT_AFTER: Duration = Duration::from_secs(30);

/// Performs `work` on a store as soon as the store can be used. Whatever it waits for is passed to
/// `say` within 5 seconds.
///
/// # Errors
/// The work fails, or the store refuses to be used.
pub(crate) async fn when_usable<T>(
    url: &str,
    say: &(dyn Fn(&str) + Sync),
    work: impl Future<Output = Result<T, StateError>>,
) -> Result<T, StateError> {
    let mut wait = Wait::new(url, say);
    wait.until_usable().await?;
    let begun = Instant::now();
    let observe = async {
        loop {
            tokio::time::sleep(SAY_AFTER).await;
            if let Err(refused) = wait.until_usable().await {
                return refused;
            }
            let seconds = begun.elapsed().as_secs();
            wait.say(
                "",
                &format!("the store {url} answers; its state is still read, for {seconds} s now"),
            );
        }
    };
    tokio::select! {
        result = work => result,
        refused = observe => Err(refused),
    }
}

/// Why a store that should have answered did not, for an error message.
pub(crate) async fn cause(url: &str) -> String {
    match tokio::time::timeout(SAY_AFTER, probe(url)).await {
        Ok(Ok(())) => "it answers now".to_owned(),
        Ok(Err(trouble)) => trouble.text,
        Err(_) => format!("it does not answer within {} s", SAY_AFTER.as_secs()),
    }
}

/// The URL and the server that it means.
fn place(url: &str) -> String {
    let endpoint = ["AWS_ENDPOINT", "AWS_ENDPOINT_URL"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok());
    match endpoint.filter(|_| url.starts_with("s3:")) {
        Some(endpoint) => format!("{url} at {endpoint}"),
        None => url.to_owned(),
    }
}

struct Wait<'a> {
    url: &'a str,
    say: &'a (dyn Fn(&str) + Sync),
    /// What was said last, and when.
    said: Option<(String, Instant)>,
}

impl<'a> Wait<'a> {
    fn new(url: &'a str, say: &'a (dyn Fn(&str) + Sync)) -> Self {
        let said = None;
        Self { url, say, said }
    }

    /// Says something unless it was said lately. `key` is the part that counts; "": all lines
    /// without a cause are alike.
    fn say(&mut self, key: &str, text: &str) {
        let is_known = self
            .said
            .as_ref()
            .is_some_and(|(known, at)| known == key && at.elapsed() < REPEAT_AFTER);
        if !is_known {
            (self.say)(text);
            self.said = Some((key.to_owned(), Instant::now()));
        }
    }

    async fn until_usable(&mut self) -> Result<(), StateError> {
        let mut refused_since: Option<Instant> = None;
        let mut waited = false;
        loop {
            let trouble = match self.attempt().await {
                Ok(()) => {
                    if waited {
                        (self.say)(&format!("the store {} can be used now", self.url));
                        self.said = None;
                    }
                    return Ok(());
                }
                Err(trouble) => trouble,
            };
            waited = true;
            let is_over = match trouble.kind {
                TroubleKind::Passing => {
                    refused_since = None;
                    false
                }
                TroubleKind::Final => true,
                TroubleKind::Refusal => {
                    let since = *refused_since.get_or_insert_with(Instant::now);
                    REFUSED_MAX <= since.elapsed()
                }
            };
            if is_over {
                return Err(StateError::Unusable(trouble));
            }
            let text = format!("waiting for the store: {trouble}");
            // Some causes contain times, so only their beginning counts.
            let key: String = trouble.text.chars().take(60).collect();
            self.say(&key, &text);
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    /// One attempt; says if it takes long.
    async fn attempt(&mut self) -> Result<(), Trouble> {
        let url = self.url;
        let mut attempt = std::pin::pin!(tokio::time::timeout(ANSWER_WITHIN, probe(url)));
        loop {
            tokio::select! {
                ended = &mut attempt => return ended.unwrap_or_else(|_| Err(Trouble {
                    kind: TroubleKind::Passing,
                    text: format!(
                        "{} does not answer within {} s",
                        place(url),
                        ANSWER_WITHIN.as_secs()
                    ),
                })),
                () = tokio::time::sleep(SAY_AFTER) => {
                    let text = format!("waiting for the store: no answer from {} yet", place(url));
                    self.say("no answer", &text);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::Mutex;

    /// Runs `work` and returns the result with what was said.
    async fn run<T>(
        url: &str,
        work: impl Future<Output = Result<T, StateError>>,
    ) -> (Result<T, StateError>, Vec<String>) {
        let said = Mutex::new(Vec::new());
        let say = |text: &str| said.lock().unwrap().push(text.to_owned());
        let result = when_usable(url, &say, work).await;
        (result, said.into_inner().unwrap())
    }

    #[tokio::test]
    async fn a_store_that_can_be_used_needs_no_words() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}", dir.path().display());
        let (result, said) = run(&url, async { Ok(7) }).await;
        assert_eq!((result.unwrap(), said), (7, Vec::new()));
        assert_eq!(cause(&url).await, "it answers now");
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_made_ends_the_wait_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let url = format!("file://{}/store", file.display());
        let (result, said) = run(&url, async { Ok(7) }).await;
        let error = result.unwrap_err().to_string();
        assert!(error.contains("Not a directory"), "{error}");
        assert_eq!(said, Vec::<String>::new());
        assert!(cause(&url).await.contains("Not a directory"));
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_takes_long_is_said_again_and_again() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}", dir.path().display());
        let work = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            Ok(())
        };
        let (result, said) = run(&url, work).await;
        result.unwrap();
        assert!(said[0].contains("still read"), "{said:?}");
    }
}
