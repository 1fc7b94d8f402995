//! Pages that change while somebody looks: the parts of a page that templates mark are sent by
//! server-sent events whenever they differ from what was sent before, at most once a second. All
//! who look at one page share its making. Who reads too slowly is dropped.
//!
//! A part is what lies between `<!--live ID-->` and `<!--/live-->`; the element around it has that
//! id.

use super::guard::Visitor;
use super::problem::Problem;
use super::query::Query;
use super::{Web, query_of};
use crate::budget::{Payer, paid};
use axum::extract::{ConnectInfo, State};
use axum::http::Uri;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use proto::limits::{URL_BYTES, cut};
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex as Sync, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;

/// Between two looks of one reader.
const EVERY: Duration = Duration::from_secs(1);
/// A page is made again for another reader only if it is older.
const SHARED: Duration = Duration::from_millis(800);
/// Events that wait for their reader, and how long they may.
const QUEUE: usize = 4;
const SLOW: Duration = Duration::from_secs(30);
/// A silent connection would look broken.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Parts of a page by id.
type Parts = BTreeMap<String, String>;
type Made = Arc<Mutex<Option<(Instant, Arc<Parts>)>>>;

/// Pages that are looked at, by URL. Cheap to clone; all clones share the pages.
#[derive(Debug, Clone, Default)]
pub(super) struct Shared(Arc<Sync<HashMap<String, Made>>>);

impl Shared {
    fn entry(&self, url: &str) -> Made {
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pages.retain(|_, made| 1 < Arc::strong_count(made));
        Arc::clone(pages.entry(url.to_owned()).or_default())
    }
}

pub(super) async fn stream(
    State(web): State<Web>,
    ConnectInfo(Visitor(peer)): ConnectInfo<Visitor>,
    uri: Uri,
) -> Response {
    let url = cut(query_of(&uri).text("page"), URL_BYTES);
    let made = web.shared.entry(&url);
    // One that cannot be shown is no stream, so that a browser does not ask again and again.
    let first = match web.parts(&url, &made).await {
        Ok(first) => first,
        Err(problem) => return super::answer(Err(problem)),
    };
    let (sender, receiver) = mpsc::channel(QUEUE);
    let in_progress = peer.begin();
    let payer = Payer::current();
    let task = async move {
        let _in_progress = in_progress;
        let next = || {
            let (web, url, made, peer) = (&web, &url, &made, &peer);
            async move {
                // Who has used too much waits; the page then changes less often.
                if web.budgets.wait(peer.address, "pages").await.is_err() {
                    return Next::Later;
                }
                match web.parts(url, made).await {
                    Ok(parts) => Next::Parts(parts),
                    Err(_) => Next::Gone,
                }
            }
        };
        if follow(&sender, first, next).await == Ended::Slow {
            peer.close("the reader of a page is too slow");
        }
    };
    tokio::spawn(paid(payer, task));
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Sse::new(ReceiverStream::new(receiver))
        .keep_alive(keep_alive)
        .into_response()
}

/// What there is to send.
#[derive(Debug)]
enum Next {
    Parts(Arc<Parts>),
    /// It is looked again after a while.
    Later,
    /// The job was deleted, or the coordinator stops.
    Gone,
}

/// Why a reader is sent nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// It did not take an event for [`SLOW`].
    Slow,
    Left,
    Gone,
}

/// Sends the parts of a page as they change.
async fn follow<F: Future<Output = Next>>(
    to: &mpsc::Sender<Result<Event, Infallible>>,
    first: Arc<Parts>,
    mut next: impl FnMut() -> F,
) -> Ended {
    let mut sent: Arc<Parts> = Arc::default();
    let mut parts = first;
    loop {
        for (id, html) in changed(&sent, &parts) {
            let data = serde_json::json!({ "id": id, "html": html }).to_string();
            match timeout(SLOW, to.send(Ok(Event::default().data(data)))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Ended::Left,
                Err(_) => return Ended::Slow,
            }
        }
        sent = Arc::clone(&parts);
        tokio::select! {
            () = sleep(EVERY) => {}
            () = to.closed() => return Ended::Left,
        }
        match next().await {
            Next::Parts(next) => parts = next,
            Next::Later => {}
            Next::Gone => return Ended::Gone,
        }
    }
}

