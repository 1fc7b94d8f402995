//! Waits for the store at start, and says for what. The database retries every error for ever and
//! in silence, so the store is asked separately: before the database is opened, and as long as that
//! takes. What waiting cannot help ends the wait with its cause within a minute; anything else may
//! pass, so the wait goes on. Called by `serve` and by `state restore`.

use crate::store::StateError;
use std::future::Future;
use std::time::Duration;
use storage::probe::{Trouble, TroubleKind, probe};
use tokio::time::Instant;

/// An attempt without an answer for this long is said.
const SAY_AFTER: Duration = Duration::from_secs(3);
/// An attempt that takes longer than this has failed.
const ANSWER_WITHIN: Duration = Duration::from_secs(12);
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// A server that refuses for this long will not stop; one that is just starting may.
const REFUSED_MAX: Duration = Duration::from_secs(8);
/// A disk that has no room, or a name that no name server knows, for this long will stay so: long
/// enough for a network that comes up beside this process, and well within a minute.
const LASTING_MAX: Duration = Duration::from_secs(30);
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
    when_probed(url, say, || probe(url), work).await
}

/// The same with any `probe`.
async fn when_probed<T, F>(
    url: &str,
    say: &(dyn Fn(&str) + Sync),
    probe: impl Fn() -> F,
    work: impl Future<Output = Result<T, StateError>>,
) -> Result<T, StateError>
where
    F: Future<Output = Result<(), Trouble>>,
{
    let mut wait = Wait::new(url, say, probe);
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

/// How long this kind of trouble, or another that does not pass, may last. None: for ever.
fn patience(kind: TroubleKind) -> Option<Duration> {
    match kind {
        TroubleKind::Passing => None,
        TroubleKind::Lasting => Some(LASTING_MAX),
        TroubleKind::Refusal => Some(REFUSED_MAX),
        TroubleKind::Final => Some(Duration::ZERO),
    }
}

struct Wait<'a, P> {
    url: &'a str,
    say: &'a (dyn Fn(&str) + Sync),
    probe: P,
    /// What was said last, and when.
    said: Option<(String, Instant)>,
}

impl<'a, P, F> Wait<'a, P>
where
    P: Fn() -> F,
    F: Future<Output = Result<(), Trouble>>,
{
    fn new(url: &'a str, say: &'a (dyn Fn(&str) + Sync), probe: P) -> Self {
        Self {
            url,
            say,
            probe,
            said: None,
        }
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
        // Since when no attempt has failed in a way that may pass.
        let mut since: Option<Instant> = None;
        let mut waited = false;
        loop {
            let begun = Instant::now();
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
            match patience(trouble.kind) {
                None => since = None,
                Some(patience) if patience <= since.get_or_insert(begun).elapsed() => {
                    return Err(StateError::Unusable(trouble));
                }
                Some(_) => {}
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
        let mut attempt = std::pin::pin!(tokio::time::timeout(ANSWER_WITHIN, (self.probe)()));
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
    use std::sync::atomic::{AtomicBool, Ordering};

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

    /// Waits for a store of which `probe` says how it fails after so many seconds (None: it never
    /// answers). Returns the result, what was said after how many seconds, and how long it took.
    /// Only the test's clock moves.
    async fn wait(
        probe: impl Fn(u64) -> Option<Result<(), Trouble>>,
    ) -> (Result<(), StateError>, Vec<(u64, String)>, Duration) {
        let start = Instant::now();
        let seconds = || start.elapsed().as_secs();
        let said = Mutex::new(Vec::new());
        let say = |text: &str| said.lock().unwrap().push((seconds(), text.to_owned()));
        let answer = || async {
            match probe(seconds()) {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        };
        let result = when_probed("s3://b/s", &say, answer, async { Ok(()) }).await;
        (result, said.into_inner().unwrap(), start.elapsed())
    }

    fn trouble(kind: TroubleKind) -> Option<Result<(), Trouble>> {
        let text = format!("{kind:?}");
        Some(Err(Trouble { kind, text }))
    }

    #[tokio::test(start_paused = true)]
    async fn what_waiting_cannot_help_is_said_at_once_and_ends_within_a_minute() {
        for (kind, least) in [
            (TroubleKind::Final, Duration::ZERO),
            (TroubleKind::Refusal, REFUSED_MAX),
            (TroubleKind::Lasting, LASTING_MAX),
        ] {
            let (result, said, took) = wait(|_| trouble(kind)).await;
            let error = result.unwrap_err().to_string();
            assert!(error.ends_with(&format!("{kind:?}")), "{error}");
            assert!(least <= took && took < Duration::from_secs(60), "{took:?}");
            if kind != TroubleKind::Final {
                let first = (0, format!("waiting for the store: {kind:?}"));
                assert_eq!(said[0], first);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_pass_is_waited_for_and_said_again() {
        const HOUR: u64 = 3600;
        for kind in [Some(TroubleKind::Passing), None] {
            let away = |at| match kind {
                _ if HOUR <= at => Some(Ok(())),
                Some(kind) => trouble(kind),
                None => None,
            };
            let (result, said, took) = wait(away).await;
            result.unwrap();
            assert!(Duration::from_secs(HOUR) <= took);
            assert!(said[0].0 <= 5, "{said:?}");
            let gaps = said.windows(2).map(|pair| pair[1].0 - pair[0].0);
            assert!(gaps.max() <= Some(60), "{said:?}");
            assert!(said.last().unwrap().1.contains("can be used now"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_counts_from_the_last_trouble_that_may_pass() {
        // A server that is just starting: no connection, then a refusal, then it works.
        let starting = |at| match at {
            0..100 => trouble(TroubleKind::Passing),
            100..106 => trouble(TroubleKind::Refusal),
            106..200 => trouble(TroubleKind::Passing),
            200..206 => trouble(TroubleKind::Refusal),
            _ => Some(Ok(())),
        };
        wait(starting).await.0.unwrap();
        // A disk gets room, and the network knows a name, in time.
        let in_time = |at| match at {
            0..25 => trouble(TroubleKind::Lasting),
            _ => Some(Ok(())),
        };
        wait(in_time).await.0.unwrap();
        // Kinds that do not pass by turns are one wait.
        let by_turns = |at: u64| match at % 4 {
            0 => trouble(TroubleKind::Refusal),
            _ => trouble(TroubleKind::Lasting),
        };
        let (result, _, took) = wait(by_turns).await;
        result.unwrap_err();
        assert!(took < Duration::from_secs(60), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_while_the_state_is_read_ends_the_same_way() {
        let said = Mutex::new(Vec::new());
        let say = |text: &str| said.lock().unwrap().push(text.to_owned());
        let was_usable = AtomicBool::new(false);
        let probe = || async {
            if was_usable.swap(true, Ordering::Relaxed) {
                trouble(TroubleKind::Lasting).unwrap()
            } else {
                Ok(())
            }
        };
        let start = Instant::now();
        let work = std::future::pending::<Result<(), StateError>>();
        let error = when_probed("s3://b/s", &say, probe, work)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("Lasting"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(60));
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