impl Web {
    /// The parts of a page, at most [`SHARED`] old.
    async fn parts(&self, url: &str, made: &Made) -> Result<Arc<Parts>, Problem> {
        let mut made = made.lock().await;
        if let Some((at, parts)) = &*made
            && at.elapsed() < SHARED
        {
            return Ok(Arc::clone(parts));
        }
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let page = self.page(path, &Query::parse(Some(query))).await?;
        let parts = Arc::new(split(&page));
        *made = Some((Instant::now(), Arc::clone(&parts)));
        Ok(parts)
    }
}

fn changed<'a>(sent: &Parts, parts: &'a Parts) -> Vec<(&'a String, &'a String)> {
    let is_new = |(id, html): &(&String, &String)| sent.get(*id) != Some(*html);
    parts.iter().filter(is_new).collect()
}

fn split(page: &str) -> Parts {
    let mut parts = Parts::new();
    for piece in page.split("<!--live ").skip(1) {
        let (Some((id, rest)), end) = (piece.split_once("-->"), "<!--/live-->") else {
            continue;
        };
        if let Some((html, _)) = rest.split_once(end) {
            parts.insert(id.to_owned(), html.to_owned());
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parts_that_changed_are_sent() {
        let page = |step| {
            let a = format!("<p id=a><!--live a--><b>{step}</b><!--/live--></p>");
            format!("<h1>x</h1>{a}<!--live b-->c<!--/live-->")
        };
        let (old, new) = (split(&page(1)), split(&page(2)));
        assert_eq!(old["a"], "<b>1</b>");
        let ids: Vec<&String> = changed(&old, &new).into_iter().map(|it| it.0).collect();
        assert_eq!(ids, ["a"]);
        assert_eq!(changed(&Parts::new(), &new).len(), 2);
        assert_eq!(split("<!--live a-->never ends"), Parts::new());
    }

    fn parts(step: u32) -> Arc<Parts> {
        let part = ("a".to_owned(), step.to_string());
        Arc::new([part].into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_browser_that_stops_reading_is_dropped() {
        let (sender, mut receiver) = mpsc::channel(QUEUE);
        let mut step = 0;
        let mut next = || {
            step += 1;
            std::future::ready(Next::Parts(parts(step)))
        };
        let begun = tokio::time::Instant::now();
        let ended = follow(&sender, parts(0), &mut next).await;
        // The queue takes an event a second; the next one waits for its reader in vain.
        let queue = u32::try_from(QUEUE).unwrap_or(0);
        assert_eq!(
            (ended, begun.elapsed()),
            (Ended::Slow, queue * EVERY + SLOW)
        );
        assert_eq!(step, queue);
        // One that reads stays as long as there is a page, however rarely that changes.
        let reading = tokio::spawn(async move {
            let mut events = 0;
            while receiver.recv().await.is_some() {
                events += 1;
            }
            events
        });
        let mut left = 100;
        let next = || {
            left -= 1;
            std::future::ready(match left {
                0 => Next::Gone,
                left if left % 2 == 0 => Next::Later,
                left => Next::Parts(parts(left / 10)),
            })
        };
        assert_eq!(follow(&sender, parts(0), next).await, Ended::Gone);
        drop(sender);
        // Those of the queue, the first of the second page, and its ten other states.
        assert_eq!(reading.await.unwrap_or(0), QUEUE + 1 + 10);
        let (sender, receiver) = mpsc::channel(QUEUE);
        drop(receiver);
        let next = || std::future::ready(Next::Later);
        assert_eq!(follow(&sender, parts(0), next).await, Ended::Left);
    }
}
